"""Parts that the seeds of a comparison share: base, SFT model, reward model, prompts. No interval covers these.

Base, SFT model and reward model have seeds of their own in the configuration. Unless these follow the run's seed, all
runs of a variant begin with the same models, and an interval says only how PPO varies that begins with them.

Not here: making these models (stages/base.py, stages/preferences.py).
"""

from collections.abc import Mapping, Sequence

from minirlhf.config.schema import Config
from minirlhf.studies.grid import Cell
from minirlhf.studies.judged import trains_reward

BASE_SEEDS = ("pretrain.seed", "sft.seed", "reward_model.seed")  # keys that --vary-base sets to the run's seed
PROMPTS = "held-out prompts"


def seeded_parts(config: Config) -> dict[str, tuple[int, ...] | None]:
    """Parts that a run is made from or measured on: name -> seeds that decide it, None if no seed does."""
    start = (config.pretrain.seed, *([config.sft.seed] if config.corpus.demonstrations else []))
    # A model of the user's own is the same whatever the seed.
    parts: dict[str, tuple[int, ...] | None] = {"base": None if config.model.path else start[:1]}
    if config.corpus.demonstrations:
        parts["SFT model"] = start
    if trains_reward(config):
        parts["reward model"] = (*start, config.reward_model.seed)
    return parts if config.exact.problem else {**parts, PROMPTS: None}


def shared_parts(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return {"shared", "own"}: the parts that all seeds of a variant have in common, and those of each seed alone."""
    found: dict[str, set[tuple[str, tuple[int, ...] | None]]] = {}  # part -> (variant, deciding seeds) of the runs
    for cell in cells:
        for part, seeds in seeded_parts(cell.config).items():
            found.setdefault(part, set()).add((cell.variant.directory, seeds))
    own = [part for part, runs in found.items() if len(runs) > len({directory for directory, _ in runs})]
    return {"shared": [part for part in found if part not in own], "own": own}


def shared_sentence(parts: Mapping[str, Sequence[str]]) -> str:
    """One sentence that names what the seeds share, and what to do about it."""
    own, shared = parts["own"], parts["shared"]
    first = f"Each seed has its own {enumerated(own)}" if own else ""
    if not shared:
        return f"{first}."
    models = [part for part in shared if part != PROMPTS]
    todo = f" (--vary-base of compare makes another {enumerated(models)} for each seed)" if models else ""
    same = f"all seeds share {enumerated(shared)}, so that the intervals do not cover another choice of these{todo}."
    return f"{first}; {same}" if own else same[0].upper() + same[1:]


def enumerated(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
