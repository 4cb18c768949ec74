"""The workloads of the benchmarks: sizes of model, rollout and epochs. All use random weights and a trivial reward."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Workload:
    """Sizes of a workload.

    Model: layers, width, heads, ff, vocab, separate_critic. Rollout: `responses` responses of at most `response` tokens
    to prompts of prompt_min to prompt_max tokens; eos: chance that a token ends its response (0: none does). Learning:
    `epochs` epochs of minibatches of `minibatch` responses.
    """

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
        """Mean tokens of a response, of a truncated geometric length: (1 - (1 - eos)^response) / eos."""
        return (1 - (1 - self.eos) ** self.response) / self.eos if self.eos else float(self.response)

    def plain(self) -> dict[str, Any]:
        """Fields as a dict, ready for JSON."""
        return asdict(self)


WORKLOADS = {
    "W1": Workload("W1", 4, 128, 4, 344, 1024, 16, 16, 48, 64, 4, 16),
    "W2": Workload("W2", 8, 384, 6, 1024, 4096, 32, 32, 96, 32, 4, 8),
    "W3": Workload("W3", 4, 128, 4, 344, 1024, 4, 16, 128, 64, 4, 16, eos=0.0175),  # 40 % of 128 on average
}
