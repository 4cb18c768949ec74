"""An observer: the metrics of every step as a row of RUN/metrics.csv, for a spreadsheet.

    minirlhf run --plugin plugins/csv_log.py --set 'run.observers=["csv_log"]'

An observer watches and changes nothing. If it fails, it is dropped with a warning while the run goes on.
"""

import csv

from minirlhf import hookimpl


class CsvLog:
    """The three methods of an observer: start, step, finish. A resumed run calls start again and goes on at a step."""

    def start(self, config, run_dir):
        self.path = run_dir / "metrics.csv"
        self.columns = []

    def step(self, step, experience, metrics):
        if not self.columns:  # the first step decides on the columns
            self.columns = ["step", *metrics]
            self.begin(step)
        self.write("a", [{"step": step, **metrics}])

    def finish(self, summary):
        pass  # every row is in the file already

    def begin(self, step):
        """Write the header and, if a run is resumed, its rows before this step: later ones will be written again."""
        rows = []
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        self.write("w", [dict(zip(self.columns, self.columns, strict=True)), *rows])

    def write(self, mode, rows):
        """Write or append rows; metrics that the first step did not have are left out."""
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerows(rows)


@hookimpl
def register_observers():
    return {"csv_log": CsvLog}
