"""A reward function as TRL takes it: async, with **kwargs, and with log_metric.

    minirlhf run --plugin plugins/trl_style.py --reward grounded
    minirlhf run --reward plugins/trl_style.py:grounded

The same function runs unchanged in TRL's GRPOTrainer. Being async it can wait for a server; all async
rewards of a step wait together. Columns of the prompt file arrive in **kwargs, one value a completion;
`None` says that this reward does not apply to a completion, and leaves it out of the sum.
"""

import asyncio

from minirlhf import hookimpl


async def grounded(prompts, completions, log_metric=None, **kwargs):
    """Share of the prompt's words that the completion takes up again; None for a prompt without words."""
    await asyncio.sleep(0)  # here a real one would ask a server
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        words = set(prompt.lower().split())
        found = words & set(completion.lower().split())
        scores.append(len(found) / len(words) if words else None)
    if log_metric is not None:
        log_metric("skipped", scores.count(None))
    return scores


@hookimpl
def register_reward_models():
    return {"grounded": grounded}
