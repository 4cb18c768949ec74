"""Decoding: what is sampled is what is scored, EOS ends a row, nothing but chosen tokens is in the mask."""

from dataclasses import replace

import pytest
import torch

from minirlhf.models import decoding as decoding_module
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.sampler import Sampler
from tests.helpers import BOS, EOS, PAD, Letters, seeded, small_policy

pytestmark = pytest.mark.usefixtures("double")
TEXTS = ["abc", "j", "fffff", "ab"]


def prompts(texts=TEXTS, **options):
    return PromptBatch.build(texts, [{} for _ in texts], Letters(), **options)


def rollout(policy=None, new=12, seed=0, **options):
    return generate(policy or small_policy(), prompts(**options), Letters(), max_new_tokens=new, generator=seeded(seed))


def test_prompts_are_padded_on_the_left_and_start_with_bos():
    batch = prompts(["ab", "j"], responses=2)
    assert batch.ids.tolist() == [[BOS, 3, 4], [BOS, 3, 4], [PAD, BOS, 12], [PAD, BOS, 12]]
    assert batch.mask.tolist() == [[True] * 3] * 2 + [[False, True, True]] * 2
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.texts == ("ab", "ab", "j", "j")


def test_columns_follow_their_rows_and_are_none_where_a_row_lacks_one():
    batch = PromptBatch.build(["a", "b"], [{"topic": 1}, {}], Letters(), responses=2)
    assert batch.columns == {"topic": (1, 1, None, None)}


def test_the_tokens_are_drawn_from_the_distribution_that_scores_them():
    """The uniforms are known: every token must be the inverse CDF of them under the full, uncached forward pass."""
    policy = small_policy(temperature=0.8)
    out = rollout(policy)
    uniform = torch.rand(len(TEXTS), 12, generator=seeded())
    dist = policy.forward_pass(out).log_dist(slice(None)).exp()
    for row, ids in enumerate(out.completion_id_lists):
        for t, token in enumerate(ids):
            cdf = dist[row, t].cumsum(0)
            assert cdf[token] > uniform[row, t] - 1e-9
            assert cdf[token] - dist[row, t, token] <= uniform[row, t] + 1e-9


def test_a_row_ends_with_the_eos_that_it_sampled_and_the_mask_with_it():
    out = rollout(new=30)
    assert out.terminated.any()
    assert not torch.equal(out.response_mask.sum(1), torch.full((4,), 30))
    for row, ids in enumerate(out.completion_id_lists):
        assert (ids[-1] == EOS) == out.terminated[row].item()
        assert EOS not in ids[:-1]
        assert PAD not in ids
        assert BOS not in ids
        assert out.completions[row] == Letters().decode(ids)
    assert torch.equal(out.mask, out.response_mask)
    assert (out.response_ids[~out.response_mask] == PAD).all()


def test_a_truncated_response_gets_no_eos():
    out = rollout(new=2)
    cut = ~out.terminated
    assert cut.any()
    assert out.mask[cut].all()
    assert (out.response_ids[cut] != EOS).all()


def test_what_a_row_samples_does_not_depend_on_its_neighbours_nor_on_when_they_stop():
    policy = small_policy()
    together = rollout(policy, new=20)
    uniform = torch.rand(4, 20, generator=seeded())

    for row, text in enumerate(TEXTS):
        batch = prompts([text])
        real = torch.rand
        try:
            torch.rand = lambda *a, row=row, **k: uniform[row : row + 1]
            alone = generate(policy, batch, Letters(), max_new_tokens=20, generator=seeded())
        finally:
            torch.rand = real
        assert alone.completion_id_lists[0] == together.completion_id_lists[row]


def test_seeds_decide():
    assert torch.equal(rollout(seed=1).response_ids, rollout(seed=1).response_ids)
    assert rollout(seed=1).completions != rollout(seed=2).completions


def test_a_batch_whose_rows_all_stop_at_once_has_one_column():
    policy = small_policy()
    only_eos = replace(policy.sampler, banned=tuple(i for i in range(13) if i != EOS))
    out = generate(policy, prompts(), Letters(), max_new_tokens=9, generator=seeded(), sampler=only_eos)
    assert out.response_ids.tolist() == [[EOS]] * 4
    assert out.completions == ("",) * 4


def test_greedy_takes_the_most_likely_token():
    policy = small_policy()
    greedy = Sampler(0.0, banned=(PAD, BOS), stops=(EOS,))
    out = generate(policy, prompts(), Letters(), max_new_tokens=5, generator=seeded(), sampler=greedy)
    best = policy.forward_pass(out).log_dist(slice(None)).argmax(-1)
    assert torch.equal(best[out.mask], out.response_ids[out.mask])


def test_rows_that_have_finished_are_not_decoded_any_further(monkeypatch):
    """Forty rows end at different steps: the batch shrinks, and every row is the same as in a batch that does not."""
    policy, texts = small_policy(temperature=1.5), TEXTS * 10
    sizes = []
    choose = decoding_module.Decoding.choose

    def counted(self, hidden):
        sizes.append(len(hidden))
        choose(self, hidden)

    monkeypatch.setattr(decoding_module.Decoding, "choose", counted)
    out = rollout(policy, new=40, texts=texts)
    assert sizes[0] == 40
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 20
    monkeypatch.setattr(decoding_module, "FEW", 0.0)
    whole = rollout(policy, new=40, texts=texts)
    assert out.completion_id_lists == whole.completion_id_lists
    assert torch.equal(out.terminated, whole.terminated)


def test_randomness_is_given_in_one_way():
    """Never torch's own generator, which nobody seeds here."""
    for given in ({}, {"generator": seeded(), "uniform": torch.rand(4, 3)}):
        with pytest.raises(ValueError, match="give a generator"):
            generate(small_policy(), prompts(), Letters(), max_new_tokens=3, **given)
