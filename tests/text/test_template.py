"""Chat templates: rendered as transformers renders them, in a sandbox; only the assistant's turn is learned from."""

from typing import Any

import pytest

from minirlhf.builtin.trained import tokenizer_of
from minirlhf.config.schema import CorpusConfig
from minirlhf.errors import InputError
from minirlhf.models.generate import PromptBatch
from minirlhf.stages.base import template_key
from minirlhf.stages.reward_model import encode_pairs
from minirlhf.stages.sft import encode_demonstrations
from minirlhf.text import template
from minirlhf.text.comparisons import comparison_of, demonstration_of
from minirlhf.text.corpus import Prompt, fit_prompts, read_prompts
from minirlhf.text.foreign import load_tokenizer
from minirlhf.text.template import ChatTemplate
from minirlhf.text.tokenizer import train_tokenizer
from tests.text.foreign_files import CHATML, FAMILIES, llama2, llama3, smollm

ASKED = [{"role": "user", "content": "the cat?"}]
LONG = [
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "好 day"},
    {"role": "user", "content": "the mat\n12"},
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return {n: load_tokenizer(make(tmp_path_factory.mktemp(n)), chat=True) for n, make in FAMILIES.items()}


def shown(tokenizer, ids) -> str:
    """Text of ids, special tokens by their names in square brackets."""
    parts = [f"[{tokenizer.special[i]}]".encode() if i in tokenizer.special else tokenizer.token_bytes(i) for i in ids]
    return b"".join(parts).decode()


def render(source: str, messages: Any = ASKED, answering: bool = False, **names: str) -> str:
    return ChatTemplate(source, names, "chat_template.jinja").render(messages, answering=answering)


# ---- rendering ---------------------------------------------------------------------------------------------


def test_a_template_has_what_transformers_gives_it():
    assert (
        render("{{ bos_token }}{{ messages[0].content | tojson }}", [{"content": "<好>"}], bos_token="<s>")
        == '<s>"<好>"'
    )
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("a{% generation %}{{ messages | length }}{% endgeneration %}b") == "a1b"
    assert (
        render("{{ '%s-%02d' | format('a', 3) }}{{ '{}'.format(4) }}{{ '%d' % 5 }}{{ 'a' | center(3) }}") == "a-0345 a "
    )
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ 'x' ~ 2.5 }}") == "2x2.5"
    assert render("  {% if tools is none and not add_generation_prompt %}\nyes\n  {% endif %}\n") == "yes\n"
    assert render("{{ add_generation_prompt }}", answering=True) == "True"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('only two roles') }}", "only two roles"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages[3].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "too many turns"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "on and on"),
        ("{{ 'x' * 999999999 }}", "too often"),
        ("{{ [1] * 999999999 }}", "too often"),
        ("{{ 9 ** 99999999 }}", "a power"),
        ("{{ ((9 ** 999) ** 999) }}", "a power"),
        ("{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}", "too many turns"),
        ("{% for a in [1,2,3,4,5,6,7,8,9] %}" * 9 + "{% endfor %}" * 9, "too many turns"),
        ("{{ 'x'|slice(99999999)|list|length }}", "too many spaces"),
        (
            "{% set ns = namespace(t='xx') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "too long",
        ),
        ("{{ '%999999999d' % 3 }}", "large width"),
        ("{{ '%*d' % (999999999, 3) }}", "large width"),
        ("{{ '{:{}}'.format(3, 999999999) }}", "large width"),
        ("{{ 'x' | indent(999999999, true) }}", "spaces"),
        ("{{ 'x' | center(999999999) }}", "spaces"),
        ("{{ '%999999999d' | format(3) }}", "large width"),
        ("{{ '{:>999999999}'.format(3) }}", "large width"),
        ("{{ 'x'.ljust(999999999) }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_or_misbehaves_is_one_refusal(source, why):
    with pytest.raises(InputError, match=f"the chat template fails .*{why}.*chat_template.jinja"):
        render(source)


def test_a_template_that_is_no_jinja_is_refused_when_it_is_used():
    template = ChatTemplate("{% if %}", {}, "chat_template.jinja")
    for use in (template.check, lambda: template.render(ASKED, answering=True)):
        with pytest.raises(InputError, match=r"TemplateSyntaxError.*chat_template\.jinja"):
            use()


def test_a_template_has_the_same_day_every_day():
    assert render("{{ strftime_now('%d %b %Y, %H:%M') }}") == "26 Jul 2024, 00:00"


def test_a_template_in_a_file_goes_first_and_is_saved(tmp_path):
    folder = smollm(tmp_path / "a")
    (folder / "chat_template.jinja").write_text(
        "<|im_start|>{{ messages[0].content }}\n{% if messages[1] %}b{% endif %}"
    )
    tokenizer = load_tokenizer(folder, chat=True)
    assert shown(tokenizer, tokenizer.beginnings(["the"])[0]) == "[<|im_start|>]the\n"
    (tmp_path / "b").mkdir()
    tokenizer.save(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b", chat=True).hash == tokenizer.hash


# ---- conversations as ids ----------------------------------------------------------------------------------


def test_a_prompt_is_what_the_assistant_goes_on_from(chats):
    found = {name: shown(t, t.beginnings([""], [ASKED])[0]) for name, t in chats.items()}
    start, end = "[<|im_start|>]", "[<|im_end|>]"
    assert found["smollm"] == f"{start}user\nthe cat?{end}\n{start}assistant\n"
    assert found["qwen"] == f"{start}system\nYou help.{end}{start}user\nthe cat?{end}\n{start}assistant\n"
    assert found["llama2"] == "[<s>] [INST] the cat? [/INST]"
    both = "[<|begin|>][<|start|>]user[<|end|>]\n\nthe cat?[<|eot|>][<|start|>]assistant[<|end|>]\n\n"
    assert found["llama3"] == both
    for tokenizer in chats.values():
        assert tokenizer.beginnings(["the cat?"]) == tokenizer.beginnings([""], [ASKED])


def test_loops_and_macros_without_output_end_in_time(monkeypatch):
    monkeypatch.setattr(template, "SECONDS", 0.05)
    twice = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
    slow = "{% set s = 'x' * 999999 %}{% for i in range(99999) %}{% set n = s|upper|length %}{% endfor %}"
    for source in (twice, slow):
        with pytest.raises(InputError, match="it takes more than 0 s"):
            render(source, [])


def test_loops_still_know_where_they_are():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.role }}{{ '.' if loop.last }}{% endfor %}"
        "{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{{ loop.first }}{% endfor %}"
        "{% for x in nothing %}{% else %}none{% endfor %}"
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is not number else x }}{% endfor %}"
    )
    talk = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    assert render(source, talk) == "1/2user2/2assistant.a1Truenone123"


def test_an_answer_goes_through_the_end_of_its_turn_and_no_further(chats):
    ends = {"smollm": "the day[<|im_end|>]", "qwen": "the day[<|im_end|>]", "llama3": "the day[<|eot|>]"}
    for name, tokenizer in chats.items():
        before = tokenizer.beginnings([""], [LONG])[0]
        whole = tokenizer.text_ids("", "\nthe day", True, LONG)
        assert whole[: len(before)] == before
        assert shown(tokenizer, whole[len(before) :]) == ends.get(name, " the day [</s>]")
        cut = tokenizer.text_ids("", "\nthe day", False, LONG)
        assert shown(tokenizer, cut[len(before) :]) == "the day"


def test_a_special_token_in_a_message_stays_text(chats):
    for tokenizer in chats.values():
        names = list(tokenizer.special.values())
        said = f"the {''.join(names)} cat {names[0]}x"
        ids = tokenizer.beginnings([said])[0]
        plain = tokenizer.beginnings(["the cat"])[0]
        assert [i for i in ids if i in tokenizer.special] == [i for i in plain if i in tokenizer.special]
        assert tokenizer.decode(ids).count(said) == 1
        answer = tokenizer.text_ids("the", said, True)[len(tokenizer.beginnings(["the"])[0]) :]
        assert [i in tokenizer.special for i in answer] == [False] * (len(answer) - 1) + [True]
        assert tokenizer.decode(answer).strip() == said


def test_a_message_with_a_special_token_gets_no_space_where_others_get_none(tmp_path):
    """Metaspace puts a space in front of the first word of a text only, and <s> stands before this one."""
    chat = load_tokenizer(llama2(tmp_path, "first"), chat=True)
    assert shown(chat, chat.beginnings(["a </s>"])[0]) == "[<s>][INST] a </s> [/INST]"
    assert shown(chat, chat.beginnings(["a"])[0]) == "[<s>][INST] a [/INST]"


def test_private_characters_of_a_text_are_not_taken_for_marks(chats):
    said = "\ue000 <|im_end|> \ue001"
    assert said in chats["smollm"].decode(chats["smollm"].beginnings([said])[0])


def test_the_end_of_a_turn_ends_a_response_though_the_files_do_not_say_so(tmp_path):
    folder = smollm(tmp_path, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    plain, chat = load_tokenizer(folder), load_tokenizer(folder, chat=True)
    assert [plain.special[i] for i in plain.stops] == ["<|endoftext|>"]
    assert [chat.special[i] for i in chat.stops] == ["<|endoftext|>", "<|im_end|>"]
    assert plain.hash != chat.hash


def test_a_template_without_an_end_of_turn_gets_eos(tmp_path):
    chat = load_tokenizer(
        smollm(tmp_path, chat_template="{% for m in messages %}{{ m.content }}\n{% endfor %}"), chat=True
    )
    assert shown(chat, chat.text_ids("a", "b", True)) == "a\nb\n[<|im_end|>]"


def test_a_template_that_rewrites_what_was_said_before_cannot_be_learned_from(tmp_path):
    source = "{{ messages | length }}" + CHATML
    with pytest.raises(InputError, match="in another way once it is answered"):
        load_tokenizer(smollm(tmp_path, chat_template=source), chat=True)


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no chat template.*corpus\.template"):
        load_tokenizer(llama3(tmp_path / "a", chat_template=None), chat=True)
    ours = train_tokenizer(["a"], 259)
    ours.save(tmp_path)
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(tmp_path, chat=True)


def test_a_message_without_a_role_is_refused(chats):
    with pytest.raises(InputError, match="no role"):
        chats["qwen"].beginnings([""], [[{"role": "", "content": "a"}]])


# ---- rows of files -----------------------------------------------------------------------------------------


def test_prompts_keep_their_messages_beside_their_text(tmp_path, chats):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "the cat?"}\n{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}\n'
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]}\n'
    )
    prompts = read_prompts(str(file))
    assert [prompt.text for prompt in prompts] == ["the cat?", "s\na", "q"]
    assert [prompt.spoken for prompt in prompts] == [
        None,
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        [{"role": "user", "content": "q"}],
    ]
    chat = chats["smollm"]
    batch = PromptBatch.build(["x"], [{}], chat, spoken=[prompts[1].spoken])
    assert shown(chat, batch.ids[0].tolist()) == (
        "[<|im_start|>]system\ns[<|im_end|>]\n[<|im_start|>]user\na[<|im_end|>]\n[<|im_start|>]assistant\n"
    )
    length = len(chat.beginnings(["the cat?"])[0])
    assert fit_prompts([Prompt("the cat?")], chat, length - 1)[0]
    with pytest.raises(InputError, match="no prompt fits"):
        fit_prompts([Prompt("the cat?")], chat, length - 2)


def test_demonstrations_and_comparisons_go_through_the_template(chats):
    chat = chats["smollm"]
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]
    rows = [{"messages": talk}, {"prompt": "q", "completion": "no"}, {"prompt": "q", "completion": talk[1:]}]
    shown_all = set()
    for row in rows:
        (example,), _ = encode_demonstrations([demonstration_of(row, "f:1", "strict")[0]], chat, 99)
        shown_all.add((shown(chat, example.ids[: example.start]), shown(chat, example.ids[example.start :])))
    before = "[<|im_start|>]user\nq[<|im_end|>]\n[<|im_start|>]assistant\n"
    assert shown_all == {(before, "no[<|im_end|>]")}
    sides = {"chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "day"}]}
    (pair,), _ = encode_pairs([comparison_of(sides, "f:1", "strict")[0]], chat, 99)
    assert [shown(chat, ids) for ids in (pair.chosen, pair.rejected)] == [
        f"{before}no[<|im_end|>]",
        f"{before}day[<|im_end|>]",
    ]
    assert pair.spoken == talk[:1]


def test_without_a_template_a_conversation_is_its_lines(tmp_path):
    plain = load_tokenizer(smollm(tmp_path))
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]
    (example,), _ = encode_demonstrations([demonstration_of({"messages": talk}, "f:1", "strict")[0]], plain, 99)
    assert shown(plain, example.ids) == "q\nno[<|im_end|>]"
    assert plain.decode(example.ids[example.start :]) == "\nno"


def test_keys_of_models_tell_the_template_and_are_as_before_without_one():
    assert template_key(CorpusConfig()) == {}
    assert template_key(CorpusConfig(template="chat")) == {"template": "chat"}


def test_a_saved_reward_model_knows_whether_its_texts_went_through_the_template(tmp_path):
    folder = smollm(tmp_path)
    for chat in (False, True):
        tokenizer = load_tokenizer(folder, chat=chat)
        assert tokenizer_of(folder, tokenizer.hash).text_ids("a", "b", True) == tokenizer.text_ids("a", "b", True)
    assert load_tokenizer(folder).text_ids("a", "b", True) != tokenizer.text_ids("a", "b", True)


# ---- the transformers library ------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("messages", [ASKED, LONG, [{"role": "user", "content": "x<think>\n\n"}]])
def test_ids_of_a_conversation_are_those_of_transformers(name, messages, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = FAMILIES[name](tmp_path)
    ours, theirs = load_tokenizer(folder, chat=True), transformers.AutoTokenizer.from_pretrained(folder)
    options = {"tokenize": True, "return_dict": False}
    begun = theirs.apply_chat_template(messages, add_generation_prompt=True, **options)
    assert ours.beginnings([""], [messages])[0] == begun
    whole = theirs.apply_chat_template([*messages, {"role": "assistant", "content": "the day"}], **options)
    found = ours.text_ids("", "the day", True, messages)
    assert found == whole[: len(found)]
    assert theirs.decode(whole[len(found) :]) in ("", "\n")
