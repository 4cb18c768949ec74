"""The plugin contract, on one screen: five hooks, called once at start-up to collect named components.

Each returns {name: component}. A component is a function, or a class for what must be built once. Its
ordinary parameters are inputs, bound by their names; its keyword-only parameters with defaults are options,
set in the config. B responses, R response tokens, V vocabulary; log_dist and ref_log_dist (B,R,V) are only
computed for a component that names them. No hook is called while a model trains, and nothing here imports
torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pluggy

from minirlhf import PROJECT

hookspec = pluggy.HookspecMarker(PROJECT)
Component = Callable[..., Any]


@hookspec
def register_reward_models() -> Mapping[str, Component]:  # type: ignore[empty-body]
    """Rewards: a float or None (does not apply) a completion, or a list of floats, one a token of its ids.

    Inputs: prompts, completions (B texts without special tokens), prompt_ids, completion_ids (B lists of
    ints, no padding, EOS included), rollout (the tensors), trainer_state (global_step, max_steps, epoch,
    tokenizer_hash), log_metric(name, number), log_extra(name, B values), and any column of the prompt's row
    (B values, None where a row lacks it). `**columns` takes all the rest: TRL's signature. May be async.
    """


@hookspec
def register_kl_estimators() -> Mapping[str, Component]:  # type: ignore[empty-body]
    """KL to the reference: (B,R) nats a token, differentiable.

    Inputs: logprobs, old_logprobs, ref_logprobs, mask (B,R), log_dist, ref_log_dist (B,R,V).
    """


@hookspec
def register_advantage_functions() -> Mapping[str, Component]:  # type: ignore[empty-body]
    """Advantages (B,R); advantages + values is the value target, whitening is the loop's.

    Inputs: rewards, values, mask, logprobs, ref_logprobs, kl (B,R); scores, greedy_scores (of the most
    likely response), group (index of the prompt), terminated, bootstrap_values (B,). Without `values`: no
    value loss.
    """


@hookspec
def register_policy_losses() -> Mapping[str, Component]:  # type: ignore[empty-body]
    """Policy loss (B,R) a token, or (that, {metric: (B,R) or 0-d tensor}); the loop averages over the mask.

    Inputs: logprobs, old_logprobs, ref_logprobs, advantages, mask (B,R), beta (the KL coefficient, a float).
    """


@hookspec
def register_observers() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Observers: classes with start(config, run_dir), step(step, experience, metrics) and finish(summary).

    They watch: one that fails is dropped with a warning, and training bits do not depend on them.
    """
