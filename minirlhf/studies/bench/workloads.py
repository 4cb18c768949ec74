"""The workloads: sizes of model, rollout and epochs. Random weights, and a reward that takes no time."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """layers, width, heads, ff, vocab of the model; prompts of prompt_min to prompt_max tokens, responses of at most
    `response`; `eos` = chance that a token ends its response (0: none does); PPO: epochs of minibatches."""

    name: str
    layers: int
    width: int
    heads: int
    ff: int
    vocab: int
    prompt_min: int
    prompt_max: int
    response: int
    responses: int
    epochs: int
    minibatch: int
    eos: float = 0.0
    separate_critic: bool = False

    @property
    def mean_response(self) -> float:
        """Tokens of a response on average: a geometric length, cut."""
        return (1 - (1 - self.eos) ** self.response) / self.eos if self.eos else float(self.response)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


WORKLOADS = {
    "W1": Workload("W1", 4, 128, 4, 344, 1024, 16, 16, 48, 64, 4, 16),
    "W2": Workload("W2", 8, 384, 6, 1024, 4096, 32, 32, 96, 32, 4, 8),
    "W3": Workload("W3", 4, 128, 4, 344, 1024, 4, 16, 128, 64, 4, 16, eos=0.0175),  # 40 % of 128 on average
}
