"""The explanation of a run: each sentence is said under its condition and not otherwise, in both languages."""

import re
from dataclasses import replace

import pytest

from minirlhf.report.explain import LANGUAGES, SENTENCES, explain, true_sentences
from minirlhf.report.run_facts import NAN, BestOf, Course, Facts, RewardFact, SampledPair, Side
from minirlhf.report.sentences import IN_CHINESE, SECTIONS
from minirlhf.rl.alarms import SETTLED, WORSE
from tests.manual import ROOT, blocks, read
from tests.test_docs import anchors

GAIN = {"evaluated": True, "prompts": 16.0, "before": Side(score_mean=0.1), "after": Side(score_mean=0.3), "gain": 0.2}
TRUE = {"true_gain": 0.5, "true_low": 0.25, "true_high": 0.75}
LOST = {"true_gain": -0.5, "true_low": -0.75, "true_high": -0.25}
UNSURE = {"true_gain": 0.1, "true_low": -0.5, "true_high": 0.7}
DONE = {"steps": 24, "planned": 24, "evaluated": True}
J = {
    "j_reference": 0.1,
    "j_policy": 0.3,
    "j_prompts": 32.0,
    "evaluated": True,
    "gain": 0.2,
    "j_low": 0.1,
    "j_high": 0.3,
}
FOUR, SIXTEEN = BestOf(4, 0.2, beaten=True), BestOf(16, 0.4, beats=True)
EIGHT = BestOf(8, 0.3)
TEA, MILK = RewardFact("tea", "keywords", 2.0, first=0.1, last=0.5), RewardFact("milk", "milk", -1.0, first=0, last=1)
PAIR = SampledPair("We saw", "a bad film", "a good film", 0.0, 0.5)
ROSE = Course(first=0.1, last=0.5, noise=0.19, half=3, most=8, fitted=5, trend=0.33, trend_noise=0.1)
SETTLED_DOWN = replace(ROSE, trend=0.15)  # one and a half standard errors
LEVEL = replace(ROSE, last=0.48, trend=-0.32)  # two standard errors, and 3.2
FELL = replace(ROSE, last=-0.3, trend=-0.33)
BARE = {"course": Course(), "explained": NAN}
LONG = {"before": Side(length_mean=10), "after": Side(length_mean=13.1)}
SHORT = {"before": Side(length_mean=10), "after": Side(length_mean=6.9)}
PRICE = {"kl": 2.0, "beta": 0.1, "gain": 0.2, "gain_low": 0.1}  # which costs 0.2
OTHER_SCORE = ({"score_normalize": True}, {"score_clip": 1.0}, {"truncation": "penalty"})  # than the evaluation shows
AHEAD = {"best_of_n": (FOUR, SIXTEEN)}
REST = {"rest_gain": 0.3, "rest_low": 0.2, "rest_high": 0.4, "rewarded_parts": "length"}
SHARE = {
    "share": 0.7,
    "best_known": "best of 16",
    "best_of_n": (SIXTEEN,),
    "j_low": 0.1,
    "j_high": 0.3,
    "j_prompts": 64.0,
}
CHANCE = J | {"j_low": -0.1, "j_high": 0.5}
ONE = J | {"j_low": NAN, "j_high": NAN}  # a single prompt has no interval

# Name of a sentence -> facts under which it is said, and facts under which it is not; all others are unknown.
CASES = {
    "finished": ([DONE, {"steps": 3, "planned": 2}], [{}, {"steps": 23, "planned": 24}, {"steps": 0, "planned": 0}]),
    "interrupted": ([{"steps": 23, "planned": 24}], [{}, DONE, {"steps": 0, "planned": 24}]),
    "not begun": ([{"steps": 0, "planned": 24}], [{}, DONE, {"planned": 0}]),
    "no iterations": ([{"planned": 0}], [{}, {"planned": 1}]),
    "unplanned": ([{}, {"steps": 7}], [{"planned": 0}, DONE]),
    "reward": ([{"rewards": (TEA,)}], [{}, {"rewards": (replace(TEA, last=NAN), replace(TEA, weight=NAN))}]),
    "reward without score": ([{"rewards": (TEA, replace(TEA, last=NAN))}], [{}, {"rewards": (TEA,)}]),
    "no reward": ([{}], [{"rewards": (TEA,)}]),
    "normalised": ([{"rewards": (TEA, replace(MILK, normalize=True))}], [{}, {"rewards": (TEA,)}]),
    "reward clip": ([{"rewards": (TEA, replace(MILK, clip=2.0))}], [{}, {"rewards": (TEA, MILK)}]),
    "reward model": (
        [{"rewards": (TEA, replace(MILK, use="trained"))}, {"rewards": (replace(MILK, use="minirlhf:trained"),)}],
        [{}, {"rewards": (TEA, MILK)}, {"rewards": (replace(MILK, use="mine.py:trained"),)}],
    ),
    "kl in reward": (
        [{"place": "reward", "beta": 0.1}],
        [{"place": "loss", "beta": 0.1}, {"place": "reward", "beta": 0.0}],
    ),
    "kl in loss": ([{"place": "loss", "beta": 0.1}], [{"place": "both", "beta": 0.1}, {"place": "loss", "beta": 0.0}]),
    "kl in both": (
        [{"place": "both", "beta": 0.1}],
        [{"place": "reward", "beta": 0.1}, {"place": "both", "beta": 0.0}],
    ),
    "kl free": ([{"beta": 0.0}], [{}, {"beta": 0.1}]),
    "beta steered": (
        [{"target": 2.0, "beta_first": 0.1, "beta": 0.2, "kl_last": 2.5}],
        [{"beta_first": 0.1, "beta": 0.2, "kl_last": 2.5}, {"target": 2.0, "beta": 0.2, "kl_last": 2.5}],
    ),
    "truncation": ([{"truncation": "mask"}], [{}]),
    "scores normalised": ([{"score_normalize": True}], [{}]),
    "scores cut": ([{"score_clip": 3.0}], [{}]),
    "not evaluated": ([{}], [{"evaluated": True}]),
    "gain": (
        [GAIN | {"gain_low": low, "gain_high": 0.3} for low in (0.1, 0.3)],
        [
            GAIN | {"gain_low": 0.0, "gain_high": 0.3},
            GAIN | {"gain_low": 0.1, "gain_high": 0.3, "scored_pairs": 9.0},  # the means are of other prompts
            GAIN,
        ],
    ),
    "loss": (
        [GAIN | {"gain_low": -0.3, "gain_high": high} for high in (-0.1, -0.3)],
        [GAIN | {"gain_low": -0.3, "gain_high": 0.0}, GAIN],
    ),
    "gain of some": (
        [GAIN | {"scored_pairs": 9.0, "gain_low": 0.1, "gain_high": 0.3}],
        [
            GAIN | {"scored_pairs": 16.0, "gain_low": 0.1, "gain_high": 0.3},
            GAIN,
            {"scored_pairs": 0.0, "prompts": 16.0},
        ],
    ),
    "no sure gain": (
        [GAIN | {"gain_low": low, "gain_high": high} for low, high in ((0.0, 0.3), (-0.1, 0.3), (-0.3, 0.0))],
        [GAIN | {"gain_low": 0.1, "gain_high": 0.3}, GAIN, GAIN | {"gain_low": 0.0, "gain_high": 0.0, "planned": 0}],
    ),
    "gain without interval": (
        [GAIN, GAIN | {"gain_low": 0.1}, GAIN | {"gain_high": 0.1}],
        [GAIN | {"gain_low": 0.1, "gain_high": 0.3}, {"evaluated": True}],
    ),
    "gain unmeasured": ([{"evaluated": True}], [GAIN, {}]),
    "true score up": ([TRUE, TRUE | {"true_low": 0.75}], [LOST, UNSURE, TRUE | {"true_low": 0.0}, {}]),
    "true score down": ([LOST, LOST | {"true_low": -0.25}], [TRUE, UNSURE, LOST | {"true_high": 0.0}, {}]),
    "true score unclear": (
        [UNSURE, TRUE | {"true_low": 0.0}, LOST | {"true_high": 0.0}],
        [TRUE, LOST, UNSURE | {"planned": 0}, {}],
    ),
    "true score rest": ([REST], [REST | {"rewarded_parts": ""}, REST | {"planned": 0}, {}]),
    "scores part": (
        [LOST | {"gain_low": 0.1}],
        [LOST | {"gain_low": 0.0}, TRUE | {"gain_low": 0.1}, LOST | {"gain_low": 0.1, "true_high": 0.0}],
    ),
    "words more": ([{"pairs": 20, "words_more": "good (1 -> 20)"}], [{"pairs": 20, "words_less": "bad (20 -> 1)"}]),
    "words less": ([{"pairs": 20, "words_less": "bad (20 -> 1)"}], [{"pairs": 20, "words_more": "good (1 -> 20)"}]),
    "words alike": ([{"pairs": 20}], [{}, {"pairs": 20, "words_more": "a"}, {"pairs": 20, "words_less": "a"}]),
    "median pair": ([{"typical": PAIR}], [{}, {"typical": PAIR, "planned": 0}]),
    "form": (
        [{"before": Side(length_mean=9, eos_rate=1), "after": Side(length_mean=8, eos_rate=0)}],
        [{"before": Side(length_mean=9, eos_rate=1), "after": Side(length_mean=8)}],
    ),
    "variety": (
        [{"before": Side(distinct_2=0.5, distinct_share=1), "after": Side(distinct_2=0.4, distinct_share=1)}],
        [{"before": Side(distinct_2=0.5, distinct_share=1), "after": Side(distinct_share=1)}],
    ),
    "repetition": ([{"repetition": (0.1, 0.2)}], [{}]),
    "price": (
        [PRICE, PRICE | {"gain": 0.3}],
        [
            *(PRICE | {"gain": 0.19}, PRICE | {"beta": 0.0}, {"kl": 2.0}, PRICE | {"gain_low": 0.0}, {"gain_low": 0.1}),
            *(PRICE | rule for rule in OTHER_SCORE),
        ],
    ),
    "price above gain": (
        [PRICE | {"gain": 0.19}, PRICE | {"gain": -0.1, "gain_low": -0.2, "gain_high": -0.1}],
        [
            *(PRICE, PRICE | {"beta": 0.0, "gain": -1.0}, PRICE | {"gain": 0.19, "gain_low": 0.0}),
            *(PRICE | {"gain": 0.19} | rule for rule in OTHER_SCORE),
        ],
    ),
    "price alone": (
        [PRICE | {"gain_low": 0.0}, PRICE | {"beta": 0.0}],
        [PRICE, PRICE | {"gain": 0.19}, {"kl": 2.0}, *(PRICE | {"beta": 0.0} | rule for rule in OTHER_SCORE)],
    ),
    "kl": ([{"kl": 2.0}, *(PRICE | rule for rule in OTHER_SCORE)], [PRICE, PRICE | {"beta": 0.0}, {}]),
    "kl in training": ([{"kl_last": 2.0}], [{"kl_last": 2.0, "evaluated": True}, {}]),
    "j up": (
        [J, J | {"j_high": 0.1}],
        [J | {"j_policy": 0.1}, {}, CHANCE, ONE, J | {"best_known": "optimum"}, J | {"planned": 0}],
    ),
    "j not up": (
        [J | {"j_policy": 0.1}, J | {"j_policy": -0.1, "j_low": -0.3, "j_high": -0.1}],
        [J, {}, CHANCE | {"j_policy": 0.1}, ONE | {"j_policy": 0.1}, J | {"j_policy": 0.1, "planned": 0}],
    ),
    "j unclear": (
        [CHANCE, CHANCE | {"j_low": 0.0}, CHANCE | {"j_high": 0.0}],
        [J, {}, ONE, CHANCE | {"planned": 0}, CHANCE | {"best_known": "optimum"}],
    ),
    "j without interval": (
        [ONE, ONE | {"j_policy": -0.3}],
        [J, {}, CHANCE, ONE | {"planned": 0}, ONE | {"best_known": "optimum"}],
    ),
    "not beaten": ([AHEAD], [{"best_of_n": (FOUR, EIGHT)}, {}]),
    "not told apart": ([{"best_of_n": (FOUR, EIGHT)}], [AHEAD, {}]),
    "beaten": ([AHEAD], [{"best_of_n": (EIGHT, SIXTEEN)}, {}]),
    "j unknown": ([{"j_unknown": "no prompt has a score"}], [{}]),
    "share": (
        [SHARE],
        [
            SHARE | {"best_known": "policy"},
            SHARE | {"best_known": "optimum"},
            SHARE | {"share": -0.1},
            SHARE | {"share": NAN},
            SHARE | {"j_low": -0.1},
            SHARE | {"best_of_n": (replace(SIXTEEN, beats=False),)},
            SHARE | {"has_exact": True},
        ],
    ),
    "share of optimum": (
        [{"share": 0.7, "best_known": "optimum"}],
        [{"share": 0.7, "best_known": "best of 4"}, {"share": 0.7, "best_known": "optimum", "has_exact": True}],
    ),
    "best known": (
        [{"best_known": "policy"}],
        [{"best_known": "best of 16"}, {"best_known": "policy", "has_exact": True}, {}],
    ),
    "exact": ([{"has_exact": True, "optimality": 0.9, "exact_j": 1.0, "exact_best": 1.1}], [{"has_exact": True}, {}]),
    "nothing to gain": ([{"has_exact": True}], [{"has_exact": True, "optimality": 0.9}, {}]),
    "j unmeasured": (
        [GAIN, GAIN | {"best_of": 16.0}],
        [
            J,
            {"evaluated": True},
            GAIN | {"j_unknown": "no prompt has a score"},
            GAIN | {"best_of": 0.0},
            GAIN | {"best_of": 3.0},
            GAIN | {"has_exact": True},
            GAIN | {"evaluated": False},
        ],
    ),
    "best of n unmeasured": (
        [GAIN | {"best_of": 0.0}, J | {"best_of": 0.0}, J | {"best_of": 3.0}],  # the smallest n is 4
        [
            {"evaluated": True, "best_of": 0.0},
            GAIN,
            J | {"best_of": 4.0},
            GAIN | {"best_of": 0.0, "evaluated": False},
            GAIN | {"best_of": 0.0, "has_exact": True},
            J | {"best_of": 0.0, "best_of_n": (FOUR,)},
        ],
    ),
    "residual": (
        [{"before": Side(residual_std=0.4), "after": Side(residual_std=0.2)}],
        [{"before": Side(residual_std=1)}, {"after": Side(residual_std=1)}],
    ),
    "residual on reference": ([{"after": Side(residual_std_on_reference=0.5)}], [{"after": Side(residual_std=0.5)}]),
    "rose": ([{"course": ROSE}], [{"course": LEVEL}, {"course": FELL}, BARE]),
    "fell": ([{"course": FELL}], [{"course": LEVEL}, {"course": ROSE}, BARE]),
    "flat": ([{"course": LEVEL}], [{"course": ROSE}, {"course": FELL}, BARE]),
    "still rising": ([{"course": ROSE}], [{"course": LEVEL}, {"course": FELL}, BARE]),
    "falling": ([{"course": FELL}], [{"course": LEVEL}, {"course": ROSE}, BARE]),
    "level": ([{"course": LEVEL}], [{"course": ROSE}, {"course": FELL}, BARE]),
    "v": ([{"explained": 0.4}, {"explained": 0.06}], [{"explained": 0.05}, {"explained": -0.2}, BARE]),
    "v as a constant": (
        [{"explained": share, "steps": SETTLED + 1} for share in (WORSE, -0.03, 0.01, 0.05)],
        [
            *({"explained": share, "steps": SETTLED + 1} for share in (0.0, 0.06, WORSE - 0.01)),
            {"explained": 0.01, "steps": SETTLED},  # of few iterations it may be chance
            BARE,
        ],
    ),
    "v useless": (
        [{"explained": WORSE - 0.01, "steps": SETTLED + 1}],
        [
            *({"explained": share, "steps": SETTLED + 1} for share in (WORSE, 0.4)),
            {"explained": WORSE - 0.01, "steps": SETTLED},
            BARE,
        ],
    ),
    "v untrained": (
        [{"value_coef": 0.0, "steps": 1}, {"value_coef": 0.0, "steps": 2, "explained": 0.0, "advantage": "gae"}],
        [{"value_coef": 0.2, "steps": 2, "explained": 0.0}, {"value_coef": 0.0}, {"steps": 2, "explained": 0.0}],
    ),
    "no v": (
        [{"explained": 0.0, "steps": 2, "advantage": "rloo"}],
        [
            {"explained": 0.1, "steps": 2, "advantage": "gae"},
            {"explained": 0.0, "steps": 1, "advantage": "gae"},
            {"explained": 0.0, "steps": 2},
            {"explained": 0.0, "steps": 2, "advantage": "gae", "value_coef": 0.0},
        ],
    ),
    "clip": ([{"clipped": 0.1, "clipped_most": 0.4, "clipped_at": 1}], [{"clipped": 0.0, "clipped_most": 0.0}, {}]),
    "clip idle": ([{"clipped": 0.0, "clipped_most": 0.0}], [{"clipped": 0.1, "clipped_most": 0.4}, {}]),
    "entropy": ([{"entropy": (0.6, 0.7)}], [{}]),
    "unscored": ([{"unscored": 1.0}], [{}]),
    "lost iterations": ([{"lost_iterations": 1}], [{}]),
    "doubt": ([{"doubts": ("kl k3 in reward: collapses",)}], [{}]),
    "alarm": ([{"alarms": ((3, "the policy repeats itself"),)}], [{"steps": 3}]),
    "no alarm": ([{"steps": 3}], [{"steps": 3, "alarms": ((3, "the policy repeats itself"),)}, {}]),
    "go on": ([{}, {"steps": 3, "planned": 24}], [DONE]),
    "heed the alarms": ([{"alarms": ((3, "the policy repeats itself"),)}], [{}]),
    "longer": ([DONE | {"course": ROSE}], [{"course": ROSE}, DONE | {"course": LEVEL}, DONE | {"course": FELL}]),
    "smaller steps": ([{"course": FELL}], [{"course": ROSE}, {"course": LEVEL}, BARE]),
    "larger batches": (
        [AHEAD | {"course": SETTLED_DOWN}, {"best_of_n": (EIGHT,), "course": SETTLED_DOWN}],
        [
            {"course": SETTLED_DOWN},
            AHEAD | {"course": ROSE},
            AHEAD | {"course": LEVEL},  # it has learned nothing: that is another trouble
            {"best_of_n": (FOUR,), "course": SETTLED_DOWN},
        ],
    ),
    "own critic": (
        [{"steps": SETTLED + 1, "explained": 0.49}, {"steps": SETTLED + 1, "explained": -1.0}],
        [
            {"steps": SETTLED, "explained": 0.4},
            {"steps": 24, "explained": 0.5},
            {"steps": 24, "explained": 0.0},
            {"steps": 24, "explained": 0.4, "separate_critic": True},
        ],
    ),
    "clip holds back": ([{"clipped": 0.21, "clipped_most": 0.4}], [{"clipped": 0.2, "clipped_most": 0.4}, {}]),
    "mend the reward": (
        [LOST | {"gain_low": 0.1}],
        [LOST | {"gain_low": 0.0}, TRUE | {"gain_low": 0.1}, LOST | {"gain_low": 0.1, "true_high": 0.0}],
    ),
    "too far": (
        [PRICE | {"gain_high": 0.19}],
        [
            *(PRICE | {"gain_high": 0.2}, PRICE | {"beta": 0.0, "gain_high": -0.1}, PRICE),
            *(PRICE | {"gain_high": 0.19} | rule for rule in OTHER_SCORE),
        ],
    ),
    "more prompts": (
        [GAIN | {"gain_low": 0.0, "gain_high": 0.3}, GAIN | {"gain_low": -0.3, "gain_high": 0.0}],
        [GAIN | {"gain_low": 0.1, "gain_high": 0.3}, GAIN, GAIN | {"gain_low": 0.0, "gain_high": 0.0, "planned": 0}],
    ),
    "less varied": (
        [{"before": Side(distinct_2=1.0), "after": Side(distinct_2=share)} for share in (0.84, 0.0)],
        [{"before": Side(distinct_2=1.0), "after": Side(distinct_2=0.85)}, {"before": Side(distinct_2=1.0)}],
    ),
    "other length": (
        [LONG, SHORT],
        [{"before": Side(length_mean=10), "after": Side(length_mean=length)} for length in (7, 10, 13)],
    ),
    "reward behind": (
        [
            {"rewards": (TEA, replace(TEA, first=0.5, last=0.1, moved=-0.1))},
            {"rewards": (TEA, replace(MILK, moved=0.1))},  # of negative weight, and it rose
        ],
        [
            {"rewards": (replace(TEA, first=0.5, last=0.1, moved=-0.1),)},
            {"rewards": (TEA, replace(TEA, first=0.5, last=0.1, moved=0.0))},
            {"rewards": (TEA, replace(TEA, moved=-0.1))},  # which ended above its beginning all the same
            {"rewards": (TEA, MILK)},
        ],
    ),
    "other seeds": ([DONE], [{}, {"steps": 24, "planned": 24}, {"planned": 0, "evaluated": True}]),
    "read it": ([{"steps": 1}], [{}]),
}  # fmt: skip


def said(facts, language="en"):
    return list(true_sentences(Facts(**facts), language))


def test_every_sentence_has_a_case_and_a_name_of_its_own():
    names = [sentence.name for sentence in SENTENCES]
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(CASES)
    assert {sentence.section for sentence in SENTENCES} == set(SECTIONS)


@pytest.mark.parametrize("name", CASES)
def test_a_sentence_is_said_under_its_condition(name):
    for facts in CASES[name][0]:
        for language in LANGUAGES:
            texts = [sentence.text for sentence in said(facts, language) if sentence.name == name]
            assert texts, facts
            for text in texts:  # whatever it names was measured
                assert not re.search(r"\bnan\b|None|[{}]", text), text


def with_a_gap(facts):
    """Yield facts in which one number is NaN: of the facts themselves, of a side or of the course."""
    for name, value in facts.items():
        if isinstance(value, float):
            yield facts | {name: NAN}
        elif isinstance(value, Side | Course):
            for inner, number in vars(value).items():
                if isinstance(number, float | int) and inner not in ("half", "most", "fitted"):
                    yield facts | {name: replace(value, **{inner: NAN})}


@pytest.mark.parametrize("name", CASES)
def test_no_figure_is_named_that_was_not_measured(name):
    for facts in CASES[name][0]:
        for gap in with_a_gap(facts):
            for sentence in said(gap):
                assert not re.search(r"\bnan\b", sentence.text), gap


@pytest.mark.parametrize("name", CASES)
def test_a_sentence_is_not_said_otherwise(name):
    for facts in CASES[name][1]:
        assert name not in [sentence.name for sentence in said(facts)], facts


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: sentence.name)
def test_both_languages_give_the_same_figures(sentence):
    english, chinese = (re.findall(r"{(.*?)(?:_zh)?}", text) for text in (sentence.english, sentence.chinese))
    assert sorted(english) == sorted(chinese)
    assert re.findall(r"`(.*?)`", sentence.english) == re.findall(r"`(.*?)`", sentence.chinese)
    assert re.search("[\u4e00-\u9fff]", sentence.chinese)
    assert not re.search("[\u4e00-\u9fff]", sentence.english)


@pytest.mark.parametrize("page", sorted({s.page for s in SENTENCES} | set(IN_CHINESE.values())))
def test_every_sentence_leads_to_a_page_of_the_manual(page):
    file, _, anchor = page.partition("#")
    assert (ROOT / "docs" / file).is_file()
    assert not anchor or anchor in anchors(ROOT / "docs" / file)
    assert set(IN_CHINESE) <= {sentence.page for sentence in SENTENCES}


def test_a_sentence_in_chinese_leads_to_the_chinese_page_where_there_is_one():
    for language, page in (("en", "notes.md#n12-entropy-and-kl"), ("zh", "notes.zh-CN.md#n12-熵与-kl")):
        (found,) = [sentence.page for sentence in said({"kl": 2.0}, language) if sentence.name == "kl"]
        assert found == page


def test_figures_by_hand():
    """beta KL = 0.1 x 2 = 0.2, two thirds of 0.3; the policy's J of +0.300 is above best of 4 and below best of 16."""
    texts = {s.name: s.text for s in said(PRICE | {"gain": 0.3} | J | {"gain": 0.3} | AHEAD | {"rewards": (TEA,)})}
    assert texts["price"].endswith(
        "2.00 nats a response from the reference, which costs beta KL = 0.200 of score: 67% of the gain."
    )
    assert texts["j up"] == "J = score - beta KL rose from +0.100 to +0.300 on 32 prompts."
    assert texts["not beaten"].startswith("The policy does NOT beat: best of 16 (+0.400).")
    assert texts["beaten"] == "The policy beats: best of 4 (+0.200)."
    assert texts["reward"].startswith("Reward tea = keywords, weight 2: mean +0.100 in the first iteration, +0.500")


def test_a_run_that_sampled_no_prompts_for_j_is_told_to():
    for prompts, more in ((0.0, " --set evaluation.residual_prompts=64"), (64.0, "")):
        texts = {s.name: s.text for s in said(GAIN | {"best_of": 0.0, "residual_prompts": prompts})}
        command = f"`minirlhf evaluate RUN --set evaluation.best_of=16{more}` prints it (it is not saved)."
        assert texts["best of n unmeasured"].endswith(command)


def test_it_reads_a_run_and_speaks_both_languages(finished):
    english, chinese = (explain(finished[0], language) for language in LANGUAGES)
    assert [s.name for s in english] == [s.name for s in chinese]
    names = {"finished", "reward", "beta steered", "scores normalised", "form", "entropy", "other seeds"}
    assert names <= {s.name for s in english}
    assert (english[0].section, chinese[0].section) == ("rewarded", "奖励")


def pattern(template):
    """Pattern of the texts that a template makes, white space as one space."""
    return re.sub(r"\\{.*?\\}", ".+?", re.escape(" ".join(template.split())))


def test_the_explanation_of_the_manual_is_one_of_the_command():
    """docs/explain.md shows `minirlhf explain RUN` of the default run, where RUN is a link to it. Its figures are those
    of one machine; its sentences and pages are held here. Made anew: paste the output into the block."""
    (shown,) = blocks(read("docs/explain.md"), "text")
    body, _, legend = shown.rstrip().partition("\n\nPages of the manual, in docs/:")
    pages = dict(re.findall(r"\[(\d+)\] (\S+)", legend))
    names, text = {sentence.name: sentence for sentence in SENTENCES}, ""
    found = []
    for line in body.split("\n"):
        assert line[:10].strip() in {"", *(english for english, _ in SECTIONS.values())}
        text = f"{text} {line[10:].strip()}".strip()
        if end := re.search(r" \[(\d+)\]$", text):
            (name,) = [n for n, s in names.items() if re.fullmatch(pattern(s.english), text[: end.start()])]
            assert pages[end[1]] == names[name].page
            found, text = [*found, name], ""
    assert text == ""
    assert set(pages.values()) == {names[name].page for name in found}
    assert {"finished", "reward", "kl in reward", "price", "words more", "residual", "v", "clip"} <= set(found)
    assert found == sorted(found, key=list(names).index)
    assert 18 <= len(set(found)) <= 32  # about 25
