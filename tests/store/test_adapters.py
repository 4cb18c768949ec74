"""Adapters on disk: PEFT's layout, a pointer instead of a copy, and refusals of what does not belong together."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.errors import CheckpointError, InputError
from minirlhf.models.lora import Adapted, Adapter
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.scorer import Scorer
from minirlhf.store.adapters import (
    is_adapted,
    load_adapted,
    load_adapter,
    load_backbone,
    model_hash,
    pointed,
    save_adapter,
)
from minirlhf.store.files import read_json
from minirlhf.store.models import load_policy, load_scorer, read_tokenizer, save_policy, save_scorer
from minirlhf.store.weights import save_transformer
from minirlhf.text.tokenizer import train_tokenizer
from tests.helpers import CONFIG, seeded, small_trunk

CPU = torch.device("cpu")
TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a text to train a tokenizer on"], 300)


@pytest.fixture
def base(tmp_path, tokenizer):
    (tmp_path / "base").mkdir()
    save_transformer(tmp_path / "base", small_trunk(), tokenizer)
    return tmp_path / "base"


def learned(base, targets=TARGETS, seed=1):
    backbone = load_backbone(base, "float32", CPU)
    adapter = Adapter(backbone.config, 2, 8.0, targets).initialise(seeded(seed))
    with torch.no_grad():
        for block in adapter.layers:
            for low in block.values():
                low.B.copy_(torch.randn(low.B.shape, generator=seeded(seed + 1)))
    return Adapted(backbone, adapter)


def test_an_adapter_comes_back_to_the_bit_under_pefts_names(base, tmp_path):
    trunk, out = learned(base), tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, trunk)
    assert is_adapted(out)
    stored = load_file(out / "adapter_model.safetensors")
    assert sorted(stored)[:2] == [
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight",
    ]
    assert stored["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].shape == (2, 16)
    config = read_json(out / "adapter_config.json")
    assert {k: config[k] for k in ("peft_type", "r", "lora_alpha", "target_modules", "task_type")} == {
        "peft_type": "LORA", "r": 2, "lora_alpha": 8.0, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM",
    }  # fmt: skip
    again, heads = load_adapted(out, CPU)
    assert heads == {}
    assert again.backbone is trunk.backbone  # loaded once for everybody
    ids = torch.arange(3, 12).unsqueeze(0)
    assert torch.equal(again(ids), trunk(ids))
    assert sum(file.stat().st_size for file in out.iterdir()) < (base / "model.safetensors").stat().st_size


def test_a_backbone_is_loaded_once_for_each_dtype_and_forgotten_with_its_last_user(base):
    one = load_backbone(base, "float32", CPU)
    assert load_backbone(base, "float32", CPU) is one
    assert load_backbone(base, "bfloat16", CPU) is not one
    assert not any(p.requires_grad for p in one.parameters())
    number = id(one.embed_tokens.weight)
    one.marked = True
    del one
    assert not hasattr(load_backbone(base, "float32", CPU), "marked"), number


def test_policies_and_reward_models_stand_beside_the_same_backbone(base, tmp_path, tokenizer):
    trunk = learned(base)
    policy = Policy(trunk, Sampler(1.0, (0, 1), (2,)), separate_critic=True)
    with torch.no_grad():
        policy.value_head.weight.add_(1)
        policy.critic.adapter.layers[0]["q_proj"].B.add_(1)
    scorer = Scorer(learned(base, ("v_proj",), 7)).initialise(seeded(3))
    scorer.mean.fill_(0.25)
    for name, save, model in (("policy", save_policy, policy), ("scorer", save_scorer, scorer)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, model, tokenizer)
    loaded, judge = load_policy(tmp_path / "policy", policy.sampler), load_scorer(tmp_path / "scorer")
    assert loaded.model.backbone is loaded.critic.backbone is judge.model.backbone is trunk.backbone
    for one, other in ((policy, loaded), (scorer, judge)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    rows = [[1, 5, 7, 2], [1, 3]]
    assert torch.equal(judge.scores(rows), scorer.scores(rows))
    assert read_tokenizer(tmp_path / "scorer").hash == tokenizer.hash
    assert read_json(tmp_path / "scorer" / "adapter_config.json")["task_type"] == "SEQ_CLS"


def test_a_base_that_changed_or_is_gone_is_refused_and_one_that_moved_is_found(base, tmp_path):
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, learned(base))
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"base of this adapter is not there: .*; put it back, or .*model\.path"):
        load_adapted(out, CPU)
    model_hash(moved)  # somebody who was told of the new place has looked at it
    assert isinstance(load_adapted(out, CPU)[0], Adapted)
    moved = moved.rename(base)
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"this adapter has changed on disk: [0-9a-f]{12}, and it was"):
        load_adapted(out, CPU)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_decides_a_models_answers_is_in_its_hash(base, name):
    before = model_hash(base)
    (base / name).write_text((base / name).read_text() + " ")
    assert model_hash(base) != before


def changed(out, **settings):
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "unsupported use_dora = 'True'"),
        ({"use_rslora": True}, "unsupported use_rslora = 'True'"),
        ({"peft_type": "IA3"}, "unsupported peft_type = 'IA3'"),
        ({"bias": "all"}, "unsupported bias = 'all'"),
        ({"rank_pattern": {"q_proj": 4}}, "unsupported rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "unsupported modules_to_save"),
        ({"r": None}, "no rank and alpha"),
        ({"lora_alpha": "much"}, "no rank and alpha"),
        ({"r": 0}, "no rank and alpha"),
        ({"r": 2.7}, "no rank and alpha (rank 2.7)"),
        ({"r": 10**9}, "no rank and alpha (rank 1000000000)"),
        ({"lora_bias": True}, "unsupported lora_bias = 'True'"),
        ({"init_lora_weights": "pissa"}, "unsupported init_lora_weights = 'pissa'"),
        ({"layers_to_transform": [0]}, "adapters on some layers are not computed here"),
    ],
)
def test_adapters_that_compute_something_else_are_refused_by_name_and_value(base, tmp_path, settings, said):
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, learned(base))
    changed(out, **settings)
    with pytest.raises(InputError, match=r"adapter_config\.json") as refused:
        load_adapter(out, CONFIG)
    assert said in str(refused.value)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, learned(base))
    for other, said in (
        (replace(CONFIG, hidden_size=32), r"layers\.0\.\w+\.\w has shape .*, this base needs"),
        (replace(CONFIG, num_hidden_layers=1), "the adapter's tensors are not those of this base: .* another base"),
        (replace(CONFIG, num_hidden_layers=3), r"has nothing for layers\.2\.down_proj: .* or the base that it was"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_adapter(out, other)
    tensors = load_file(out / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, out / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is not finite"):
        load_adapter(out, CONFIG)
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 16)}, out / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"the adapter changes lm_head\.lora_A\.weight, which is not computed here"):
        load_adapter(out, CONFIG)


def test_an_adapter_on_some_layers_is_refused_for_what_it_is(base, tmp_path):
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, learned(base))
    file = out / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}, file)
    said = r"the adapter has nothing for layers\.1\.down_proj: .*; adapters on some layers are not computed here"
    with pytest.raises(CheckpointError, match=said):
        load_adapter(out, CONFIG)
    save_file({name: tensor for name, tensor in tensors.items() if "1.mlp.down_proj.lora_B" not in name}, file)
    with pytest.raises(CheckpointError, match=r"tensors are not those of this base.*or is damaged"):  # half of a share
        load_adapter(out, CONFIG)


def test_a_directory_without_an_adapter_is_told_so(tmp_path):
    with pytest.raises(InputError, match="there is no adapter"):
        load_adapter(tmp_path, CONFIG)


def test_cuda_and_its_first_card_are_one_place(base):
    assert load_backbone(base, "float32", torch.device("cpu", 0)) is load_backbone(base, "float32", CPU)


def test_a_place_where_the_base_was_seen_goes_first_as_long_as_it_holds_the_same_files(base, tmp_path, tokenizer):
    """Another model lies where the base was: the right one is found in its new place, and no other is taken for it."""
    out, moved = tmp_path / "adapter", tmp_path / "moved"
    out.mkdir()
    save_adapter(out, learned(base))
    base.rename(moved)
    base.mkdir()
    save_transformer(base, small_trunk(5), tokenizer)
    with pytest.raises(CheckpointError, match=r"has changed on disk: .*/base, "):
        load_adapted(out, CPU)
    model_hash(moved)
    assert pointed(out).path == str(moved)
    copy = shutil.copytree(moved, tmp_path / "copy")
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match=r"has changed on disk: .*/base, "):
        load_adapted(out, CPU)
    model_hash(copy)
    assert pointed(out).path == str(copy)
    shutil.rmtree(base)
    moved.rename(base)
    (base / "config.json").write_text((base / "config.json").read_text().removesuffix(" "))
    (copy / "model.safetensors").unlink()  # seen, and damaged since
    assert pointed(out).path == str(base)


def test_a_pointer_with_a_path_that_no_system_takes_is_one_line(base, tmp_path):
    out = tmp_path / "adapter"
    out.mkdir()
    save_adapter(out, learned(base))
    pointer = json.loads((out / "backbone.json").read_text())
    shutil.rmtree(base)
    for path in ("x" * 5000, "/" + "x" * 5000, "nul\0", "\ud800"):
        (out / "backbone.json").write_text(json.dumps(pointer | {"path": path}))
        with pytest.raises(CheckpointError, match=r"the base of this adapter is not there: .{1,600}$"):
            load_adapted(out, CPU)
