"""Reward model from a file of comparisons: start, training, normalisation, report, all saved in one directory.

OUT/  config.json  model.safetensors  tokenizer.json  tokenizer_config.json     Hugging Face's layout
      score.json           mean and standard deviation of the start's own scores, the tokenizer's hash
      reward_model.json    the report, the settings
      config.toml  MANIFEST.json

An ensemble has the files of the first two lines in OUT/0, OUT/1, ... Not here: the training loop and the report
(reward_model.py, reward_report.py), and reading files of comparisons (text/comparisons.py).
"""

import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from minirlhf.config.paths import check_place
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import UsageError
from minirlhf.events import Emit
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.optimizer import steps_too_small
from minirlhf.models.policy import Policy
from minirlhf.models.scorer import Ensemble, Scorer
from minirlhf.signals import Terminated
from minirlhf.stages.artifacts import FACTS, find_or_make
from minirlhf.stages.base import (
    Base,
    new_learner,
    prepare_base,
    prepare_start,
    read_sft_data,
    sampler_of,
    sft_examples,
    start_key,
    template_key,
)
from minirlhf.stages.reward_model import (
    Pair,
    RewardModelState,
    accuracy,
    encode_pairs,
    margins,
    normalise,
    reward_model_steps,
    train,
)
from minirlhf.stages.reward_report import measured, report
from minirlhf.store import progress
from minirlhf.store.files import complete_directory, write_json, write_text
from minirlhf.store.layout import artifact_name, claim_directory
from minirlhf.store.lock import locked
from minirlhf.store.models import save_scorer
from minirlhf.streams import generator
from minirlhf.text.boundary import meeting_note
from minirlhf.text.comparisons import Comparison, check_enough, hold_out, read_comparisons, tell_shared
from minirlhf.text.files import corpus_hash, is_packaged
from minirlhf.text.splits import shared_note

FILE = FACTS["reward_model"]
PREFIX = "reward-"
ONLY_TIES = "no comparison prefers a side (probability 0.5), so that no preference is learned: add some that do"
# Prompts below which the comparisons of the report also decide when to stop; those without a prompt count like prompts.
FEW = 50


def train_reward_model(config: Config, out: Path | None, device: torch.device, emit: Emit) -> Path:
    """Read `corpus.preferences`, train, report; return the directory. Faults of the file are found before training."""
    if out is not None and out.exists():
        raise UsageError("the directory exists", str(out.absolute()), "choose another --out, or remove it")
    pairs = read_pairs(config)
    read_sft_data(config)
    start = prepare_start(config, prepare_base(config, device, emit), device, emit)
    named = Path("runs") / f"reward-model-{config.run.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = (out or claim_directory(named, progress.progress_directory)).absolute()
    going = progress.progress_directory(directory)
    try:
        with locked(going / ".lock", emit, of=directory):
            build_reward_model(config, directory, start, pairs, device, emit)
            progress.discard_progress(going)
    except (KeyboardInterrupt, Terminated) as told:
        how = f"the same command with --out {shlex.quote(str(directory))} goes on"
        raise type(told)(how) from told
    return directory


def reward_model_key(config: Config) -> dict[str, Any]:
    """Key of the reward model of a config: everything that decides its weights."""
    source = config.corpus.preferences
    assert source is not None, "a reward waits for it"
    check_place(config.corpus, "preferences")
    files = ("comparisons", "heldout_comparisons") if is_packaged(source) else ("comparisons",)
    return {
        "start": start_key(config),
        "comparisons": [corpus_hash(source, which=name) for name in files],
        "settings": config.reward_model.model_dump(),
        "sampler": config.sampler.model_dump(),
        **template_key(config.corpus),
    }


def reward_model_directory(config: Config) -> Path:
    """Directory of the reward model of this configuration, made or not: beside the bases."""
    return Path(config.run.bases) / artifact_name(PREFIX, reward_model_key(config))


def prepare_reward_model(config: Config, start: Base, device: torch.device, emit: Emit) -> Path:
    """Find the reward model of this configuration's comparisons, or train it."""

    def make(directory: Path) -> None:
        build_reward_model(config, directory, start, read_pairs(config), device, emit)

    return find_or_make(Path(config.run.bases), PREFIX, reward_model_key(config), make, emit, "reward_model")


@dataclass(frozen=True)
class Comparisons:
    """Comparisons to learn from, those for the report (None: to be held out), and notes on rows that were left out."""

    train: list[Comparison]
    heldout: list[Comparison] | None
    notes: list[str]


def read_pairs(config: Config) -> Comparisons:
    """Read `corpus.preferences`, or `reward_model.pairs` of them; a packaged corpus has another file for the report."""
    source, errors, settings = config.corpus.preferences, config.corpus.errors, config.reward_model
    if source is None:
        raise UsageError("there is nothing to learn from", "corpus.preferences", "give a file of comparisons")
    check_place(config.corpus, "preferences")
    found, notes = read_comparisons(source, errors)
    check_enough(found, source)
    heldout = None
    if is_packaged(source):
        heldout, more = read_comparisons(source, errors, which="heldout_comparisons")
        notes = [*notes, *more]
    if settings.pairs is not None and settings.pairs > len(found):
        what, todo = f"there are {len(found)} comparisons", "lower it, or leave it out"
        raise UsageError(what, f"reward_model.pairs = {settings.pairs}", todo)
    if settings.pairs is not None:
        order = torch.randperm(len(found), generator=generator(settings.seed, "reward-model/pairs", 0)).tolist()
        found = [found[i] for i in sorted(order[: settings.pairs])]
    return Comparisons(found, heldout, notes)


def divide(pairs: list[Pair], heldout: list[Pair] | None, config: Config) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Split into (training, watched to decide when to stop, held out for the report).

    The report is on comparisons that decided nothing, unless there are too few prompts (FEW) to hold out twice.
    """
    settings = config.reward_model
    if heldout is None:
        check_enough(pairs, str(config.corpus.preferences))
        pairs, heldout = hold_out(pairs, settings.heldout_share, generator(settings.seed, "reward-model/split", 0))
    if len({pair.prompt or pair.content for pair in pairs}) < FEW:
        return pairs, heldout, heldout
    watched = generator(settings.seed, "reward-model/watched", 0)
    return (*hold_out(pairs, settings.heldout_share, watched), heldout)


def tell_tuned(config: Config, start: Base, heldout: list[Pair]) -> list[str]:
    """Note on held-out comparisons whose chosen side the start model has learned from a demonstration; none or one."""
    data = sft_examples(config, start.tokenizer)
    known = {tuple(example.ids) for example in data[0]} if data else set()
    chosen = [tuple(pair.chosen) for pair in heldout if not pair.tie]
    return shared_note(known, chosen, "chosen sides of held-out comparisons", "give other demonstrations")


def tell_ties(watched: list[Pair], heldout: list[Pair]) -> list[str]:
    """Note on an accuracy that cannot be measured because all the comparisons for it are ties; none or one."""
    uses = {"decide when to stop": watched, "report the accuracy": heldout}
    ties = [use for use, pairs in uses.items() if all(pair.tie for pair in pairs)]
    if not ties:
        return []
    what = f"all comparisons that are held out to {' and to '.join(ties)} are ties, which have no accuracy"
    return [f"{what}: give more comparisons in which one side is better"]


def build_reward_model(
    config: Config, directory: Path, start: Base, read: Comparisons, device: torch.device, emit: Emit
) -> None:
    """Train each member on a copy of the start, report and save; the directory appears when it is complete."""
    longest, started, count = config.model.max_positions, perf_counter(), config.reward_model.ensemble
    encoded = [encode_pairs(part, start.tokenizer, longest) for part in (read.train, read.heldout) if part is not None]
    pairs, watched, heldout = divide(encoded[0][0], encoded[1][0] if read.heldout else None, config)
    notes = [*read.notes, *(note for part in encoded for note in part[1])]
    notes += [*tell_shared(pairs, heldout, "comparisons"), *tell_tuned(config, start, heldout)]
    notes += meeting_note(
        ((c.prompt, c.chosen, c.rejected) for c in [*read.train, *(read.heldout or [])]), "comparisons"
    )
    notes += tell_ties(watched, heldout) if any(not pair.tie for pair in pairs) else [ONLY_TIES]
    notes += steps_too_small("reward_model", config.reward_model.lr, config.reward_model.grad_clip)
    for note in notes:
        emit({"event": "warning", "message": note})
    apart = len(watched) if watched is not heldout else 0  # 0: those of the report decide when to stop as well
    sizes = {"pairs": len(pairs), "watched": apart, "heldout": len(heldout), "ensemble": count}
    emit({"event": "stage", "stage": "reward_model", "reused": False, **sizes})
    responses = own_responses(config, start, pairs, device)
    members, best_steps = [], []
    for index in range(count):
        going = progress.progress_directory(directory) / str(index)
        model, best_step = build_member(config, index, start, pairs, watched, going, emit)
        normalise(model, responses)
        members.append(model)
        best_steps.append(best_step)
    facts: dict[str, Any] = {
        "report": report(members[0] if count == 1 else Ensemble(members), heldout),
        "best_step": best_steps[0] if count == 1 else best_steps,
        "train_pairs": len(pairs),
        "watched_pairs": len(watched),
        "settings": config.reward_model.model_dump(),
        "seconds": perf_counter() - started,
    }
    facts["report"]["decided_when_to_stop"] = watched is heldout
    if count > 1:
        decided = [pair for pair in heldout if not pair.tie]
        facts["report"]["members"] = [measured(accuracy(margins(model, decided))) for model in members]
    with complete_directory(directory) as temporary:
        for index, model in enumerate(members):
            folder = temporary if count == 1 else temporary / str(index)
            folder.mkdir(exist_ok=True)
            save_scorer(folder, model, start.tokenizer)
        write_json(temporary / FILE, facts)
        write_text(temporary / "config.toml", dump_toml(config))
    emit({"event": "reward_model_finished", "directory": str(directory), **facts})


def build_member(
    config: Config,
    index: int,
    start: Base,
    pairs: list[Pair],
    watched: list[Pair],
    going: Path,
    emit: Emit,
) -> tuple[Scorer, int]:
    """Train one reward model with its own first head and order of comparisons; return it and its best step.

    going: directory of its progress.
    """
    settings = config.reward_model.model_copy(update={"seed": config.reward_model.seed + 1000 * index})
    random = generator(settings.seed, "reward-model/head", 0)
    model = Scorer(new_learner(config, start.trunk, settings.seed)).initialise(random)
    state = RewardModelState.start(model, settings)

    steps = train(state, pairs, watched, settings, config.lora.dropout)
    total = reward_model_steps(pairs, settings)

    def told(step: int, metrics: dict[str, float]) -> None:
        emit({"event": "reward_model", "member": index, "step": step, "steps": total, **metrics})

    progress.drive(going, artifact_name(PREFIX, reward_model_key(config)), state, steps, total, told, emit)
    return model, state.best_step


@torch.no_grad()
def own_responses(config: Config, base: Base, comparisons: list[Pair], device: torch.device) -> list[list[int]]:
    """Ids, prompt and response, of the base's own responses to prompts of the comparisons, as PPO will score them."""
    sampler, new = sampler_of(config, base.tokenizer, base.trunk.config.vocab_size), config.sampler.max_new_tokens
    room = config.model.max_positions - new - 1
    begun = base.tokenizer.beginnings([c.prompt for c in comparisons], [c.spoken for c in comparisons])
    texts = [(c.prompt, c.spoken) for c, ids in zip(comparisons, begun, strict=True) if len(ids) <= room + 1]
    texts = texts or [("", None)]
    picks = torch.randint(
        len(texts), (config.reward_model.samples,), generator=generator(config.reward_model.seed, "own", 0)
    )
    chosen = [texts[i] for i in picks.tolist()]
    prompts, spoken = [prompt for prompt, _ in chosen], [messages for _, messages in chosen]
    batch = PromptBatch.build(prompts, [{} for _ in chosen], base.tokenizer, spoken=spoken, device=device)
    rows: list[list[int]] = []
    for index, part in enumerate(batch.parts(64)):
        random = generator(config.reward_model.seed, "own/sample", index)
        rollout = generate(Policy(base.trunk, sampler), part, base.tokenizer, max_new_tokens=new, generator=random)
        pairs = zip(rollout.prompt_id_lists, rollout.completion_id_lists, strict=True)
        rows += [[*prompt, *completion] for prompt, completion in pairs]
    return rows
