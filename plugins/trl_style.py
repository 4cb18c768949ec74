"""A reward function with TRL's signature: async, with **kwargs, and with log_metric.

    minirlhf run --plugin plugins/trl_style.py --reward grounded
    minirlhf run --reward plugins/trl_style.py:grounded

The same function runs unchanged in TRL's GRPOTrainer. An async function can wait for a server; all async rewards of a
step wait at the same time. Columns of the prompt file arrive in **kwargs, one value for each completion. None means
that this reward does not apply to a completion, which leaves it out of the sum.
"""

import asyncio

from minirlhf import hookimpl


async def grounded(prompts, completions, log_metric=None, **kwargs):
    """Share of the prompt's words that the completion uses as well; None for a prompt without words."""
    await asyncio.sleep(0)  # stands for a request to a server
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        words = set(prompt.lower().split())
        shared = words & set(completion.lower().split())
        scores.append(len(shared) / len(words) if words else None)
    if log_metric is not None:
        log_metric("skipped", scores.count(None))
    return scores


@hookimpl
def register_reward_models():
    return {"grounded": grounded}
