"""Which file serves for what, and that nothing is dropped, split or repeated in silence."""

import json

import pytest
import torch

from minirlhf.components.component import INPUTS
from minirlhf.config.schema import CorpusConfig
from minirlhf.errors import InputError
from minirlhf.exact.lab import problem_tokenizer
from minirlhf.exact.problems import problems
from minirlhf.stages.data import (
    Documents,
    PromptStream,
    batch,
    fit_to_context,
    lab_candidates,
    load_documents,
    read_candidates,
)
from minirlhf.text.corpus import Document, Prompt
from tests.helpers import BOS, PAD, Letters

CPU = torch.device("cpu")
LETTERS = "abcdefghij"


def rows(path, *objects):
    path.write_text("\n".join(json.dumps(o) for o in objects) + "\n", encoding="utf-8")
    return str(path)


def candidates(corpus, documents=()):
    return read_candidates(corpus, Documents([], list(documents)), INPUTS["reward"])


def test_documents_are_held_out_by_hash_and_none_is_lost(tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"line {i} of the file" for i in range(50)]
    path.write_text("\n".join(lines))
    documents = load_documents(CorpusConfig(text=str(path), heldout_share=0.1))
    train, heldout = ({d.text for d in side} for side in (documents.train, documents.heldout))
    assert train | heldout == set(lines)
    assert not train & heldout
    assert len(heldout) == 10  # a small corpus: a fifth
    path.write_text("\n".join(reversed(lines)))
    assert {d.text for d in load_documents(CorpusConfig(text=str(path))).heldout} == heldout  # the order plays no part


def test_without_prompts_openings_of_heldout_documents_serve_and_the_note_says_so():
    found = candidates(
        CorpusConfig(text="./own.txt", opening_words=2), [Document("one two three"), Document("four five six")]
    )
    assert [p.text for p in found.train] == ["one two", "four five"]
    assert found.heldout is None
    assert found.notes == ["no prompts given: 2 openings of held-out documents serve"]


def test_a_packaged_corpus_brings_its_own_two_files_and_prompts_of_ones_own_replace_both(tmp_path):
    packaged = candidates(CorpusConfig())
    assert packaged.notes == []
    assert packaged.heldout
    assert not {p.text for p in packaged.train} & {p.text for p in packaged.heldout}
    own = rows(tmp_path / "own.jsonl", *({"prompt": letter} for letter in LETTERS))
    mine = candidates(CorpusConfig(prompts=own))
    assert [p.text for p in mine.train] == list(LETTERS)
    assert mine.heldout is None  # to be split: the packaged held-out prompts are none of these
    other = rows(tmp_path / "other.jsonl", {"query": "z", "topic": "tea"})
    both = candidates(CorpusConfig(prompts=own, heldout_prompts=other))
    assert [p.text for p in both.heldout] == ["z"]
    assert both.columns == set()  # the training prompts lack it, so no reward can be given it


def test_a_reward_can_rely_on_the_columns_that_both_files_have(tmp_path):
    train = rows(tmp_path / "a.jsonl", {"prompt": "a", "topic": 1, "side": None}, {"prompt": "b", "level": 2})
    other = rows(tmp_path / "b.jsonl", {"prompt": "c", "topic": None, "level": 3})
    found = candidates(CorpusConfig(prompts=train, heldout_prompts=other))
    assert [p.columns for p in found.train] == [{"topic": 1, "level": None}, {"topic": None, "level": 2}]
    assert [p.columns for p in found.heldout] == [{"level": 3}]
    assert found.columns == {"level"}
    assert candidates(CorpusConfig(prompts=train)).columns == {"topic", "level"}


def test_a_column_called_as_an_input_is_refused_with_its_line(tmp_path):
    path = rows(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b", "completions": "x"})
    with pytest.raises(InputError) as error:
        candidates(CorpusConfig(prompts=path))
    assert "'completions' is an input of every reward" in str(error.value)
    assert f"{path}:2" in str(error.value)


def test_a_fifth_is_held_out_after_the_long_ones_left(tmp_path):
    texts = [a + b for a in LETTERS[:2] for b in LETTERS] + ["abcdefgh"]  # 20 of two letters, one of eight
    path = rows(tmp_path / "p.jsonl", *({"question": text} for text in texts))
    prompts = fit_to_context(
        candidates(CorpusConfig(prompts=path)), Letters(), longest=5
    )  # BOS included: four letters fit
    assert len(prompts.heldout) == 4  # a fifth of the twenty that fit
    assert sorted(p.text for p in prompts.train + prompts.heldout) == sorted(texts[:-1])
    (note,) = prompts.notes
    assert note.startswith(f"1 of 21 prompts exceed 4 tokens and are dropped, the first: {path}:21 'abcdefgh'")


@pytest.mark.parametrize(("longest", "kept"), [(3, 1), (4, 2), (5, 3)])
def test_the_bos_counts(tmp_path, longest, kept):
    path = rows(tmp_path / "p.jsonl", *({"prompt": "a" * n} for n in (2, 3, 4)))
    assert len(fit_to_context(candidates(CorpusConfig(prompts=path)), Letters(), longest).train) == kept


def test_under_ten_prompts_all_serve_for_both_and_the_note_says_so(tmp_path):
    path = rows(tmp_path / "p.jsonl", *({"prompt": letter} for letter in LETTERS[:9]))
    prompts = fit_to_context(candidates(CorpusConfig(prompts=path)), Letters(), 5)
    assert prompts.train == prompts.heldout
    assert prompts.notes == ["only 9 distinct prompts: evaluation uses the training prompts, none is held out"]


def test_a_heldout_file_is_cut_to_the_context_too(tmp_path):
    train = rows(tmp_path / "p.jsonl", *({"prompt": letter} for letter in LETTERS))
    heldout = rows(tmp_path / "h.jsonl", {"prompt": "ab"}, {"prompt": "abcdef"})
    prompts = fit_to_context(candidates(CorpusConfig(prompts=train, heldout_prompts=heldout)), Letters(), 4)
    assert len(prompts.train) == 10
    assert [p.text for p in prompts.heldout] == ["ab"]
    assert [note[:41] for note in prompts.notes] == ["held-out prompts: 1 of 2 prompts exceed 3"]


def test_heldout_prompts_that_are_trained_on_are_counted_and_said(tmp_path):
    train = rows(tmp_path / "p.jsonl", *({"prompt": letter} for letter in LETTERS))
    heldout = rows(tmp_path / "h.jsonl", {"prompt": "a"}, {"question": "ab"}, {"prompt": "a"})
    prompts = fit_to_context(candidates(CorpusConfig(prompts=train, heldout_prompts=heldout)), Letters(), 4)
    repeats, shared = prompts.notes
    assert repeats == "held-out prompts: 1 of 3 prompts repeat another and are kept"
    assert shared.startswith("2 of 3 held-out prompts are trained on as well")
    assert shared.endswith(": remove them from one of the files")


def test_a_problem_has_no_other_prompts_and_nothing_is_said():
    found = lab_candidates(problems()["delayed"])
    assert fit_to_context(found, problem_tokenizer(), 64).notes == []


def test_when_no_prompt_fits_it_is_an_error(tmp_path):
    path = rows(tmp_path / "p.jsonl", {"prompt": "abcdef"})
    with pytest.raises(InputError, match="no prompt fits: the shortest of 1 has 6 tokens, 3 fit"):
        fit_to_context(candidates(CorpusConfig(prompts=path)), Letters(), 4)


# ---- batches ----------------------------------------------------------------------------------------------


def stream(count=7, size=3, seed=0, responses=1):
    prompts = [Prompt(letter, {"at": i}) for i, letter in enumerate(LETTERS[:count])]
    return PromptStream(prompts, Letters(), seed, size, responses, CPU)


def test_every_pass_takes_each_prompt_once_in_a_fresh_order_and_batches_go_on_into_the_next():
    drawn = [text for step in range(7) for text in stream()(step).texts]  # 21 = three passes of seven
    passes = [drawn[i : i + 7] for i in (0, 7, 14)]
    assert [sorted(p) for p in passes] == [list(LETTERS[:7])] * 3
    assert passes[0] != passes[1] != passes[2]


def test_a_batch_depends_on_seed_and_step_alone():
    one = stream()
    later = [one(step).texts for step in (5, 2)]
    assert later == [stream()(5).texts, stream()(2).texts]
    assert stream(seed=1)(2).texts != stream()(2).texts


def test_a_batch_larger_than_the_prompts_repeats_them_evenly():
    texts = stream(count=2, size=5)(0).texts
    assert sorted(texts[:2]) == sorted(texts[2:4]) == ["a", "b"]


def test_responses_of_a_prompt_stand_together_as_a_group():
    made = stream(size=2, responses=3)(0)
    first, second = made.texts[0], made.texts[3]
    assert list(made.texts) == [first] * 3 + [second] * 3
    assert made.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(made.columns["at"]) == [LETTERS.index(first)] * 3 + [LETTERS.index(second)] * 3


def test_a_batch_holds_the_ids_behind_bos():
    made = batch([Prompt("ab"), Prompt("c")], Letters(), CPU)
    assert made.ids.tolist() == [[BOS, 3, 4], [PAD, BOS, 5]]
