"""The built-in rewards: values derived by hand; `sentiment` against the hidden sentiment of the corpus."""

import json
import re
from collections import Counter
from math import exp, tanh
from pathlib import Path

import pytest

from minirlhf.builtin import rewards
from minirlhf.builtin.rewards import keywords, length, regex, repetition, sentiment

TEXT = Path(__file__).parents[2] / "corpora" / "reviews" / "text.jsonl"


def surplus(text: str) -> float:
    """Positive minus negative words, read back from the score at a scale so large that tanh(x) = x."""
    return round(sentiment([text], scale=1e9)[0] * 1e9, 6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("It came in a box.", 0),
        ("It is good.", 1),
        ("Good, GREAT and wonderful!", 3),
        ("A dull, boring film", -2),
        ("A good lens and a bad zoom", 0),
        ("It is not good.", -1),
        ("It is not boring.", 1),
        ("It isn't boring.", 1),
        ("It isn’t good.", -1),
        ("I would not recommend it", -1),
        ("not worth the money", -1),
        ("The seams never leak", 1),
        ("nothing special", -1),
        ("hardly useful", -1),
        ("without problems", 1),
        ("no complaints", 1),
        ("not a very good film", -1),  # the negator is the third word before: in reach
        ("not at all a good film", 1),  # the fourth word before: out of reach
        ("not bad but good", 2),  # `but` ends the clause
        ("No, it is good", 1),  # and so does a comma
        ("I did not see it. Good sound", 1),
        ("never not good", 1),  # two negators cancel
        ("not only good but great", 2),
        ("The knot is good", 1),  # a negator is a word, not a piece of one
        ("goodness, badge, wellness", 0),  # and so is a hit
        ("这个水壶很好。", 0),
        ("café good", 1),
    ],
)
def test_sentiment_counts_words_and_turns_the_negated_ones_over(text: str, expected: int) -> None:
    assert surplus(text) == expected


def test_sentiment_is_tanh_of_the_surplus_over_the_scale() -> None:
    texts = ["good good good", "bad", "box"]
    assert sentiment(texts, scale=2.0) == pytest.approx([tanh(1.5), tanh(-0.5), 0.0])
    assert sentiment(texts, scale=0.5) == pytest.approx([tanh(6.0), tanh(-2.0), 0.0])
    e = exp(2 * 3 / 5)
    assert sentiment(texts)[0] == pytest.approx((e - 1) / (e + 1))


def test_sentiment_does_not_look_at_the_length() -> None:
    short, long = sentiment(["It is good.", "It is good. " + "The box is here in the room. " * 20])
    assert short == long


def test_the_lexicon_is_general_and_no_word_is_on_both_sides() -> None:
    lines = Path(rewards.__file__).with_name("sentiment_words.txt").read_text("utf-8").splitlines()
    words = Counter(word for line in lines if not line.startswith(("#", "[")) for word in line.split())
    assert [word for word, count in words.items() if count > 1] == []
    assert len(words) > 900
    assert all(word == word.lower() and word.isascii() for word in words)


@pytest.fixture(scope="module")
def reviews() -> list[tuple[str, float, int]]:
    """(hidden sentiment, score, number of words) of every review."""
    rows = [json.loads(line) for line in TEXT.read_text("ascii").splitlines()]
    scores = sentiment([row["text"] for row in rows])
    return [(row["sentiment"], score, len(row["text"].split())) for row, score in zip(rows, scores, strict=True)]


def test_sentiment_agrees_with_the_hidden_sentiment_of_the_corpus(
    reviews: list[tuple[str, float, int]],
) -> None:
    of: dict[str, list[float]] = {"positive": [], "negative": [], "neutral": []}
    for hidden, score, _ in reviews:
        of[hidden].append(score)
    assert sum(score > 0 for score in of["positive"]) >= 0.97 * len(of["positive"])
    assert sum(score < 0 for score in of["negative"]) >= 0.97 * len(of["negative"])
    assert sum(score == 0 for score in of["neutral"]) >= 0.97 * len(of["neutral"])


def test_every_sentence_of_a_review_agrees_with_its_hidden_sentiment() -> None:
    sign = {"positive": 1, "negative": -1, "neutral": 0}
    rows = [json.loads(line) for line in TEXT.read_text("ascii").splitlines()]
    pairs = [(sign[row["sentiment"]], sentence) for row in rows for sentence in re.split(r"(?<=[.!]) ", row["text"])]
    scores = sentiment([sentence for _, sentence in pairs])
    agree = [score == 0 or score * hidden > 0 for score, (hidden, _) in zip(scores, pairs, strict=True)]
    assert [sentence for (_, sentence), fits in zip(pairs, agree, strict=True) if not fits] == []


def test_sentiment_is_graded_and_not_told_by_the_length(reviews: list[tuple[str, float, int]]) -> None:
    scores = sorted(score for _, score, _ in reviews)
    top, p90 = scores[-1], scores[int(0.9 * len(scores))]
    assert sum(score == top for score in scores) <= 0.05 * len(scores)
    assert 0.5 < p90 < top - 0.1
    assert len(set(scores)) >= 15
    assert Counter(scores).most_common(1)[0][1] < 0.35 * len(scores)  # the neutral reviews
    # Scoring near the 90th percentile takes no longer reviews: the mean length there, against that of all.
    lengths = [words for _, _, words in reviews]
    at_p90 = [words for _, score, words in reviews if score == p90]
    assert sum(at_p90) / len(at_p90) < 1.1 * sum(lengths) / len(lengths)


def test_length_is_one_at_the_target_and_falls_on_both_sides() -> None:
    texts = ["", "a", "a b", "a b c d", "a b c d e f g h", "a, b - c! d ..."]
    assert length(texts, target=4) == [0.0, 0.25, 0.5, 1.0, 0.5, 1.0]
    assert length(["word " * 40]) == [1.0]
    assert length(["a", "a b"], target=1) == [1.0, 0.5]


def test_length_counts_characters_where_words_have_no_spaces() -> None:
    assert length(["这个水壶很好。", "这个 kettle 好"], target=6) == [
        1.0,
        4 / 6,
    ]  # 6 characters; 3 and a word
    assert length(["หมา"], target=3) == [1.0]


def test_keywords_is_the_share_of_distinct_words_present() -> None:
    texts = ["The lens and the LENS", "lenses", "a zoom lens, red dot", "", "red\ndot"]
    assert keywords(texts, words=["lens", "zoom", "red dot", "Lens"]) == pytest.approx([1 / 3, 0, 1, 0, 1 / 3])
    assert keywords(["水壶很好"], words=["水壶", "灯"]) == [0.5]
    assert keywords(["我的水壶很好", "sublens", "lenses"], words=["水壶"]) == [1.0, 0.0, 0.0]
    assert keywords(["我的水壶很好", "sublens", "lenses"], words=["lens"]) == [0.0, 0.0, 0.0]
    assert keywords(["C++ is c"], words=["c++"]) == [1.0]


def test_regex_saturates_at_most_matches() -> None:
    assert regex(["a1b22", "abc", ""], pattern=r"\d+") == [1.0, 0.0, 0.0]
    assert regex(["a1b22", "1", "1 2 3 4 5"], pattern=r"\d+", most=4) == [0.5, 0.25, 1.0]
    assert regex(["GOOD"], pattern="(?i)good") == [1.0]


def test_repetition_is_minus_the_share_of_repeated_ngrams() -> None:
    texts = ["", "a b", "a b c d", "a b c a b c", "a a a a a", "A b c, a B c."]
    # trigrams: none; none; 2 distinct of 2; abc bca cab abc: 3 of 4; 1 of 3; as the fourth
    assert repetition(texts) == pytest.approx([0, 0, 0, -1 / 4, -2 / 3, -1 / 4])
    assert repetition(["a b a b"], n=1) == [-0.5]
    assert repetition(["好好好"], n=1) == pytest.approx([-2 / 3])


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        (sentiment, {"scale": 0.0}, "scale must be positive"),
        (sentiment, {"scale": float("nan")}, "scale must be positive"),
        (length, {"target": 0}, "target must be at least 1"),
        (keywords, {}, "words must name"),
        (keywords, {"words": ["lens", " "]}, "words must name"),
        (regex, {}, "pattern must be"),
        (regex, {"pattern": "("}, "pattern '\\(' is not"),
        (regex, {"pattern": "a", "most": 0}, "most must be at least 1"),
        (repetition, {"n": 0}, "n must be at least 1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(reward, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        reward(["some text"], **options)


def test_every_reward_is_registered_under_its_own_name() -> None:
    registered = rewards.register_reward_models()
    assert list(registered) == ["sentiment", "length", "keywords", "regex", "repetition", "problem"]
    assert all(name == function.__name__ for name, function in registered.items())


def test_the_score_of_a_problem_at_the_end_or_token_by_token() -> None:
    """nonadditive: c = 2 counts 1, first = last 0.7, equal neighbours -0.5. `cac`: 1.7 after c, 1 after ca, 2.7."""
    columns = (["nonadditive"] * 2, [0, 0])
    assert rewards.problem(["cac", "aab"], *columns) == pytest.approx([2.7, -0.5])
    spread = rewards.problem(["cac", "aab"], *columns, place="tokens")
    assert spread[0] == pytest.approx([1.7, -0.7, 1.7])
    assert spread[1] == pytest.approx([0.7, -0.5, -0.7])
    # Each prompt of `prompts` wants its own token, at 0.7 each.
    assert rewards.problem(["aab"] * 3, ["prompts"] * 3, [0, 1, 2]) == pytest.approx([1.4, 0.7, 0.0])
    # `ab` of a problem whose responses end has its EOS as a third token, which scores, too.
    assert rewards.problem(["ab"], ["variable"], [0], place="tokens")[0] == pytest.approx([0, 1, 1])
