"""What a run says in words, to the log and wherever the user looks."""

import logging
from collections.abc import Callable, Sequence

log = logging.getLogger("loraclr")


class Notes:
    """The notes of a run, shown together. show: called with all notes so far, one a line, at each new one."""

    def __init__(self, show: Callable[[str], None]):
        self.show = show
        self.lines: list[str] = []
        self.lasting: list[str] | None = None

    def start(self) -> None:
        """Begin a run. What was said before the first is about the inputs, and stays."""
        if self.lasting is None:
            self.lasting = self.lines
        self.lines = list(self.lasting)

    def warn(self, lines: Sequence[str]) -> None:
        """Say where the result may differ from what was asked for."""
        self._add(logging.WARNING, lines)

    def tell(self, lines: Sequence[str]) -> None:
        """Say what is as it should be."""
        self._add(logging.INFO, lines)

    def _add(self, level: int, lines: Sequence[str]) -> None:
        if lines:
            log.log(level, "CLoRA: %s", "\n".join(lines))
            self.lines += lines
            self.show("\n".join(self.lines))
