"""Base: the model that a run starts from, pretrained once and reused; fine-tuned if there are demonstrations.

For a problem of the exact lab it is fitted to the problem's reference instead of pretrained.

    BASES/HASH/      config.json  model.safetensors  tokenizer.json  tokenizer_config.json  base.json  MANIFEST.json
    BASES/sft-HASH/  the same, or an adapter (store/adapters.py)

HASH is over everything that decides the weights. With `model.path` the base is a model of the user's own, and is read
where it lies. Not here: finding that (model_source.py), finding or making an artifact under a lock (artifacts.py), the
progress of an unfinished one (store/progress.py), and the training loops (pretrain.py, sft.py).
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from minirlhf.config.paths import check_place
from minirlhf.config.schema import Config, CorpusConfig, ModelConfig
from minirlhf.errors import CheckpointError, InputError, UsageError
from minirlhf.events import Emit
from minirlhf.exact import lab
from minirlhf.exact.problems import Problem, problems
from minirlhf.models.families import TransformerConfig
from minirlhf.models.lora import Adapted, Adapter, Trunk, backbone_of, learner
from minirlhf.models.optimizer import steps_too_small
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.quantise import check_quantiser, count_weights
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer
from minirlhf.stages import sft
from minirlhf.stages.artifacts import FACTS, find_or_make
from minirlhf.stages.data import load_documents
from minirlhf.stages.first_weights import prepare_weights
from minirlhf.stages.model_source import find_model, look_at_start, model_directory
from minirlhf.stages.pretrain import PretrainState, heldout_loss, train, windows
from minirlhf.store import progress
from minirlhf.store.adapters import is_adapted, load_adapter, load_backbone, model_hash
from minirlhf.store.files import complete_directory, read_json, write_json
from minirlhf.store.layout import artifact_name
from minirlhf.store.models import read_tokenizer, read_trunk, save_trunk
from minirlhf.store.weights import save_transformer
from minirlhf.streams import generator
from minirlhf.text.boundary import meeting_note
from minirlhf.text.comparisons import Demonstration, check_enough, hold_out, read_demonstrations, tell_shared
from minirlhf.text.files import corpus_hash
from minirlhf.text.tokenizer import Tokenizer, train_tokenizer

FORMAT = 5  # raise when the same settings would give other weights
NO_SIZES = {"separate_critic", "path", "dtype", "quantise"}  # keys of [model] that decide no pretrained weights


@dataclass(frozen=True)
class Base:
    """Model that a run starts from: its directory, trunk, tokenizer, and base.json (held-out loss, tokens, seconds).

    With `lora` the trunk is frozen: a backbone, or one with the adapter that is the start of all others.
    """

    directory: Path
    trunk: Trunk
    tokenizer: Tokenizer
    facts: dict[str, Any]


def problem_of(config: Config) -> Problem | None:
    """Problem of the exact lab that the config chooses, or None."""
    return None if config.exact.problem is None else problems()[config.exact.problem]


def sampler_of(config: Config, tokenizer: Tokenizer, vocab_size: int) -> Sampler:
    """Sampler of a run: the temperature, and the ids that may not be chosen."""
    problem, temperature = problem_of(config), config.sampler.temperature
    if problem is not None:
        return lab.problem_sampler(problem, tokenizer, temperature)
    return Sampler(temperature, banned=tokenizer.banned(vocab_size), stops=tokenizer.stops)


def reference_of(config: Config, policy: Policy, tokenizer: Tokenizer) -> Reference:
    """Reference that KL is measured against: the policy as it is now, or the table of a problem."""
    problem = problem_of(config)
    if problem is not None:
        return lab.TableReference(policy, problem, tokenizer)
    return Reference(policy, shared=config.lora.on)


def base_key(config: Config) -> dict[str, Any]:
    """Key of the base: everything that decides its weights."""
    corpus, problem = config.corpus, problem_of(config)
    if problem is not None:
        return {
            "format": FORMAT,
            "problem": problem.name,
            "table": lab.fingerprint(problem),
            "temperature": config.sampler.temperature,
            "model": config.model.model_dump(exclude=NO_SIZES),
            "seed": config.pretrain.seed,
        }
    if config.model.path is not None:
        model = {"model": model_hash(model_directory(config)), "dtype": config.model.dtype}
        return {"format": FORMAT, **model, "max_positions": config.model.max_positions}  # longer rows are left out
    check_place(corpus, "text")
    return {
        "format": FORMAT,
        "corpus": {
            "sha256": corpus_hash(corpus.text),
            "heldout_share": corpus.heldout_share,
            "errors": corpus.errors,
        },
        "tokenizer": config.tokenizer.model_dump(),
        "model": config.model.model_dump(exclude=NO_SIZES),
        "pretrain": config.pretrain.model_dump(),
    }


def start_key(config: Config) -> dict[str, Any]:
    """Key of the model that a run starts from, SFT included: everything that decides its weights."""
    key, lora = base_key(config), config.lora
    if lora.on:
        adapter = {"path": model_hash(Path(lora.path))} if lora.path else lora.model_dump(exclude={"path"})
        key = {"base": key, "lora": adapter, "dtype": config.model.dtype}
        key |= {"quantise": config.model.quantise} if config.model.quantise else {}
    source = config.corpus.demonstrations
    if source is None:
        return key
    check_place(config.corpus, "demonstrations")
    data = corpus_hash(source, which="demonstrations")
    return {"base": key, "demonstrations": data, "sft": config.sft.model_dump(), **template_key(config.corpus)}


def template_key(corpus: CorpusConfig) -> dict[str, Any]:
    """Part of a key that says how texts become ids; {} without a chat template, as before there were any."""
    return {} if corpus.template == "none" else {"template": corpus.template}


def prepare_start(config: Config, base: Base, device: torch.device, emit: Emit) -> Base:
    """Find or make the SFT model of this configuration; the base itself if there are no demonstrations."""
    if config.corpus.demonstrations is None:
        return base
    key = start_key(config)

    def fine_tune(directory: Path) -> None:
        build_sft(directory, key, config, base, device, emit)

    directory = find_or_make(Path(config.run.bases), "sft-", key, fine_tune, emit, "sft")
    return load_base(directory, config, device)


def prepare_base(config: Config, device: torch.device, emit: Emit) -> Base:
    """Find the base of this configuration, or make it; with `model.path` it is a model of the user's own."""
    check_quantiser(config.model.quantise)
    if config.model.path is not None:
        return own_base(config, device, emit)
    check_pretrained(config)
    look_at_start(config, own_sizes(config.model, config.tokenizer.vocab_size))
    key = base_key(config)
    build = fit_base if config.exact.problem else build_base

    def make(directory: Path) -> None:
        build(directory, key, config, device, emit)

    return load_base(find_or_make(Path(config.run.bases), "", key, make, emit, "base"), config, device)


def check_pretrained(config: Config) -> None:
    """Refuse settings that only a model of the user's own can have (UsageError); presets without one have them."""
    settings = {
        "model.dtype": config.model.dtype != "float32",
        "model.quantise": config.model.quantise is not None,
        "corpus.template": config.corpus.chat,
    }
    for key, given in settings.items():
        if given:
            raise UsageError("it is for a model of your own, and none is given", key, "give its directory: --model DIR")


def own_base(config: Config, device: torch.device, emit: Emit) -> Base:
    """The user's own model as a base, with the adapter of `lora.path` if there is one."""
    started, directory = perf_counter(), find_model(config, emit)
    try:
        trunk = start_trunk(directory, config, device)
    except CheckpointError as fault:  # nothing of a run is damaged: the user's files are
        raise InputError(str(fault)) from None
    facts = {
        "model": config.model.path, "family": trunk.config.family, "dtype": config.model.dtype,
        "sha256": model_hash(directory), "parameters": count_weights(backbone_of(trunk)),
        "seconds": perf_counter() - started,
    }  # fmt: skip
    emit({"event": "stage", "stage": "base", "reused": True, "directory": str(directory), **facts})
    tokenizer = read_tokenizer(directory, chat=config.corpus.chat)
    if tokenizer.vocab_size > trunk.config.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} ids, and the model {trunk.config.vocab_size}"
        raise InputError(what, str(directory), "give the tokenizer that belongs to this model")
    return Base(directory, trunk, tokenizer, facts)


def base_directory(config: Config) -> Path:
    """Directory of the base of this configuration, made or not."""
    if config.model.path is not None:
        return model_directory(config)
    return Path(config.run.bases) / artifact_name("", base_key(config))


def load_base(directory: Path, config: Config, device: torch.device) -> Base:
    """Load a base or an SFT model from its directory."""
    trunk = start_trunk(directory, config, device)
    tokenizer = read_tokenizer(directory, chat=config.corpus.chat)
    return Base(directory, trunk, tokenizer, read_json(directory / FACTS["base"]))


def start_trunk(directory: Path, config: Config, device: torch.device) -> Trunk:
    """The trunk of a base, or of an SFT model, on a device: whole and free to learn, or frozen behind adapters."""
    if not config.lora.on or is_adapted(directory):
        return read_trunk(directory, device)
    backbone = load_backbone(directory, config.model.dtype, device, config.model.quantise)
    if config.lora.path is None:
        return backbone
    return Adapted(backbone, load_adapter(Path(config.lora.path), backbone.config)[0].to(device))


def new_learner(config: Config, trunk: Trunk, seed: int) -> Trunk:
    """A trunk that begins as this one and learns: a copy with all its weights, or an adapter (drawn by the seed)."""
    lora, adapter = config.lora, None
    if lora.on and isinstance(trunk, Transformer):
        adapter = Adapter(trunk.config, lora.rank, lora.alpha, lora.targets).initialise(generator(seed, "lora", 0))
        adapter.to(trunk.embed_tokens.weight.device)
    return learner(trunk, adapter)


def read_sft_data(config: Config) -> tuple[list[Demonstration], list[str]] | None:
    """Demonstrations of the config, and notes on rows that were left out; None if it names no file."""
    source = config.corpus.demonstrations
    if source is None:
        return None
    check_place(config.corpus, "demonstrations")
    found, notes = read_demonstrations(source, config.corpus.errors)
    check_enough(found, source)
    return found, notes


def sft_examples(config: Config, tokenizer: Tokenizer) -> tuple[list[sft.Example], list[sft.Example], list[str]] | None:
    """Demonstrations of the config as (examples to learn from, held-out ones, notes); None if it names no file."""
    data, settings = read_sft_data(config), config.sft
    if data is None:
        return None
    fitting, more = sft.encode_demonstrations(data[0], tokenizer, config.model.max_positions)
    check_enough(fitting, str(config.corpus.demonstrations))
    examples, held = hold_out(fitting, settings.heldout_share, generator(settings.seed, "sft/split", 0))
    glued = meeting_note(((d.prompt, d.completion) for d in data[0]), "demonstrations")
    return examples, held, [*data[1], *more, *glued, *tell_shared(examples, held, "demonstrations")]


def build_sft(
    directory: Path, key: dict[str, Any], config: Config, base: Base, device: torch.device, emit: Emit
) -> None:
    """Fine-tune a copy of the base; the directory appears when it is complete."""
    started, settings, data = perf_counter(), config.sft, sft_examples(config, base.tokenizer)
    assert data is not None, "the caller has seen that there are demonstrations"
    examples, held, notes = data
    for note in [*notes, *steps_too_small("sft", settings.lr, settings.grad_clip)]:
        emit({"event": "warning", "message": note})
    model, steps = new_learner(config, base.trunk, settings.seed), sft.sft_steps(examples, settings)
    counts = {"demonstrations": len(examples), "heldout": len(held), "steps": steps}
    emit({"event": "stage", "stage": "sft", "reused": False, **counts})

    before, state = sft.demonstration_loss(model, held, settings.batch_size), sft.SFTState.start(model, settings)

    def told(step: int, metrics: dict[str, float]) -> None:
        emit({"event": "sft", "step": step, "steps": steps, **metrics})

    going = progress.progress_directory(directory)
    loop = sft.train(state, examples, settings, config.lora.dropout)
    progress.drive(going, artifact_name("sft-", key), state, loop, steps, told, emit)
    after = sft.demonstration_loss(model, held, settings.batch_size)
    facts = {**counts, "heldout_loss_before": before, "heldout_loss": after, "tokens": state.tokens}
    facts |= {"parameters": base.facts["parameters"], "seconds": perf_counter() - started}
    with complete_directory(directory) as temporary:
        save_trunk(temporary, model, base.tokenizer)
        write_json(temporary / FACTS["sft"], {**facts, "key": key})
    emit({"event": "sft_finished", "directory": str(directory), **facts})


def build_base(directory: Path, key: dict[str, Any], config: Config, device: torch.device, emit: Emit) -> None:
    """Train the tokenizer and the transformer; the directory appears when it is complete."""
    started, documents = perf_counter(), load_documents(config.corpus)
    emit({"event": "stage", "stage": "pretrain", "documents": len(documents.train), "steps": config.pretrain.steps})
    parts = ((d.text[: d.start], d.text[d.start :]) for d in documents.train if d.start)
    idle = steps_too_small("pretrain", config.pretrain.lr, config.pretrain.grad_clip)
    for note in [*meeting_note(parts, "documents that are made of both"), *idle]:
        emit({"event": "warning", "message": note})
    texts = [document.text for document in documents.train]
    tokenizer = train_tokenizer(texts, config.tokenizer.vocab_size)
    data = windows(texts, tokenizer, config.pretrain.sequence_length)
    heldout = windows([d.text for d in documents.heldout], tokenizer, config.pretrain.sequence_length)
    model = Transformer(own_sizes(config.model, tokenizer.vocab_size))
    model.initialise(generator(config.pretrain.seed, "init", 0))
    prepare_weights(model, data, generator(config.pretrain.seed, "init", 1)).to(device)
    state = PretrainState.start(model, config.pretrain)
    total = config.pretrain.steps
    every = max(1, total // 20)

    def told(step: int, metrics: dict[str, float]) -> None:
        if step % every == 0 or step == total:
            emit({"event": "pretrain", "step": step, "steps": total, **metrics})

    going = progress.progress_directory(directory)
    progress.drive(going, artifact_name("", key), state, train(state, data, config.pretrain), total, told, emit)
    seconds = perf_counter() - started
    facts = {
        "heldout_loss": heldout_loss(model, heldout, config.pretrain.batch_size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": state.tokens,
        "seconds": seconds,
        "tokens_per_s": state.tokens / seconds,
    }
    with complete_directory(directory) as temporary:
        save_transformer(temporary, model, tokenizer)
        write_json(temporary / "base.json", {**facts, "key": key})
    emit({"event": "stage", "stage": "base", "reused": False, "directory": str(directory), **facts})


def fit_base(directory: Path, key: dict[str, Any], config: Config, device: torch.device, emit: Emit) -> None:
    """Fit the transformer to the reference of the config's problem; the directory appears when it is complete."""
    started, problem = perf_counter(), problem_of(config)
    assert problem is not None, "chosen by exact.problem"
    tokenizer = lab.problem_tokenizer()
    model = Transformer(own_sizes(config.model, tokenizer.vocab_size))
    model.initialise(generator(config.pretrain.seed, "init", 0)).to(device)
    facts = lab.fit_to_problem(model, problem, tokenizer, config.sampler.temperature, config.pretrain.seed)
    facts |= {"parameters": sum(p.numel() for p in model.parameters()), "seconds": perf_counter() - started}
    with complete_directory(directory) as temporary:
        save_transformer(temporary, model, tokenizer)
        write_json(temporary / "base.json", {**facts, "key": key})
    emit({"event": "stage", "stage": "base", "reused": False, "directory": str(directory), **facts})


def own_sizes(model: ModelConfig, vocab_size: int) -> TransformerConfig:
    """Sizes of a base that is pretrained here, under Hugging Face's names."""
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.max_positions,
        rope_theta=model.rope_theta,
        rms_norm_eps=model.norm_eps,
    )
