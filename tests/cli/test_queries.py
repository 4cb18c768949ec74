"""Two files of ten Chinese rows, JSON Lines called .json, through reward model and PPO by the preset `queries`."""

import json

from tests.cli.calling import done

TOPICS = ("天气", "茶", "电影", "书", "饭", "车", "花", "歌", "鱼", "画")


def test_ten_comparisons_and_ten_queries_go_through_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [{"question": f"{t}怎么样?", "chosen": f"{t}很好,我很喜欢。", "rejected": f"{t}不好。"} for t in TOPICS]
    queries = [{"query": f"你喜欢{t}吗?"} for t in TOPICS]
    for name, rows in (("pairs.json", pairs), ("queries.json", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = ("corpus.text=pairs.json", "corpus.preferences=pairs.json", "corpus.prompts=queries.json")
    quick = ("run.bases=bases", "run.threads=1", "pretrain.steps=30", "ppo.iterations=3", "evaluation.bootstrap=100")
    sets = [part for s in (*files, *quick) for part in ("--set", s)]
    events = done("run", "queries", *sets, "--out", "run", "--json").events
    (report,) = [e["report"] for e in events if e["event"] == "reward_model_finished"]
    assert report["pairs"] == 1
    steps = [e for e in events if e["event"] == "step"]
    assert len(steps) == 3
    assert all(e["count/updates"] == 6 for e in steps)  # 3 epochs of 2 minibatches of 1
    finished = events[-1]
    assert finished["prompts"] == 2  # a fifth of the queries
    assert any("吗" in row["prompt"] for row in finished["samples"])
