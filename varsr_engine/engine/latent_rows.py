"""The latent of one image of several tiles, kept by rows: in memory while it is small, else in a temporary file."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from varsr_engine.errors import ResourceExhaustedError

SPOOL_BYTES = 32 * 1024 * 1024  # in memory; a larger latent waits in the system's temporary folder (TMPDIR)


class LatentRows:
    """A latent (Z, H, W) float32 that grows from top to bottom, whose rows are then read in any order.

    Rows are written one after the other, each (Z, W), so that a read is one piece of the file. The file has no name and
    goes with the object.
    """

    def __init__(self, channels: int, columns: int) -> None:
        self.channels, self.rows, self.columns = channels, 0, columns
        self._row_bytes = 4 * channels * columns
        self._file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - it lives as long as this object

    @classmethod
    def of(cls, latent: torch.Tensor) -> LatentRows:
        """A latent (Z, H, W) that is there already."""
        result = cls(latent.shape[0], latent.shape[2])
        result.append(latent)
        return result

    def append(self, rows: torch.Tensor) -> None:
        """The next rows, (Z, h, W). Raises ResourceExhaustedError where the disk is full."""
        data = rows.transpose(0, 1).float().cpu().contiguous().numpy().tobytes()
        try:
            self._file.seek(self.rows * self._row_bytes)
            self._file.write(data)
        except OSError as error:
            raise ResourceExhaustedError(
                f"the latent of an image this large waits in {tempfile.gettempdir()}, which has no room for it "
                f"({error.strerror}); free some, or set TMPDIR to a larger folder",
                needed=len(data),
            ) from error
        self.rows += rows.shape[1]

    def take(self, top: int, bottom: int) -> torch.Tensor:
        """Rows top to bottom, (Z, bottom - top, W) on the CPU."""
        self._file.seek(top * self._row_bytes)
        values = np.frombuffer(bytearray(self._file.read((bottom - top) * self._row_bytes)), dtype=np.float32)
        return torch.from_numpy(values).view(bottom - top, self.channels, self.columns).transpose(0, 1)

    def whole(self) -> torch.Tensor:
        """(Z, H, W) on the CPU."""
        return self.take(0, self.rows).contiguous()
