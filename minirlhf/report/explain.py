"""Explanation of a run: the sentences whose conditions hold, filled with its facts. No model of any kind has a say.

Not here: the sentences (sentences.py, verdicts.py, advice.py), and printing (cli/explain.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minirlhf.report import advice, sentences, verdicts
from minirlhf.report.read_facts import facts_of_run
from minirlhf.report.run_facts import Facts

SENTENCES = (
    *sentences.REWARDED,
    *sentences.TEXT,
    *verdicts.COST,
    *verdicts.BEATEN,
    *verdicts.OVER_TIME,
    *verdicts.HEALTH,
    *verdicts.ALARMS,
    *advice.ADVICE,
)
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Said:
    """A sentence about a run. section: its title in the language; name: of the sentence; page: in docs/."""

    section: str
    name: str
    text: str
    page: str


def explain(directory: Path, language: str = "en") -> list[Said]:
    """Sentences that are true of a run, in the order in which they are read; UsageError if there is no run."""
    return list(true_sentences(facts_of_run(directory), language))


def true_sentences(facts: Facts, language: str) -> Iterator[Said]:
    """Yield the sentences whose condition holds."""
    column = LANGUAGES.index(language)
    for sentence in SENTENCES:
        if sentence.when(facts):
            template, page = (sentence.english, sentence.chinese)[column], sentence.page
            page = sentences.IN_CHINESE.get(page, page) if column else page
            for item in sentence.each(facts):
                text = template.format(f=facts, x=item)
                yield Said(sentences.SECTIONS[sentence.section][column], sentence.name, text, page)
