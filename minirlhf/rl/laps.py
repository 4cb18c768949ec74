"""Laps: seconds of the parts of an iteration, as they are logged."""

from time import perf_counter


class Laps:
    """Stopwatch that starts when it is made; `end` closes a lap under the name of its metric."""

    def __init__(self) -> None:
        self._last = perf_counter()
        self.seconds = dict[str, float]()

    def end(self, name: str) -> None:
        """End the current lap under this name; the next one begins."""
        now = perf_counter()
        self.seconds[name], self._last = now - self._last, now
