"""A reward in six lines: completions near a number of words.

    minirlhf run --plugin plugins/brevity.py --reward brevity --set rewards.brevity.target=12

The parameters are the contract: `completions` is an input, bound by its name; `target`, keyword-only with a default,
is an option that the config sets.
"""

from minirlhf import hookimpl


def brevity(completions, *, target: int = 20):
    """1 at `target` words, less on both sides, never below 0."""
    return [1 / (1 + abs(len(text.split()) - target) / target) for text in completions]


@hookimpl
def register_reward_models():
    return {"brevity": brevity}
