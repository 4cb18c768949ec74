"""First weights of a base: what makes a short pretraining go further than random weights do.

- Blocks add nothing at first: their two last projections are 0, so that a token's state begins as its embedding.
- The last norm begins at 1/sqrt(W), so that a token's logit of itself begins near 1 and the others near 0: its
  embedding is its row of the LM head as well, and with a norm of 1 it would call for itself with a logit of sqrt(W).
- Queries and keys are drawn half as large: attention begins near the mean of all tokens so far.
- The embedding holds counts: tokens that stand in the same windows of the text begin close to each other. A token that
  never occurs keeps its random part alone, and so begins smaller than the others.

The last takes a fraction of a second, and saves the passes over the corpus in which the model would learn that "sturdy"
and "comfortable" belong together, long before it can learn that one calls for the other.

Not here: the draw itself (`Transformer.initialise`), and the training (pretrain.py).
Source of the counts: Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization".
"""

import torch
from torch import Tensor

from minirlhf.models.transformer import Transformer

COUNTED = 0.7  # share of the embedding's variance that comes from counts; the rest stays random
MOST_TOKENS = 4096  # so many of the most frequent tokens are counted: each of four tables of their pairs takes 64 MiB
PART = 1024  # rows that are counted at a time: their table is as wide as the counted tokens
ROUNDS = 4  # multiplications by the table that find its largest factors


@torch.no_grad()
def prepare_weights(model: Transformer, rows: list[list[int]], generator: torch.Generator) -> Transformer:
    """Change random weights into those that pretraining on these windows begins from; returns the model."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.mul_(0.5)
    model.norm.weight.mul_(model.config.hidden_size**-0.5)
    weight = model.embed_tokens.weight
    tokens = torch.tensor([token for row in rows for token in row]).bincount(minlength=len(weight))
    common = tokens.argsort(descending=True, stable=True)[:MOST_TOKENS]
    counted = factors(association(rows, common), weight.shape[1], generator)  # (n,W)
    size = counted.square().mean().sqrt()
    if size > 1e-3:  # below that it is rounding: the corpus tells nothing
        counted *= weight.square().mean().sqrt().cpu() / size
        common = common.to(weight.device)
        weight[common] = (1 - COUNTED) ** 0.5 * weight[common] + COUNTED**0.5 * counted.to(weight)
    return model


def association(rows: list[list[int]], tokens: Tensor) -> Tensor:
    """Association of tokens (n,): how much more often two stand in one row than by chance, nats (n,n), symmetric.

    log((N_ab + 1) / (N_a N_b / N + 1)) for a != b, 0 for a = b: N rows, N_a of them hold a, N_ab hold both. It is the
    pointwise mutual information, which one more row in both counts keeps finite, and small where little was seen.
    """
    ids = torch.tensor([token for row in rows for token in row])
    index = torch.full((1 + int(max(ids.max(), tokens.max())),), -1)
    index[tokens] = torch.arange(len(tokens))
    row = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    known = index[ids] >= 0
    found = (row * len(tokens) + index[ids])[known].unique()  # type: ignore[no-untyped-call]  # a token counts once a row
    row, place = found // len(tokens), found % len(tokens)  # in the order of the rows
    both = torch.zeros(len(tokens), len(tokens))
    for start in range(0, len(rows), PART):
        part = slice(*torch.searchsorted(row, torch.tensor([start, start + PART])).tolist())
        where = torch.stack([place[part], row[part] - start])
        ones, shape = torch.ones(where.shape[1]), (len(tokens), PART)
        held = torch.sparse_coo_tensor(where, ones, shape, check_invariants=True)  # (n,PART): 1 where the row holds it
        both += torch.sparse.mm(held, held.to_dense().T.contiguous())  # as a view it would take eight times as long
    alone = both.diagonal().clone()
    chance = alone.unsqueeze(1) * alone / len(rows)
    return ((both + 1) / (chance + 1)).log().fill_diagonal_(0)


def factors(matrix: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """U sqrt(S) (n,width) of the `width` largest eigenvalues in magnitude of a symmetric matrix (n,n) and their vectors
    U, with S = 0 for the negative ones.

    Found by subspace iteration, from vectors that the generator draws: near enough for a start, and in a twentieth of
    the time that all of them would take. It finds the negative ones as well; their columns are 0.
    """
    basis = torch.linalg.qr(torch.randn(len(matrix), min(width, len(matrix)), generator=generator)).Q
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ matrix @ basis)
    found = basis @ vectors * values.clamp(min=0).sqrt()
    return torch.nn.functional.pad(found, (0, width - found.shape[1]))
