"""Memory of a run, calculated from its sizes: `plan_memory` loads no model and allocates nothing.

Counted are the tensors that grow with the model or the batch: weights, gradients, Adam's moments, the KV cache, what
autograd keeps for the backward pass, and the logits of a chunk. The counts are read off the code of transformer.py,
policy.py, generate.py and packing.py, at its peak: every row at its full length. tests/models/test_memory.py holds them
against autograd's saved tensors and the allocator.

Not here: memory of the process beside torch's tensors (code that is loaded when it is first used, blocks that malloc
keeps: with SmolLM2-135M, where the tensors took 510 MB as calculated, 260 to 300 MB more on a CPU), reward models, the
loading of a model, and long texts where attention falls back to a matrix of all pairs of tokens. On a card attention
takes less than is calculated for a CPU: its weights are never held.
Letters: W width, F inner width, H heads, D head size, Q = H D, K = Hkv D, V vocabulary; N tokens of a pass.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from minirlhf.models.attention import PAIRS
from minirlhf.models.decoding import FEW
from minirlhf.models.families import TransformerConfig
from minirlhf.models.lora import PARTS, projection_sizes
from minirlhf.models.merged import merged_elements, merges
from minirlhf.models.policy import CHUNK_LOGITS, CHUNK_READ, ROWS_READ

FLOAT: Final = 4  # bytes of a float32
HEAP: Final = 250_000_000  # most that malloc keeps for the thread of the backward pass, on a CPU, measured on SmolLM2
MOMENTS_OF_ADAM: Final = 2
PROJECTIONS: Final = tuple(PARTS)


@dataclass(frozen=True)
class MemorySizes:
    """Sizes that decide the memory of a run.

    The model: vocab_size to head_dim, tied (the LM head is the embedding). weight_bytes: of a weight of the backbone,
    4, or 2 for a frozen one in bfloat16. lora_rank: 0 = all weights are trained and the reference is a copy of them;
    above 0 = adapters of this rank at lora_targets are, beside one frozen backbone that reference and critic share.
    trained_bytes: of a trained number; its gradient and each moment have as many. autocast: products in bfloat16 beside
    weights in float32 (`ppo.precision`).

    The work: rows of a rollout, of prompt_tokens and new_tokens each; micro_rows of them in a forward pass of the
    learning stage; recompute: only the states between blocks are kept. full_kl: the KL estimator reads whole
    distributions. packed_bits: of a weight of packed projections, its share of a scale included.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    prompt_tokens: int
    new_tokens: int
    micro_rows: int
    tied: bool = True
    weight_bytes: int = 4
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = PROJECTIONS
    trained_bytes: int = 4
    separate_critic: bool = False
    autocast: bool = False
    recompute: bool = False
    full_kl: bool = False
    packed_bits: float | None = None
    chunk_logits: int = CHUNK_LOGITS
    chunk_read: int = CHUNK_READ
    read_rows: int = ROWS_READ  # states at least in a chunk that is read without gradients

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection of a block."""
        return projection_sizes(self.config)

    @property
    def config(self) -> TransformerConfig:
        """Sizes of the model, without what its family adds."""
        sizes = self.vocab_size, self.hidden_size, self.intermediate_size, self.layers, self.heads, self.kv_heads
        return TransformerConfig(*sizes, self.row_tokens, head_dim=self.head_dim)

    @property
    def backbone_parameters(self) -> int:
        """Weights of a trunk with its LM head: embedding, projections, two norms a block and one at the end."""
        matrices = sum(inputs * outputs for inputs, outputs in self.projections.values())
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.layers * (matrices + 2 * self.hidden_size) + self.hidden_size

    @property
    def backbone_bytes(self) -> int:
        """Bytes of the weights of a trunk; packed projections take packed_bits each."""
        matrices = self.layers * sum(inputs * outputs for inputs, outputs in self.projections.values())
        bits = 8 * self.weight_bytes if self.packed_bits is None else self.packed_bits
        return (self.backbone_parameters - matrices) * self.weight_bytes + int(matrices * bits / 8)

    @property
    def adapter_parameters(self) -> int:
        """Weights of one adapter: A (rank, inputs) and B (outputs, rank) at each target of each block."""
        return self.layers * self.lora_rank * sum(sum(self.projections[name]) for name in self.lora_targets)

    @property
    def trained_parameters(self) -> int:
        """Weights that learn, those of the critic and of the value head included."""
        trunk = self.adapter_parameters if self.lora_rank else self.backbone_parameters
        return trunk * self.trunks + self.hidden_size + 1

    @property
    def trunks(self) -> int:
        """Trunks of a forward pass: the policy's, and the critic's if it has its own."""
        return 2 if self.separate_critic else 1

    def pair_bytes(self, rows: int, length: int) -> int:
        """Bytes for each token of the weights of attention, for rows of this length: 0 where they are not held."""
        held = self.weight_bytes == FLOAT and not self.autocast and rows * self.heads * length**2 <= PAIRS
        return FLOAT * self.heads * length if held else 0

    @property
    def row_tokens(self) -> int:
        """Tokens of a row: prompt and response."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run, by what they are for, and of its stages.

    All the time: baseline (the process itself), weights (of the policy's backbone and the critic's), reference (0 if it
    shares the backbone), adapters (and the value head), optimizer. While responses are sampled: cache, rollout_work
    (prompts or logits). While they are scored: states, and either score_pass or score_logits. While the policy learns:
    gradients, activations, and either learn_logits or backward_work (within a block); on a CPU heap, kept by malloc.
    """

    baseline: int
    weights: int
    reference: int
    adapters: int
    optimizer: int
    cache: int
    rollout_work: int
    states: int
    score_pass: int
    score_logits: int
    gradients: int
    activations: int
    learn_logits: int
    backward_work: int
    heap: int

    @property
    def always(self) -> int:
        """Bytes that every stage has."""
        return self.baseline + self.weights + self.reference + self.adapters + self.optimizer

    @property
    def rollout(self) -> int:
        return self.always + self.cache + self.rollout_work

    @property
    def score(self) -> int:
        return self.always + self.states + max(self.score_pass, self.score_logits)

    @property
    def learn(self) -> int:
        return self.always + self.gradients + self.activations + max(self.learn_logits, self.backward_work) + self.heap

    @property
    def peak(self) -> int:
        return max(self.rollout, self.score, self.learn)


def plan_memory(sizes: MemorySizes, baseline: int = 0) -> MemoryPlan:
    """Calculate the bytes of a run. baseline: of the process before it on a CPU, see `process_bytes`; 0 for a card."""
    head, backbone = sizes.hidden_size + 1, sizes.backbone_bytes
    adapter = sizes.adapter_parameters * (sizes.trained_bytes + (2 if sizes.weight_bytes < FLOAT else 0))
    gradients = sizes.trained_parameters * sizes.trained_bytes
    row_width = sizes.kv_heads * sizes.head_dim * sizes.weight_bytes
    cache = 2 * sizes.layers * sizes.rows * sizes.row_tokens * row_width
    hidden = sizes.trunks * sizes.rows * sizes.row_tokens * sizes.hidden_size * sizes.weight_bytes  # of one output
    responses = sizes.rows * sizes.new_tokens
    learned = gradients + activation_bytes(sizes) + backward_bytes(sizes)
    return MemoryPlan(
        baseline=baseline,
        weights=backbone * (1 if sizes.lora_rank else sizes.trunks),
        reference=0 if sizes.lora_rank else backbone,
        adapters=sizes.trunks * adapter + head * sizes.trained_bytes,  # beside bfloat16: and a copy to decode with
        optimizer=MOMENTS_OF_ADAM * gradients,
        # Rows that have stopped are dropped once a share of FEW is left: the cache of those is copied.
        cache=cache + int(FEW * cache),
        rollout_work=max(pass_bytes(replace(sizes, separate_critic=False), sizes.prompt_tokens), sampling_bytes(sizes)),
        # Of the response tokens, in the outputs of policy and reference: entropies are computed from them later.
        states=2 * responses * sizes.hidden_size * sizes.weight_bytes,
        score_pass=pass_bytes(sizes, sizes.row_tokens),
        score_logits=max(reading_bytes(sizes, responses) + hidden, distribution_bytes(sizes)),
        gradients=gradients,
        activations=activation_bytes(sizes),
        learn_logits=learning_bytes(sizes, sizes.micro_rows * sizes.new_tokens) + head_bytes(sizes),
        backward_work=backward_bytes(sizes),
        heap=min(HEAP, learned) if baseline else 0,
    )


def process_bytes() -> int:
    """Memory of this process as it is now (resident set): with torch imported, the baseline of a run on a CPU.

    Where the system does not say (no /proc), the largest that it was so far; 0 where nothing is known.
    """
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # macOS counts bytes, others KiB


# ---- activations -------------------------------------------------------------------------------------------


def activation_bytes(sizes: MemorySizes) -> int:
    """Bytes that autograd keeps of the trunks' forward pass over a micro-batch, its result included."""
    tokens = sizes.micro_rows * sizes.row_tokens
    # With recomputation the states between the blocks are kept, and nothing else of them.
    block = tokens * sizes.hidden_size * sizes.weight_bytes if sizes.recompute else block_bytes(sizes)
    around = tokens * around_bytes(sizes)
    # The states of the response tokens are picked out of the policy's hidden states: a copy.
    states = sizes.micro_rows * sizes.new_tokens * sizes.hidden_size * sizes.weight_bytes
    return sizes.trunks * (sizes.layers * block + around) + states


def block_bytes(sizes: MemorySizes) -> int:
    """Bytes that autograd keeps of one block."""
    return sizes.micro_rows * sizes.row_tokens * token_bytes(sizes) + cast_bytes(sizes)


def backward_bytes(sizes: MemorySizes) -> int:
    """Bytes of the backward pass through a block: two gradients of the inner width, or of the weights of attention.

    Beside them the block itself, if it is recomputed.
    """
    product, tokens = 2 if sizes.autocast else sizes.weight_bytes, sizes.micro_rows * sizes.row_tokens
    pairs = sizes.pair_bytes(sizes.micro_rows, sizes.row_tokens)
    inner = 2 * tokens * max(product * sizes.intermediate_size, pairs)
    return inner + (block_bytes(sizes) if sizes.recompute else 0)


def token_bytes(sizes: MemorySizes) -> int:
    """Bytes that autograd keeps of one block for each token.

    Two norms: x in float32 and 1 / rms; if their gain is trained, x / rms as well. Attention: q, k, v, its result, and
    a log-sum or T weights for each head. MLP: gate, silu(gate), up. Inputs of projections that learn: `input_bytes`.
    """
    product = 2 if sizes.autocast else sizes.weight_bytes
    width, q, k = sizes.hidden_size, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norms = 2 * (FLOAT * width + FLOAT) + (0 if sizes.lora_rank else 2 * FLOAT * width)
    pairs = sizes.pair_bytes(sizes.micro_rows, sizes.row_tokens) or FLOAT * sizes.heads
    attention = product * (2 * q + 2 * k) + pairs
    return norms + attention + product * 3 * sizes.intermediate_size + input_bytes(sizes)


def input_bytes(sizes: MemorySizes) -> int:
    """Bytes for each token of the inputs of a block's projections that learn.

    Projections share an input: q, k, v the first norm's output, gate and up the second's; o_proj's is the result of
    attention, which is kept anyway. Under autocast each of them casts its own copy of the input.
    """
    targets = sizes.lora_targets if sizes.lora_rank else PROJECTIONS
    product = 2 if sizes.autocast else sizes.weight_bytes
    rank = len(targets) * sizes.lora_rank * product  # A x, the input of B
    inputs = {name: sizes.projections[name][0] for name in targets}
    if not sizes.autocast or not sizes.lora_rank:  # an adapter casts to float32, and autocast back
        inputs.pop("o_proj", None)
    if not sizes.autocast:
        shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        inputs = {shared.get(name, name): width for name, width in inputs.items()}
    return rank + product * sum(inputs.values())


def cast_bytes(sizes: MemorySizes) -> int:
    """Bytes of a block's weights in bfloat16 that are kept until the backward pass.

    Autocast casts all of them; an adapter casts its own to the dtype of its backbone.
    """
    cast = sizes.adapter_parameters // sizes.layers if sizes.autocast or sizes.weight_bytes < FLOAT else 0
    if sizes.autocast:
        cast += sum(inputs * outputs for inputs, outputs in sizes.projections.values())
    return 2 * cast


def around_bytes(sizes: MemorySizes) -> int:
    """Bytes kept outside the blocks for each token: rotary angles, the last norm, its output, the id."""
    stream, width = sizes.weight_bytes, sizes.hidden_size
    norm = FLOAT * width + FLOAT + (0 if sizes.lora_rank else FLOAT * width)
    value_input = FLOAT * width if stream < FLOAT else 0  # the value head is float32
    return 2 * sizes.head_dim * stream + norm + stream * width + value_input + 8


# ---- without gradients, and logits -------------------------------------------------------------------------


def pass_bytes(sizes: MemorySizes, length: int) -> int:
    """Bytes of a forward pass over all rows at this length that keeps nothing: the larger of a block's two halves."""
    width, q, k = sizes.hidden_size, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    # x before and after attention and its norm, beside silu(gate), up and their product; or beside queries that are
    # being rotated (four times their size), keys and values; or beside queries, keys and values, those two a second
    # time, and the weights of attention before and after the softmax.
    stream, product = sizes.weight_bytes, 2 if sizes.autocast else sizes.weight_bytes
    wide = 4 if sizes.lora_rank and "up_proj" in sizes.lora_targets else 3  # an adapter's share is added
    mlp = 3 * stream * width + wide * product * sizes.intermediate_size
    pairs = sizes.pair_bytes(sizes.rows, length)
    rotated, weighed = product * (4 * q + 2 * k), (product * (2 * q + 4 * k) + 2 * pairs if pairs else 0)
    attention = 2 * stream * width + max(rotated, weighed)
    # The critic's pass comes second, beside the hidden states of the policy's. Autocast keeps its copies of weights
    # that learn until the pass is over.
    beside = stream * width * (sizes.trunks - 1)
    casts = sizes.layers * cast_bytes(sizes) if sizes.autocast and not sizes.lora_rank else 0
    return sizes.rows * length * (max(mlp, attention) + beside) + casts


def sampling_bytes(sizes: MemorySizes) -> int:
    """Bytes of a decoding step: logits as they are, scaled, less the largest, summed; and merged weights (of a CPU)."""
    widened = FLOAT if sizes.weight_bytes < FLOAT else 0
    merged = sizes.weight_bytes == FLOAT and not (sizes.lora_rank or sizes.autocast) and merges(sizes.config)
    logits = sizes.rows * sizes.vocab_size * (sizes.weight_bytes + widened + 3 * FLOAT)
    return logits + merged * FLOAT * merged_elements(sizes.config)


def learning_bytes(sizes: MemorySizes, responses: int) -> int:
    """Bytes of a chunk of logits with gradients, of so many response tokens: as they are, scaled, their log-softmax.

    The backward pass takes no more: there are the log-softmax, its gradient, and that of the logits.
    """
    chunk = min(responses, max(1, sizes.chunk_logits // sizes.vocab_size))
    return 3 * FLOAT * chunk * sizes.vocab_size


def reading_bytes(sizes: MemorySizes, responses: int) -> int:
    """Bytes of a chunk of logits without gradients: the log-softmax, its exp, itself without -inf, and p log p."""
    most = max(1, sizes.chunk_logits // sizes.vocab_size)
    chunk = min(responses, most, max(1, sizes.read_rows, sizes.chunk_read // sizes.vocab_size))
    return 4 * FLOAT * chunk * sizes.vocab_size


def head_bytes(sizes: MemorySizes) -> int:
    """Bytes of the LM head's gradient (V,W) beside the one that is kept: of a chunk, and the sum of those before it."""
    if sizes.lora_rank:
        return 0
    chunks = -(-sizes.micro_rows * sizes.new_tokens // max(1, sizes.chunk_logits // sizes.vocab_size))
    return min(chunks, 2) * sizes.vocab_size * sizes.hidden_size * sizes.trained_bytes


def distribution_bytes(sizes: MemorySizes) -> int:
    """Bytes of the distributions (rows,R,V) that a KL estimator like `exact` compares, and of its arithmetic."""
    if not sizes.full_kl:
        return 0
    return 7 * FLOAT * sizes.micro_rows * sizes.new_tokens * sizes.vocab_size
