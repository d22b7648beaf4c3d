"""How large a batch may be after the device ran out of memory."""

from __future__ import annotations

# Successes at the limit before it is doubled: a device that is really full loses one batch in as many.
PATIENCE = 64


class BatchLimit:
    """Halves where a batch does not fit, and doubles after PATIENCE batches of the size that does."""

    def __init__(self) -> None:
        self.size: int | None = None  # None: as many as the runner says
        self._successes = 0

    def allowed(self, most: int) -> int:
        """How many units may run where the runner would take `most`."""
        return max(1, most if self.size is None else min(most, self.size))

    def too_large(self, size: int) -> None:
        """A batch of `size` ran out of memory."""
        self.size, self._successes = max(1, size // 2), 0

    def fitted(self, size: int, most: int) -> None:
        """A batch of `size` succeeded, where the runner would take `most`. Smaller ones prove nothing."""
        if self.size is None or size < self.size:
            return
        self._successes += 1
        if self._successes >= PATIENCE:
            self.size, self._successes = self.size * 2, 0
            if self.size >= most:
                self.size = None
