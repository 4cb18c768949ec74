"""The memory that a process may have, by the files of its control groups."""

import torch

from minirlhf.pipeline import plan
from minirlhf.pipeline.plan import group_limits, memory_of


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_limits_of_both_versions_are_those_of_the_group_and_of_those_above(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "sys"
    written(groups, "12:cpu,cpuacct:/a\n4:hugetlb,memory:/a/b\n1:name=systemd:/x:y\n0::/user/app:1\n")
    assert list(group_limits(groups, root)) == []
    written(root / "user" / "app:1" / "memory.max", "max\n")
    written(root / "user" / "memory.max", "3000000000\n")
    written(root / "memory" / "a" / "b" / "memory.limit_in_bytes", "2000000000\n")
    written(root / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    written(root / "cpu" / "memory.limit_in_bytes", "1\n")
    assert sorted(group_limits(groups, root)) == [2000000000, 3000000000, 9223372036854771712]


def test_the_root_is_a_containers_own_group_although_its_path_is_not_there(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "sys"
    written(root / "memory.max", "5000000\n")
    for path in ("/docker/1234", "/", "/../.."):
        written(groups, f"0::{path}\n")
        assert list(group_limits(groups, root)) == [5000000]
    assert list(group_limits(tmp_path / "none", root)) == []


def test_the_least_of_machine_and_groups_is_what_there_is(monkeypatch):
    machine = memory_of(torch.device("cpu"))
    monkeypatch.setattr(plan, "group_limits", lambda *_: iter([machine - 1, 1 << 62]))
    assert memory_of(torch.device("cpu")) == machine - 1
    assert memory_of(torch.device("meta")) is None
