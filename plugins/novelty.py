"""A reward that is a class, because it remembers: a completion scores less each time its opening comes back.

    minirlhf run --plugin plugins/novelty.py --reward sentiment --reward novelty=0.5

Options are the constructor's keyword-only parameters, inputs are those of __call__; the class is built once a run.
With state_dict and load_state_dict its memory is part of every checkpoint: tensors, or anything that JSON can hold. An
evaluation gives it the same memory for both models, so that their scores can be compared.
"""

from minirlhf import hookimpl


class Novelty:
    """1 / (1 + n), where the completion's first `words` words opened n completions before."""

    def __init__(self, *, words: int = 4):
        self.words = words
        self.seen = {}

    def __call__(self, completions):
        scores = []
        for text in completions:
            opening = " ".join(text.split()[: self.words])
            times = self.seen.get(opening, 0)
            self.seen[opening] = times + 1
            scores.append(1 / (1 + times))
        return scores

    def state_dict(self):
        return {"seen": dict(self.seen)}

    def load_state_dict(self, state):
        self.seen = dict(state["seen"])


@hookimpl
def register_reward_models():
    return {"novelty": Novelty}
