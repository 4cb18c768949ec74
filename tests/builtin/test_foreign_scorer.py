"""Somebody else's reward model as the reward `trained`: what is read, where, and what is refused."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minirlhf.builtin.trained import read_part
from minirlhf.components.registry import load_plugins
from minirlhf.config.schema import RewardConfig
from minirlhf.errors import CheckpointError, InputError, PluginError, UsageError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.scorer import ROWS, Scorer, portions
from minirlhf.models.transformer import Transformer
from minirlhf.pipeline.facts import model_of_reward, source_hash
from minirlhf.pipeline.rewards import check_lengths, scale_doubts
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels, Scale
from minirlhf.store.adapters import model_hash
from minirlhf.store.classifiers import MOST_TOKENS, load_classifier
from minirlhf.store.files import complete_directory
from minirlhf.store.models import SCORE, save_scorer
from minirlhf.store.weights import read_tensors, save_tensors
from minirlhf.text.corpus import Prompt
from minirlhf.text.foreign import load_tokenizer
from minirlhf.text.tokenizer import train_tokenizer
from tests.cli.calling import call, done
from tests.helpers import CONFIG, random_rollout, seeded, small_trunk
from tests.text.foreign_files import FAMILIES, byte_level, llama2, llama3, smollm, write

# Scores of size 1 in float32, whose unit is 6e-8 (2^-24): two blocks add some tens of numbers in another order, which
# has moved a score by four units. A score read one token earlier is another by tenths.
CLOSE = 2e-6
THERE = 2e-5  # three blocks there, with random norms and 0.3 as the spread of weights: 2.7e-6 is the most seen
TALK = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "the cat"}]


def written(folder, tokenizer, **changes):
    """A tiny model of somebody else with a tokenizer: (directory, model); changes: of its config.json."""
    sizes = replace(CONFIG, vocab_size=tokenizer.vocab_size, max_position_embeddings=changes.pop("positions", 256))
    model = Scorer(Transformer(sizes).initialise(seeded())).initialise(seeded(1)).eval()
    folder.mkdir(exist_ok=True)
    save_scorer(folder, model, tokenizer)
    (folder / SCORE).unlink()
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    return folder, model


@pytest.fixture
def chatting(tmp_path):
    return written(tmp_path / "rm", load_tokenizer(smollm(tmp_path / "tokenizer")))


@pytest.fixture
def plain(tmp_path):
    """Without a chat template; PAD is a token of its own."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    folder = write(tmp_path / "tokenizer", byte_level(["<s>", "</s>", "<pad>"]), names | {"add_bos_token": True})
    return written(tmp_path / "rm", load_tokenizer(folder))


def built_of(path, **options):
    return load_plugins(entry_points=False).find("reward", "trained").build({"path": str(path), **options})


def scored(built, prompts, completions, spoken=(), tokenizer_hash="another"):
    """Scores as a run asks for them; the ids of the policy are nonsense to this model."""
    rollout = replace(random_rollout(len(prompts)), spoken=tuple(spoken))
    given = {"prompts": prompts, "completions": completions, "rollout": rollout}
    ids = {"prompt_ids": [[1]] * len(prompts), "completion_ids": [[2]] * len(prompts)}
    return built(given | ids | {"trainer_state": SimpleNamespace(tokenizer_hash=tokenizer_hash)})


def values(model, rows):
    """The score of each list of ids by itself: the head on the state after its last token."""
    with torch.no_grad():
        states = [model.model(torch.tensor([row]))[0, -1] for row in rows]
        return [float(model.score.weight[0] @ state) for state in states]


# ---- what it reads -----------------------------------------------------------------------------------------


def test_it_reads_the_conversation_by_its_own_template_through_the_end_of_the_answer(chatting):
    folder, model = chatting
    tokenizer = load_tokenizer(folder)
    start, end = tokenizer.stops[0] - 1, tokenizer.eos_id  # <|im_start|> and <|im_end|> stand side by side
    assert (tokenizer.special[start], tokenizer.special[end]) == ("<|im_start|>", "<|im_end|>")

    def turn(role, content):
        return [start, *tokenizer.encode(f"{role}\n{content}"), end, *tokenizer.encode("\n")]

    asked = [*turn("user", "the cat"), *turn("assistant", "sat on the mat")]
    talked = [*turn("system", "You are kind."), *turn("user", "the cat"), *turn("assistant", "ate")]
    built = built_of(folder)
    # The flattened text of a conversation goes on with a line break, which is no part of the answer.
    found = scored(built, ["the cat", "You are kind.\nthe cat"], ["sat on the mat", "\nate"], [None, TALK])
    assert found == pytest.approx(values(model, [asked, talked]), abs=CLOSE)
    # A rollout that knows no conversations has prompts of a user.
    assert scored(built, ["the cat"], ["sat on the mat"]) == pytest.approx(found[:1], abs=CLOSE)


def test_without_a_template_it_reads_prompt_and_response_as_one_text(plain):
    folder, model = plain
    tokenizer = load_tokenizer(folder)
    together = [tokenizer.bos_id, *tokenizer.encode("the cat")]
    assert len(together) < 1 + len(tokenizer.encode("the c")) + len(tokenizer.encode("at"))  # a token over the border
    found = scored(built_of(folder), ["the c"], ["at"], [TALK])
    assert found == pytest.approx(values(model, [together]), abs=CLOSE)
    # Its ids are never the policy's, whatever tokenizer that has.
    assert scored(built_of(folder), ["the c"], ["at"], (), tokenizer.hash) == found


def test_a_tokenizer_that_ends_texts_itself_does_so_here_and_only_here(tmp_path):
    folder = llama2(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    end = data["model"]["vocab"]["</s>"]
    data["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.whole_ids("the cat", " sat") == [1, *tokenizer.encode("the cat sat"), end]
    assert tokenizer.text_ids("the cat", " sat", False)[-1] != end
    assert tokenizer.start == (1,)


def test_our_own_tokenizer_reads_one_text_behind_bos():
    tokenizer = train_tokenizer(["the cat sat"] * 3, 270)
    assert tokenizer.whole_ids("the c", "at", TALK) == [tokenizer.bos_id, *tokenizer.encode("the cat")]


def test_special_tokens_that_a_text_spells_out_are_text(chatting):
    tokenizer = load_tokenizer(chatting[0])
    ids = tokenizer.whole_ids("<|im_end|>", "a<|im_end|>")
    assert ids.count(tokenizer.eos_id) == 2  # one for each turn


@pytest.mark.parametrize(
    ("ids", "pad", "read"),
    [
        ([5, 6, 2], 2, [5, 6]),  # PAD = EOS: one token before the EOS at the end
        ([5, 2, 6, 2, 2], 2, [5, 2, 6]),  # PAD within the text is read
        ([5, 6, 2], 0, [5, 6, 2]),
        ([5, 6, 2], None, [5, 6, 2]),
        ([2, 2], 2, [2]),  # argmax of zeros is 0
        ([], 2, []),
    ],
)
def test_the_score_is_read_at_the_last_token_that_is_not_padding(ids, pad, read):
    assert read_part(ids, pad) == read


@pytest.mark.parametrize("pad", [None, 0, "eos"])
def test_padding_is_what_config_json_names_whatever_the_tokenizer_says(pad, tmp_path):
    """The template of llama3 ends with its end of turn, the PAD of config.json or not."""
    tokenizer = load_tokenizer(llama3(tmp_path / "tokenizer"))
    whole = tokenizer.whole_ids("the cat", "sat")
    pad = whole[-1] if pad == "eos" else pad
    folder, model = written(tmp_path / "rm", tokenizer, pad_token_id="gone" if pad is None else pad)
    last = whole[:-1] if pad == whole[-1] else whole
    assert scored(built_of(folder), ["the cat"], ["sat"]) == pytest.approx(values(model, [last]), abs=CLOSE)


def test_a_batch_holds_at_most_so_many_tokens_and_ours_as_many_texts_as_ever(chatting):
    lengths = [1] * 70 + [2000, 3000, 5000, 10, 20]
    order = list(range(75))
    assert [len(part) for part in portions(order, lengths, math.inf)] == [ROWS, 75 - ROWS]
    parts = list(portions(order, lengths, 4096))
    assert [text for part in parts for text in part] == order
    assert parts[1:] == [[*range(64, 71)], [71], [72], [73, 74]]
    assert list(portions([], [], 10)) == []
    assert list(portions([0, 1, 2], [2, 2, 2], 4)) == [[0, 1], [2]]
    assert built_of(chatting[0]).state.model.members[0].most_tokens == MOST_TOKENS
    assert Scorer(Transformer(CONFIG)).most_tokens == math.inf


def test_small_batches_give_the_same_scores(chatting):
    model = load_classifier(chatting[0], torch.float32)
    rows = [[5] * n for n in (3, 9, 1, 4, 8)]
    calls = []
    forward, whole = model.forward, model.scores(rows)
    model.forward = lambda part: calls.append([len(row) for row in part]) or forward(part)
    model.most_tokens = 10
    assert torch.allclose(model.scores(rows), whole, rtol=0, atol=CLOSE)
    assert calls == [[1, 3, 4], [8], [9]]


# ---- how it is loaded --------------------------------------------------------------------------------------


def test_it_is_frozen_and_in_the_dtype_that_is_asked_for(chatting):
    folder, _ = chatting
    found = {}
    for dtype in ("float32", "bfloat16"):
        (member,) = built_of(folder, dtype=dtype).state.model.members
        assert not any(p.requires_grad for p in member.parameters())
        assert not member.training
        assert member.model.norm.weight.dtype == getattr(torch, dtype)
        assert member.score.weight.dtype == torch.float32
        found[dtype] = scored(built_of(folder, dtype=dtype), ["the cat"], ["sat"])
    # bfloat16 rounds by 2^-9, and a score is behind 2 x 7 products: 14 x 2^-9 = 0.027, times its size, 0.93.
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.026)
    assert found["bfloat16"] != found["float32"]


def test_one_of_ours_is_read_as_it_was_trained(tmp_path):
    tokenizer = train_tokenizer(["the cat sat"] * 3, 270)
    model = Scorer(Transformer(replace(CONFIG, vocab_size=tokenizer.vocab_size)).initialise(seeded()))
    with complete_directory(tmp_path / "rm") as temporary:
        save_scorer(temporary, model, tokenizer)
    assert built_of(tmp_path / "rm").state.foreign is False
    with pytest.raises(UsageError, match=r"dtype = bfloat16 .* is for models of others"):
        built_of(tmp_path / "rm", dtype="bfloat16")
    (tmp_path / "rm" / SCORE).unlink()  # the manifest knows that it is ours, and damaged
    with pytest.raises(CheckpointError, match=r"differ from the manifest.*score\.json"):
        built_of(tmp_path / "rm")


def test_one_of_ours_that_learned_conversations_gets_them_from_another_policy(tmp_path):
    """Its texts went through the template in training, so they do here, too, with the messages of the prompt."""
    tokenizer = load_tokenizer(smollm(tmp_path / "tokenizer"), chat=True)
    model = Scorer(Transformer(replace(CONFIG, vocab_size=tokenizer.vocab_size, max_position_embeddings=256)))
    model = Scorer(model.model.initialise(seeded())).initialise(seeded(1)).eval()
    with complete_directory(tmp_path / "rm") as temporary:
        save_scorer(temporary, model, tokenizer)
    built = built_of(tmp_path / "rm")
    ended = random_rollout(1).terminated.tolist()
    row = tokenizer.text_ids("You are kind.\nthe cat", "\nate", ended[0], TALK)
    assert row != tokenizer.text_ids("You are kind.\nthe cat", "\nate", ended[0])
    found = scored(built, ["You are kind.\nthe cat"], ["\nate"], [TALK])
    assert found == pytest.approx(values(model, [row]), abs=CLOSE)


def test_it_needs_no_manifest_and_keeps_the_one_it_has(chatting, tmp_path):
    folder, _ = chatting
    with complete_directory(tmp_path / "kept") as temporary:
        for file in folder.iterdir():
            (temporary / file.name).write_bytes(file.read_bytes())
    assert scored(built_of(tmp_path / "kept"), ["a"], ["b"]) == scored(built_of(folder), ["a"], ["b"])


def replaced(folder, change):
    """Change the tensors of a directory."""
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors)
    save_tensors(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_labels": 3, "id2label": "gone"}, r"has 3 labels \(by its config"),
        ({"num_labels": "gone", "id2label": "gone"}, r"has 2 labels \(by its config"),  # the default there
        ({"num_labels": "gone", "id2label": {"0": "bad", "1": "good", "2": "best"}}, "has 3 labels"),
        ({"num_labels": 1, "id2label": {"0": "a", "1": "b"}}, "num_labels = '1' does not go with id2label"),
        ({"num_labels": "one"}, "num_labels = 'one' does not go"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification does not go with"),
        ({"architectures": ["GPT2ForSequenceClassification"], "model_type": "gpt2"}, "unsupported model_type = 'gpt2'"),
        ({"pad_token_id": [1]}, "pad_token_id = '\\[1\\]' is no id"),
    ],
)
def test_another_model_is_refused_by_its_config(changes, said, tmp_path):
    folder, _ = written(tmp_path / "rm", load_tokenizer(smollm(tmp_path / "tokenizer")), **changes)
    with pytest.raises(InputError, match=said) as refusal:
        built_of(folder)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForRewardModel"])
def test_another_architecture_is_named(name, tmp_path):
    folder, _ = written(tmp_path / "rm", load_tokenizer(smollm(tmp_path / "tokenizer")), architectures=[name])
    with pytest.raises(UsageError, match=rf"no saved reward model \(its architecture is {name}\): .*rm"):
        built_of(folder)


def test_a_config_without_an_architecture_is_no_reward_model(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": []}')
    with pytest.raises(UsageError, match=r"no saved reward model: .*test_a_config"):
        built_of(tmp_path)


def test_incomplete_directories_are_refused_each_in_a_line_with_the_path(chatting):
    folder, _ = chatting
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()

    def no(match):
        with pytest.raises((InputError, UsageError), match=match) as refusal:
            built_of(folder)
        assert str(folder) in str(refusal.value)

    replaced(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(2, CONFIG.hidden_size)}))
    no(r"has 2 labels \(rows of score.weight\)")
    weights.write_bytes(whole)
    replaced(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(1, 5)}))
    no(r"score.weight has shape \(1, 5\)")
    replaced(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(5)}))
    no(r"score.weight has shape \(5,\)")
    replaced(folder, lambda tensors: tensors.pop("score.weight"))
    no("no score.weight")
    weights.write_bytes(whole)
    replaced(folder, lambda tensors: tensors.update({"score.bias": torch.zeros(1)}))
    no("not those of a ForSequenceClassification .score.bias")
    weights.write_bytes(whole)
    replaced(folder, lambda tensors: tensors.pop("model.norm.weight"))
    no("1 tensors are missing, such as norm.weight")
    weights.unlink()
    no(r"no model.safetensors: ")
    (folder / "pytorch_model.bin").write_bytes(b"")
    no(r"no model.safetensors \(pytorch_model.bin is a pickle")
    index = {"weight_map": {"score.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    no("a file of the weights is missing: .*model-00001-of-00002")
    (folder / "model.safetensors.index.json").unlink()
    weights.write_bytes(whole)
    assert built_of(folder).state.foreign
    (folder / "tokenizer.json").unlink()
    no("no tokenizer: ")


def test_a_text_that_it_cannot_read_is_refused(tmp_path):
    tokenizer = load_tokenizer(smollm(tmp_path / "tokenizer"))
    least = len(tokenizer.whole_ids("a", "b"))
    folder, _ = written(tmp_path / "rm", tokenizer, positions=least)
    built = built_of(folder)
    assert len(scored(built, ["a"], ["b"])) == 1
    with pytest.raises(PluginError, match=f"it reads {least} tokens, and a text has {least + 1}"):
        scored(built, ["a"], ["bz"])
    # Its texts are longer than the policy's, so that nothing is said of them before they are there.
    models = RewardModels([("rm", 1.0, built)])
    check_lengths(models, load_tokenizer(folder), [Prompt("a")], 1000)


def test_ids_without_embedding_and_empty_texts_are_refused_before_they_reach_a_device(plain):
    folder, _ = plain
    begin, config = load_tokenizer(folder).bos_id, json.loads((folder / "config.json").read_text())
    for size in (begin + 1, begin):  # BOS is the highest id of the text
        tensors = read_tensors(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:size].clone()
        save_tensors(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
        if size > begin:
            assert len(scored(built_of(folder), ["a"], ["b"])) == 1
    with pytest.raises(PluginError, match=f"a text has the id {begin}, and it has {begin} embeddings"):
        scored(built_of(folder), ["a"], ["b"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    with pytest.raises(PluginError, match="a text has no token"):
        scored(built_of(folder), [""], [""])


# ---- in a run ----------------------------------------------------------------------------------------------


def test_conversations_travel_from_the_prompts_to_the_reward(chatting):
    """Batch, its repeats and its parts, rows of a rollout, and the copy that a reward function gets."""
    tokenizer = load_tokenizer(chatting[0])
    batch = PromptBatch.build(["a", "b"], [{}, {}], tokenizer, spoken=[None, TALK], responses=2)
    assert batch.spoken == (None, None, TALK, TALK)
    assert [part.spoken for part in batch.parts(3)] == [(None, None, TALK), (TALK,)]
    assert PromptBatch.build(["a"], [{}], tokenizer).spoken == ()
    policy = Policy(small_trunk(0, replace(CONFIG, vocab_size=tokenizer.vocab_size)), Sampler(1.0, (), (0,)))
    sampled = generate(policy, batch, tokenizer, max_new_tokens=2, generator=seeded())
    assert sampled.spoken == batch.spoken
    rollout = replace(random_rollout(4), spoken=batch.spoken)
    assert rollout.rows(torch.tensor([2, 0])).spoken == (TALK, None)
    assert random_rollout(4).rows(torch.tensor([2])).spoken == ()
    ids = [[1]] * 4
    state = TrainerState(0, 1, 0.0)
    given = RewardBatch(list("abcd"), list("abcd"), ids, ids, {}, state, rollout)
    built = built_of(chatting[0])
    copied = given.inputs(built)["rollout"].spoken
    assert copied == rollout.spoken
    copied[2][0]["content"] = "changed"
    assert TALK[0]["content"] == "You are kind."
    assert given.rows(2, 4).rollout.spoken == (TALK, TALK)


def test_an_unknown_scale_is_told_unless_it_is_measured(chatting):
    models = [("rm", 1.0, built_of(chatting[0]))]
    (said,) = scale_doubts(RewardModels(models))
    assert "reward 'rm' is somebody else's model" in said
    assert "rewards.rm.normalize = true" in said
    assert scale_doubts(RewardModels(models, {"rm": Scale(normalize=True)})) == []


def test_its_files_are_facts_of_a_run(chatting):
    folder, _ = chatting
    reward = RewardConfig(use="trained", options={"path": str(folder)})
    before = model_hash(folder)
    assert model_of_reward(reward) == source_hash(str(folder)) == before
    assert model_of_reward(RewardConfig(use="own", options={"path": str(folder)})) is None
    assert model_of_reward(RewardConfig(use="trained")) is None
    (folder / "tokenizer_config.json").write_text("{}")
    assert model_of_reward(reward) == source_hash(str(folder)) != before


def test_a_run_on_it_says_what_its_scale_is_and_a_changed_file_stops_a_resumed_one(chatting, tiny, tmp_path):
    folder, _ = chatting
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"the cat {n}"}]} for n in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    use = ("--reward", "trained", "--set", f"rewards.trained.path={folder}", "--set", f"corpus.prompts={prompts}")
    often = ("--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=9")
    events = done("run", *tiny, *use, *often, "--out", tmp_path / "run", "--json").events
    said = [e["message"] for e in events if e["event"] == "warning"]
    assert sum("somebody else's model" in message for message in said) == 1
    measured = ("--set", "rewards.trained.normalize=true", "--out", tmp_path / "measured", "--json")
    events = done("run", *tiny, *use, *measured).events
    assert not any("somebody else's model" in e.get("message", "") for e in events)
    (scale,) = [e for e in events if e["event"] == "reward_scale"]
    assert scale["std"] > 0
    resume = ("run", "--resume", tmp_path / "run", "--set", "ppo.iterations=3", "--json")
    settings = folder / "tokenizer_config.json"
    kept = settings.read_text()
    settings.write_text(json.dumps(json.loads(kept) | {"model_max_length": 7}))
    stopped = call(*resume)
    assert stopped.code == 4
    assert "rewards.trained.path is not what it was at the checkpoint" in stopped.err
    settings.write_text(kept)
    done(*resume)


# ---- the transformers library ------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
OWN = {"Llama": {}, "Qwen2": {}, "Qwen3": {"head_dim": 16}}
PROMPTS = ["the cat", "You are kind.\nthe cat", "naïve 好 day"]
ANSWERS = ["sat on the mat and ate", "\nate", "a"]


def made_there(transformers, folder, family, dtype=torch.float32, **own):
    """Random classifier of one label, saved there beside the tokenizer in the directory."""
    config = getattr(transformers, f"{family}Config")(num_labels=1, **SIZES | OWN[family] | own)
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def there(model, rows, pad):
    """Their scores of a batch that is padded on the right, or of one text after another where there is no PAD."""
    with torch.no_grad():
        if pad is None:
            return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()


@pytest.mark.interop
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("padding", ["EOS", "own", "none"])
@pytest.mark.parametrize("family", OWN)
def test_scores_are_those_of_transformers(family, padding, tied, dtype, tmp_path):
    """Every way to pad, with the conversation through the template; TALK is the second prompt."""
    transformers = pytest.importorskip("transformers")
    folder = llama3(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    end = theirs.convert_tokens_to_ids("<|eot|>")  # the end of a turn, and of every text of this template
    pad = {"EOS": end, "own": 7, "none": None}[padding]
    more = {"vocab_size": len(theirs), "tie_word_embeddings": tied, "pad_token_id": pad}
    model = made_there(transformers, folder, family, dtype, **more)
    talks = [[{"role": "user", "content": PROMPTS[0]}], TALK, [{"role": "user", "content": PROMPTS[2]}]]
    answers = [{"role": "assistant", "content": answer.removeprefix("\n")} for answer in ANSWERS]
    options = {"tokenize": True, "return_dict": False}
    whole = [theirs.apply_chat_template([*t, a], **options) for t, a in zip(talks, answers, strict=True)]
    assert {row[-1] for row in whole} == {end}
    expected = there(model, whole, pad)
    found = scored(built_of(folder), PROMPTS, ANSWERS, [None, TALK, None])
    assert found == pytest.approx(expected, abs=THERE)
    assert max(expected) - min(expected) > 0.1
    elsewhere = there(model, [[*row[:-1]] for row in whole], None)
    read_earlier = padding == "EOS"
    assert (found == pytest.approx(elsewhere, abs=THERE)) == read_earlier


@pytest.mark.interop
@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_and_bare_texts_of_every_tokenizer_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = FAMILIES[name](tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat\n"}]
    options = {"tokenize": True, "return_dict": False}
    assert load_tokenizer(folder).whole_ids("the cat", "sat\n") == theirs.apply_chat_template(asked, **options)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for file in folder.glob("*.jinja"):
        file.unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        assert load_tokenizer(folder).whole_ids(prompt, answer) == theirs(prompt + answer)["input_ids"]


@pytest.mark.interop
def test_a_text_without_template_scores_as_there(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = llama2(tmp_path, chat_template=None)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    data["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = made_there(transformers, folder, "Llama", vocab_size=len(theirs), pad_token_id=2)
    rows = [theirs(prompt + answer)["input_ids"] for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    assert all((row[0], row[-1]) == (1, 2) for row in rows)
    assert scored(built_of(folder), PROMPTS, ANSWERS) == pytest.approx(there(model, rows, 2), abs=THERE)


@pytest.mark.interop
def test_two_labels_of_transformers_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = smollm(tmp_path)
    config = transformers.Qwen2Config(vocab_size=400, **SIZES)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(InputError, match="has 2 labels"):
        built_of(folder)


def test_a_broken_template_of_a_reward_model_is_refused_before_a_run(chatting):
    folder, _ = chatting
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{% if %}"}))
    with pytest.raises(InputError, match=r"the chat template fails .*tokenizer_config\.json"):
        built_of(folder)
