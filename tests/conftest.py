"""Shared settings of the tests: two threads at most, no network, no plugin of the machine that runs them."""

import gc
import os
from multiprocessing import forkserver

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MINIRLHF_LOAD_PLUGINS"] = ""

import hypothesis
import pytest
import torch

gc.disable()  # until every test is collected (below)
torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("untimed")


def pytest_collection_finish(session):
    """Leave modules and tests out of every later search for garbage: a million objects that stay to the end.

    The server that the crash tests fork from imports torch meanwhile, on the other core.
    """
    if any(item.path.parent.name == "crash" for item in session.items):
        forkserver.ensure_running()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], 50)  # full searches a fifth as often: each is a tenth of a second
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def disk(request):
    """os.fsync that waits for no disk: no test cuts the power, and a run has thirty of them.

    It still refuses what is no open file. tests/store and tests/crash have the real one, and so has every process that
    a test starts.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name not in ("store", "crash"):
            patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)
        yield


@pytest.fixture
def double():
    """float64 as the default dtype: for identities that hold at 1e-10."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text of 324 short lines that a tiny model reads in no time."""
    subjects = ("the cat", "a dog", "my tea", "this film", "her book", "the kettle")
    verbs = ("is good", "is bad", "was great", "was awful", "looks fine", "never works")
    ends = ("today", "at home", "in the rain", "for me", "again", "of course", "with milk", "by night", "and so on")
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [f"{subject} {verb} {end} ." for subject in subjects for verb in verbs for end in ends]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(corpus, tmp_path_factory):
    """Arguments that make a run of the preset `tiny` take a tenth of a second; the first use makes the base."""
    values = {
        "corpus.text": corpus,
        "run.bases": tmp_path_factory.mktemp("bases"),
        "run.threads": 1,
        "ppo.iterations": 2,
        "ppo.epochs": 1,
        "evaluation.bootstrap": 100,
        "evaluation.prompts": 4,
        "evaluation.residual_prompts": 1,
        "evaluation.best_of": 0,
        "run.token_log": 1,
    }
    return ["tiny", *(part for key, value in values.items() for part in ("--set", f"{key}={value}"))]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """A finished run of four iterations with a checkpoint after every one, made with --json: (directory, events)."""
    from tests.cli.calling import done

    out = tmp_path_factory.mktemp("runs") / "finished"
    sets = ("ppo.iterations=4", "run.checkpoint_every=1", "run.keep_checkpoints=9", "kl.controller=adaptive")
    sets += ("evaluation.residual_prompts=4", "evaluation.best_of=4", "run.token_log=4")
    more = ("kl.target=0.5", "ppo.score_normalize=true", "kl.horizon=20", "ppo.responses_per_prompt=2")
    result = done("run", *tiny, *(p for s in (*sets, *more) for p in ("--set", s)), "--out", out, "--json")
    return out, result.events
