"""A saved reward model as a reward: the ids that it scores are, token by token, those that it was trained on."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minirlhf.builtin.trained import members_of
from minirlhf.components.component import Built
from minirlhf.components.registry import load_plugins
from minirlhf.errors import CheckpointError, PluginError, UsageError
from minirlhf.models.scorer import Scorer
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.pipeline.rewards import check_lengths
from minirlhf.rewards.call import RewardModels
from minirlhf.store.files import complete_directory
from minirlhf.store.models import SCORE, load_scorer, save_scorer
from minirlhf.text.corpus import Prompt
from minirlhf.text.tokenizer import text_ids, train_tokenizer
from tests.helpers import CONFIG, random_rollout, seeded

TOKENIZER = train_tokenizer(["the cat sat on the mat and the cat ate"] * 3, 270)
PROMPTS, COMPLETIONS = ["the cat", "on"], [" sat on the mat", " and ate"]


@pytest.fixture
def saved(tmp_path):
    sizes = TransformerConfig(**{**CONFIG.__dict__, "vocab_size": TOKENIZER.vocab_size})
    model = Scorer(Transformer(sizes).initialise(seeded())).initialise(seeded(1))
    model.mean.fill_(0.25)
    model.std.fill_(2.0)
    with complete_directory(tmp_path / "rm") as temporary:
        save_scorer(temporary, model, TOKENIZER)
    return tmp_path / "rm", model


def reward(path) -> Built:
    return load_plugins(entry_points=False).find("reward", "trained").build({"path": str(path)}, device="cpu")


def ids_of(ended):
    prompts = [[TOKENIZER.bos_id, *TOKENIZER.encode(text)] for text in PROMPTS]
    end = [[TOKENIZER.eos_id] if e else [] for e in ended]
    return prompts, [[*TOKENIZER.encode(text), *e] for text, e in zip(COMPLETIONS, end, strict=True)]


def scored(built, ended, tokenizer_hash, completions=COMPLETIONS, completion_ids=None):
    prompt_ids, ids = ids_of(ended)
    rollout = replace(random_rollout(2), terminated=torch.tensor(ended))
    return built(
        {
            "prompts": PROMPTS,
            "completions": completions,
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids or ids,
            "rollout": rollout,
            "trainer_state": SimpleNamespace(tokenizer_hash=tokenizer_hash),
        }
    )


def test_it_comes_back_from_disk_with_its_moments(saved):
    path, model = saved
    again = load_scorer(path)
    rows = [text_ids(TOKENIZER, *texts, True) for texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert torch.equal(again.scores(rows), model.scores(rows))
    assert (float(again.mean), float(again.std)) == (0.25, 2.0)


@pytest.mark.parametrize("ended", [[True, True], [True, False]])
def test_what_ppo_scores_is_what_training_read(saved, ended):
    """Ids of a response (same tokenizer) and its text (another tokenizer) both give the ids of training, text_ids."""
    path, model = saved
    rows = [text_ids(TOKENIZER, *texts) for texts in zip(PROMPTS, COMPLETIONS, ended, strict=True)]
    prompts, completions = ids_of(ended)
    assert [[*p, *c] for p, c in zip(prompts, completions, strict=True)] == rows
    right = model.eval().scores(rows).tolist()
    built = reward(path)
    assert scored(built, ended, TOKENIZER.hash) == right
    assert scored(built, ended, "another tokenizer") == right


def test_own_ids_are_scored_as_they_were_sampled_others_are_encoded_again(saved):
    path, _ = saved
    built = reward(path)
    plain = scored(built, [True, True], TOKENIZER.hash)
    letters = [[TOKENIZER.encode(letter)[0] for letter in text] + [TOKENIZER.eos_id] for text in COMPLETIONS]
    assert scored(built, [True, True], TOKENIZER.hash, completion_ids=letters) != plain  # sampled letter by letter
    assert scored(built, [True, True], "another", completion_ids=letters) == plain
    assert scored(built, [True, True], TOKENIZER.hash, completions=["x", "y"]) == plain


def test_no_responses_have_no_scores(saved):
    built, state = reward(saved[0]), SimpleNamespace(tokenizer_hash=TOKENIZER.hash)
    names = ("prompts", "completions", "prompt_ids", "completion_ids")
    assert built({name: [] for name in names} | {"rollout": random_rollout(1), "trainer_state": state}) == []


def test_the_company_of_a_response_changes_nothing(saved):
    _, model = saved
    rows = [text_ids(TOKENIZER, p, c, True) for p in PROMPTS for c in COMPLETIONS]
    together = model.eval().scores(rows)
    apart = torch.cat([model.scores([row]) for row in rows])
    assert torch.allclose(together, apart, atol=1e-6)


def test_an_ensemble_is_its_mean_its_least_or_less_than_its_mean(saved, tmp_path):
    """Three members; pessimistic: mean - 0.5 x population standard deviation, by hand."""
    members = []
    with complete_directory(tmp_path / "ensemble") as temporary:
        for index in range(3):
            sizes = TransformerConfig(**{**CONFIG.__dict__, "vocab_size": TOKENIZER.vocab_size})
            model = Scorer(Transformer(sizes).initialise(seeded(index))).initialise(seeded(index + 10))
            model.mean.fill_(index * 0.1)
            model.std.fill_(1.0 + index)
            (temporary / str(index)).mkdir()
            save_scorer(temporary / str(index), model, TOKENIZER)
            members.append(model.eval())
    rows = [text_ids(TOKENIZER, *texts, True) for texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    columns = list(zip(*(model.scores(rows).tolist() for model in members), strict=True))
    means = [sum(c) / 3 for c in columns]
    spreads = [(sum((s - m) ** 2 for s in c) / 3) ** 0.5 for c, m in zip(columns, means, strict=True)]
    find = load_plugins(entry_points=False).find("reward", "trained")

    def given(**options):
        return scored(
            find.build({"path": str(tmp_path / "ensemble"), **options}, device="cpu"), [True, True], TOKENIZER.hash
        )

    assert given() == pytest.approx(means, abs=1e-6)
    assert given(combine="min") == pytest.approx([min(c) for c in columns], abs=1e-6)
    lower = [m - 0.5 * s for m, s in zip(means, spreads, strict=True)]
    assert given(combine="pessimistic", caution=0.5) == pytest.approx(lower, abs=1e-6)
    assert max(spreads) > 0.01
    assert given(combine="pessimistic", caution=0.0) == pytest.approx(means, abs=1e-6)
    whole = [m - s for m, s in zip(means, spreads, strict=True)]
    assert given(combine="pessimistic") == pytest.approx(whole, abs=1e-6)  # caution is 1 unless told


def test_members_are_in_the_order_of_their_numbers(tmp_path):
    for index in range(12):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / SCORE).write_text("{}")
    (tmp_path / "12").mkdir()  # no score in it: no member
    assert [member.name for member in members_of(tmp_path)] == [str(index) for index in range(12)]


def test_a_damaged_or_missing_one_is_refused(saved, tmp_path):
    path, _ = saved
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="differs from the manifest"):
        reward(path)
    with pytest.raises(UsageError, match=r"no saved reward model.*nothing"):
        reward(tmp_path / "nothing")


def test_a_text_that_it_cannot_read_whole_is_refused(saved):
    """Its scores of the first tokens alone would say nothing about what comes after them."""
    built = reward(saved[0])
    longest = CONFIG.max_position_embeddings
    fitting = [[5] * (longest - 2), [5]]  # BOS and a prompt of one token before it
    short = replace(random_rollout(2), terminated=torch.tensor([True, True]))
    given = {"prompts": PROMPTS, "completions": COMPLETIONS, "prompt_ids": [[1, 4], [1, 4]], "rollout": short}
    state = SimpleNamespace(tokenizer_hash=TOKENIZER.hash)
    assert len(built(given | {"completion_ids": fitting, "trainer_state": state})) == 2
    fitting[0].append(5)
    with pytest.raises(PluginError, match=f"reads {longest} tokens, and a text has {longest + 1}"):
        built(given | {"completion_ids": fitting, "trainer_state": state})
    for max_new_tokens, fits in [(longest - 3, True), (longest - 2, False)]:  # the longest prompt has BOS and 2 tokens
        prompts = [Prompt("the cat"), Prompt("on")]
        assert max(len(TOKENIZER.encode(prompt.text)) for prompt in prompts) == 2
        with nullcontext() if fits else pytest.raises(UsageError, match=f"'rm' reads {longest} .* have {longest + 1}"):
            check_lengths(RewardModels([("rm", 1.0, built)]), TOKENIZER, prompts, max_new_tokens)
