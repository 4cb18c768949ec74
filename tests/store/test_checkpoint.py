"""A checkpoint is the whole state: every item comes back to the bit, and these tests would see one that does not."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.errors import CheckpointError
from minirlhf.models.optimizer import AdamW
from minirlhf.models.policy import Reference
from minirlhf.ppo import PPOState
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.store import checkpoint
from minirlhf.store.files import MANIFEST, complete_directory
from minirlhf.tensors import Moments
from tests.helpers import seeded, small_policy
from tests.store.test_files import no_rename

FACTS = {"torch": "2"}
COMPONENTS = {
    "reward/a": {"seen": torch.tensor([[1.5, -2.0]]), "a/b:c": torch.tensor(3), "names": ["x", {"y": None}], "z": 0.1},
    "reward/a.b": {"seen": torch.tensor([7.0])},
    "kl": {"count": 4},
    "loss": {},
}


def fresh(steps=0, reference=0):
    """A state after some updates with random gradients."""
    policy = small_policy(reference)
    optimizer = AdamW(policy.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda i: 1 - i / 10)
    controllers = (KLController(0.05, 6.0), Penalty(1.0, 0.01))
    state = PPOState(policy, Reference(policy), optimizer, schedule, *controllers, *[Moments(0.0, 0.0, 0)] * 2)
    g = seeded(9)
    for _ in range(steps):
        for parameter in policy.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=g)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        state.step, state.updates, state.episodes, state.tokens = state.step + 1, state.updates + 4, 24, 771
        state.controller.beta *= 1.0371
        state.penalty.beta *= 1.7
        state.score_moments = Moments(0.1 + state.step, 1 / 3, 24)
        state.value_moments = Moments(0.2 + state.step, 2 / 3, 48)
        policy.rescale_values(0.7 + state.step)
    return state


def snapshot(state):
    """Every number of a state, as bytes or hexadecimal."""
    items = {f"policy/{k}": v.numpy().tobytes() for k, v in state.policy.state_dict().items()}
    for index, parameter in enumerate(state.optimizer.param_groups[0]["params"]):
        entry = state.optimizer.state.get(parameter, {})
        items |= {f"optimizer/{index}/{k}": v.numpy().tobytes() for k, v in entry.items()}
    moments, first = state.score_moments, state.value_moments
    return items | {
        "lr": state.optimizer.param_groups[0]["lr"].hex(),
        "schedule": state.schedule.last_epoch,
        "last lr": [lr.hex() for lr in state.schedule.get_last_lr()],
        "beta": state.controller.beta.hex(),
        "penalty": state.penalty.beta.hex(),
        "moments": (moments.total.hex(), moments.squares.hex(), moments.count),
        "moments of the unit": (first.total.hex(), first.squares.hex(), first.count),
        "counters": (state.step, state.updates, state.episodes, state.tokens),
        "reference": state.reference.hash,
    }


def nudge(tensor):
    """One bit of the last element."""
    flat = tensor.detach().view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(1e9))


def moment(name):
    def change(state):
        entry = list(state.optimizer.state.values())[-1]
        nudge(entry[name]) if entry[name].ndim else entry[name].add_(1)

    return change


PERTURBED = {
    "a weight": lambda s: nudge(next(iter(s.policy.model.parameters()))),
    "the value head": lambda s: nudge(s.policy.value_head.weight),
    "Adam's mean": moment("exp_avg"),
    "Adam's mean square": moment("exp_avg_sq"),
    "Adam's count": moment("step"),
    "the optimiser's state": lambda s: s.optimizer.state.clear(),
    "the learning rate": lambda s: s.schedule.step(),
    "the step": lambda s: setattr(s, "step", s.step + 1),
    "the updates": lambda s: setattr(s, "updates", 0),
    "the episodes": lambda s: setattr(s, "episodes", 0),
    "the tokens": lambda s: setattr(s, "tokens", 0),
    "beta": lambda s: setattr(s.controller, "beta", s.controller.beta + 1e-17),
    "the penalty": lambda s: setattr(s.penalty, "beta", s.penalty.beta * (1 + 1e-15)),
    "the reward's sum": lambda s: setattr(s, "score_moments", Moments(s.score_moments.total + 1e-15, 1 / 3, 24)),
    "the reward's squares": lambda s: setattr(s, "score_moments", Moments(s.score_moments.total, 0.33, 24)),
    "the reward's count": lambda s: setattr(s, "score_moments", Moments(s.score_moments.total, 1 / 3, 25)),
    "the unit of V": lambda s: s.policy.value_scale.mul_(1.001),
    "what decides it": lambda s: setattr(s, "value_moments", Moments(s.value_moments.total, 2 / 3, 49)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    state = fresh(steps=3)
    return checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoints"), state, COMPONENTS, FACTS), snapshot(state)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("item", PERTURBED)
def test_every_item_of_the_state_comes_back_to_the_bit(saved, item):
    path, expected = saved
    state = fresh(steps=3)
    assert snapshot(state) == expected
    PERTURBED[item](state)
    assert snapshot(state) != expected, "the snapshot does not see this item"
    checkpoint.load_checkpoint(path, state)
    assert snapshot(state) == expected


@pytest.mark.filterwarnings("error")
def test_it_comes_back_into_a_state_that_has_done_nothing_and_both_go_on_alike(saved):
    path, expected = saved
    state = fresh()
    components, facts = checkpoint.load_checkpoint(path, state)
    assert snapshot(state) == expected
    assert facts["torch"] == "2"
    assert facts["step"] == 3
    other = fresh(steps=3)
    for one in (state, other):
        for i, parameter in enumerate(one.policy.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (i + 1))
        one.optimizer.step()
        one.schedule.step()
    assert snapshot(state) == snapshot(other)
    same(components)


def same(components):
    """The components' states as they were saved, tensors to the bit, each under its own label."""
    assert components.keys() == COMPONENTS.keys()
    for label, state in COMPONENTS.items():
        assert components[label].keys() == state.keys()
        for name, value in state.items():
            found = components[label][name]
            if isinstance(value, torch.Tensor):
                assert torch.equal(found, value)
                assert found.dtype == value.dtype
            else:
                assert found == value


def test_views_of_one_tensor_are_saved_as_what_they_are(tmp_path):
    base = torch.arange(6.0)
    path = checkpoint.save_checkpoint(
        tmp_path, fresh(), {"kl": {"a": base[:3], "b": base[3:], "c": base, "d": base}}, {}
    )
    found = checkpoint.load_checkpoint(path, fresh())[0]["kl"]
    assert [found[name].tolist() for name in "abcd"] == [[0, 1, 2], [3, 4, 5], list(range(6)), list(range(6))]


def test_what_is_on_disk_has_a_manifest_and_no_float_as_decimal(saved):
    path, _ = saved
    names = {"policy.safetensors", "optimizer.safetensors", "components.safetensors", "state.json", MANIFEST}
    assert {p.name for p in path.iterdir()} == names
    assert path.name == "step_00000003"
    state = json.loads((path / "state.json").read_text())
    assert float.fromhex(state["controller"]["beta"]) == fresh(steps=3).controller.beta
    assert set(json.loads((path / MANIFEST).read_text())["files"]) == names - {MANIFEST}


def test_a_state_of_another_reference_is_refused_with_both_hashes(saved):
    path, _ = saved
    other = fresh(reference=1)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_checkpoint(path, other)
    for part in (other.reference.hash[:12], fresh().reference.hash[:12]):
        assert part in str(error.value)
    assert error.value.exit_code == 4


def rewritten(path, change):
    """The checkpoint as somebody would forge it: changed, with a manifest that fits."""
    out = path.parent / "forged" / path.name
    with complete_directory(out) as temporary:
        for file in path.iterdir():
            if file.name != MANIFEST:
                (temporary / file.name).write_bytes(file.read_bytes())
        change(temporary)
    return out


def optimizer(**tensors):
    def change(directory):
        file = directory / "optimizer.safetensors"
        save_file(load_file(file) | {k.replace("_at_", "."): v for k, v in tensors.items()}, file)

    return change


def state_json(**values):
    def change(directory):
        file = directory / "state.json"
        kept = {k: v for k, v in (json.loads(file.read_text()) | values).items() if v != "gone"}
        file.write_text(json.dumps(kept))

    return change


FORGED = {
    "a moment of another shape": (optimizer(**{"0.exp_avg": torch.ones(3)}), "0.exp_avg does not fit"),
    "a moment that is NaN": (optimizer(**{"0.step": torch.tensor(torch.nan)}), "0.step does not fit"),
    "a parameter that is not there": (optimizer(**{"999.step": torch.tensor(1.0)}), "999.step does not fit"),
    "a moment of no optimizer": (optimizer(**{"0.momentum": torch.tensor(1.0)}), "0.momentum does not fit"),
    "a name that is no number": (optimizer(**{"x.step": torch.tensor(1.0)}), "x.step does not fit"),
    "no beta": (state_json(controller={"target": None}), "controller is not as it was saved (KeyError"),
    "a beta that is no number": (state_json(penalty={"beta": "zero", "target": None}), "state.json"),
    "no controller": (state_json(controller="gone"), "controller is not as it was saved (KeyError"),
    "a step that is text": (state_json(step="three"), "state.json"),
    "a step that is negative": (state_json(step=-3), "'-3' is no count"),
    "a step of another directory": (state_json(step=4), "it is of step 4"),
    "a step beyond all measure": (state_json(step=1 << 60), "is no count"),
    "a beta that is no finite number": (state_json(penalty={"beta": "nan"}), "it is not finite"),
    "moments that are a list": (state_json(score_moments=[1]), "state.json"),
    "files of an older version": (state_json(format="gone"), "made by another version of minirlhf (format 1"),
}


def test_settings_come_from_the_configuration_and_not_from_a_file(saved):
    """Of a controller only beta is state: a forged target or horizon has no effect."""
    beta = fresh(steps=3).controller.beta.hex()
    forged = {"beta": beta, "target": "0x1.9p+9", "horizon": 0}
    state = fresh()
    checkpoint.load_checkpoint(rewritten(saved[0], state_json(controller=forged)), state)
    assert (state.controller.beta.hex(), state.controller.target, state.controller.horizon) == (beta, 6.0, 10000)


@pytest.mark.parametrize("fault", FORGED)
def test_a_forged_checkpoint_with_a_fitting_manifest_is_refused(saved, fault):
    change, said = FORGED[fault]
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_checkpoint(rewritten(saved[0], change), fresh())
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
def test_a_damaged_file_is_refused_and_the_newest_whole_one_is_found(tmp_path, name):
    state = fresh(steps=1)
    first = checkpoint.save_checkpoint(tmp_path, state, {}, {})
    state.step = 2
    second = checkpoint.save_checkpoint(tmp_path, state, {}, {})
    assert checkpoint.newest(tmp_path) == second
    data = bytearray((second / name).read_bytes())
    data[len(data) // 2] ^= 4
    (second / name).write_bytes(data)
    before = snapshot(fresh())
    target = fresh()
    with pytest.raises(CheckpointError):
        checkpoint.load_checkpoint(second, target)
    assert snapshot(target) == before  # nothing of it was taken
    assert checkpoint.newest(tmp_path) == first


def test_there_may_be_none(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_00000001").mkdir()
    assert checkpoint.newest(tmp_path) is None


def test_pruning_keeps_the_newest_and_touches_nothing_else(tmp_path):
    state = fresh()
    for step in (1, 9, 10, 100):
        state.step = step
        checkpoint.save_checkpoint(tmp_path, state, {}, {})
    (tmp_path / "step_of_mine").mkdir()
    damaged = checkpoint.directory_of(tmp_path, 200)
    damaged.mkdir()
    checkpoint.prune(checkpoint.directory_of(tmp_path, 100), 2)
    damaged.rmdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000100", "step_of_mine"]


def test_a_damaged_checkpoint_is_set_aside_where_directories_cannot_be_renamed(tmp_path, monkeypatch):
    paths = [checkpoint.save_checkpoint(tmp_path, fresh(steps=n), COMPONENTS, FACTS) for n in (1, 2)]
    (paths[1] / "state.json").write_text("{}")
    no_rename(monkeypatch, errno.EXDEV)
    checkpoint.set_aside(paths[0])
    assert checkpoint.all_of(tmp_path) == [paths[0]]
    assert (tmp_path / "damaged-step_00000002-1" / "state.json").read_text() == "{}"
