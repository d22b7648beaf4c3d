"""Estimates NIQE's parameters from pristine photographs, of a folder and its subfolders.

    python -m varsr_engine.evaluation.fit_niqe photographs/ -o niqe.npz
    varsr eval pairs/ --niqe-params niqe.npz

Sharp, clean pictures at their own resolution: blur, noise and JPEG blocks in them become what the score calls good. The
authors took 125. What cannot be read is left out, with a warning. Scores are comparable only with the same parameters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from varsr_engine.errors import VarsrError
from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.evaluation.niqe import SHARPNESS, fit_niqe
from varsr_engine.evaluation.pixels import EVALUATION_LIMITS, read_pixels
from varsr_engine.imaging import READABLE_EXTENSIONS


def photographs(folder: Path) -> Iterator[Pixels]:
    """Every readable image below a folder, by name; a warning on stderr for the others."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in READABLE_EXTENSIONS and path.is_file():
            try:
                yield read_pixels(path, EVALUATION_LIMITS)
            except VarsrError as error:
                print(f"warning: left out: {error.message}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m varsr_engine.evaluation.fit_niqe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pristine photographs")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .npz file to write")
    parser.add_argument(
        "--sharpness",
        type=float,
        default=SHARPNESS,
        help="share of the sharpest block (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        parser.error(f"{str(args.folder)!r} is not a folder")
    try:
        params, blocks = fit_niqe(photographs(args.folder), args.sharpness)
        params.save(args.out)
    except VarsrError as error:
        sys.exit(f"error: {error.message}")
    print(f"{args.out}: parameters from {blocks} blocks")


if __name__ == "__main__":
    main()
