"""The figure of the four models, with the numbers of one real answer: docs/models.svg and docs/models.zh-CN.svg.

    python tests/benchmarks/models_figure.py RUN [--step 24] [--response 1] [--out docs]

Every number is of the token log of RUN, as the update of that iteration used it: probs when the answer was sampled, the
reference's probs, V, the KL of the run's estimator, rewards and advantages. Without --step it is the last logged
iteration, without --response the answer with the highest score among those whose first tokens are short enough.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import exp
from pathlib import Path
from typing import Any

from minirlhf.report.run_files import config_value, read_config, read_metrics
from minirlhf.report.tokens import read_token_log

SHOWN, LONGEST = 7, 9  # tokens of the answer before its last one; letters of a token
LEFT, FIRST, COLUMN, WIDTH = 16, 341, 59, 800  # x of the boxes, of the first number, between numbers, of the whole
ENGLISH = {
    "title": "Four models look at one answer",
    "prompt": "prompt: {prompt} …",
    "answer": "tokens of the answer",
    "active": "Active model",
    "trained": "trained by PPO",
    "trunk": "trunk: {layers} layers, width {width}",
    "head": "head of {vocab:,}: all_probs, probs",
    "value": "Value model V",
    "value head": "value model V, head of 1: all_values",
    "critic": "a trunk of its own",
    "reference": "Reference model",
    "frozen": "frozen",
    "reward model": "Reward model",
    "rule": "a rule: {names}",
    "learned": "learned from comparisons",
    "score": "one score for the whole answer",
    "made": "What PPO makes of them",
    "kl": "KL, {estimator}: log(probs / probs of ref)",
    "reward": "reward: -{beta:g} KL, at the end + score",
    "advantage": "advantage, of rewards and V, whitened",
    "whole": "iteration {step}, all {count} tokens: KL {kl:.2f} nats, rewards {reward:+.2f}; … are {left} of them",
}
CHINESE = {
    "title": "四个模型看同一个回答",
    "prompt": "提示：{prompt} …",
    "answer": "回答的各个 token",
    "active": "活动模型",
    "trained": "由 PPO 训练",
    "trunk": "主干：{layers} 层，宽 {width}",
    "head": "大小 {vocab:,} 的头：all_probs、probs",
    "value": "价值模型 V",
    "value head": "价值模型 V，大小 1 的头：all_values",
    "critic": "自己的主干",
    "reference": "参考模型",
    "frozen": "冻结",
    "reward model": "奖励模型",
    "rule": "一条规则：{names}",
    "learned": "从比较中学到",
    "score": "整个回答一个得分",
    "made": "PPO 由此算出",
    "kl": "KL，{estimator}：log(probs / 参考的 probs)",
    "reward": "奖励：-{beta:g} KL，末尾加得分",
    "advantage": "优势，由奖励和 V 算出并白化",
    "whole": "第 {step} 次迭代，全部 {count} 个 token：KL {kl:.2f} nats，奖励 {reward:+.2f}；… 处省去 {left} 个",
}
Drawn = tuple[list[str], float]
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, "Noto Sans CJK SC", "PingFang SC",
  "Microsoft YaHei", sans-serif; fill: #1b1f24; }
.title { font-size: 18px; font-weight: 700; } .name { font-size: 14px; font-weight: 700; }
.soft { fill: #59636e; } .number, .token { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.number, .token { text-anchor: middle; } .number { font-size: 13.5px; } .token { font-size: 12.5px; font-weight: 700; }
.paper { fill: #ffffff; } .box { fill: #f5f7f9; stroke-width: 2; } .head { fill: #ffffff; stroke-width: 1; }
.active { stroke: #0072b2; } .reference { stroke: #6e7781; } .reward { stroke: #d55e00; } .value { stroke: #009e73; }
.bar-active { fill: #0072b2; } .bar-reference { fill: #6e7781; } .plus { fill: #e67800; } .minus { fill: #0062cc; }
.line { stroke: #d0d7de; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ec; } .soft { fill: #9aa5b1; } .paper { fill: #14181d; } .box { fill: #1c222a; }
  .head { fill: #14181d; }
  .active { stroke: #56b4e9; } .reference { stroke: #9aa5b1; } .reward { stroke: #f08a4b; } .value { stroke: #2fc79a; }
  .bar-active { fill: #56b4e9; } .bar-reference { fill: #9aa5b1; } .plus { fill: #ff9628; } .minus { fill: #4696ff; }
  .line { stroke: #313a44; }
}
"""


def chosen(rows: Sequence[Mapping[str, Any]], step: int | None, response: int | None) -> Mapping[str, Any]:
    """Row of the token log that is drawn; SystemExit if there is none."""
    last = max((row["step"] for row in rows), default=None) if step is None else step
    there = [row for row in rows if row["step"] == last]
    if not there or (response is not None and not 1 <= response <= len(there)):
        raise SystemExit("this response is not in the token log of the run")
    if response is not None:
        return there[response - 1]
    short = [row for row in there if all(len(t.strip()) <= LONGEST for t in row["tokens"][:SHOWN])]
    return max(short or there, key=lambda row: row["score"] if row["score"] is not None else float("-inf"))


def shown_at(count: int) -> list[int | None]:
    """Positions of the tokens that are drawn, None for those left out before the last one."""
    return list(range(count)) if count <= SHOWN + 1 else [*range(SHOWN - 1), None, count - 1]


def picked(values: Sequence[float], at: Sequence[int | None]) -> list[float | None]:
    """Values of the tokens that are drawn."""
    return [None if i is None else values[i] for i in at]


def text(x: float, y: float, content: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(content)}</text>'


def named(y: float, name: str, about: str) -> str:
    """Name of a model with a few words about it, in its box."""
    words = f'<tspan class="name">{escape(name)}</tspan><tspan class="soft" dx="8">{escape(about)}</tspan>'
    return f'<text x="{LEFT + 12}" y="{y:g}">{words}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str, more: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"{more}/>'


def box(y: float, height: float, kind: str) -> str:
    return rectangle(LEFT, y, FIRST - LEFT - 40, height, f"box {kind}", ' rx="8"')


def head(y: float, label: str, kind: str) -> Iterator[str]:
    """A head in its box, with an arrow to the row of its numbers."""
    end = FIRST - 48
    yield rectangle(LEFT + 8, y - 17, end - LEFT - 8, 25, f"head {kind}", ' rx="5"')
    yield text(LEFT + 16, y, label)
    yield f'<path d="M{end} {y - 4.5} h14 m-5 -4 l5 4 l-5 4" fill="none" class="{kind}" stroke-width="1.5"/>'


def numbers(y: float, values: Sequence[float | None], form: str) -> Iterator[str]:
    """A row of numbers below the tokens; None: nothing is there."""
    for i, value in enumerate(values):
        if value is not None:
            yield text(FIRST + COLUMN * i, y, format(0.0 if abs(value) < 5e-4 else value, form), "number")


def bars(y: float, shares: Sequence[float | None], kind: str) -> Iterator[str]:
    """A bar below each probability, as long as it is likely."""
    for i, share in enumerate(shares):
        if share is not None:
            yield rectangle(FIRST + COLUMN * i - 24, y + 5, round(max(0.5, 48 * share), 1), 3, f"bar-{kind}")


def models(row: Mapping[str, Any], at: Sequence[int | None], config: dict[str, Any], words: Mapping[str, str]) -> Drawn:
    """The boxes of the four models with the rows of their numbers, from y = 98 on; then the y below them."""
    sizes, used = config["model"], [str(reward.get("use", label)) for label, reward in config["rewards"].items()]
    own, trunk = sizes["separate_critic"], words["trunk"].format(layers=sizes["layers"], width=sizes["hidden_size"])
    rule = words["learned"] if used == ["trained"] else words["rule"].format(names=", ".join(used))
    vocab = words["head"].format(vocab=config_value(config, "tokenizer", "vocab_size"))
    probs, ref_probs = (picked([exp(x) for x in row[name]], at) for name in ("old_logprob", "ref_logprob"))
    y = 98.0
    parts = [box(y, 82 if own else 114, "active"), named(y + 22, words["active"], words["trained"])]
    parts += [text(LEFT + 12, y + 41, trunk, "soft"), *head(y + 66, vocab, "active")]
    parts += [*numbers(y + 66, probs, ".3f"), *bars(y + 66, probs, "active")]
    y += 66
    if own:
        y += 28
        parts += [box(y, 62, "value"), named(y + 22, words["value"], words["critic"])]
        y += 14
    parts += [*head(y + 32, words["value head"], "value"), *numbers(y + 32, picked(row["value"], at), "+.3f")]
    y += 60
    parts += [
        box(y, 62, "reference"),
        named(y + 22, words["reference"], words["frozen"]),
        *head(y + 46, vocab, "reference"),
    ]
    parts += [*numbers(y + 46, ref_probs, ".3f"), *bars(y + 46, ref_probs, "reference")]
    y += 74
    parts += [box(y, 62, "reward"), named(y + 22, words["reward model"], rule), *head(y + 46, words["score"], "reward")]
    parts += numbers(y + 46, [*[None] * (len(at) - 1), row["score"]], "+.3f")
    return parts, y + 76


def made(row: Mapping[str, Any], at: Sequence[int | None], y: float, words: Mapping[str, str]) -> Drawn:
    """What PPO makes of these numbers: a row each for KL, reward and advantage; then the y below them."""
    parts = [f'<path d="M{LEFT} {y} H{WIDTH - LEFT}" class="line"/>', text(LEFT, y + 24, words["made"], "name")]
    most = max(map(abs, row["advantage"])) or 1.0
    for name in ("kl", "reward", "advantage"):
        y, values = y + 28, picked(row[name], at)
        for i, x in enumerate(values if name == "advantage" else ()):
            if x is not None:
                shade = f' opacity="{0.5 * abs(x) / most:.2f}" rx="4"'
                parts.append(rectangle(FIRST + COLUMN * i - 29, y + 7, 58, 24, "plus" if x > 0 else "minus", shade))
        parts += [text(LEFT, y + 24, words[name]), *numbers(y + 24, values, "+.3f")]
    return [*parts, text(LEFT, y + 56, words["whole"], "soft")], y + 72


def picture(row: Mapping[str, Any], config: dict[str, Any], beta: float, texts: Mapping[str, str]) -> str:
    """SVG of the figure in one language. beta: the KL coefficient of the iteration."""
    at, tokens = shown_at(len(row["tokens"])), row["tokens"]
    known = {
        "step": row["step"],
        "prompt": row["prompt"],
        "count": len(tokens),
        "left": len(tokens) - len(at) + 1,
        "beta": beta,
    }
    known |= {"kl": sum(row["kl"]), "reward": sum(row["reward"]), "estimator": config_value(config, "kl", "estimator")}
    words = texts | {name: texts[name].format(**known) for name in ("prompt", "kl", "reward", "whole")}
    parts = [text(LEFT, 32, words["title"], "title"), text(LEFT, 56, words["prompt"])]
    parts += [text(LEFT, 84, words["answer"], "soft")]
    for i, position in enumerate(at):
        token = "…" if position is None else tokens[position].strip()
        last = position == len(tokens) - 1 and row["terminated"]
        token = "⟨eos⟩" if last else token if len(token) <= LONGEST else f"{token[: LONGEST - 1]}…"
        parts.append(text(FIRST + COLUMN * i, 84, token, "token"))
    boxes, y = models(row, at, config, words)
    rows, height = made(row, at, y, words)
    size = f'viewBox="0 0 {WIDTH} {height:g}" role="img"'
    paper = rectangle(0, 0, WIDTH, height, "paper", ' rx="10"')
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>{words["title"]}</title><style>{STYLE}</style>'
    return "\n".join([opened, paper, *parts, *boxes, *rows, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--response", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    row = chosen(read_token_log(options.run / "tokens.jsonl"), options.step, options.response)
    beta = next(m["kl/coef"] for m in read_metrics(options.run) if m["step"] == row["step"])
    for name, words in (("models.svg", ENGLISH), ("models.zh-CN.svg", CHINESE)):
        (options.out / name).write_text(picture(row, read_config(options.run), beta, words), encoding="utf-8")
        print(options.out / name)


if __name__ == "__main__":
    main()
