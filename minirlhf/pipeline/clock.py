"""Wall-clock seconds of the stages of a run."""

from time import perf_counter


class StageClock:
    """Stopwatch with a lap for each stage; it starts when it is made."""

    def __init__(self) -> None:
        self._started = self._last = perf_counter()
        self._laps = dict[str, float]()

    def lap(self, stage: str) -> None:
        """End a stage now: everything since the last lap counts as its time."""
        now = perf_counter()
        self._laps[stage], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, and those since the start as `total`."""
        return {**self._laps, "total": perf_counter() - self._started}
