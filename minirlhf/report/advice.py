"""Advice on what to try after a run, as data; like the sentences of sentences.py, each under a condition.

Not here: the same while a run goes on (rl/alarms.py) and before it (rl/doubts.py).
"""

from minirlhf.report.run_facts import all_measured
from minirlhf.report.sentences import CLIP, COURSE, EVALUATION, GOING_ON, KL, REWARDS, TRUE, WARNINGS, J, Sentence, V
from minirlhf.rl.alarms import SETTLED

SPREAD = 0.85  # share of the bigrams' variety that a run keeps, as the promise of the default run has it
LENGTHS = (0.7, 1.3)  # bounds of the length, likewise
LITTLE_KL = 0.1  # nats a response: a policy that has hardly moved pays no price
MUCH = 0.2  # share of tokens that the clip holds back: the updates are larger than it allows

ADVICE = (
    Sentence(
        "go on", "next", lambda f: not f.evaluated,
        "Go on with it: `minirlhf run --resume {f.run}`.",
        "接着做：`minirlhf run --resume {f.run}`。", GOING_ON,
    ),
    Sentence(
        "heed the alarms", "next", lambda f: bool(f.alarms),
        "Begin with what the alarms advise.",
        "先照警报的建议做。", WARNINGS,
    ),
    Sentence(
        "longer", "next", lambda f: f.finished and f.course.end > 0,
        "More iterations, since J was still rising: `minirlhf run --resume {f.run} --set ppo.iterations={f.twice}`.",
        "J 还在上升，多做几次迭代：`minirlhf run --resume {f.run} --set ppo.iterations={f.twice}`。", GOING_ON,
    ),
    Sentence(
        "smaller steps", "next", lambda f: f.course.end < 0,
        "Smaller steps, since J was falling at the end: lower ppo.lr or ppo.epochs.",
        "到最后 J 在下降，步子小一些：降低 ppo.lr 或 ppo.epochs。", COURSE,
    ),
    Sentence(
        "larger batches", "next",
        lambda f: bool(f.not_beaten or f.not_told_apart) and f.course.sure > 0 and f.course.end == 0,
        "More responses an iteration or more iterations (ppo.prompts_per_iteration, ppo.iterations): best of n is not "
        "beaten, and at the end no rise of J was seen.",
        "每次迭代多取些回答，或多做几次迭代（ppo.prompts_per_iteration、ppo.iterations）："
        "没有胜过 best of n，而最后看不出 J 在上升。",
        J,
    ),
    Sentence(
        "own critic", "next",
        lambda f: f.steps > SETTLED and f.explained < 0.5 and f.explained != 0 and not f.separate_critic,
        "A critic of its own (model.separate_critic = true): V explains less than half of the variance.",
        "给 V 单独一个模型（model.separate_critic = true）：V 解释的方差不到一半。", V,
    ),
    Sentence(
        "clip holds back", "next", lambda f: f.clipped > MUCH,
        "Smaller steps, since the clip holds back over a fifth of the tokens: lower ppo.lr or ppo.epochs.",
        "clip 挡住了五分之一以上的 token，步子小一些：降低 ppo.lr 或 ppo.epochs。", CLIP,
    ),
    Sentence(
        "mend the reward", "next", lambda f: f.gain_low > 0 and f.true_high < 0,
        "Mend the reward, or raise kl.coef: the score rises where the true score falls.",
        "修补奖励，或调高 kl.coef：得分上升的地方，真实得分在下降。", TRUE,
    ),
    Sentence(
        "too far", "next", lambda f: f.same_score and f.cost > f.gain_high and f.cost > 0 and f.kl > LITTLE_KL,
        "Lower ppo.lr or raise kl.coef: no optimum pays more KL than it gains score.",
        "降低 ppo.lr 或调高 kl.coef：没有哪个最优解花的 KL 比得到的得分还多。", KL,
    ),
    Sentence(
        "more prompts", "next",
        lambda f: f.gain_low <= 0 <= f.gain_high > f.gain_low and f.planned != 0 and all_measured(f.prompts),
        "Four times the prompts halve the interval: `minirlhf evaluate {f.run} --set "
        "evaluation.prompts={f.more_prompts}`.",
        "四倍的提示让区间减半：`minirlhf evaluate {f.run} --set evaluation.prompts={f.more_prompts}`。", EVALUATION,
    ),
    Sentence(
        "less varied", "next", lambda f: 0 <= f.after.distinct_2 < SPREAD * f.before.distinct_2,
        "Raise kl.coef, or add the reward repetition: bigrams are {f.varied:.2f} times as varied as before.",
        "调高 kl.coef，或加上奖励 repetition：二元组的多样性是训练前的 {f.varied:.2f} 倍。", REWARDS,
    ),
    Sentence(
        "other length", "next", lambda f: f.lengthened < LENGTHS[0] or f.lengthened > LENGTHS[1],
        "If length was not wanted, add the reward length or raise kl.coef: responses are {f.lengthened:.1f} times as "
        "long.",
        "如果要的不是长度，加上奖励 length 或调高 kl.coef：回答的长度是训练前的 {f.lengthened:.1f} 倍。", REWARDS,
    ),
    Sentence(
        "reward behind", "next", lambda f: len(f.rewards) > 1,
        "If {x.label} matters, give it more weight: it went from {x.first:+.3f} to {x.last:+.3f}, against its weight.",
        "如果 {x.label} 重要，加大它的权重：它从 {x.first:+.3f} 变到 {x.last:+.3f}，与权重的方向相反。", REWARDS,
        lambda f: (reward for reward in f.rewards if reward.worse),
    ),
    Sentence(
        "other seeds", "next", lambda f: f.finished and f.steps > 0,
        "This is one seed: `minirlhf compare {f.run}/config.toml --seeds 5` says what others give.",
        "这只是一个种子：`minirlhf compare {f.run}/config.toml --seeds 5` 看别的种子如何。",
        "tutorial.md#is-it-luck-of-the-seed",
    ),
    Sentence(
        "read it", "next", lambda f: f.steps > 0,
        "Read what it wrote, token by token: `minirlhf report {f.run} --open`.",
        "逐 token 读它写的东西：`minirlhf report {f.run} --open`。", "running.md#looking-at-a-run-afterwards",
    ),
)  # fmt: skip
