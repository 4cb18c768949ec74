"""PEFT against our adapters: its files are read here and ours there, and both compute what the merged weights do."""

import pytest
import torch

from minirlhf.errors import CheckpointError, InputError
from minirlhf.models.lora import Adapted
from minirlhf.store.adapters import load_adapter, load_backbone
from minirlhf.store.weights import load_transformer
from tests.cli.calling import done
from tests.own_models import own_model

pytestmark = pytest.mark.interop
CPU = torch.device("cpu")
# Logits of size 3 in float32, whose unit is 2.4e-7 (2^-22): a merged weight is rounded once more than W x + B A x. That
# has moved a logit by fifteen units.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def libraries():
    return pytest.importorskip("transformers"), pytest.importorskip("peft")


def text():
    return torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))


def ours_on(trunk):
    with torch.no_grad():
        return trunk.logits(trunk(text()))


def theirs_on(model):
    with torch.no_grad():
        return model.eval()(text()).logits


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "o_proj", "gate_proj"]])
def test_an_adapter_that_peft_saved_computes_the_same_here(targets, tmp_path, libraries):
    transformers, peft = libraries
    base = own_model(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=12, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    adapted.save_pretrained(tmp_path / "adapter")
    backbone = load_backbone(base, "float32", CPU)
    ours = Adapted(backbone, load_adapter(tmp_path / "adapter", backbone.config)[0])
    assert (ours_on(ours) - theirs_on(adapted)).abs().max() < CLOSE
    assert (ours_on(ours.merged()) - theirs_on(adapted)).abs().max() < CLOSE
    assert (ours_on(ours) - ours_on(backbone)).abs().max() > 0.03


@pytest.mark.parametrize(
    "layers",
    [
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": r"model\.layers\.1\.self_attn\.q_proj"},  # a regular expression, and no list of layers
    ],
)
def test_an_adapter_of_peft_on_some_layers_is_refused_for_what_it_is(layers, tmp_path, libraries):
    transformers, peft = libraries
    base = own_model(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(r=3, **layers)).save_pretrained(tmp_path / "adapter")
    with pytest.raises((InputError, CheckpointError), match="adapters on some layers are not computed here"):
        load_adapter(tmp_path / "adapter", load_backbone(base, "float32", CPU).config)


def test_an_adapter_that_is_exported_after_its_base_has_moved_opens_there(tiny, tmp_path, libraries):
    _, peft = libraries
    base, run, moved = own_model(tmp_path / "base"), tmp_path / "run", tmp_path / "moved"
    done("run", *tiny, "--model", base, "--set", "lora.rank=4", "--reward", "length", "--out", run)
    base.rename(moved)
    done("export", run, tmp_path / "adapter", "--set", f"model.path={moved}")
    theirs = theirs_on(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32))
    backbone = load_backbone(moved, "float32", CPU)
    ours = Adapted(backbone, load_adapter(tmp_path / "adapter", backbone.config)[0])
    assert (ours_on(ours) - theirs).abs().max() < CLOSE


def test_the_adapter_and_the_merged_model_of_a_run_open_there(tiny, tmp_path, libraries):
    transformers, peft = libraries
    base, run = own_model(tmp_path / "base"), tmp_path / "run"
    done(
        "run",
        *tiny,
        "--model",
        base,
        "--set",
        "lora.rank=4",
        "--set",
        "ppo.lr=0.05",
        "--reward",
        "length",
        "--out",
        run,
    )
    done("export", run, tmp_path / "adapter")
    done("export", run, tmp_path / "merged", "--merge")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    bare = theirs_on(model)
    adapted = theirs_on(peft.PeftModel.from_pretrained(model, tmp_path / "adapter"))
    merged = theirs_on(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    assert (adapted - merged).abs().max() < CLOSE
    assert (ours_on(load_transformer(tmp_path / "merged")) - merged).abs().max() < CLOSE
    assert (adapted - bare).abs().max() > 0.003
