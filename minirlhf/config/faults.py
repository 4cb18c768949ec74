"""Faults of a configuration that no single field shows: unknown components or options, values that do not fit together.

Not here: advice about combinations that run but optimise something else (rl/doubts.py).
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from minirlhf.components.registry import Registry
from minirlhf.config.schema import CHOOSERS, LABEL, TARGETS, Config
from minirlhf.errors import PluginError, UsageError, nearest
from minirlhf.exact.problems import problems

MAX_DEPTH = 32  # nested tables and arrays: no key needs more, and their readers recurse
FILTERS = ("top_k", "top_p", "min_p")


def component_faults(values: dict[str, Any], registry: Registry, kinds: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for every component of these kinds that does not exist, and every option it lacks."""
    chosen = [(name, name, key, values.get(name, {})) for name, key in CHOOSERS.items()]
    rewards = values.get("rewards", {})
    if isinstance(rewards, dict):
        chosen += [(f"rewards.{label}", "reward", "use", reward) for label, reward in rewards.items()]
    defaults = {"kl": "k1", "advantage": "gae", "loss": "ppo_clip"}
    for path, kind, key, section in (row for row in chosen if row[1] in kinds):
        name = section.get(key, defaults.get(kind)) if isinstance(section, dict) else None
        if not isinstance(name, str) or not name:
            continue  # pydantic reports it
        try:
            component = registry.find(kind, name)
        except UsageError as fault:
            yield f"{path}.{key} = {shown(name)}", str(fault)
            continue
        except PluginError as fault:
            raise at_key(fault, f"{path}.{key}", name) from None
        for option in component.option_faults(section.get("options", {})):
            yield f"{path}.{option.partition(':')[0]}", option.partition(": ")[2]
    run = values.get("run", {})
    observers = run.get("observers", []) if isinstance(run, dict) else []
    for name in observers if isinstance(observers, list) and "observer" in kinds else []:
        if isinstance(name, str):
            try:
                registry.find("observer", name)
            except UsageError as fault:
                yield f"run.observers = {shown(name)}", str(fault)
            except PluginError as fault:
                raise at_key(fault, "run.observers", name) from None


def at_key(fault: PluginError, key: str, name: str) -> PluginError:
    """The fault of FILE.py:FUNCTION with the key that gives its new place, if the file is gone; else the fault."""
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or os.path.lexists(file):
        return fault
    value = f"'[\"FILE.py:{function}\"]'" if key == "run.observers" else f"FILE.py:{function}"
    return PluginError(str(fault), todo=f"if it has moved, give its new place: --set {key}={value}")


def cross_faults(c: Config) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for values that are fine alone but not together."""
    if c.exact.problem is not None and c.exact.problem not in problems():
        yield from exact_faults(c)  # other faults may only follow from the values that the problem would have set
        return
    responses = c.ppo.prompts_per_iteration * c.ppo.responses_per_prompt
    if c.ppo.minibatch_size > responses:
        yield (
            f"ppo.minibatch_size = {c.ppo.minibatch_size}",
            f"an iteration has only {responses} responses: --set ppo.minibatch_size={responses}, or fewer",
        )
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
    yield from model_faults(c)
    if c.sampler.max_new_tokens + 2 > c.model.max_positions:
        yield (
            f"sampler.max_new_tokens = {c.sampler.max_new_tokens}",
            f"leaves no room for a prompt in model.max_positions = {c.model.max_positions}",
        )
    if c.pretrain.sequence_length > c.model.max_positions and c.exact.problem is None and c.model.path is None:
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


def model_faults(c: Config) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for values of [model] and [lora] that do not fit together."""
    if c.model.path and c.exact.problem:
        yield f"model.path = {shown(c.model.path)}", "a problem of the exact lab fits a model of its own"
    if c.model.dtype != "float32" and not c.lora.on:
        reason = "weights that learn are float32: set lora.rank, or choose ppo.precision = bfloat16"
        yield f"model.dtype = {shown(c.model.dtype)}", reason
    if c.model.quantise and not c.lora.on:
        yield f"model.quantise = {shown(c.model.quantise)}", "packed weights cannot learn: set lora.rank"
    if c.lora.on and c.ppo.precision != c.model.dtype:
        reason = f"the frozen weights behind adapters are used as they are, in model.dtype = {c.model.dtype!r}"
        yield f"ppo.precision = {shown(c.ppo.precision)}", f"{reason}: leave it out"
    if c.lora.dropout and not c.lora.on:
        yield f"lora.dropout = {shown(c.lora.dropout)}", "there are no adapters: set lora.rank"
    if c.lora.rank and c.lora.path:
        yield f"lora.rank = {c.lora.rank}", "the adapter of lora.path has a rank of its own: leave it out"
    if len(set(c.lora.targets)) < len(c.lora.targets):
        yield f"lora.targets = {shown(c.lora.targets)}", "a projection is named twice"
    for name in c.lora.targets:
        if name not in TARGETS:
            hint = nearest(name, TARGETS) or f"; there are {', '.join(TARGETS)}"
            yield f"lora.targets = {shown(name)}", f"there is no such projection{hint}"


def exact_faults(c: Config) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) for values that do not fit the chosen problem of the exact lab."""
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
    """Yield (path, reason) for components that exist but cannot work with the other values."""
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
    if c.loss.penalty_target and c.loss.penalty == 0:
        yield "loss.penalty = 0", "a target halves and doubles the penalty: from 0 it never moves"


def unusable(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for values that would break the readers of a config; found without recursion."""
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
            what = "holds a NUL, or bytes that are not UTF-8, which a configuration cannot hold"
            yield ".".join(path), f"{what}; use other names (of directories, too), or a UTF-8 locale"


def known_keys(section: tuple[Any, ...]) -> list[str]:
    """Keys of a section, for did-you-mean."""
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


def shown(value: Any) -> str:
    """Value for a message: short and printable."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
