"""Sentences about a run as data: each with the condition under which it is true, in English and Chinese, and a page.

A template is filled by str.format with f, the facts of the run, and x, one of the items that `each` gives. Not here:
what to try next (advice.py), and which sentences are said (explain.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from minirlhf.report.run_facts import Facts, all_measured


@dataclass(frozen=True)
class Sentence:
    """Sentence of an explanation. page: page of docs/ with its anchor; each: items it is said about, else said once."""

    name: str
    section: str
    when: Callable[[Facts], bool]
    english: str
    chinese: str
    page: str
    each: Callable[[Facts], Iterable[Any]] = lambda f: (None,)


SECTIONS = {  # key -> (English, Chinese), in the order in which they are printed
    "rewarded": ("rewarded", "奖励"),
    "text": ("the text", "文本"),
    "cost": ("KL", "KL"),
    "beaten": ("beaten?", "胜过了吗"),
    "course": ("course", "过程"),
    "health": ("health", "健康"),
    "alarms": ("alarms", "警报"),
    "next": ("try next", "下一步"),
}
EVALUATION, WATCH = "run-directory.md#evaluationjson", "metrics.md#which-of-them-to-watch"
V = WATCH
PRESETS, GOING_ON, REWARDS = "running.md#presets", "running.md#stopping-and-going-on", "running.md#rewards-that-combine"
KL, CLIP = "notes.md#n12-entropy-and-kl", "notes.md#n11-ppo-with-a-clip"
RULES, WORDS = "explain.md#rules-that-change-the-score", "explain.md#how-words-are-counted"
COURSE = "explain.md#how-the-course-is-judged"
J, TRUE = "explain.md#what-beats-what", "overoptimisation.md#what-it-shows"
RESIDUAL = "exact-lab.md#a-meter-for-any-size-the-residual"
FAILED, WARNINGS = "reliability.md#when-numbers-or-rewards-go-wrong", "metrics.md#warnings"
# Pages that have a Chinese counterpart.
IN_CHINESE = {
    KL: "notes.zh-CN.md#n12-熵与-kl",
    CLIP: "notes.zh-CN.md#n11-带截断的-ppo",
    V: "notes.zh-CN.md#n5-价值函数",
}

REWARDED = (
    Sentence(
        "finished", "rewarded", lambda f: f.done and f.steps > 0,
        "{f.preset}, seed {f.seed}: all {f.steps} iterations are done.",
        "{f.preset}，种子 {f.seed}：{f.steps} 次迭代全部完成。", PRESETS,
    ),
    Sentence(
        "interrupted", "rewarded", lambda f: f.planned is not None and 0 < f.steps < f.planned,
        "{f.preset}, seed {f.seed}: {f.steps} of {f.planned} iterations are done; it was stopped, or still goes on.",
        "{f.preset}，种子 {f.seed}：{f.planned} 次迭代完成了 {f.steps} 次；它停下了，或者还在进行。", GOING_ON,
    ),
    Sentence(
        "not begun", "rewarded", lambda f: f.planned is not None and f.steps == 0 < f.planned,
        "{f.preset}, seed {f.seed}: none of {f.planned} iterations is done.",
        "{f.preset}，种子 {f.seed}：{f.planned} 次迭代一次也没有完成。", GOING_ON,
    ),
    Sentence(
        "no iterations", "rewarded", lambda f: f.planned == 0,
        "{f.preset}, seed {f.seed}: ppo.iterations is 0, so that the policy is the reference.",
        "{f.preset}，种子 {f.seed}：ppo.iterations 为 0，所以策略就是参考模型。", "running.md#configuration",
    ),
    Sentence(
        "unplanned", "rewarded", lambda f: f.planned is None,
        "{f.preset}, seed {f.seed}: {f.steps} iterations are done; config.toml does not say how many were wanted.",
        "{f.preset}，种子 {f.seed}：完成了 {f.steps} 次迭代；config.toml 没有说要做多少次。",
        "running.md#configuration",
    ),
    Sentence(
        "reward", "rewarded", lambda f: True,
        "Reward {x.name}, weight {x.weight:g}: mean {x.first:+.3f} in the first iteration, {x.last:+.3f} in the last "
        "fifth of them.",
        "奖励 {x.name}，权重 {x.weight:g}：第一次迭代的均值 {x.first:+.3f}，最后五分之一的迭代 {x.last:+.3f}。",
        REWARDS, lambda f: (reward for reward in f.rewards if reward.logged),
    ),
    Sentence(
        "reward without score", "rewarded", lambda f: True,
        "Reward {x.name}: no score of it is logged.",
        "奖励 {x.name}：没有记录到它给的得分。", REWARDS,
        lambda f: (reward for reward in f.rewards if not reward.logged),
    ),
    Sentence(
        "no reward", "rewarded", lambda f: not f.rewards,
        "config.toml names no reward.",
        "config.toml 没有写明奖励。", REWARDS,
    ),
    Sentence(
        "normalised", "rewarded", lambda f: bool(f.normalized),
        "Brought to mean 0 and variance 1 over responses of the reference, before it was weighed: {f.normalized}.",
        "加权之前，按参考模型的回答归一化为均值 0、方差 1：{f.normalized}。", REWARDS,
    ),
    Sentence(
        "reward clip", "rewarded", lambda f: True,
        "Reward {x.label} was cut to +-{x.clip:g}.",
        "奖励 {x.label} 被截到 ±{x.clip:g} 之内。", REWARDS,
        lambda f: (reward for reward in f.rewards if all_measured(reward.clip)),
    ),
    Sentence(
        "reward model", "rewarded", lambda f: bool(f.trained),
        "A reward model, trained from comparisons, gave {f.trained}: it can be wrong where the policy goes.",
        "{f.trained} 由比较训练出的奖励模型给出：策略走到的地方，它可能是错的。", "preferences.md#compare-the-stages",
    ),
    Sentence(
        "kl in reward", "rewarded", lambda f: f.place == "reward" and f.beta > 0,
        "The KL to the reference ({f.estimator}) was subtracted from the reward: beta = {f.beta:.3g} a nat.",
        "与参考模型的 KL（{f.estimator}）从奖励中减去：每 nat 减 beta = {f.beta:.3g}。", KL,
    ),
    Sentence(
        "kl in loss", "rewarded", lambda f: f.place == "loss" and f.beta > 0,
        "The KL to the reference ({f.estimator}) was added to the loss: beta = {f.beta:.3g} a nat.",
        "与参考模型的 KL（{f.estimator}）加进损失：每 nat 加 beta = {f.beta:.3g}。", KL,
    ),
    Sentence(
        "kl in both", "rewarded", lambda f: f.place == "both" and f.beta > 0,
        "The KL to the reference ({f.estimator}) counted in reward and loss: beta = {f.beta:.3g} a nat.",
        "与参考模型的 KL（{f.estimator}）在奖励和损失中都计入：每 nat 计 beta = {f.beta:.3g}。", KL,
    ),
    Sentence(
        "kl free", "rewarded", lambda f: f.beta == 0,
        "beta was 0 at the end: to move away from the reference cost nothing.",
        "最后 beta 为 0：离开参考模型不花任何代价。", KL,
    ),
    Sentence(
        "beta steered", "rewarded", lambda f: all_measured(f.target, f.beta_first, f.beta, f.kl_last),
        "beta was steered from {f.beta_first:.3g} to {f.beta:.3g}, to hold the KL at {f.target:g} nats; it ended at "
        "{f.kl_last:.2f}.",
        "beta 从 {f.beta_first:.3g} 调到 {f.beta:.3g}，好让 KL 停在 {f.target:g} nat；最后 KL 是 {f.kl_last:.2f}。", KL,
    ),
    Sentence(
        "truncation", "rewarded", lambda f: f.truncation != "keep",
        "Responses that were cut off: truncation.rule = {f.truncation}.",
        "没有写完就被切断的回答：truncation.rule = {f.truncation}。", RULES,
    ),
    Sentence(
        "scores normalised", "rewarded", lambda f: f.score_normalize,
        "Scores were normalised by those of the run so far, so that their course over the iterations says nothing.",
        "得分按本次运行迄今的得分归一化，所以它随迭代的变化说明不了什么。", RULES,
    ),
    Sentence(
        "scores cut", "rewarded", lambda f: all_measured(f.score_clip),
        "Scores were cut to +-{f.score_clip:g}: beyond that a better response earned nothing.",
        "得分被截到 ±{f.score_clip:g} 之内：超出之后，更好的回答也没有更多所得。", RULES,
    ),
)  # fmt: skip

TEXT = (
    Sentence(
        "not evaluated", "text", lambda f: not f.evaluated,
        "Before and after were not compared: there is no evaluation.json yet.",
        "还没有比较训练前后：没有 evaluation.json。", EVALUATION,
    ),
    Sentence(
        "gain", "text", lambda f: f.gain_known and 0 < f.gain_low <= f.gain_high,
        "{f.compared} the score rose from {f.before.score_mean:+.3f} to "
        "{f.after.score_mean:+.3f}: {f.gain:+.3f} (95 % interval {f.gain_low:+.3f} to {f.gain_high:+.3f}).",
        "{f.compared_zh}，得分从 {f.before.score_mean:+.3f} 升到 {f.after.score_mean:+.3f}："
        "{f.gain:+.3f}（95 % 区间 {f.gain_low:+.3f} 至 {f.gain_high:+.3f}）。", EVALUATION,
    ),
    Sentence(
        "loss", "text", lambda f: f.gain_known and f.gain_low <= f.gain_high < 0,
        "{f.compared} the score fell from {f.before.score_mean:+.3f} to "
        "{f.after.score_mean:+.3f}: {f.gain:+.3f} (95 % interval {f.gain_low:+.3f} to {f.gain_high:+.3f}).",
        "{f.compared_zh}，得分从 {f.before.score_mean:+.3f} 降到 {f.after.score_mean:+.3f}："
        "{f.gain:+.3f}（95 % 区间 {f.gain_low:+.3f} 至 {f.gain_high:+.3f}）。", EVALUATION,
    ),
    Sentence(
        "no sure gain", "text", lambda f: f.gain_known and f.gain_low <= 0 <= f.gain_high and f.planned != 0,
        "{f.compared} the score went from {f.before.score_mean:+.3f} to "
        "{f.after.score_mean:+.3f}, which may be chance: the 95 % interval of the gain is {f.gain_low:+.3f} to "
        "{f.gain_high:+.3f}.",
        "{f.compared_zh}，得分从 {f.before.score_mean:+.3f} 到 {f.after.score_mean:+.3f}，"
        "可能只是偶然：提升的 95 % 区间是 {f.gain_low:+.3f} 至 {f.gain_high:+.3f}。", EVALUATION,
    ),
    Sentence(
        "gain without interval", "text", lambda f: f.gain_known and not all_measured(f.gain_low, f.gain_high),
        "The score went from {f.before.score_mean:+.3f} to {f.after.score_mean:+.3f}; of too few prompts to give an "
        "interval.",
        "得分从 {f.before.score_mean:+.3f} 到 {f.after.score_mean:+.3f}；提示太少，给不出区间。", EVALUATION,
    ),
    Sentence(
        "gain of some", "text",
        lambda f: 0 < f.scored_pairs < f.prompts and all_measured(f.gain, f.gain_low, f.gain_high),
        "Both sides have a score on {f.scored_pairs:.0f} of {f.prompts:.0f} prompts; there the score moved by "
        "{f.gain:+.3f} (95 % interval {f.gain_low:+.3f} to {f.gain_high:+.3f}).",
        "{f.prompts:.0f} 条提示中有 {f.scored_pairs:.0f} 条两边都有得分；在这些提示上得分变了 {f.gain:+.3f}（95 % 区间 "
        "{f.gain_low:+.3f} 至 {f.gain_high:+.3f}）。", EVALUATION,
    ),
    Sentence(
        "gain unmeasured", "text", lambda f: f.evaluated and not all_measured(f.gain),
        "The evaluation has no gain: on no prompt were both sides given a score.",
        "评估没有得出提升：没有一条提示两边都有得分。", EVALUATION,
    ),
    Sentence(
        "true score up", "text", lambda f: 0 < f.true_low <= f.true_high and all_measured(f.true_gain),
        "The true score of this corpus rose by {f.true_gain:+.3f} ({f.true_low:+.3f} to {f.true_high:+.3f}).",
        "这个语料的真实得分升了 {f.true_gain:+.3f}（{f.true_low:+.3f} 至 {f.true_high:+.3f}）。", TRUE,
    ),
    Sentence(
        "true score down", "text", lambda f: f.true_low <= f.true_high < 0 and all_measured(f.true_gain),
        "The true score of this corpus fell by {f.true_gain:+.3f} ({f.true_low:+.3f} to {f.true_high:+.3f}).",
        "这个语料的真实得分降了 {f.true_gain:+.3f}（{f.true_low:+.3f} 至 {f.true_high:+.3f}）。", TRUE,
    ),
    Sentence(
        "true score unclear", "text",
        lambda f: f.true_low <= 0 <= f.true_high and all_measured(f.true_gain) and f.planned != 0,
        "The true score of this corpus moved by {f.true_gain:+.3f}, which may be chance ({f.true_low:+.3f} to "
        "{f.true_high:+.3f}).",
        "这个语料的真实得分变了 {f.true_gain:+.3f}，可能只是偶然（{f.true_low:+.3f} 至 {f.true_high:+.3f}）。", TRUE,
    ),
    Sentence(
        "true score rest", "text", lambda f: f.rest_known and f.planned != 0,
        "Without {f.rewarded_parts}, which the run was rewarded for, the true score moved by {f.rest_gain:+.3f} "
        "({f.rest_low:+.3f} to {f.rest_high:+.3f}).",
        "不算这次运行的奖励 {f.rewarded_parts}，真实得分变了 {f.rest_gain:+.3f}（{f.rest_low:+.3f} 至 "
        "{f.rest_high:+.3f}）。",
        TRUE,
    ),
    Sentence(
        "scores part", "text", lambda f: f.gain_low > 0 and f.true_high < 0,
        "The score rose while the true score fell: the reward was exploited.",
        "得分升了，真实得分却降了：奖励被钻了空子。", TRUE,
    ),
    Sentence(
        "words more", "text", lambda f: bool(f.words_more),
        "Words in more of the {f.pairs} completions, before -> after: {f.words_more}.",
        "出现在更多续写里的词（共 {f.pairs} 条，训练前 -> 后）：{f.words_more}。", WORDS,
    ),
    Sentence(
        "words less", "text", lambda f: bool(f.words_less),
        "Words in fewer of them: {f.words_less}.",
        "出现在更少续写里的词：{f.words_less}。", WORDS,
    ),
    Sentence(
        "words alike", "text", lambda f: f.pairs > 0 and not f.words_more and not f.words_less,
        "No word is in more or in fewer of the {f.pairs} completions than chance explains.",
        "{f.pairs} 条续写里，没有哪个词的增减超出偶然。", WORDS,
    ),
    Sentence(
        "median pair", "text", lambda f: f.typical is not None and f.planned != 0,
        "The pair of the median gain: {f.typical.prompt} ...\n"
        "before {f.typical.score_before:+.2f}: {f.typical.before}\n"
        "after {f.typical.score_after:+.2f}: {f.typical.after}",
        "提升居中的一对：{f.typical.prompt} …\n训练前 {f.typical.score_before:+.2f}：{f.typical.before}\n"
        "训练后 {f.typical.score_after:+.2f}：{f.typical.after}", WORDS,
    ),
    Sentence(
        "form", "text",
        lambda f: all_measured(f.before.length_mean, f.after.length_mean, f.before.eos_rate, f.after.eos_rate),
        "Tokens a response: {f.before.length_mean:.1f} -> {f.after.length_mean:.1f}; ended by themselves: "
        "{f.before.eos_rate:.0%} -> {f.after.eos_rate:.0%}.",
        "每条回答的 token 数：{f.before.length_mean:.1f} -> {f.after.length_mean:.1f}；自行结束的："
        "{f.before.eos_rate:.0%} -> {f.after.eos_rate:.0%}。", EVALUATION,
    ),
    Sentence(
        "variety", "text",
        lambda f: all_measured(f.before.distinct_share, f.after.distinct_share)
        and all_measured(f.before.distinct_2, f.after.distinct_2),
        "Distinct completions: {f.before.distinct_share:.0%} -> {f.after.distinct_share:.0%}; distinct bigrams: "
        "{f.before.distinct_2:.1%} -> {f.after.distinct_2:.1%}.",
        "互不相同的续写：{f.before.distinct_share:.0%} -> {f.after.distinct_share:.0%}；互不相同的二元组："
        "{f.before.distinct_2:.1%} -> {f.after.distinct_2:.1%}。", EVALUATION,
    ),
    Sentence(
        "repetition", "text", lambda f: all_measured(*f.repetition),
        "Repeated token triples: {f.repetition[0]:.1%} in the first iteration, {f.repetition[1]:.1%} in the last "
        "fifth.",
        "重复的三元组：第一次迭代 {f.repetition[0]:.1%}，最后五分之一的迭代 {f.repetition[1]:.1%}。", WATCH,
    ),
)  # fmt: skip
