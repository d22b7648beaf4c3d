"""Pictures of whole sets in folders, for metrics that compare one folder with another."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from varsr_engine.atomic import output_error
from varsr_engine.evaluation.luminance import Pixels


class SetFolders:
    """Keeps results and truths of each set as PNG below a folder. folders: set → results, truths, how many."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folders: dict[str, tuple[Path, Path, int]] = {}

    def add(self, set_name: str, result: Pixels, truth: Pixels) -> None:
        """Keep a picture, (H, W, 3) uint8 both. Raises OutputError."""
        base = self._root / str(len(self.folders))
        results, truths, count = self.folders.get(set_name, (base / "results", base / "truths", 0))
        try:
            for folder, pixels in ((results, result), (truths, truth)):
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{count:06d}.png")
        except OSError as error:
            raise output_error(self._root, error) from error
        self.folders[set_name] = (results, truths, count + 1)
