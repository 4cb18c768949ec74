"""Sentences about the price of a run, its rivals, its course and health, as data; like those of sentences.py.

Not here: what was rewarded and what changed in the text (sentences.py), and what to try next (advice.py).
"""

from minirlhf.report.run_facts import all_measured
from minirlhf.report.sentences import CLIP, COURSE, FAILED, KL, RESIDUAL, WARNINGS, J, Sentence, V
from minirlhf.rl.alarms import SETTLED, WORSE

LEAST_OF = 4  # smallest n of best-of-n that an evaluation measures
LITTLE = 0.05  # explained variance up to which V is hardly better than a constant: a twentieth

COST = (
    Sentence(
        "price", "cost", lambda f: f.same_score and f.gain_sure and 0 < f.cost <= f.gain,
        "The policy is {f.kl:.2f} nats a response from the reference, which costs beta KL = {f.cost:.3f} of score: "
        "{f.price:.0%} of the gain.",
        "策略离参考模型每条回答 {f.kl:.2f} nat，这要花掉 beta KL = {f.cost:.3f} 的得分：提升的 {f.price:.0%}。", KL,
    ),
    Sentence(
        "price above gain", "cost", lambda f: f.same_score and f.gain_sure and f.cost > f.gain and f.cost > 0,
        "The policy is {f.kl:.2f} nats a response from the reference, which costs beta KL = {f.cost:.3f} of score: "
        "more than was gained ({f.gain:+.3f}).",
        "策略离参考模型每条回答 {f.kl:.2f} nat，这要花掉 beta KL = {f.cost:.3f} 的得分："
        "比所得的（{f.gain:+.3f}）还多。",
        KL,
    ),
    Sentence(
        "price alone", "cost",
        lambda f: f.same_score and all_measured(f.cost) and not (f.gain_sure and f.cost > 0),
        "The policy is {f.kl:.2f} nats a response from the reference, which costs beta KL = {f.cost:.3f} of score.",
        "策略离参考模型每条回答 {f.kl:.2f} nat，这要花掉 beta KL = {f.cost:.3f} 的得分。", KL,
    ),
    Sentence(
        "kl", "cost", lambda f: all_measured(f.kl) and not f.same_score,
        "The policy is {f.kl:.2f} nats a response from the reference.",
        "策略离参考模型每条回答 {f.kl:.2f} nat。", KL,
    ),
    Sentence(
        "kl in training", "cost", lambda f: not f.evaluated and all_measured(f.kl_last),
        "KL in the last fifth of the iterations: {f.kl_last:.2f} nats a response, by the estimator {f.estimator}.",
        "最后五分之一的迭代里，KL 为每条回答 {f.kl_last:.2f} nat（估计量 {f.estimator}）。", KL,
    ),
)  # fmt: skip

BEATEN = (
    Sentence(
        "j up", "beaten", lambda f: f.j_known and f.j_sure and f.j_policy > f.j_reference and f.planned != 0,
        "J = score - beta KL rose from {f.j_reference:+.3f} to {f.j_policy:+.3f} on {f.j_prompts:.0f} prompts.",
        "J = 得分 - beta KL 在 {f.j_prompts:.0f} 条提示上从 {f.j_reference:+.3f} 升到 {f.j_policy:+.3f}。", J,
    ),
    Sentence(
        "j not up", "beaten", lambda f: f.j_known and f.j_sure and f.j_policy <= f.j_reference and f.planned != 0,
        "J = score - beta KL did not rise: {f.j_reference:+.3f} before, {f.j_policy:+.3f} after, on {f.j_prompts:.0f} "
        "prompts.",
        "J = 得分 - beta KL 没有上升：{f.j_prompts:.0f} 条提示上，训练前 {f.j_reference:+.3f}，"
        "训练后 {f.j_policy:+.3f}。", J,
    ),
    Sentence(
        "j unclear", "beaten", lambda f: f.j_known and f.j_low <= 0 <= f.j_high and f.planned != 0,
        "J = score - beta KL went from {f.j_reference:+.3f} to {f.j_policy:+.3f}, which may be chance on "
        "{f.j_prompts:.0f} prompts ({f.j_low:+.3f} to {f.j_high:+.3f}).",
        "J = 得分 - beta KL 从 {f.j_reference:+.3f} 到 {f.j_policy:+.3f}，在 {f.j_prompts:.0f} 条提示上可能只是偶然"
        "（{f.j_low:+.3f} 至 {f.j_high:+.3f}）。", J,
    ),
    Sentence(
        "j without interval", "beaten", lambda f: f.j_known and not all_measured(f.j_low, f.j_high) and f.planned != 0,
        "J = score - beta KL went from {f.j_reference:+.3f} to {f.j_policy:+.3f}; of too few prompts to give an "
        "interval, so that it may be chance.",
        "J = 得分 - beta KL 从 {f.j_reference:+.3f} 到 {f.j_policy:+.3f}；提示太少，给不出区间，所以可能只是偶然。", J,
    ),
    Sentence(
        "not beaten", "beaten", lambda f: bool(f.not_beaten),
        "The policy does NOT beat: {f.not_beaten}. It trains nothing, but needs n responses where the policy "
        "needs one.",
        "策略没有胜过：{f.not_beaten}。它什么也不训练，但策略要一条回答的地方，它要 n 条。", J,
    ),
    Sentence(
        "not told apart", "beaten", lambda f: bool(f.not_told_apart),
        "Not told apart from {f.not_told_apart}: more prompts may tell (evaluation.prompts, "
        "evaluation.residual_prompts).",
        "分不出高下：{f.not_told_apart}；更多的提示或许能分出来（evaluation.prompts、"
        "evaluation.residual_prompts）。",
        J,
    ),
    Sentence(
        "beaten", "beaten", lambda f: bool(f.beaten),
        "The policy beats: {f.beaten}.",
        "策略胜过了：{f.beaten}。", J,
    ),
    Sentence(
        "j unknown", "beaten", lambda f: bool(f.j_unknown),
        "J = score - beta KL is not known: {f.j_unknown}.",
        "J = 得分 - beta KL 不得而知（英文原文）：{f.j_unknown}。", J,
    ),
    Sentence(
        "share", "beaten", lambda f: f.share > 0 and f.j_prompts > 0 and f.share_sure and not f.has_exact,
        "The policy gained about {f.share:.0%} at most of the J that can be gained, an estimate from {f.j_prompts:.0f} "
        "prompts: {f.best_known} is the best known.",
        "策略得到的至多约为可得 J 的 {f.share:.0%}，由 {f.j_prompts:.0f} 条提示估计：已知最好的是 {f.best_known}。",
        J,
    ),
    Sentence(
        "share of optimum", "beaten", lambda f: f.best_known == "optimum" and all_measured(f.share) and not f.has_exact,
        "The policy gained {f.share:.0%} of the J that can be gained: the optimum is known.",
        "策略得到了可得 J 的 {f.share:.0%}：最优值是已知的。", J,
    ),
    Sentence(
        "best known", "beaten", lambda f: f.best_known == "policy" and not f.has_exact,
        "Nothing that was measured has a higher J; how high the optimum is, nobody knows.",
        "测过的都没有更高的 J；最优值有多高，没有人知道。", J,
    ),
    Sentence(
        "exact", "beaten", lambda f: all_measured(f.optimality, f.exact_j, f.exact_best),
        "F = {f.optimality:.4f} of what can be gained: J = {f.exact_j:.4f} of at most {f.exact_best:.4f}, enumerated.",
        "可得之中得到了 F = {f.optimality:.4f}：J = {f.exact_j:.4f}，至多 {f.exact_best:.4f}，由枚举得出。",
        "exact-lab.md",
    ),
    Sentence(
        "nothing to gain", "beaten", lambda f: f.has_exact and not all_measured(f.optimality),
        "Nothing can be gained on this problem: its reference is the optimum.",
        "这个问题上没有可得的：它的参考模型就是最优解。",
        "exact-lab.md",
    ),
    Sentence(
        "j unmeasured", "beaten",
        lambda f: f.evaluated and not f.has_exact and all_measured(f.gain) and not all_measured(f.j_policy)
        and not f.best_of < LEAST_OF and not f.j_unknown,
        "J was not compared with best of n; `minirlhf evaluate {f.run}{f.more_j_prompts}` prints it (it is not saved).",
        "没有拿 J 与 best of n 比较；`minirlhf evaluate {f.run}{f.more_j_prompts}` 会打印它（不保存）。", J,
    ),
    Sentence(
        "best of n unmeasured", "beaten",
        lambda f: f.evaluated and not f.has_exact and all_measured(f.gain) and not f.best_of_n and f.best_of < LEAST_OF,
        "Best of n was not measured; `minirlhf evaluate {f.run} --set evaluation.best_of=16{f.more_j_prompts}` prints "
        "it (it is not saved).",
        "没有测 best of n；`minirlhf evaluate {f.run} --set evaluation.best_of=16{f.more_j_prompts}` "
        "会打印它（不保存）。", J,
    ),
    Sentence(
        "residual", "beaten", lambda f: all_measured(f.before.residual_std, f.after.residual_std),
        "score - beta log(policy/reference) varies by {f.before.residual_std:.3f} before, {f.after.residual_std:.3f} "
        "after, within a prompt; at the optimum by 0.",
        "同一提示内 得分 - beta log(策略/参考) 的标准差：训练前 {f.before.residual_std:.3f}，训练后 "
        "{f.after.residual_std:.3f}；最优时为 0。", RESIDUAL,
    ),
    Sentence(
        "residual on reference", "beaten", lambda f: all_measured(f.after.residual_std_on_reference),
        "On the reference's responses it varies by {f.after.residual_std_on_reference:.3f}; far from 0, something is "
        "left to gain.",
        "在参考模型的回答上，它的标准差是 {f.after.residual_std_on_reference:.3f}；离 0 远就还有可得的。", RESIDUAL,
    ),
)  # fmt: skip

OVER_TIME = (
    Sentence(
        "rose", "course", lambda f: f.course.sure > 0,
        "In training the score rose from {f.course.first:+.3f} to {f.course.last:+.3f} (mean of the last "
        "fifth): half of that by iteration {f.course.half}, nine tenths by {f.course.most}.",
        "训练中得分从 {f.course.first:+.3f} 升到 {f.course.last:+.3f}（最后五分之一的均值）：到第 "
        "{f.course.half} 次迭代升了一半，到第 {f.course.most} 次升了九成。", COURSE,
    ),
    Sentence(
        "fell", "course", lambda f: f.course.sure < 0,
        "In training the score fell from {f.course.first:+.3f} to {f.course.last:+.3f} (mean of the last "
        "fifth of the iterations).",
        "训练中得分从 {f.course.first:+.3f} 降到 {f.course.last:+.3f}（最后五分之一的均值）。", COURSE,
    ),
    Sentence(
        "flat", "course", lambda f: f.course.sure == 0,
        "In training the score went from {f.course.first:+.3f} to {f.course.last:+.3f} (mean of the last "
        "fifth of the iterations), no further than chance explains.",
        "训练中得分从 {f.course.first:+.3f} 到 {f.course.last:+.3f}（最后五分之一的均值），没有超出偶然。",
        COURSE,
    ),
    Sentence(
        "still rising", "course", lambda f: f.course.end > 0,
        "J was still rising at the end: {f.course.trend:+.4f} an iteration over the last {f.course.fitted}.",
        "到最后 J 还在上升：最后 {f.course.fitted} 次迭代里，每次 {f.course.trend:+.4f}。", COURSE,
    ),
    Sentence(
        "falling", "course", lambda f: f.course.end < 0,
        "J was falling at the end: {f.course.trend:+.4f} an iteration over the last {f.course.fitted}.",
        "到最后 J 在下降：最后 {f.course.fitted} 次迭代里，每次 {f.course.trend:+.4f}。", COURSE,
    ),
    Sentence(
        "level", "course", lambda f: f.course.end == 0,
        "J neither rose nor fell over the last {f.course.fitted} iterations, beyond chance ({f.course.trend:+.4f} an "
        "iteration).",
        "最后 {f.course.fitted} 次迭代里，J 的升降没有超出偶然（每次 {f.course.trend:+.4f}）。", COURSE,
    ),
)  # fmt: skip

HEALTH = (
    Sentence(
        "v", "health", lambda f: f.explained > LITTLE,
        "V explains {f.explained:.0%} of the variance of the returns, in the last fifth of the iterations.",
        "最后五分之一的迭代里，V 解释了回报方差的 {f.explained:.0%}。", V,
    ),
    Sentence(
        "v as a constant", "health",
        lambda f: f.steps > SETTLED and WORSE <= f.explained <= LITTLE and f.explained != 0,
        "V explains nothing yet: it predicts the returns as a constant does (explained variance {f.explained:+.2f} in "
        "the last fifth).",
        "V 还没有解释什么：它对回报的预测与常数一样（最后五分之一的迭代里，解释方差为 {f.explained:+.2f}）。", V,
    ),
    Sentence(
        "v useless", "health", lambda f: f.steps > SETTLED and f.explained < WORSE,
        "V predicts the returns worse than a constant: explained variance {f.explained:+.2f} in the last fifth.",
        "V 对回报的预测比常数还差：最后五分之一的迭代里，解释方差为 {f.explained:+.2f}。", V,
    ),
    Sentence(
        "v untrained", "health", lambda f: f.value_coef == 0 and f.steps > 0,
        "V was not trained: loss.value_coef = 0.",
        "没有训练 V：loss.value_coef = 0。", V,
    ),
    Sentence(
        "no v", "health",
        lambda f: f.explained == 0 and f.value_coef != 0 and f.steps > 1 and bool(f.advantage),
        "No V was trained: the advantage function {f.advantage} reads none.",
        "没有训练 V：优势函数 {f.advantage} 不用它。", V,
    ),
    Sentence(
        "clip", "health", lambda f: f.clipped_most > 0 and all_measured(f.clipped),
        "The clip held back {f.clipped:.1%} of the tokens on average, {f.clipped_most:.1%} at most (iteration "
        "{f.clipped_at}).",
        "clip 平均挡住了 {f.clipped:.1%} 的 token，最多的是第 {f.clipped_at} 次迭代：{f.clipped_most:.1%}。", CLIP,
    ),
    Sentence(
        "clip idle", "health", lambda f: f.clipped_most == 0,
        "The clip held back no token.",
        "clip 没有挡住任何 token。", CLIP,
    ),
    Sentence(
        "entropy", "health", lambda f: all_measured(*f.entropy),
        "Entropy: {f.entropy[0]:.2f} nats a token in the first iteration, {f.entropy[1]:.2f} in the last fifth.",
        "熵：第一次迭代每个 token {f.entropy[0]:.2f} nat，最后五分之一的迭代 {f.entropy[1]:.2f}。", KL,
    ),
    Sentence(
        "unscored", "health", lambda f: f.unscored > 0,
        "{f.unscored:.0f} responses were left out, because no reward applied to them.",
        "{f.unscored:.0f} 条回答没有计入，因为没有奖励适用于它们。", FAILED,
    ),
    Sentence(
        "lost iterations", "health", lambda f: f.lost_iterations > 0,
        "Iterations that were left out because a reward failed: {f.lost_iterations}.",
        "因奖励出错而没有计入的迭代：{f.lost_iterations} 次。", FAILED,
    ),
)  # fmt: skip

ALARMS = (
    Sentence(
        "doubt", "alarms", lambda f: True, "Warned before it began: {x}.", "开始之前的警告（英文原文）：{x}.",
        "explain.md#alarms-and-warnings", lambda f: f.doubts,
    ),
    Sentence(
        "alarm", "alarms", lambda f: True, "Iteration {x[0]}: {x[1]}.", "第 {x[0]} 次迭代（英文原文）：{x[1]}.",
        WARNINGS, lambda f: f.alarms,
    ),
    Sentence(
        "no alarm", "alarms", lambda f: f.steps > 0 and not f.alarms,
        "No alarm was raised.",
        "没有发出警报。", WARNINGS,
    ),
)  # fmt: skip
