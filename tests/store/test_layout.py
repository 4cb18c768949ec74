"""Names of new directories: two that start in the same second get one each."""

import os
from concurrent.futures import ThreadPoolExecutor

from minirlhf.store.layout import claim_directory
from minirlhf.store.progress import progress_directory


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    wanted = tmp_path / "runs" / "tiny-20260101-000000-s0"
    assert claim_directory(wanted) == wanted
    (tmp_path / "runs" / f"{wanted.name}-2").write_text("a file")
    os.symlink("nowhere", tmp_path / "runs" / f"{wanted.name}-3")
    assert claim_directory(wanted).name == f"{wanted.name}-4"


def test_many_at_once_get_one_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(claim_directory, [tmp_path / "it"] * 32))
    assert len(set(found)) == 32


def test_a_directory_that_may_not_be_there_yet_is_claimed_by_its_progress(tmp_path):
    first, second = (claim_directory(tmp_path / "rm", progress_directory) for _ in range(2))
    assert [first.name, second.name] == ["rm", "rm-2"]
    assert {path.name for path in tmp_path.iterdir()} == {".going-rm", ".going-rm-2"}
    (tmp_path / "rm-3").mkdir()
    assert claim_directory(tmp_path / "rm", progress_directory).name == "rm-4"
