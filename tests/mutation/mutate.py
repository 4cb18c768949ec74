"""Mutation testing: plants one small fault after another and tells which of them no test notices.

    nice python tests/mutation/mutate.py                       # all six places
    nice python tests/mutation/mutate.py 'minirlhf.exact.*'    # some of them, by their dotted names

mutmut makes the mutants and knows which tests reach each function; its settings are in pyproject.toml. What it has
judged it keeps in mutants/, and judges again only what has changed since. Added here: the tests are collected once, and
a mutant is a fork of that process, which takes a tenth of a second; texts are left out, because a message is not what
this is for; and the mutants that live are compared with survivors.txt, which says of each why it is no fault. Exits
with 1 if over 3 % live without a reason.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has no threads of its parent's

import fnmatch
import sys
from collections import Counter
from pathlib import Path

import mutmut.__main__
import pytest
import survivors
from _pytest.config import _prepareconfig
from mutmut.configuration import config
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.mutators import mutation_operators, operator_string
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from mutmut.workers.isolation import ForkRunner, run_in_fork

MOST_UNEXPLAINED = 0.03
SECONDS = (2.0, 12.0)  # of tests for a mutant, and for one that lives: first those of the module's own file
ALIVE = ("survived", "no tests")


class Session:
    """Tests collected once, to be run in forks of this process."""

    def __init__(self) -> None:
        self.failed = False
        options = ["--rootdir=.", "--tb=no", "-qqq", *config().pytest_add_cli_args]
        with change_cwd("mutants"):
            # As pytest.main does it, which would end the session before a fork could use it.
            found = _prepareconfig([*options, *config().pytest_add_cli_args_test_selection], [self])
            found._do_configure()
            session = pytest.Session.from_config(found)
            found.hook.pytest_sessionstart(session=session)
            found.hook.pytest_collection(session=session)
        found.pluginmanager.unregister(name="terminalreporter")  # what the forks run is not printed
        self.items = {item.nodeid: item for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def run(self, tests: list[str]) -> int:
        """Run these tests up to the first that fails: 1 if one does, else 0."""
        forget()
        with change_cwd("mutants"):
            for item in (self.items[test] for test in tests):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
                if self.failed:
                    return 1
        return 0


class Runner(PytestRunner):
    """mutmut's runner of tests, with a session for all mutants instead of one for each."""

    session: Session | None = None
    seconds = SECONDS[0]

    def run_tests(self, *, mutant_name: str | None, tests: list[str]) -> int:
        self.session = self.session or Session()
        if mutant_name is None:  # the tests before there is any mutant, in this process
            return run_in_fork(self.session.run, sorted(tests or self.session.items))
        return self.session.run(nearest(mutant_name, tests, self.seconds))


def nearest(name: str, tests: list[str], most: float) -> list[str]:
    """Choose up to so many seconds of the tests that reach a mutant: its own module's first, the fastest first."""
    module = name.rpartition(".")[0].removeprefix("minirlhf.")
    folder, _, file = module.replace(".", "/").rpartition("/")
    own = f"tests/{folder}/test_{file}.py".replace("//", "/")
    seconds, chosen = 0.0, []
    for test in sorted(tests, key=lambda test: (not test.startswith(own), state().duration_by_test[test])):
        seconds += state().duration_by_test[test]
        if seconds > most and chosen:
            break
        chosen.append(test)
    return chosen


def forget() -> None:
    """Empty the caches that a process has of its parent: what a mutant computes is not in them."""
    for module in [module for name, module in sys.modules.items() if name.startswith("minirlhf.")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def key(name: str, path: Path) -> str:
    """Key of a mutant in survivors.txt."""
    function, of_class = orig_function_and_class_names_from_key(name)
    lines = [line for line in get_diff_for_mutant(name, path=path).splitlines() if not line.startswith(("---", "+++"))]
    old, new = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return survivors.named(f"{path} {of_class + '.' if of_class else ''}{function}", old, new)


def judged(names: tuple[str, ...]) -> tuple[Counter[str], dict[str, str], list[str]]:
    """Count what was judged; the mutants that live without a reason by name; what is explained and lives no more."""
    explained = survivors.Survivors(survivors.FILE.read_text(encoding="utf-8"))
    unexplained, counts = dict[str, str](), Counter[str]()
    for file, name, code in mutmut.__main__.collect_source_file_mutation_data(mutant_names=())[0]:
        if names and not any(fnmatch.fnmatch(name, pattern) for pattern in names):
            continue
        status = status_by_exit_code[code]
        if status in ALIVE:
            this = key(name, Path(file.path))
            status = "explained" if explained.explains(this) else "unexplained"
            if status == "unexplained":
                unexplained[name] = f"{this}\n"
        counts[status] += 1
    return counts, unexplained, [this for this, n in explained.known.items() if n > 0 and not names]


def report(counts: Counter[str], unexplained: dict[str, str], gone: list[str]) -> int:
    """Print the mutants that live and are not explained, and how many there are of what: the exit code."""
    print("", *unexplained.values(), sep="\n")
    if gone:
        print(f"{len(gone)} of survivors.txt do not live any more:", *gone, sep="\n")
    total = counts.total()
    print(f"{total} mutants:", ", ".join(f"{n} {what}" for what, n in counts.items()))
    share = counts["unexplained"] / max(total, 1)
    print(f"{share:.2%} live without a reason; at most {MOST_UNEXPLAINED:.0%} may")
    return int(share > MOST_UNEXPLAINED)


def main() -> int:
    names = tuple(sys.argv[1:])
    mutation_operators[:] = [pair for pair in mutation_operators if pair[1] is not operator_string]
    mutmut.__main__.get_mutant_runner = lambda max_workers=1: ForkRunner(1, Runner())
    again = names
    for Runner.seconds in SECONDS:
        mutmut.__main__._run(again, max_children=1)
        again = tuple(judged(names)[1])
        if not again:
            break
    return report(*judged(names))


if __name__ == "__main__":
    raise SystemExit(main())
