"""From a file of comparisons to a reward model on disk: base, training, normalisation, report.

OUT/  config.json  model.safetensors  tokenizer.json  tokenizer_config.json     Hugging Face's layout
      score.json           mean and standard deviation of the base's own scores, the tokenizer's hash
      reward_model.json    the report, the settings
      config.toml  MANIFEST.json
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter

import torch

from minirlhf.base import Base, Emit, base_key, prepare_base, sampler_of
from minirlhf.config import Config, dump_toml
from minirlhf.data import load_documents
from minirlhf.errors import CheckpointError, UsageError
from minirlhf.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.models.scorer import Scorer
from minirlhf.reward_model import RewardModelState, encode, normalise, report, split, train
from minirlhf.store.files import complete_directory, verify, write_json, write_text
from minirlhf.store.lock import locked
from minirlhf.store.model import read_json, save_scorer
from minirlhf.streams import generator
from minirlhf.text.corpus import Comparison, is_packaged, read_comparisons

FILE = "reward_model.json"


def train_reward_model(config: Config, out: Path | None, device: torch.device, emit: Emit) -> Path:
    """Read `corpus.preferences`, train, report; returns the directory. Faults of the file are found before training."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = (out or Path("runs") / f"reward-model-{config.run.preset}-{stamp}").absolute()
    if directory.exists():
        raise UsageError("the directory exists", str(directory), "choose another --out, or remove it")
    pairs = read_pairs(config)
    base = prepare_base(config, load_documents(config.corpus), device, emit)
    build(config, directory, base, pairs, device, emit)
    return directory


def prepare_reward_model(config: Config, base: Base, device: torch.device, emit: Emit) -> Path:
    """Find the reward model of this configuration's comparisons, or train it: kept beside the bases by its key."""
    pairs = read_pairs(config)
    texts = [(c.prompt, c.chosen, c.rejected, c.margin, c.probability) for c in pairs.train]
    key = {
        "base": base_key(config),
        "comparisons": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "settings": config.reward_model.model_dump(),
        "sampler": config.sampler.model_dump(),
    }
    name = "reward-" + hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(config.run.bases) / name
    with locked(directory.with_name(f".{name}.lock"), wait=True):
        if directory.exists():
            try:
                verify(directory)
                facts = read_json(directory / FILE)
                emit({"event": "stage", "stage": "reward_model", "reused": True, "directory": str(directory), **facts})
                return directory
            except CheckpointError as fault:
                emit({"event": "warning", "message": f"the reward model is trained again: {fault}"})
        build(config, directory, base, pairs, device, emit)
    return directory


@dataclass(frozen=True)
class Pairs:
    """Comparisons to learn from and to report on, and what was left out."""

    train: list[Comparison]
    heldout: list[Comparison]
    notes: list[str]


def read_pairs(config: Config) -> Pairs:
    """A packaged corpus has a file for each; of any other source whole prompts are held out."""
    source, errors, settings = config.corpus.preferences, config.corpus.errors, config.reward_model
    if source is None:
        raise UsageError("there is nothing to learn from", "corpus.preferences", "give a file of comparisons")
    found, notes = read_comparisons(source, errors)
    if is_packaged(source):
        held, more = read_comparisons(source, errors, which="heldout_comparisons")
        return Pairs(found, held, [*notes, *more])
    return Pairs(*split(found, settings.heldout_share, settings.seed), notes)


def build(config: Config, directory: Path, base: Base, read: Pairs, device: torch.device, emit: Emit) -> None:
    """Train on a copy of the base and save; the directory appears when it is complete."""
    longest, started = config.model.max_positions, perf_counter()
    (pairs, more), (heldout, rest) = (encode(part, base.tokenizer, longest) for part in (read.train, read.heldout))
    for note in [*read.notes, *more, *rest]:
        emit({"event": "warning", "message": note})
    emit({"event": "stage", "stage": "reward_model", "reused": False, "pairs": len(pairs), "heldout": len(heldout)})
    responses = own_responses(config, base, read.train, device)
    random = generator(config.reward_model.seed, "reward-model/head", 0)
    model = Scorer(copy.deepcopy(base.trunk)).initialise(random).to(device)
    state = RewardModelState.start(model, config.reward_model)
    for step, metrics in train(state, pairs, heldout, config.reward_model):
        emit({"event": "reward_model", "step": step, **metrics})
    normalise(model, responses)
    facts = {
        "report": report(model, heldout),
        "best_step": state.best_step,
        "train_pairs": len(pairs),
        "settings": config.reward_model.model_dump(),
        "seconds": perf_counter() - started,
    }
    with complete_directory(directory) as temporary:
        save_scorer(temporary, model, base.tokenizer)
        write_json(temporary / FILE, facts)
        write_text(temporary / "config.toml", dump_toml(config))
    emit({"event": "reward_model_finished", "directory": str(directory), **facts})


@torch.no_grad()
def own_responses(config: Config, base: Base, comparisons: list[Comparison], device: torch.device) -> list[list[int]]:
    """Ids of the base's own responses to prompts of the comparisons, as PPO will score them: prompt and response."""
    sampler, new = sampler_of(config, base.tokenizer), config.sampler.max_new_tokens
    room = config.model.max_positions - new - 1
    texts = [c.prompt for c in comparisons if len(base.tokenizer.encode(c.prompt)) <= room] or [""]
    picks = torch.randint(
        len(texts), (config.reward_model.samples,), generator=generator(config.reward_model.seed, "own", 0)
    )
    chosen = [texts[i] for i in picks.tolist()]
    batch = PromptBatch.build(chosen, [{} for _ in chosen], base.tokenizer, device=device)
    rows: list[list[int]] = []
    for index, part in enumerate(batch.parts(64)):
        random = generator(config.reward_model.seed, "own/sample", index)
        rollout = generate(Policy(base.trunk, sampler), part, base.tokenizer, max_new_tokens=new, generator=random)
        pairs = zip(rollout.prompt_id_lists, rollout.completion_id_lists, strict=True)
        rows += [[*prompt, *completion] for prompt, completion in pairs]
    return rows
