"""Our files in the transformers library: `pip install -e '.[test,interop]'`, then `pytest -m interop`."""

import pytest
import torch

from minirlhf.models.scorer import Scorer
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.stages.reward_model import text_ids
from minirlhf.store.models import save_scorer
from minirlhf.store.weights import load_transformer
from minirlhf.text.tokenizer import Tokenizer, train_tokenizer
from tests.helpers import CONFIG

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("part", ["model", "reference"])
def test_a_saved_model_opens_there_and_computes_the_same(part, finished, transformers):
    folder = finished[0] / part
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_transformer(folder)
    ids = torch.randint(3, ours.config.vocab_size, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0  # padding on the left
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = theirs(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        logits = ours(ids, mask.bool()) @ ours.embed_tokens.weight.T
    assert (logits - expected)[mask.bool()].abs().max() < 1e-5


def test_a_model_made_there_opens_here(tmp_path, transformers):
    """Grouped heads, an untied size of everything: names and layout are read, not guessed."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path)
    ids = torch.randint(0, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(ids) @ ours.embed_tokens.weight.T - theirs(ids).logits).abs().max() < 1e-5


def test_the_tokenizer_opens_there_and_gives_the_same_ids(finished, transformers):
    folder = finished[0] / "model"
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in ("the cat is good today .", "naïve 茶 \N{TEACUP WITHOUT HANDLE}", "  two  spaces\n"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (ours.pad_id, ours.bos_id, ours.eos_id)


def test_a_reward_model_opens_there_and_scores_the_same(tmp_path, transformers):
    """LlamaForSequenceClassification with one label; it reads its score at the last token that is no padding."""
    tokenizer = train_tokenizer(["the cat sat on the mat and the cat ate"] * 3, 270)
    sizes = TransformerConfig(**{**CONFIG.__dict__, "vocab_size": tokenizer.vocab_size})
    generator = torch.Generator().manual_seed(0)
    ours = Scorer(Transformer(sizes).initialise(generator)).initialise(generator)
    save_scorer(tmp_path, ours, tokenizer)
    theirs, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    rows = [text_ids(tokenizer, "the cat", completion, True) for completion in (" sat", " ate on the mat and sat")]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    with torch.no_grad():
        scores = theirs.eval()(input_ids=ids, attention_mask=(ids != tokenizer.pad_id).long()).logits.squeeze(-1)
    assert (scores - ours.scores(rows, normalised=False)).abs().max() < 1e-5
