"""Resume: a run that is stopped after any iteration and resumed ends bit for bit like the run that was not stopped.

Bits of weights, optimiser, logs and evaluation are compared. Then: refused changes, damaged checkpoints, signals.
"""

import hashlib
import json
import os
import shutil
import signal
import tomllib
from pathlib import Path
from time import sleep

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.signals import Terminated, act, deferred, handled
from minirlhf.store.checkpoint import all_of, directory_of
from minirlhf.store.files import MANIFEST, complete_directory
from tests.cli.calling import call, done, refused

LAST = 12
NOVELTY = Path(__file__).parents[2] / "plugins" / "novelty.py"
STOPPER = '''
import os, signal
from minirlhf import hookimpl

class Stopper:
    """Ends the process as a scheduler would, after one iteration."""
    def start(self, config, run_dir): pass
    def finish(self, summary): pass
    def step(self, step, experience, metrics):
        if step == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), int(os.environ.get("STOP_BY", signal.SIGTERM)))

@hookimpl
def register_observers():
    return {"stopper": Stopper}
'''
# Every kind of state that a checkpoint must keep: an adaptive KL coefficient and penalty, moments of the scores, a
# falling learning rate, a stateful reward.
SETTINGS = (
    f"ppo.iterations={LAST}", "kl.controller=adaptive", "kl.target=0.5", "kl.horizon=20", "ppo.score_normalize=true",
    "loss.policy=ppo_penalty", "loss.penalty_target=0.01", "ppo.epochs=2", "run.checkpoint_every=0",
    'run.observers=["stopper"]',
)  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tiny, tmp_path_factory):
    plugin = tmp_path_factory.mktemp("plugins") / "stopper.py"
    plugin.write_text(STOPPER)
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return [*tiny, *sets, "--plugin", plugin, "--plugin", NOVELTY, "--reward", "novelty", "--reward", "length"]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """Directory of a run that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done("run", *arguments, "--out", out)
    return out


def stopped_at(step, arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOP_AT", str(step))
        assert call("run", *arguments, "--out", out).code == 143
    return out


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory):
    """Directory of a run that was stopped after six iterations."""
    return stopped_at(6, arguments, tmp_path_factory)


@pytest.fixture(scope="module")
def nearly_done(arguments, tmp_path_factory):
    """Directory of a run that was stopped two iterations before its end."""
    return stopped_at(LAST - 2, arguments, tmp_path_factory)


@pytest.fixture
def copy(stopped, tmp_path):
    """A copy of the stopped run, for one test to resume."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of the run that was not stopped: bit for bit what resuming `copy` leaves, as the tests below show."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def left(directory):
    """Everything in a run directory except times: name -> hash or content."""
    found = {}
    for path in sorted([*directory.glob("model/*"), *directory.glob("checkpoints/step_*/*")]):
        if path.suffix == ".safetensors":
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl"):
        rows = [json.loads(line) for line in (directory / name).read_text().splitlines()]
        timed = ("time/", "tokens_per_s", "eps")
        found[name] = [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]
    (last,) = [p for p in all_of(directory / "checkpoints") if p == directory_of(p.parent, LAST)]
    state = json.loads((last / "state.json").read_text())
    found["state"] = {k: v for k, v in state.items() if k not in ("files", "config")}
    found["evaluation"] = json.loads((directory / "evaluation.json").read_text())
    del found["evaluation"]["seconds"]
    return found


def differences(one, two):
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


# ---- to the bit -------------------------------------------------------------------------------------------


OFTEN = (1, 6, LAST - 1)  # the first, the middle and the last but one


@pytest.mark.parametrize(
    "stop", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.crash) for n in range(1, LAST)]
)
def test_stopped_after_any_iteration_and_resumed(stop, arguments, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("STOP_AT", str(stop))
    result = call("run", *arguments, "--out", out)
    assert (result.code, result.err.splitlines()[-1]) == (143, f"terminated; go on with: minirlhf run --resume {out}")
    assert [p.name for p in all_of(out / "checkpoints")] == [f"step_{stop:08d}"]
    assert not (out / "evaluation.json").exists()
    monkeypatch.delenv("STOP_AT")
    resumed = done("run", "--resume", out, "--set", "run.keep_checkpoints=1")
    assert f"resumed     after step {stop}" in resumed.err
    assert differences(left(whole), left(out)) == []


def change(name, edit):
    def apply(directory):
        tensors = load_file(directory / name)
        edit(tensors)
        save_file(tensors, directory / name)

    return apply


def state(edit):
    def apply(directory):
        content = json.loads((directory / "state.json").read_text())
        edit(content)
        (directory / "state.json").write_text(json.dumps(content))

    return apply


def zero(part):
    def edit(tensors):
        for name, tensor in tensors.items():
            if name.endswith(part):
                tensor.zero_()

    return edit


def nudge(tensors):
    tensor = tensors["model.layers.0.mlp.up_proj.weight"].view(-1)
    tensor[0] = torch.nextafter(tensor[0], torch.tensor(1e9))


MUTANTS = {
    "a weight, by one bit": change("policy.safetensors", nudge),
    "Adam's mean": change("optimizer.safetensors", zero(".exp_avg")),
    "Adam's mean square": change("optimizer.safetensors", zero(".exp_avg_sq")),
    "Adam's count": change("optimizer.safetensors", zero(".step")),
    "no optimiser at all": change("optimizer.safetensors", dict.clear),
    "the KL coefficient": state(lambda s: s["controller"].update(beta=(0.1).hex())),
    "the penalty": state(lambda s: s["penalty"].update(beta=(3.0).hex())),
    "the moments of the scores": state(lambda s: s["score_moments"].update(total=(0.0).hex())),
    "the learning rate": state(lambda s: s.update(schedule=0)),
    "what a reward remembers": state(lambda s: s["components"]["reward/novelty"].update(seen={})),
    "the count of updates": state(lambda s: s.update(updates=0)),
    "the count of episodes": state(lambda s: s.update(episodes=0)),
    "the length of the metrics": state(lambda s: s["files"].update({"metrics.jsonl": 0})),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_part_of_the_state_is_needed(name, nearly_done, whole, tmp_path):
    """Each change is made to a checkpoint whose manifest is renewed; the comparison must see it in the results."""
    copy = Path(shutil.copytree(nearly_done, tmp_path / "run"))
    (path,) = all_of(copy / "checkpoints")
    files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != MANIFEST}
    with complete_directory(path) as temporary:
        for file, content in files.items():
            (temporary / file).write_bytes(content)
        MUTANTS[name](temporary)
    done("run", "--resume", copy, "--set", "run.keep_checkpoints=1")
    assert differences(left(whole), left(copy))


def test_a_step_that_the_checkpoint_is_not_of_is_refused(copy):
    (path,) = all_of(copy / "checkpoints")
    path.rename(directory_of(path.parent, 7))
    refused(4, "run", "--resume", copy, said=("it is of step 6",))


def test_the_kl_coefficient_is_the_one_derived_by_hand_on_both_sides_of_a_stop(whole, copy):
    """beta <- beta (1 + clip(KL / 0.5 - 1, +-0.2) 8 / 20), from the KL that is logged (RLlib lost it on resume)."""
    done("run", "--resume", copy)
    for run in (whole, copy):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, LAST + 1))
        beta = rows[0]["kl/coef"]
        for row in rows:
            assert row["kl/coef"] == pytest.approx(beta, rel=1e-12)
            beta *= 1 + min(max(row["objective/kl"] / 0.5 - 1, -0.2), 0.2) * 8 / 20


# ---- again, longer, otherwise -----------------------------------------------------------------------------


def test_twice_is_once_and_what_is_finished_says_so(copy, whole):
    done("run", "--resume", copy, "--set", "run.keep_checkpoints=1")
    before = left(copy)
    again = done("run", "--resume", copy, "--set", "run.keep_checkpoints=1")
    assert "this run is finished" in again.err
    assert again.out == f"{copy}\n"
    assert left(copy) == before
    assert differences(before, left(whole)) == []


def test_a_refused_extension_leaves_the_result_as_it_was(ended):
    (path,) = [p for p in all_of(ended / "checkpoints") if p.name == f"step_{LAST:08d}"]
    forge(path, {"reference": "0" * 64})
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file() and p.name != ".lock"}
    refused(4, "run", "--resume", ended, "--set", "ppo.iterations=14", said=("the reference is",))
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_longer_run_that_is_stopped_shows_no_old_result(ended, monkeypatch):
    monkeypatch.setenv("STOP_AT", "13")
    assert call("run", "--resume", ended, "--set", "ppo.iterations=14").code == 143
    assert not (ended / "model").exists()
    assert not (ended / "evaluation.json").exists()
    assert not (ended / "report.html").exists()
    refused(2, "evaluate", ended, said=("not finished", f"minirlhf run --resume {ended}"))


def test_a_finished_run_that_was_killed_before_its_report_gets_one(ended):
    (ended / "report.html").unlink()
    assert "this run is finished" in done("run", "--resume", ended).err
    assert (ended / "report.html").is_file()


def test_a_finished_run_without_its_checkpoints_is_not_begun_again(ended):
    shutil.rmtree(ended / "checkpoints")
    refused(4, "run", "--resume", ended, said=("checkpoints are gone", str(ended)))
    assert (ended / "evaluation.json").exists()


def test_a_link_loses_itself_and_not_what_it_leads_to(ended, tmp_path):
    """model/ or a checkpoint may be a symbolic link, for example to a larger disk."""
    for path in (ended / "model", all_of(ended / "checkpoints")[0]):
        away = path.rename(tmp_path / f"moved-{path.name}")
        path.symlink_to(away, target_is_directory=True)
    done("run", "--resume", ended, "--set", "ppo.iterations=13", "--set", "run.keep_checkpoints=1")
    assert (tmp_path / "moved-model" / "model.safetensors").exists()
    assert not (ended / "model").is_symlink()
    assert [p.name for p in all_of(ended / "checkpoints")] == ["step_00000013"]


def test_a_row_without_its_metrics_is_not_what_later_ones_are_held_against(copy):
    (copy / "metrics.jsonl").write_text('{"count/updates": 1, "step": 1}\n')
    done("run", "--resume", copy)


def test_a_saved_model_is_no_run(tiny, tmp_path):
    place = tmp_path / "rm"
    with complete_directory(place) as temporary:
        (temporary / "config.toml").write_text("")
    refused(2, "run", "--resume", place, said=("no run but a saved model", str(place)))
    assert not (place / ".lock").exists()


def test_a_finished_run_goes_on_with_more_iterations(ended):
    result = done("run", "--resume", ended, "--set", "ppo.iterations=14")
    assert "ppo.iterations was 12, is 14" in result.err
    rows = [json.loads(line) for line in (ended / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert tomllib.loads((ended / "config.toml").read_text())["ppo"]["iterations"] == 14
    assert len([line for line in (ended / "samples.jsonl").read_text().splitlines() if "evaluation" in line]) == 4


def test_other_values_are_refused_naming_both_and_all(copy):
    refused(
        2, "run", "--resume", copy, "--set", "ppo.lr=0.5", "--set", "kl.coef=0.7", "--set", "run.log_every=2",
        said=("ppo.lr was 0.00025, is 0.5", "kl.coef was 0.075, is 0.7", str(copy)), lines=2,
    )  # fmt: skip
    refused(2, "run", "--resume", copy, "--set", "ppo.iterations=3", said=("and 6 are done",))
    refused(2, "run", "notes", "--resume", copy, said=("--resume", "notes"))
    refused(2, "run", "--out", "x", "--resume", copy, said=("--resume", "--out"))


def test_another_reference_tokenizer_or_prompts_are_refused_with_both_hashes(copy):
    (path,) = all_of(copy / "checkpoints")
    parts = {
        "reference": "the reference is",
        "tokenizer": "not the tokenizer of",
        "prompts": "not the prompts of",
    }
    for key, said in parts.items():
        content = (path / "state.json").read_bytes()
        forge(path, {key: "0" * 64})
        line = refused(4, "run", "--resume", copy, said=(said, "000000000000"))
        assert json.loads(content)[key][:12] in line
        forge(path, json.loads(content))


def forge(path, values):
    files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != MANIFEST}
    files["state.json"] = json.dumps(json.loads(files["state.json"]) | values).encode()
    with complete_directory(path) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


@pytest.mark.parametrize("values", [{"format": 1}, {"step": None}, {"config": None}])
def test_another_format_and_a_state_without_step_or_config_are_exit_4_before_anything_is_compared(values, copy):
    (path,) = all_of(copy / "checkpoints")
    forge(path, values)
    refused(4, "run", "--resume", copy, "--set", "kl.coef=0.7", said=("checkpoint",))


@pytest.mark.parametrize(
    "values",
    [
        {"files": [1]}, {"files": {"metrics.jsonl": "9", "samples.jsonl": 0}}, {"files": {}}, {"config": {"ppo": 3}},
        {"files": {"metrics.jsonl": -1, "samples.jsonl": 0}}, {"files": {"metrics.jsonl": 1.5, "samples.jsonl": 0}},
        {"components": {"scoring": {"failed": "x"}}}, {"components": {"scoring": {"failed": 1e999}}}, {"step": "6"},
        {"controller": None}, {"penalty": {"beta": 1.0, "target": None}}, {"format": "2"},
    ],
)  # fmt: skip
def test_a_forged_state_is_one_line(values, copy):
    (path,) = all_of(copy / "checkpoints")
    saved = json.loads((path / "state.json").read_text())
    if "components" in values:
        values = {"components": saved["components"] | values["components"]}
    if "config" in values:
        values = {"config": saved["config"] | {"ppo": {}}}
    forge(path, values)
    result = call("run", "--resume", copy)
    assert result.code in (2, 4), result.err
    assert "Traceback" not in result.err
    assert result.errors
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 6


def test_prompts_that_somebody_changed_are_refused(tiny, tmp_path, monkeypatch):
    prompts, plugin = tmp_path / "prompts.jsonl", tmp_path / "stopper.py"
    plugin.write_text(STOPPER)
    prompts.write_text("\n".join(json.dumps({"prompt": f"the cat is {word}"}) for word in ["good", "bad", "fine"]))
    monkeypatch.setenv("STOP_AT", "1")
    sets = ("--set", f"corpus.prompts={prompts}", "--set", 'run.observers=["stopper"]', "--plugin", plugin)
    assert call("run", *tiny, *sets, "--out", tmp_path / "run").code == 143
    prompts.write_text(prompts.read_text().replace("good", "grey"))
    refused(4, "run", "--resume", tmp_path / "run", said=("not the prompts of the checkpoint",))


def test_another_number_of_threads_is_said(copy):
    more = ("run.threads=2", "evaluation.prompts=2", "ppo.iterations=7")
    result = done("run", "--resume", copy, *(part for value in more for part in ("--set", value)))
    assert "threads was 1, is 2: the numbers may differ in their last bits" in result.err
    torch.set_num_threads(1)


def test_a_run_that_trained_its_own_reward_model_goes_on(tiny, tmp_path):
    """The path of the model is filled in by the run; resume must not take it for a value that the user changed."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"We saw {i}", "chosen": f" a good one of {i}.", "rejected": f" a bad {i}."} for i in range(60)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ("--set", f"corpus.preferences={pairs}", "--set", "reward_model.epochs=1", "--reward", "trained")
    for name in ("whole", "stopped"):
        iterations = ("--set", f"ppo.iterations={4 if name == 'whole' else 2}", "--set", "ppo.schedule=constant")
        done("run", *tiny, *sets, *iterations, "--out", tmp_path / name)
    resumed = done("run", "--resume", tmp_path / "stopped", "--set", "ppo.iterations=4")
    assert "resumed     after step 2" in resumed.err
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


# ---- what is there, and what is not -----------------------------------------------------------------------


def test_a_run_killed_before_its_first_checkpoint_begins_again(copy, whole):
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    (copy / "checkpoints" / ".tmp-step_00000006-1").mkdir()
    result = done("run", "--resume", copy, "--set", "run.keep_checkpoints=1")
    assert "resumed     from the beginning" in result.err
    assert "6 iterations are done again" in result.err
    assert differences(left(whole), left(copy)) == []
    assert not list(copy.rglob(".tmp-*"))


def test_what_is_saved_behind_a_damaged_checkpoint_is_kept(arguments, copy, monkeypatch):
    """Step 9 is damaged: the run resumes from 6, stops at 8, resumes from 8, and keeps step 9 under another name."""
    shutil.copytree(copy / "checkpoints" / "step_00000006", copy / "checkpoints" / "step_00000009")
    (copy / "checkpoints" / "step_00000009" / "state.json").write_text("{}")
    monkeypatch.setenv("STOP_AT", "8")
    more = ("--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=1")
    assert call("run", "--resume", copy, *more).code == 143
    assert [p.name for p in all_of(copy / "checkpoints")] == ["step_00000008"]
    (aside,) = (copy / "checkpoints").glob("damaged-*")
    assert aside.name == "damaged-step_00000009-1"
    monkeypatch.delenv("STOP_AT")
    assert "after step 8" in done("run", "--resume", copy).err


def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_without_another_refused(copy, whole):
    newer = Path(shutil.copytree(copy / "checkpoints" / "step_00000006", copy / "checkpoints" / "step_00000009"))
    with (newer / "policy.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    broken = Path(shutil.copytree(copy, copy.with_name("broken")))
    result = done("run", "--resume", copy, "--set", "run.keep_checkpoints=1")
    assert result.err.count("passed over: content differs from the manifest") == 1
    assert differences(left(whole), left(copy)) == []
    shutil.rmtree(broken / "checkpoints" / "step_00000006")
    refused(4, "run", "--resume", broken, said=("no checkpoint is whole", str(broken)))


CHANGES = {
    "a torn line behind": (lambda c: c + b'{"step": 7, "objec', range(1, 7)),
    "the end is gone": (lambda c: c[:-20], range(1, 6)),
    "a line is longer": (lambda c: c.replace(b'{"step": 3,', b'{"step": 3, "note": "by hand",'), range(1, 7)),
    "a line is none": (lambda c: c.replace(b'{"step": 3,', b"{step 3"), (1, 2, 4, 5, 6)),
    "a row is a list": (lambda c: b"[1]\n" + c, range(1, 7)),
    "a step is text": (lambda c: c.replace(b'{"step": 3,', b'{"step": "3x",'), (1, 2, 4, 5, 6)),
    "deleted": (None, ()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_files_that_somebody_changed_are_mended_and_explained(what, copy, whole):
    metrics = copy / "metrics.jsonl"
    edit, kept = CHANGES[what]
    metrics.unlink() if edit is None else metrics.write_bytes(edit(metrics.read_bytes()))
    last = LAST if what == "a torn line behind" else 8  # all of it where its end is compared
    more = ("--set", "run.keep_checkpoints=1", "--set", f"ppo.iterations={last}")
    result = done("run", "--resume", copy, *more)
    rows = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert rows == [*kept, *range(7, last + 1)]
    if what == "a torn line behind":
        assert differences(left(whole), left(copy)) == []
    else:
        assert str(metrics) in result.err


def test_a_directory_without_a_run_and_one_with_a_run(copy, tiny, tmp_path):
    refused(2, "run", "--resume", tmp_path / "nowhere", said=("there is no run in it",))
    refused(2, "run", *tiny, "--out", copy, said=("--resume",))
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".lock").touch()
    done("run", *tiny, "--out", tmp_path / "killed")


def test_a_metrics_file_that_is_a_directory_is_one_line(copy):
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").mkdir()
    refused(6, "run", "--resume", copy, said=("Is a directory",))


# ---- signals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_is_answered_after_the_iteration_and_handlers_are_put_back(
    number, code, arguments, tmp_path, monkeypatch
):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setenv("STOP_AT", "2")
    monkeypatch.setenv("STOP_BY", str(int(number)))
    assert call("run", *arguments, "--out", tmp_path / "run").code == code
    assert [p.name for p in all_of(tmp_path / "run" / "checkpoints")] == ["step_00000002"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_the_second_signal_acts_at_once_and_an_ignored_one_stays_ignored():
    with pytest.raises(KeyboardInterrupt, match=r"^at the end$"), deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.leave("at the end")
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)  # nobody looked at stop.asked: it acts when the step is over
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred() as stop, handled(lambda *_: None, (signal.SIGHUP,)):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_within_a_call_of_a_library_acts_when_it_is_over():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the call")
    with pytest.raises(KeyboardInterrupt), deferred() as stop:
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
        done.append("the step")
    assert (done, stop.asked) == (["the call", "the step"], signal.SIGINT)


def test_a_signal_within_an_import_waits_until_it_is_over(tmp_path, monkeypatch):
    """An exception in an import would be swallowed by one that catches everything, and leave another half done."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imports_slowly.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.01)\n"
        "except BaseException:\n    swallowed = True\n"
    )
    with pytest.raises(Terminated), handled(act):
        import imports_slowly

        assert not hasattr(imports_slowly, "swallowed")
        sleep(5)


def test_sigterm_within_a_save_waits_where_ctrl_c_is_ignored(copy, monkeypatch):
    """A background job of a shell ignores SIGINT."""
    from minirlhf.store import weights as model

    sound, told = model.save_file, []

    def save_file(*arguments, **options):
        if not told:
            told.append(os.kill(os.getpid(), signal.SIGTERM))
        sound(*arguments, **options)

    monkeypatch.setattr(model, "save_file", save_file)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert call("run", "--resume", copy, "--set", "run.checkpoint_every=1").code == 143
    finally:
        signal.signal(signal.SIGINT, before)
    assert all_of(copy / "checkpoints")[-1].name == "step_00000007"


# ---- moved and changed files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompted(tiny, tmp_path_factory):
    """Folder with the files p.jsonl and f.py and the finished run that was made from them."""
    folder = tmp_path_factory.mktemp("prompted")
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"the cat {i}"}) + "\n" for i in range(30)))
    (folder / "f.py").write_text("def f(completions):\n    return [float(len(c)) for c in completions]\n")
    sets = ("--set", f"corpus.prompts={folder / 'p.jsonl'}", "--set", "run.checkpoint_every=1")
    done("run", *tiny, *sets, "--reward", f"{folder / 'f.py'}:f", "--out", folder / "run")
    return folder


def test_a_run_whose_files_moved_is_opened_by_their_keys(prompted, tmp_path):
    new = Path(shutil.copytree(prompted, tmp_path / "new"))
    hidden = prompted.rename(tmp_path / "hidden")
    try:
        run, more = new / "run", ("--set", "ppo.iterations=3")
        done("sample", run, "the cat")
        done("inspect", run)
        done("report", run)
        refused(5, "evaluate", run, said=("--set rewards.f.use=FILE.py:f",))
        code, prompts = (("--set", x) for x in (f"rewards.f.use={new}/f.py:f", f"corpus.prompts={new}/p.jsonl"))
        for command in (("evaluate", run), ("run", "--resume", run, *more)):
            refused(2, *command, *code, said=("corpus.prompts", "--set corpus.prompts=PATH"))
        refused(2, "label", run, "--out", tmp_path / "l.jsonl", said=("--set corpus.prompts=PATH",))
        done("evaluate", run, *code, *prompts)
        result = done("run", "--resume", run, *code, *prompts, *more)
        assert "code of a plugin" not in result.err
        done("evaluate", run)  # the new places are the run's own now
    finally:
        hidden.rename(prompted)


def test_a_changed_file_is_named_on_resume(prompted, tmp_path):
    new = Path(shutil.copytree(prompted, tmp_path / "new"))
    change = ("--set", f"rewards.f.use={new}/f.py:f", "--set", f"corpus.prompts={new}/p.jsonl")
    (new / "p.jsonl").write_text((new / "p.jsonl").read_text().replace("cat 7", "dog 7"))
    command = ("run", "--resume", new / "run", *change, "--set", "ppo.iterations=3")
    refused(4, *command, said=("not the prompts of the checkpoint", "--set corpus.prompts=PATH"))
    shutil.copy(prompted / "p.jsonl", new)
    (new / "text.txt").write_text("another text\n" * 50)
    refused(
        4, *command, "--set", f"corpus.text={new}/text.txt", said=("corpus.text is not what it was", "corpus.text=PATH")
    )
    (new / "f.py").write_text("def f(completions):\n    return [-1.0 for c in completions]\n")
    assert f"changed since the checkpoint: {new}/f.py" in done(*command).err
