"""The whole run as frozen, strict pydantic models, and how files and flags become one.

Layers, later ones win: the defaults below (the preset `reviews` is exactly them), then a preset's or a file's keys,
then options such as `--kl`, then `--set key=value`. A layer that chooses another component drops the options that
lower layers gave to the old one. A file that has [rewards] replaces the set of rewards, and so does `--reward`, which
keeps the options that the file gave to equal labels.

The sections kl, advantage, loss and rewards.LABEL choose a component: their own keys are fixed, every other key is an
option of that component and is checked against its signature. All faults are found in one go (ConfigError), each with
its dotted path, its value, where it came from and what may have been meant.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minirlhf import registry as plugin_registry
from minirlhf.components import nearest
from minirlhf.errors import ConfigError, UsageError
from minirlhf.exact.problems import problems
from minirlhf.registry import BUILTIN_OWNER, Registry
from minirlhf.text.files import is_packaged

MAX_BYTES = 1 << 20  # a config of more than 1 MiB is something else given by mistake
MAX_DEPTH = 32  # tables and arrays within each other: no key needs more, and what reads them recurses
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RunConfig(Section):
    preset: str = Field("reviews", pattern=LABEL.pattern.join("^$"), description="name in the run directory's name")
    seed: int = Field(0, ge=0, description="decides prompts' order, sampling, minibatches and evaluation")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(2, ge=1, le=1024, description="CPU threads; sums depend on it, so it is part of the config")
    bases: str = Field("runs/bases", min_length=1, description="where pretrained bases are kept and found again")
    observers: tuple[str, ...] = Field((), description="observers that watch the run")
    log_every: int = Field(1, ge=1, description="iterations between two entries of samples.jsonl and tokens.jsonl")
    samples: int = Field(4, ge=0, description="responses of an iteration that samples.jsonl keeps")
    token_log: int = Field(
        4, ge=0, le=64, description="responses of an iteration that tokens.jsonl keeps, token by token"
    )
    checkpoint_every: int = Field(5, ge=0, description="iterations between checkpoints; 0 = only the last")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    on_reward_error: Literal["abort", "skip"] = Field(
        "abort", description="skip: an iteration whose reward fails teaches nothing; after three in a row the run ends"
    )
    reward_timeout_s: float | None = Field(
        None, gt=0, le=1e6, description="seconds that the rewards of a batch may take"
    )


class TokenizerConfig(Section):
    vocab_size: int = Field(1536, ge=259, le=1 << 20, description="tokens, the 3 special ones and 256 bytes included")


class ModelConfig(Section):
    layers: int = Field(2, ge=1, le=256, description="decoder blocks")
    hidden_size: int = Field(128, ge=2, le=65536, description="width")
    heads: int = Field(4, ge=1, description="query heads; divides hidden_size into an even head size")
    kv_heads: int = Field(4, ge=1, description="key and value heads (grouped-query attention); divides heads")
    intermediate_size: int = Field(256, ge=1, le=1 << 20, description="width of the SwiGLU block")
    max_positions: int = Field(128, ge=8, le=1 << 20, description="context: prompt and response, tokens")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(1e-5, gt=0, description="added to the mean square in RMSNorm")
    separate_critic: bool = Field(False, description="values from a second trunk instead of a head on the policy's")


class CorpusConfig(Section):
    text: str = Field("reviews", min_length=1, description="what to pretrain on: file, folder or packaged name")
    prompts: str | None = Field(
        None, min_length=1, description="training prompts; left out: packaged ones, or openings"
    )
    heldout_prompts: str | None = Field(None, min_length=1, description="evaluation prompts; else a fifth of prompts")
    demonstrations: str | None = Field(None, min_length=1, description="for SFT: prompt, completion; or messages")
    preferences: str | None = Field(None, min_length=1, description="comparisons: prompt, chosen, rejected")
    opening_words: int = Field(4, ge=1, description="length of an opening that serves as a prompt: words or characters")
    heldout_share: float = Field(0.02, gt=0, lt=1, description="documents held out for the pretraining loss")
    errors: Literal["strict", "replace"] = Field("strict", description="bytes that are not UTF-8: an error, or U+FFFD")


class ExactConfig(Section):
    problem: str | None = Field(
        None, min_length=1, description="a problem of the exact lab in place of corpus and pretraining"
    )


class PretrainConfig(Section):
    steps: int = Field(1700, ge=1, description="optimiser steps (never the clock)")
    batch_size: int = Field(16, ge=1, le=1 << 20, description="documents a step")
    sequence_length: int = Field(128, ge=2, description="longest piece of a document, tokens")
    lr: float = Field(5e-3, gt=0, le=1e30, description="largest learning rate")
    warmup: int = Field(200, ge=0, description="steps of linear warm-up, at most half of all")
    final_lr: float = Field(0.05, ge=0, le=1, description="share of lr at the end of the cosine")
    weight_decay: float = Field(0.3, ge=0, description="of matrices, decoupled (AdamW)")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam's decay of the mean square")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    seed: int = Field(0, ge=0, description="decides initial weights and data order; runs of all seeds share a base")


class SFTConfig(Section):
    epochs: int = Field(2, ge=1, description="passes over the demonstrations")
    batch_size: int = Field(32, ge=1, le=1 << 16, description="demonstrations a step")
    lr: float = Field(1e-3, gt=0, le=1e30, description="largest learning rate")
    warmup: int = Field(10, ge=0, description="steps of linear warm-up, at most half of all")
    weight_decay: float = Field(0.0, ge=0, description="decoupled (AdamW)")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    heldout_share: float = Field(0.05, gt=0, lt=1, description="prompts held out for the loss")
    seed: int = Field(0, ge=0, description="decides split and order")


class RewardModelConfig(Section):
    epochs: int = Field(3, ge=1, description="passes over the comparisons")
    batch_size: int = Field(32, ge=1, le=1 << 16, description="comparisons a step")
    lr: float = Field(1.5e-3, gt=0, le=1e30, description="largest learning rate")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up, at most half of all")
    weight_decay: float = Field(0.01, ge=0, description="decoupled (AdamW)")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be wrong")
    centring: float = Field(0.001, ge=0, description="weight of (score chosen + score rejected)^2")
    patience: int = Field(5, ge=1, description="looks at the held-out accuracy without a rise before it stops")
    heldout_share: float = Field(
        0.1, gt=0, lt=1, description="prompts held out for the report, and of the rest for when to stop"
    )
    samples: int = Field(256, ge=2, description="the base's own responses that scores are normalised on")
    pairs: int | None = Field(
        None, ge=2, description="use so many of the comparisons, drawn by the seed; left out: all"
    )
    ensemble: int = Field(1, ge=1, le=64, description="models trained, each with its own first head and order")
    seed: int = Field(0, ge=0, description="decides the head's first weights, split, order and draw")


class ComponentSection(Section):
    """A section that chooses a component; `options` holds its other keys."""

    options: dict[str, Any] = Field(default_factory=dict)


class RewardConfig(ComponentSection):
    use: str = Field(min_length=1, description="reward: NAME, OWNER:NAME or FILE.py:FUNCTION (left out: the label)")
    weight: float = Field(1.0, description="in the sum of the rewards")
    normalize: bool = Field(False, description="to mean 0, variance 1 over responses of the reference, before the run")
    clip: float | None = Field(None, gt=0, description="cut to +- this, after normalising and before weighing")


class KLConfig(ComponentSection):
    estimator: str = Field("k1", min_length=1, description="KL estimator: nats a token against the reference")
    place: Literal["reward", "loss", "both"] = Field("reward", description="where beta KL goes")
    coef: float = Field(0.09, ge=0, description="beta: score units per nat")
    controller: Literal["fixed", "adaptive"] = Field("fixed", description="beta fixed, or steered to `target`")
    target: float | None = Field(None, gt=0, description="adaptive: nats per sequence")
    horizon: int = Field(10000, ge=1, description="adaptive: responses over which beta may change e-fold")


class AdvantageConfig(ComponentSection):
    function: str = Field("gae", min_length=1, description="advantage function")
    whiten: Literal["auto", "batch", "population", "scale", "none"] = Field(
        "auto", description="auto: over the batch for functions of V, none for all others"
    )


class LossConfig(ComponentSection):
    policy: str = Field("ppo_clip", min_length=1, description="policy loss")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="how token losses become one number"
    )
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    value_clip: float = Field(0.2, ge=0, description="values may move this far from the old ones; 0 = no clip")
    penalty: float = Field(1.0, ge=0, description="beta of ppo_penalty: weight of KL(policy, the one that sampled)")
    penalty_target: float | None = Field(None, gt=0, description="steer that beta to this KL, nats per token")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")


class PPOConfig(Section):
    iterations: int = Field(24, ge=0, description="rollouts, each followed by its epochs")
    prompts_per_iteration: int = Field(128, ge=1, le=1 << 20, description="prompts a rollout")
    responses_per_prompt: int = Field(1, ge=1, le=1 << 16, description="responses a prompt: a group")
    epochs: int = Field(2, ge=1, description="passes over a rollout")
    minibatch_size: int = Field(32, ge=1, description="responses an optimiser step")
    micro_batch_size: int | None = Field(None, ge=1, description="responses a forward pass; same gradient, less memory")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the blocks' matrix products and attention while PPO runs"
    )
    lr: float = Field(3e-4, gt=0, le=1e30, description="learning rate")
    schedule: Literal["linear", "constant"] = Field("linear", description="linear: to 0 over the iterations")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    target_kl: float | None = Field(None, gt=0, description="stop the epochs at 1.5 x this approx_kl (nats a token)")
    critic_warmup: int = Field(0, ge=0, description="first iterations that train only the value head")
    score_slot: Literal["last", "after"] = Field(
        "last", description="where the score lands: on the last token, or one slot behind the EOS (TRL)"
    )
    score_clip: float | None = Field(None, gt=0, description="scores are cut to +- this")
    score_normalize: bool = Field(False, description="scores to mean 0, variance 1 over the run so far")


class SamplerConfig(Section):
    temperature: float = Field(0.7, ge=1e-3, le=1e3, description="of sampling and of every log-probability")
    max_new_tokens: int = Field(64, ge=1, description="longest response")


class TruncationConfig(Section):
    rule: Literal["keep", "penalty", "replace", "mask", "bootstrap"] = Field(
        "keep", description="what becomes of a response without EOS"
    )
    value: float | None = Field(None, description="penalty: subtracted; replace: the score")


class EvaluationConfig(Section):
    prompts: int = Field(256, ge=1, description="held-out prompts")
    residual_prompts: int = Field(32, ge=0, description="of them for residual_std, which needs several responses each")
    residual_responses: int = Field(4, ge=2, le=1 << 16, description="responses to each of those")
    best_of: int = Field(
        16, ge=0, le=1 << 16, description="the reference's responses to each of those for best-of-n; 0: none"
    )
    samples: int = Field(8, ge=0, description="of them shown side by side")
    bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples of the interval")


class Config(Section):
    """One run. `config show` prints it, `config schema` describes it."""

    plugins: tuple[str, ...] = Field((), description="plugin files and modules to load")
    run: RunConfig = RunConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    corpus: CorpusConfig = CorpusConfig()
    exact: ExactConfig = ExactConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    rewards: dict[str, RewardConfig] = Field(
        {"sentiment": RewardConfig(use="sentiment")}, description="label -> reward"
    )
    kl: KLConfig = KLConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    ppo: PPOConfig = PPOConfig()
    sampler: SamplerConfig = SamplerConfig()
    truncation: TruncationConfig = TruncationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


CHOOSERS = {"kl": "estimator", "advantage": "function", "loss": "policy"}  # section -> the key that names a component
SECTIONS: dict[str, type[ComponentSection]] = {
    "kl": KLConfig,
    "advantage": AdvantageConfig,
    "loss": LossConfig,
    "rewards": RewardConfig,
}
OWN_KEYS = {name: set(section.model_fields) - {"options"} for name, section in SECTIONS.items()}
PATHS = ("text", "prompts", "heldout_prompts", "demonstrations", "preferences")  # of [corpus]
FILTERS = ("top_k", "top_p", "min_p")


# ---- loading -----------------------------------------------------------------------------------------------


def load_config(
    preset_or_file: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    rewards: Sequence[str] = (),
    plugins: Sequence[str] = (),
    registry_loader: Callable[[Sequence[str]], Registry] = plugin_registry.load,
) -> tuple[Config, Registry]:
    """Defaults < preset or file < options (dotted key -> value) < sets ("key=value"), with the loaded plugins.

    Raises ConfigError with every fault, UsageError for a preset that does not exist, PluginError from a plugin.
    """
    draft = Draft()
    first = preset_or_file or "reviews"
    if first.endswith(".toml"):
        draft.add(read_file(Path(first)), first, Path(first).absolute().parent)
        draft.name(Path(first).stem)
    else:
        draft.add(tomllib.loads(preset_text(first)), f"preset {first}", Path.cwd())
        draft.name(first)
    cwd = Path.cwd()
    if rewards:
        draft.choose_rewards(rewards, cwd)
    for key, value in (options or {}).items():
        draft.add(nested(key, value), option_name(key), cwd)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            draft.faults.append(f"--set {shown(text)}: expected key=value, such as ppo.lr=1e-3")
            continue
        draft.add(nested(key.strip(), toml_value(value)), "--set", cwd)
    draft.add_plugins(plugins, cwd)
    draft.settle(cwd)
    registry = registry_loader(draft.plugin_names())
    return draft.finish(registry), registry


class Draft:
    """Layers on their way to a Config: plain nested dicts, where each value came from, and the faults so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}  # dotted path -> the layer that set it
        self.faults: list[str] = []

    def name(self, stem: str) -> None:
        """What the run is called, unless a file says it."""
        run = self.values.setdefault("run", {})
        if isinstance(run, dict):
            run.setdefault("preset", re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64] or "run")

    def add(self, layer: dict[str, Any], source: str, folder: Path) -> None:
        """Put a layer on top; paths in it are relative to `folder`."""
        if not self._usable(layer, source):
            return
        layer = absolute_paths(layer, folder)
        if isinstance(layer.get("rewards"), dict) and source.endswith(".toml") | source.startswith("preset "):
            self.values.pop("rewards", None)
        for path, value in leaves(layer):
            self._drop_options(path, value)
            place, *rest = self._descend(path[:-1])
            if rest:
                self.faults.append(f"{'.'.join(path)} = {shown(value)} ({source}): {rest[0]} is a value, not a section")
                continue
            place[path[-1]] = value
            self.origin[".".join(path)] = source

    def choose_rewards(self, chosen: Sequence[str], folder: Path) -> None:
        """`--reward LABEL[=WEIGHT]`: this set and no other; a label that was there keeps its options."""
        before = self.values.get("rewards")
        before = before if isinstance(before, dict) else {}
        self.values["rewards"] = {}
        for text in (text for text in chosen if self._usable({text: text}, "--reward")):
            use, weight = split_weight(text)
            label, use = use.rpartition(":")[2], absolute_component(use, folder)
            if label in self.values["rewards"]:
                self.faults.append(f"--reward {text}: label {label!r} is given twice; name them in a file instead")
            kept = before.get(label, {})
            same = isinstance(kept, dict) and use in (label, kept.get("use", label))
            reward = dict(kept) if same else {}
            given = {} if use == label else {"use": use}
            given |= {} if weight is None else {"weight": weight}
            self.values["rewards"][label] = reward | given
            self.origin |= {f"rewards.{label}{key}": "--reward" for key in ("", *(f".{name}" for name in given))}

    def settle(self, cwd: Path) -> None:
        """What the defaults cannot know: the bases are kept under the current directory."""
        run = self.values.get("run")
        if isinstance(run, dict):
            run.setdefault("bases", str(cwd / "runs" / "bases"))
        exact = self.values.get("exact")
        name = exact.get("problem") if isinstance(exact, dict) else None
        if isinstance(name, str) and name in problems():  # a problem brings what is part of it, unless it is set
            problem = problems()[name]
            self.values.setdefault("rewards", {"problem": {}})
            sampling = {"temperature": 1.0, "max_new_tokens": problem.horizon}
            for section, values in {"kl": {"coef": problem.beta}, "sampler": sampling}.items():
                given = self.values.setdefault(section, {})
                if isinstance(given, dict):
                    given |= {key: value for key, value in values.items() if key not in given}

    def add_plugins(self, names: Sequence[str], folder: Path) -> None:
        there = self.values.get("plugins", [])
        if names and isinstance(there, list) and self._usable({"plugins": list(names)}, "--plugin"):
            self.values["plugins"] = [*there, *(absolute_plugin(name, folder) for name in names)]

    def plugin_names(self) -> list[str]:
        names = self.values.get("plugins", [])
        return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []

    def finish(self, registry: Registry) -> Config:
        """Validate everything at once."""
        config = None
        try:
            config = Config.model_validate_json(json.dumps(self._split(), default=str))
        except ValidationError as faults:
            self.faults += [self._fault(dict(fault)) for fault in faults.errors(include_url=False)]
        unknown = [self._at(path, reason) for path, reason in component_faults(self._split(), registry)]
        self.faults += unknown
        if config is not None:
            self.faults += [self._at(path, reason) for path, reason in cross_faults(config)]
            if not unknown:
                self.faults += [self._at(path, reason) for path, reason in pairing_faults(config, registry)]
        if self.faults or config is None:
            raise ConfigError(self.faults)
        return config

    def _usable(self, layer: dict[str, Any], source: str) -> bool:
        """False, with a fault, for a layer that holds what nothing here could work on."""
        faults = [f"{path} ({source}): {reason}" for path, reason in unusable(layer)]
        self.faults += faults
        return not faults

    def _descend(self, path: Sequence[str]) -> Iterator[Any]:
        """The dict at a path, made where missing; or (None, the dotted path that is no dict)."""
        place = self.values
        for depth, key in enumerate(path):
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                return iter((None, ".".join(path[: depth + 1])))
        return iter((place,))

    def _drop_options(self, path: Sequence[str], value: Any) -> None:
        """Another component chosen: the old one's options do not fit it."""
        section, key = tuple(path[:-1]), path[-1]
        if section[:1] == ("rewards",) and len(section) == 2 and key == "use":
            own, at = OWN_KEYS["rewards"], self.values.get("rewards", {})
            place = at.get(section[1]) if isinstance(at, dict) else None
        elif len(section) == 1 and CHOOSERS.get(section[0]) == key:
            own, place = OWN_KEYS[section[0]], self.values.get(section[0])
        else:
            return
        if isinstance(place, dict) and place.get(key) != value:
            for option in [name for name in place if name not in own]:
                del place[option]

    def _split(self) -> dict[str, Any]:
        """The values with the options of components under `options`, and a reward's `use` filled in."""
        out = dict(self.values)
        for name in CHOOSERS:
            if isinstance(out.get(name), dict):
                out[name] = with_options(out[name], OWN_KEYS[name])
        if isinstance(out.get("rewards"), dict):
            out["rewards"] = {
                label: with_options({"use": label, **reward}, OWN_KEYS["rewards"])
                if isinstance(reward, dict)
                else reward
                for label, reward in out["rewards"].items()
            }
        return out

    def _at(self, path: str, reason: str) -> str:
        """PATH (where it came from): REASON; a path may be followed by ` = value`."""
        key = path.partition(" = ")[0]
        source = self.origin.get(key) or self.origin.get(key.rpartition(".")[0])
        return f"{path}{f' ({source})' if source else ''}: {reason}"

    def _fault(self, fault: dict[str, Any]) -> str:
        """One of pydantic's faults in our words."""
        path, value = ".".join(str(part) for part in fault["loc"]), fault.get("input")
        reason = str(fault["msg"])
        reason = reason[0].lower() + reason[1:]
        kind = str(fault["type"])
        if kind == "extra_forbidden":
            section, key = fault["loc"][:-1], str(fault["loc"][-1])
            if section == ("sampler",) and key in FILTERS:
                reason = (
                    "a run samples from the policy itself, because a token outside such a cut has probability 0 in "
                    "sampling and not in the loss; use it with `minirlhf sample`"
                )
            else:
                reason = f"there is no such key{nearest(key, known_keys(section))}"
        elif kind.endswith("_type") and isinstance(value, str) and re.fullmatch(r"[-+0-9.eE_]+|true|false", value):
            reason += "; this is a string: remove the quotes"
        return self._at(f"{path} = {shown(value)}", reason)


def component_faults(values: dict[str, Any], registry: Registry) -> Iterator[tuple[str, str]]:
    """(path, reason) of every component that does not exist and every option that it does not take."""
    chosen = [(name, name, key, values.get(name, {})) for name, key in CHOOSERS.items()]
    rewards = values.get("rewards", {})
    if isinstance(rewards, dict):
        chosen += [(f"rewards.{label}", "reward", "use", reward) for label, reward in rewards.items()]
    defaults = {"kl": "k1", "advantage": "gae", "loss": "ppo_clip"}
    for path, kind, key, section in chosen:
        name = section.get(key, defaults.get(kind)) if isinstance(section, dict) else None
        if not isinstance(name, str) or not name:
            continue  # pydantic says so
        try:
            component = registry.find(kind, name)
        except UsageError as fault:
            yield f"{path}.{key} = {shown(name)}", str(fault)
            continue
        for option in component.option_faults(section.get("options", {})):
            yield f"{path}.{option.partition(':')[0]}", option.partition(": ")[2]
    run = values.get("run", {})
    observers = run.get("observers", []) if isinstance(run, dict) else []
    for name in observers if isinstance(observers, list) else []:
        if isinstance(name, str):
            try:
                registry.find("observer", name)
            except UsageError as fault:
                yield f"run.observers = {shown(name)}", str(fault)


def cross_faults(c: Config) -> Iterator[tuple[str, str]]:
    """(path, reason) of values that are fine alone and not together."""
    if c.exact.problem is not None and c.exact.problem not in problems():
        yield from exact_faults(c)  # whatever else there is may come from its missing values
        return
    responses = c.ppo.prompts_per_iteration * c.ppo.responses_per_prompt
    if c.ppo.minibatch_size > responses:
        yield f"ppo.minibatch_size = {c.ppo.minibatch_size}", f"an iteration has only {responses} responses"
    if c.ppo.micro_batch_size and c.ppo.micro_batch_size > c.ppo.minibatch_size:
        yield f"ppo.micro_batch_size = {c.ppo.micro_batch_size}", "larger than ppo.minibatch_size"
    if c.kl.controller == "adaptive" and c.kl.target is None:
        yield "kl.target", "the adaptive controller needs a target, in nats per sequence"
    if c.kl.controller == "adaptive" and c.kl.coef == 0:
        yield "kl.coef = 0", "the adaptive controller multiplies beta: from 0 it never moves"
    if c.kl.controller == "fixed" and c.kl.target is not None:
        yield f"kl.target = {c.kl.target}", "a target needs kl.controller = adaptive"
    if c.model.hidden_size % c.model.heads or c.model.hidden_size // c.model.heads % 2:
        yield f"model.heads = {c.model.heads}", f"must divide hidden_size = {c.model.hidden_size} into even parts"
    if c.model.heads % c.model.kv_heads:
        yield f"model.kv_heads = {c.model.kv_heads}", f"must divide heads = {c.model.heads}"
    if c.sampler.max_new_tokens + 2 > c.model.max_positions:
        yield (
            f"sampler.max_new_tokens = {c.sampler.max_new_tokens}",
            f"leaves no room for a prompt in model.max_positions = {c.model.max_positions}",
        )
    if c.pretrain.sequence_length > c.model.max_positions and c.exact.problem is None:
        yield (
            f"pretrain.sequence_length = {c.pretrain.sequence_length}",
            f"over max_positions = {c.model.max_positions}",
        )
    if c.truncation.rule in ("penalty", "replace") and c.truncation.value is None:
        yield "truncation.value", f"the rule {c.truncation.rule} needs it"
    if c.truncation.rule not in ("penalty", "replace") and c.truncation.value is not None:
        yield f"truncation.value = {c.truncation.value}", f"the rule {c.truncation.rule} does not use it"
    if c.corpus.heldout_prompts and not c.corpus.prompts:
        yield f"corpus.heldout_prompts = {shown(c.corpus.heldout_prompts)}", "needs corpus.prompts beside it"
    yield from exact_faults(c)
    if not c.rewards:
        yield "rewards", "there must be at least one"
    for label in c.rewards:
        if not LABEL.fullmatch(label):
            yield f"rewards.{label}", "a label has letters, digits, . _ - and begins with a letter or digit"


def exact_faults(c: Config) -> Iterator[tuple[str, str]]:
    """(path, reason) of what does not fit the problem of the exact lab, where one is chosen."""
    name = c.exact.problem
    if name is None:
        return
    if name not in problems():
        hint = nearest(name, problems()) or f"; there are {', '.join(problems())}"
        yield f"exact.problem = {shown(name)}", f"there is no such problem{hint}"
        return
    horizon = problems()[name].horizon
    if c.sampler.max_new_tokens != horizon:
        yield f"sampler.max_new_tokens = {c.sampler.max_new_tokens}", f"{name} has a horizon of {horizon}"
    if c.kl.controller != "fixed":
        yield f"kl.controller = {shown(c.kl.controller)}", "the optimum of a problem is that of one beta: use fixed"
    for key in ("prompts", "heldout_prompts", "demonstrations", "preferences"):
        if getattr(c.corpus, key):
            yield f"corpus.{key} = {shown(getattr(c.corpus, key))}", f"{name} brings its own prompts and reference"


def pairing_faults(c: Config, registry: Registry) -> Iterator[tuple[str, str]]:
    """(path, reason) of components that exist and cannot work with the other values."""
    advantage = registry.find("advantage", c.advantage.function)
    if "group" in advantage.inputs and c.ppo.responses_per_prompt < 2:
        yield (
            f"ppo.responses_per_prompt = {c.ppo.responses_per_prompt}",
            f"{c.advantage.function} compares the responses to one prompt: set it to 2 or more",
        )
    if "values" not in advantage.inputs:
        if c.truncation.rule == "bootstrap":
            reason = f"{c.advantage.function} does not read V, so nothing trains the value that would be put in"
            yield "truncation.rule = 'bootstrap'", reason
        if c.ppo.score_slot == "after":
            yield "ppo.score_slot = 'after'", f"{c.advantage.function} does not read V, so the place changes nothing"
        if c.ppo.critic_warmup:
            reason = f"{c.advantage.function} does not read V: there is no critic to warm up"
            yield f"ppo.critic_warmup = {c.ppo.critic_warmup}", reason
    if c.loss.penalty_target and "beta" not in registry.find("loss", c.loss.policy).inputs:
        yield f"loss.penalty_target = {c.loss.penalty_target}", f"{c.loss.policy} has no penalty: use ppo_penalty"


def doubts(config: Config) -> list[str]:
    """Choices that optimise something else than they seem to, each with the reason in a sentence."""
    return [*kl_doubts(config), *other_doubts(config)]


def other_doubts(c: Config) -> Iterator[str]:
    """What the advantage function, the loss and the rest change about the objective."""
    own = [(r.use, r.weight, r.normalize, r.clip) for r in c.rewards.values()]
    if c.exact.problem and own != [("problem", 1.0, False, None)]:
        yield f"the optimality of {c.exact.problem} is that of its own score, not what this run is rewarded for"
    if c.corpus.preferences and not any(r.use.endswith("trained") for r in c.rewards.values()):
        yield "corpus.preferences: no reward is trained from these comparisons; choose it by --reward trained"
    updates = c.ppo.epochs * -(-c.ppo.prompts_per_iteration * c.ppo.responses_per_prompt // c.ppo.minibatch_size)
    function, loss = c.advantage.function.removeprefix(f"{BUILTIN_OWNER}:"), c.loss.policy
    if loss.removeprefix(f"{BUILTIN_OWNER}:") == "pg" and updates > 1:
        yield (
            f"loss pg with {updates} updates a rollout: it has no importance ratio, so from the second update on it is "
            "the gradient of a policy that is gone; use ratio, or one epoch of one minibatch"
        )
    if function == "grpo":
        yield (
            "advantage grpo: the division by each group's standard deviation weighs prompts by how little their "
            "responses differ, which is not the gradient of the mean score; dr_grpo leaves it out"
        )
    if function in ("rloo", "dr_grpo") and c.advantage.whiten in ("batch", "population"):
        yield (
            f"advantage {function} with whiten = {c.advantage.whiten}: the batch's standard deviation changes from one "
            "rollout to the next and with it the size of the step; use none"
        )
    if c.advantage.options.get("gamma", 1.0) != 1.0 and c.kl.coef and c.kl.place != "loss":
        yield (
            f"advantage.gamma = {c.advantage.options['gamma']} with the KL in the reward: later KL counts less, so "
            "what is optimised is not score - beta KL of the sequence"
        )
    if c.loss.aggregation == "sequence_mean":
        yield (
            "loss.aggregation = sequence_mean: a token of a short response weighs more than one of a long response, "
            "which is not the gradient of the mean score where lengths differ; token_mean and constant are"
        )


def kl_doubts(config: Config) -> list[str]:
    """What this KL estimator in this place does not do."""
    owner, _, estimator = config.kl.estimator.rpartition(":")
    place = config.kl.place
    if not config.kl.coef or owner not in ("", BUILTIN_OWNER):
        return []
    reasons = {
        ("exact", "reward"): "given the tokens before it, the exact KL does not depend on the token taken, so only the "
        "KL of later tokens is penalised (none at all for responses of one token); kl.place=both has the full gradient",
        ("k1", "loss"): "the gradient of k1 in the loss is zero in expectation: it regularises nothing; use k2 or k3 "
        "in the loss, or k1 in the reward",
        ("k2", "reward"): "k2 in the reward is not the gradient of a KL, because k2 is biased as an estimate; use k1",
        ("k3", "reward"): "k3 in the reward is not the gradient of the KL: runs climb, then collapse; use k1",
        (
            "ratio_k3",
            "reward",
        ): "ratio_k3 in the reward is k3 (the ratio is 1 where the rewards are made), not the "
        "gradient of the KL: runs climb, then collapse; use k1",
        ("ratio_k3", "both"): "ratio_k3 in both places counts each token's own KL twice, in the reward and through the "
        "ratio; use exact, k1 or k3",
        ("ratio_k3", "loss"): "the gradient of each token's KL given those before it, as k2's: later KL is left out",
        ("abs", "reward"): "|log ratio| in the reward is a distance, not a KL, and pulls in both directions; use k1",
        ("k2", "both"): "k2 in both places is the gradient of E[k2], which is not the KL; use exact, k1 or k3",
        ("abs", "both"): "|log ratio| is a distance, not a KL; use exact, k1 or k3",
        ("abs", "loss"): "the gradient of |log ratio| has one size at every distance and is not that of a KL; use k2",
        ("exact", "loss"): "the KL of each token given those before it: how a token changes later KL is left out",
        ("k2", "loss"): "the gradient of each token's KL given those before it: later KL is left out",
        ("k3", "loss"): "the gradient of the reverse direction KL(ref, policy), token by token (as in GRPO)",
    }
    reason = reasons.get((estimator, place))
    return [f"kl {estimator} in {place}: {reason}"] if reason else []


# ---- writing and describing --------------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values as a file has them: options among the keys of their section, keys without a value left out."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    for section in [*(plain[name] for name in CHOOSERS), *plain["rewards"].values()]:
        section.update(section.pop("options"))
    cleaned: dict[str, Any] = _without_none(plain)
    return cleaned


def dump_toml(config: Config) -> str:
    """The config as TOML that loads back to an equal one."""
    return tomli_w.dumps(to_dict(config))


def json_schema() -> dict[str, Any]:
    """JSON Schema of a file; the keys of a component section that are not its own are its component's options."""
    schema = Config.model_json_schema()
    for definition in schema["$defs"].values():
        if "options" in definition["properties"]:
            del definition["properties"]["options"]
            definition["additionalProperties"] = True
        definition["required"] = []
    schema["properties"]["rewards"].pop("default", None)
    return schema


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


# ---- small parts -------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """Names of the presets that come with the program."""
    folder = resources.files("minirlhf") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML of a preset (UsageError with the nearest name for one that does not exist)."""
    if name not in preset_names():
        raise UsageError(
            f"unknown preset {name!r}{nearest(name, preset_names())}",
            todo=f"choose from {', '.join(preset_names())}, or give a file that ends in .toml",
        )
    return (resources.files("minirlhf") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def read_file(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts (ConfigError with file and line for one that is none)."""
    try:
        if not path.is_file():
            raise ConfigError([f"{path}: no such file" if not path.exists() else f"{path}: not a regular file"])
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path}: {path.stat().st_size} bytes; a config has at most {MAX_BYTES}"])
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as fault:
        raise ConfigError([f"{path}: cannot be read ({fault.strerror})"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text; save it as UTF-8"]) from None
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError([f"{path}: not TOML: {fault}"]) from None
    except (RecursionError, ValueError) as fault:
        raise ConfigError([f"{path}: not TOML: {type(fault).__name__}"]) from None


def toml_value(text: str) -> Any:
    """A TOML value if it parses, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b`, 1 -> {"a": {"b": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def unusable(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted path, reason) of what no key can use and what would break its readers, found without recursion."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), layer)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > MAX_DEPTH:
            yield ".".join(path)[:60] + "...", f"tables and arrays are nested deeper than {MAX_DEPTH}"
        elif isinstance(value, Mapping):
            waiting += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(index)), item) for index, item in enumerate(value)]
        elif isinstance(value, int) and value.bit_length() > 63:
            yield ".".join(path), "an integer of more than 64 bits"
        text = "".join(path[-1:]) + (value if isinstance(value, str) else "")
        if re.search("[\0\ud800-\udfff]", text):
            yield ".".join(path), "holds a NUL, or bytes that are not UTF-8"


def leaves(layer: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything that is no table; an empty table is a leaf, so that it exists."""
    for key, value in layer.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def with_options(section: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """The section's own keys, and all others under `options`."""
    kept = {k: v for k, v in section.items() if k in own}
    return {**kept, "options": {k: v for k, v in section.items() if k not in own}}


def known_keys(section: tuple[Any, ...]) -> list[str]:
    """The keys that a section has, for did-you-mean."""
    model: Any = Config
    for part in section:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if annotation is None or not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            arguments = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
            if not arguments:
                return []
            annotation = arguments[0]
        model = annotation
    return [name for name in model.model_fields if name != "options"]


def option_name(key: str) -> str:
    """The flag that sets a key, for messages."""
    flags = {"kl.estimator": "--kl", "advantage.function": "--advantage", "loss.policy": "--loss"}
    return flags.get(key, f"--{key.rpartition('.')[2]}")


def split_weight(text: str) -> tuple[str, Any]:
    """LABEL[=WEIGHT] -> (label, weight or None); a weight that is no number is left for validation to refuse."""
    use, equals, weight = text.rpartition("=")
    return (use, toml_value(weight)) if equals else (text, None)


def shown(value: Any) -> str:
    """A value in a message: short, printable."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def absolute_paths(layer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The layer with every relative path made absolute; bare corpus names and module names stay."""
    out = dict(layer)
    if isinstance(out.get("corpus"), dict):
        out["corpus"] = {
            k: str(folder / v) if k in PATHS and isinstance(v, str) and v and not is_packaged(v) else v
            for k, v in out["corpus"].items()
        }
    if isinstance(out.get("run"), dict):
        out["run"] = absolute_run(out["run"], folder)
    if isinstance(out.get("plugins"), list):
        out["plugins"] = [absolute_plugin(name, folder) if isinstance(name, str) else name for name in out["plugins"]]
    for section, key in CHOOSERS.items():
        if isinstance(out.get(section), dict) and isinstance(out[section].get(key), str):
            out[section] = {**out[section], key: absolute_component(out[section][key], folder)}
    if isinstance(out.get("rewards"), dict):
        out["rewards"] = {label: absolute_reward(label, reward, folder) for label, reward in out["rewards"].items()}
    return out


def absolute_reward(label: str, reward: Any, folder: Path) -> Any:
    """A reward given as FILE.py:FUNCTION, and the directory of a trained one."""
    if not isinstance(reward, dict):
        return reward
    out = dict(reward)
    if isinstance(out.get("use"), str):
        out["use"] = absolute_component(out["use"], folder)
    if out.get("use", label) == "trained" and isinstance(out.get("path"), str):
        out["path"] = str(folder / out["path"])
    return out


def absolute_run(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The section [run]: where the bases are, and observers given as FILE.py:CLASS."""
    out = dict(run)
    if isinstance(out.get("bases"), str) and out["bases"]:
        out["bases"] = str(folder / out["bases"])
    if isinstance(out.get("observers"), list):
        out["observers"] = [absolute_component(n, folder) if isinstance(n, str) else n for n in out["observers"]]
    return out


def absolute_plugin(name: str, folder: Path) -> str:
    """A plugin FILE made absolute; the name of a module as it is."""
    return str(folder / name) if name.endswith(".py") or "/" in name else name


def absolute_component(name: str, folder: Path) -> str:
    """FILE.py:FUNCTION with its file made absolute; any other name as it is."""
    file, _, function = name.rpartition(":")
    return f"{folder / file}:{function}" if file.endswith(".py") else name
