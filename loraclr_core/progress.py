"""The progress of a long computation."""

from collections.abc import Callable


class Progress:
    """Reports a part's progress to `report(phase, share done)` of the whole, which may raise to stop everything."""

    def __init__(self, report: Callable[[str, float], None], start: float = 0.0, end: float = 1.0):
        self.report = report
        self.start, self.end = start, end

    def __call__(self, phase: str, done: float) -> None:
        """Report the current phase, and how much of this part is done, 0…1."""
        self.report(phase, self.start + (self.end - self.start) * done)

    def part(self, start: float, end: float) -> "Progress":
        """Return the progress of a part, from `start` to `end` of this one."""
        return Progress(self, start, end)
