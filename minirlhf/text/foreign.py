"""Tokenizers of others: a directory with tokenizer.json and its companions, read without transformers.

    tokenizer.json           vocabulary, merges, splitting (core.py, splitting.py)
    tokenizer_config.json    names of BOS, EOS and PAD, add_bos_token, the chat template
    special_tokens_map.json, config.json    the names, or ids, where the file above has none
    generation_config.json   more ids that end a response
    chat_template.jinja      the chat template, where it has a file

Not here: what a file says, checked (companions.py), files that minirlhf wrote itself (tokenizer.py), and the rendering
of templates (template.py).
"""

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minirlhf.errors import InputError
from minirlhf.text.companions import (
    CONFIG,
    OWN_FILES,
    TEMPLATE,
    added_tokens,
    json_value,
    names_around,
    settings_of,
    special_name,
    template_source,
)
from minirlhf.text.core import Core
from minirlhf.text.files import read_bytes
from minirlhf.text.tokenizer import FILE, MAX_FILE_BYTES, SPECIAL, Conversation, Malformed, Tokenizer, write_files

if TYPE_CHECKING:
    from minirlhf.text.template import ChatTemplate

NAMES: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(directory: str | os.PathLike[str], *, chat: bool = False) -> Tokenizer:
    """Read the tokenizer of a directory: our own kind where the file is ours, else a foreign one.

    chat: prompts and responses go through the tokenizer's chat template. Errors: InputError for files that are missing
    or cannot be used, and for `chat` without a template.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        todo = "give a directory that holds it, as `save_pretrained` of transformers writes it"
        raise InputError("no tokenizer", str(path), todo)
    files = {FILE: read_bytes(path, MAX_FILE_BYTES)}
    data = json_value(files[FILE], path)
    added = data.get("added_tokens") if isinstance(data, dict) else None
    named = [entry.get("content") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    if named == list(SPECIAL):
        tokenizer = Tokenizer.load(directory)
        return chatting(tokenizer, str(path)) if chat else tokenizer
    for name in (*OWN_FILES[1:], "config.json"):
        if (Path(directory) / name).is_file():
            files[name] = read_bytes(Path(directory) / name, MAX_FILE_BYTES)
    try:
        foreign = ForeignTokenizer(data, files, Path(directory))
    except Malformed as fault:
        raise InputError(f"tokenizer cannot be used ({fault})", str(path), "take another model, or mend it") from fault
    return chatting(foreign, str(path)) if chat else foreign


def chatting(tokenizer: Tokenizer, where: str) -> Tokenizer:
    """The same tokenizer with its chat template in use (InputError if it has none)."""
    if not isinstance(tokenizer, ForeignTokenizer) or tokenizer.template is None:
        todo = "set corpus.template = 'none', or take a model that was made for conversations"
        raise InputError("the tokenizer has no chat template", where, todo)
    return tokenizer.in_use()


class ForeignTokenizer(Tokenizer):
    """Tokenizer of somebody else's model; see `Tokenizer` for what everybody may ask of it.

    template: its chat template, None without one; `in_use` makes prompts and responses go through it.
    """

    def __init__(self, data: Any, files: Mapping[str, bytes], directory: Path) -> None:
        settings = {name: settings_of(files, name, directory) for name in (*OWN_FILES[1:4], "config.json")}
        config = settings["special_tokens_map.json"] | settings[CONFIG]
        names = {name: found for name in NAMES if (found := special_name(config.get(name))) is not None}
        self._files = {name: files[name] for name in OWN_FILES if name in files}
        added, changed = added_tokens(data, config, names.values())
        self._core = Core(data, added, str(directory / FILE))
        known = {name: token for name, text in names.items() if (token := self._core.id_of(text)) is not None}
        models, generation = settings["config.json"], settings["generation_config.json"]
        ends = [known["eos_token"]] if "eos_token" in known else []
        ends += self._ids(generation, "eos_token_id") or self._ids(models, "eos_token_id")
        if not ends:
            raise Malformed("no token that ends a text is named: eos_token of tokenizer_config.json")
        self.eos_id, self.stops = ends[0], tuple(dict.fromkeys(ends))
        begins = [known["bos_token"]] if "bos_token" in known else self._ids(models, "bos_token_id")
        self.bos_id = begins[0] if begins else None
        fillers = [known["pad_token"]] if "pad_token" in known else self._ids(models, "pad_token_id")
        self.pad_id = fillers[0] if fillers else self.eos_id
        self.start, self._end = self._around(data, config)
        self.vocab_size = self._core.size
        special = {i for i, entry in self._core.added.items() if entry.special} | set(known.values())
        # A stop that is an ordinary token ends a response, and is text everywhere else.
        marks = {i for i in self.stops if i in self._core.added or not self._core.knows(i)}
        self.special = {i: self._core.name(i) for i in sorted(special | marks)}
        source = template_source(files, settings[CONFIG])
        where = str(directory / (TEMPLATE if TEMPLATE in files else CONFIG))
        self.template: ChatTemplate | None = None
        if source is not None:
            from minirlhf.text import template  # and jinja2, which few tokenizers need

            self.template = template.ChatTemplate(source, names, where)
        self.chat = False
        longest_first = sorted(self.special.values(), key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Not the stops: no text has other ids. Added tokens of tokenizer.json are in its bytes.
        decided: list[Any] = [self.start, self.bos_id, self.eos_id, sorted(special), source]
        decided += [[vars(entry) for entry in changed]] if changed else []
        self.hash = hashlib.sha256(files[FILE] + json.dumps(decided).encode()).hexdigest()

    def in_use(self) -> "ForeignTokenizer":
        """A copy that encodes prompts and responses by the chat template; the end of a turn ends a response as well."""
        other = copy.copy(self)
        other.chat = True
        other.hash = hashlib.sha256(f"{self.hash} chat".encode()).hexdigest()
        probe = other.text_ids("a", "b", True)
        if probe[-1] in self.special:
            other.stops = tuple(dict.fromkeys((*self.stops, probe[-1])))
        return other

    # ---- what everybody asks ---------------------------------------------------------------------------------

    def encode_batch(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """Ids of texts, without special tokens, not even those that they spell out.

        continued: no space is put in front, as sentencepiece does at the beginning of a text. Errors: InputError for a
        character that the vocabulary lacks.
        """
        return self._core.encode(texts, continued)

    def token_bytes(self, token: int) -> bytes:
        """Bytes of a token, maybe half a character; b"" for a special token. Errors: IndexError."""
        return b"" if token in self.special else self._core.bytes_of(token)

    def knows(self, token: int) -> bool:
        """True for an id that the vocabulary has."""
        return self._core.knows(token)

    def save(self, directory: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Write the files that were read, byte for byte. Errors: DiskError."""
        write_files(Path(directory), self._files)

    def beginnings(self, prompts: Sequence[str], spoken: Sequence[Conversation | None] = ()) -> list[list[int]]:
        """Ids of prompts; by the chat template where it is in use, a prompt without a conversation as a user's word."""
        if not self.chat:
            return super().beginnings(prompts)
        talks = itertools.zip_longest(prompts, spoken)
        return [self.conversation_ids(_talk(prompt, talk)) for prompt, talk in talks]

    def text_ids(self, prompt: str, completion: str, ended: bool, spoken: Conversation | None = None) -> list[int]:
        """Ids of a prompt and its completion; by the chat template, where it is in use, through the end of the turn."""
        if not self.chat:
            return super().text_ids(prompt, completion, ended)
        messages = _talk(prompt, spoken)
        answer = completion if spoken is None else completion.removeprefix("\n")  # a line of the flattened text
        before = self.conversation_ids(messages)
        if not ended:
            return [*before, *(self.encode_batch([answer], continued=True)[0] if answer else [])]
        return [*before, *self.answer_ids(messages, answer)]

    def whole_ids(self, prompt: str, completion: str, spoken: Conversation | None = None) -> list[int]:
        """Ids of a whole conversation by the chat template, in use or not; without one those of prompt + completion.

        The completion is the assistant's turn behind the conversation, and the template ends it. Special tokens that
        the texts spell out are text.
        """
        if self.template is None:
            return [*super().whole_ids(prompt, completion), *self._end]
        answer = completion if spoken is None else completion.removeprefix("\n")  # a line of the flattened text
        messages = [*_talk(prompt, spoken), {"role": "assistant", "content": answer}]
        return self._ids_of(*self._rendered(messages, answering=False))

    # ---- conversations ---------------------------------------------------------------------------------------

    def conversation_ids(self, messages: Conversation) -> list[int]:
        """Ids of a conversation, with what the assistant's next message begins with."""
        return self._ids_of(*self._rendered(messages, answering=True))

    def answer_ids(self, messages: Conversation, answer: str) -> list[int]:
        """Ids of the assistant's answer behind `conversation_ids`, through the token that ends its turn, else EOS.

        Errors: InputError if the template does not put the answer behind the conversation as it is.
        """
        whole = [*messages, {"role": "assistant", "content": answer}]
        before, marks = self._rendered(messages, answering=True, within=whole)
        text, _ = self._rendered(whole, answering=False, within=whole)
        if not text.startswith(before):
            what = "the chat template writes a conversation in another way once it is answered"
            raise InputError(what, self._templated().where, "its answers cannot be learned from: take another template")
        first, both = self._ids_of(before, marks), self._ids_of(text, marks)
        rest = both[len(first) :] if both[: len(first)] == first else self._ids_of(text[len(before) :], marks, True)
        last = max((at for at, token in enumerate(rest) if token in self.special), default=-1)
        return rest[: last + 1] if last >= 0 else [*rest, self.eos_id]

    def _templated(self) -> "ChatTemplate":
        assert self.template is not None, "`chatting` has seen it"
        return self.template

    def _rendered(
        self, messages: Conversation, *, answering: bool, within: Conversation | None = None
    ) -> tuple[str, dict[str, str]]:
        """(rendering, marks in it -> special tokens that the messages spell out, which are text).

        within: conversation whose marks are taken, so that those of its parts are the same.
        """
        template = self._templated()
        for message in messages:
            if not message.get("role"):
                raise InputError("a message has no role", template.where, 'write {"role", "content"}')
        values = [value for message in within or messages for value in message.values()]
        spelt = sorted({found for value in values for found in self._spelt.findall(value)})
        every = "".join([*values, template.source])
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in every) if spelt else iter(())
        marks = dict(zip(spelt, free, strict=False))

        def marked(text: str) -> str:
            return self._spelt.sub(lambda found: marks[found[0]], text) if marks else text

        shown = [{key: marked(value) for key, value in message.items()} for message in messages]
        return template.render(shown, answering=answering), {mark: name for name, mark in marks.items()}

    def _ids_of(self, text: str, marks: Mapping[str, str], continued: bool = False) -> list[int]:
        """Ids of a rendering: special tokens are meant, those behind marks are text."""
        ids = list[int]()
        for number, part in enumerate(self._core.parts(text)):
            if isinstance(part, int):
                ids.append(part)
                continue
            piece, found = part
            bare = continued and not number
            if bare or any(mark in piece for mark in marks):
                for mark, name in marks.items():
                    piece = piece.replace(mark, name)
                (found,) = self._core.encode([piece], bare or bool(number and not self._core.prefixes_parts()))
            ids += found
        return ids

    # ---- settings --------------------------------------------------------------------------------------------

    def _ids(self, settings: Mapping[str, Any], name: str) -> list[int]:
        """Ids that a setting names, one or a list, without those that the tokenizer does not know."""
        value = settings.get(name)
        values = value if isinstance(value, list) else [value]
        return [i for i in values if type(i) is int and self._core.knows(i)]

    def _around(self, data: Any, config: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that every text begins and ends with: special tokens around the text in the post-processor.

        add_bos_token, if it is set, says instead of it how a text begins.
        """
        front, back = ([self._around_id(name) for name in names] for names in names_around(data))
        chosen = config.get("add_bos_token")
        if isinstance(chosen, bool):
            front = [self.bos_id] if chosen and self.bos_id is not None else []
        return tuple(front), tuple(back)

    def _around_id(self, name: str) -> int:
        token = self._core.id_of(name)
        if token is None:
            raise Malformed(f"the post-processor adds {name[:40]!r}, which has no id")
        return token


def _talk(prompt: str, spoken: Conversation | None) -> Conversation:
    return spoken or [{"role": "user", "content": prompt}]
