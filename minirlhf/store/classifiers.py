"""Reward models of others on disk: Llama-, Qwen2- or Qwen3ForSequenceClassification with one label, read only.

Not here: those that minirlhf has trained, which have a mean and a standard deviation (models.py), and the ids of a text
that such a model reads (builtin/trained.py).
"""

from pathlib import Path
from typing import Any, Final

import torch

from minirlhf.errors import CheckpointError, InputError
from minirlhf.models.families import NAMES, config_from_hf
from minirlhf.models.scorer import Scorer
from minirlhf.store.files import read_json
from minirlhf.store.weights import INDEX, WEIGHTS, check_stored, load_trunk

SCORED: Final = "ForSequenceClassification"  # end of an architecture's name
HEAD: Final = "score.weight"
MOST_TOKENS: Final = 4096  # in a batch: such a model may be a hundred times as large as ours


def architecture_of(directory: Path) -> str:
    """Name of a model's class in transformers by its config.json, "" without any (InputError if it is no JSON)."""
    where = directory / "config.json"
    named = read_json(where).get("architectures") if where.is_file() else None
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def is_classifier(directory: Path) -> bool:
    """True for a directory whose config.json says that its model classifies texts."""
    return architecture_of(directory).endswith(SCORED)


def load_classifier(directory: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Scorer:
    """Read a reward model: its trunk in a dtype, its head in float32 at least; scores stay as they are, mean 0, std 1.

    Raises InputError for more labels than one, another architecture, or weights that are missing or do not fit.
    """
    where = directory / "config.json"
    config = read_json(where)
    family = config_from_hf(config, str(where)).family
    if architecture_of(directory) != NAMES[family] + SCORED:
        what = f"the architecture {architecture_of(directory)[:60]} does not go with model_type = {family}"
        raise InputError(what, str(where), f"give a model of {NAMES[family]}{SCORED}")
    check_labels(label_count(config, where), "by its config.json", directory)
    if not (directory / WEIGHTS).is_file() and not (directory / INDEX).is_file():
        pickles = sorted(file.name for file in directory.glob("*.bin"))
        found = f" ({pickles[0][:60]} is a pickle, which can hold code)" if pickles else ""
        todo = "save it with model.save_pretrained(DIR), which writes safetensors"
        raise InputError(f"the reward model has no {WEIGHTS}{found}", str(directory), todo)
    try:
        trunk, others = load_trunk(directory, dtype, device, lm_head=False)
        head = others.pop(HEAD, None)
        if head is None or others:
            names = sorted(others)[:1] or [f"no {HEAD}"]
            raise InputError(f"its weights are not those of a {SCORED} ({names[0]})", str(directory), "save it again")
        if head.dim() == 2:
            check_labels(len(head), f"rows of {HEAD}", directory)
        check_stored(HEAD, head, torch.Size([1, trunk.config.hidden_size]), directory)
    except CheckpointError as fault:  # nothing of a run is damaged: the user's files are not complete
        raise InputError(str(fault)) from None
    scorer = Scorer(trunk)
    scorer.score.load_state_dict({"weight": head})
    scorer.most_tokens = MOST_TOKENS
    return scorer


def label_count(config: dict[str, Any], where: Path) -> int:
    """Number of labels as transformers counts them: names in id2label, else num_labels, else 2 (InputError)."""
    names, count = config.get("id2label"), config.get("num_labels")
    count = (len(names) if isinstance(names, dict) else 2) if count is None else count
    if type(count) is not int or (isinstance(names, dict) and len(names) != count):
        what = f"num_labels = {str(count)[:40]!r} does not go with id2label = {str(names)[:60]}"
        raise InputError(what, str(where), "give a complete config.json")
    return count


def check_labels(count: int, how: str, directory: Path) -> None:
    """Refuse a model that gives a text another number of scores than one (InputError)."""
    if count != 1:
        todo = "a reward is one score a text: give a model with num_labels = 1"
        raise InputError(f"the reward model has {count} labels ({how})", str(directory), todo)


def padding_id(directory: Path) -> int | None:
    """The id that the model skips at the end of a text: pad_token_id of config.json, None without any (InputError)."""
    where = directory / "config.json"
    found = read_json(where).get("pad_token_id")
    if found is None or type(found) is int:
        return found
    raise InputError(f"pad_token_id = {str(found)[:40]!r} is no id", str(where), "give a complete config.json")
