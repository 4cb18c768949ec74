"""Random numbers as named streams: one generator for each (seed, stream, step), never one long-lived state.

The random numbers of a step depend on nothing but its number: a run can be resumed, a rollout replayed alone, and a
plugin that draws from torch's global generator changes nothing.
"""

import hashlib

import torch


def generator(seed: int, stream: str, step: int) -> torch.Generator:
    """Fresh CPU generator for `step` of `stream`; the same three values give the same numbers everywhere.

    On the CPU on purpose: uniforms drawn there and copied give the same rollout on every device.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
