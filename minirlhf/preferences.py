"""From a file of comparisons to a reward model on disk: base, training, normalisation, report.

OUT/  config.json  model.safetensors  tokenizer.json  tokenizer_config.json     Hugging Face's layout
      score.json           mean and standard deviation of the base's own scores, the tokenizer's hash
      reward_model.json    the report, the settings
      config.toml  MANIFEST.json
"""

from datetime import datetime
from pathlib import Path
from time import perf_counter

import torch

from minirlhf.base import Base, Emit, prepare_base, sampler_of
from minirlhf.config import Config, dump_toml
from minirlhf.data import load_documents
from minirlhf.errors import UsageError
from minirlhf.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.models.scorer import Scorer
from minirlhf.reward_model import RewardModelState, encode, normalise, report, split, train
from minirlhf.store.files import complete_directory, write_json, write_text
from minirlhf.store.model import save_scorer
from minirlhf.streams import generator
from minirlhf.text.corpus import Comparison, read_comparisons

FILE = "reward_model.json"


def train_reward_model(config: Config, out: Path | None, device: torch.device, emit: Emit) -> Path:
    """Read `corpus.preferences`, train, report; returns the directory. Faults of the file are found before training."""
    if config.corpus.preferences is None:
        raise UsageError("there is nothing to learn from", "corpus.preferences", "give a file of comparisons")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = (out or Path("runs") / f"reward-model-{config.run.preset}-{stamp}").absolute()
    if directory.exists():
        raise UsageError("the directory exists", str(directory), "choose another --out, or remove it")
    comparisons, notes = read_comparisons(config.corpus.preferences, config.corpus.errors)
    documents = load_documents(config.corpus)
    base = prepare_base(config, documents, device, emit)
    learn, held = split(comparisons, config.reward_model.heldout_share, config.reward_model.seed)
    (pairs, more), (heldout, rest) = (
        encode(part, base.tokenizer, config.model.max_positions) for part in (learn, held)
    )
    for note in [*notes, *more, *rest]:
        emit({"event": "warning", "message": note})
    started = perf_counter()
    emit({"event": "stage", "stage": "reward_model", "pairs": len(pairs), "heldout": len(heldout)})
    model = Scorer(base.trunk).initialise(generator(config.reward_model.seed, "reward-model/head", 0)).to(device)
    responses = own_responses(config, base, comparisons, device)
    state = RewardModelState.start(model, config.reward_model)
    for step, metrics in train(state, pairs, heldout, config.reward_model):
        emit({"event": "reward_model", "step": step, **metrics})
    normalise(model, responses)
    facts = {
        "report": report(model, heldout),
        "best_step": state.best_step,
        "train_pairs": len(pairs),
        "settings": config.reward_model.model_dump(),
    }
    with complete_directory(directory) as temporary:
        save_scorer(temporary, model, base.tokenizer)
        write_json(temporary / FILE, facts)
        write_text(temporary / "config.toml", dump_toml(config))
    emit({"event": "reward_model_finished", "directory": str(directory), **facts, "seconds": perf_counter() - started})
    return directory


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
