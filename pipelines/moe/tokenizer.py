"""Text to tokens and back, over the `tokenizers` library and the files that published weights come with. No torch.

A token is some bytes of UTF-8, and a text is the bytes of its tokens one after another: that is how a text is decoded
here, so that what is streamed and what is decoded as a whole cannot differ.

What a visitor types is text and nothing else: `<|endoftext|>` in a prompt or a message is spelled out, and never
becomes the mark that ends a text or turns a visitor into the system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.errors import UserError

from .contract import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Unicode's noncharacters: no text means them, so they can stand around what a template must not read as a mark.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
SPACE = "▁"  # how SentencePiece writes a space
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TextTokenizer:
    """Shared by all visitors; keeps nothing of theirs.

    begin: ids that are put before a text. ends: ids that end one. vocabulary: how many tokens it knows. strips: whether
    the first token of a text carries a space that is not the text's (SentencePiece).
    """

    def __init__(
        self, tokenizer: Tokenizer, config: dict[str, Any], generation: dict[str, Any], template: str | None
    ) -> None:
        from tokenizers import Tokenizer

        self._marked = tokenizer  # reads marks in a text as marks
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder()
        self._added = {number: token.content.encode() for number, token in added.items()}
        self._special = frozenset(number for number, token in added.items() if token.special)
        marks = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._marks = "|".join(map(re.escape, marks)) or "(?!)"  # (?!) is never there
        self._words = {
            name: text for name, value in config.items() if name.endswith("_token") and (text := _content(value))
        }
        self._template = template
        self._bytes, self._joins, self.strips = _layout(tokenizer)
        self.vocabulary: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.ends: frozenset[int] = self._find_ends(generation)
        self.begin: tuple[int, ...] = self._find_begin()

    @classmethod
    def read(
        cls, tokenizer_json: Path, config: Path | None = None, generation: Path | None = None,
        template: Path | None = None,
    ) -> TextTokenizer:  # fmt: skip
        """From tokenizer.json and, where they are, tokenizer_config.json, generation_config.json, chat_template.jinja.

        template: where it is None, a chat_template.jinja beside tokenizer.json, else the configuration's own, is taken.
        UserError: a file is damaged.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(tokenizer_json.read_text(encoding="utf-8"))
            settings = json.loads(config.read_text(encoding="utf-8")) if config else {}
            generated = json.loads(generation.read_text(encoding="utf-8")) if generation else {}
            beside = template or tokenizer_json.with_name("chat_template.jinja")
            chat = beside.read_text(encoding="utf-8") if beside.is_file() else _chat_template(settings)
            return cls(tokenizer, settings, generated, chat)
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                "The tokenizer's files are damaged or incomplete: delete the weights and fetch or install them again."
            ) from error

    # --- text to tokens ----------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, without `begin`; marks in it are spelled out. UserError: half a character in it."""
        check_whole(text)
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    @property
    def has_chat(self) -> bool:
        """Whether these weights were taught to chat."""
        return self._template is not None

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a chat by the weights' own template, ready for the answer; `begin` is not put before them.

        UserError: there is no template, or it refuses the messages (some want the roles to alternate).
        """
        for message in messages:
            check_whole(message.text)
        text = self._render([{"role": each.role, "content": self._fenced(each.text)} for each in messages])
        ids: list[int] = []
        # A fence that a template has torn from its other half still parts the text, so that no mark can grow together.
        for place, part in enumerate(re.split(f"{OPEN}({self._marks}){CLOSE}|[{OPEN}{CLOSE}]", text)):
            reader = self._plain if place % 2 else self._marked
            ids += reader.encode(part, add_special_tokens=False).ids if part else []
        return ids

    def _fenced(self, text: str) -> str:
        """A message with fences around what reads like a mark."""
        text = text.replace(OPEN, "").replace(CLOSE, "")
        return re.sub(self._marks, lambda found: f"{OPEN}{found[0]}{CLOSE}", text)

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._template is None:
            raise UserError("These weights were not taught to chat; write a prompt, or choose weights that were.")
        from jinja2 import TemplateError

        try:
            return _compiled(self._template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._words
            )
        except (TemplateError, TypeError, ValueError) as error:
            why = str(error).strip()[:200].rstrip(".") or "no reason given"
            raise UserError(f"The chat template of these weights refuses these messages: {why}.") from error

    # --- tokens to text ----------------------------------------------------------------------------------------------

    def piece(self, number: int) -> bytes:
        """The bytes that a token is; none for an id that the model has room for and the tokenizer does not know."""
        if number in self._added:
            return self._added[number]
        word = self._marked.id_to_token(number)
        if word is None:
            return b""
        if self._bytes is not None:
            known = self._bytes.keys() >= set(word)
            return bytes(self._bytes[char] for char in word) if known else word.encode()
        if self._joins and (found := BYTE.fullmatch(word)):
            return bytes([int(found[1], 16)])
        return word.replace(SPACE, " ").encode()

    def written(self, number: int) -> bytes:
        """As `piece`, but nothing for a mark: what a reader of the text sees."""
        return b"" if number in self._special else self.piece(number)

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """One text a token, `�` where it is half a character."""
        return tuple(self.piece(number).decode(errors="replace") for number in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of all tokens together, without marks; bytes that are no UTF-8 become `�`."""
        data = b"".join(map(self.written, ids))
        return (data.removeprefix(b" ") if self.strips else data).decode(errors="replace")

    # --- marks -------------------------------------------------------------------------------------------------------

    def _find_ends(self, generation: dict[str, Any]) -> frozenset[int]:
        given = generation.get("eos_token_id")
        ends = set(given if isinstance(given, list) else [] if given is None else [given])
        number = self._number("eos_token")
        return frozenset(ends if number is None else ends | {number})

    def _find_begin(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text, else the mark that begins one, else the mark that ends one: in
        training each document stood behind the end of another."""
        coded = self._marked.encode("a", add_special_tokens=True)
        own = next((place for place, mark in enumerate(coded.special_tokens_mask) if not mark), 0)
        if own:
            return tuple(coded.ids[:own])
        number = self._number("bos_token")
        number = self._number("eos_token") if number is None else number
        return () if number is None else (number,)

    def _number(self, name: str) -> int | None:
        word = self._words.get(name)
        return None if word is None else self._marked.token_to_id(word)


def check_whole(text: str) -> None:
    """UserError: the text holds half of a surrogate pair, which is no character and cannot be written as UTF-8."""
    if found := re.search("[\ud800-\udfff]", text):
        raise UserError(
            f"Character {found.start() + 1} of the text is half of a character (a lone surrogate); take it out."
        )


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in the tokens of a byte-level tokenizer (Radford et al. 2019): printable
    ones stand for themselves, the others for those from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _layout(tokenizer: Tokenizer) -> tuple[dict[str, int] | None, bool, bool]:
    """How tokens are spelled: the byte alphabet or None, whether `<0x0A>` is a byte, whether the first space goes."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return byte_alphabet(), False, False
    if not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} or not kinds & {"Replace", "Metaspace"}:
        raise UserError("These weights come with a tokenizer of a kind that is not read here; choose others.")
    strips = "Strip" in kinds or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps
    )
    return None, "ByteFallback" in kinds, strips


def _content(value: Any) -> str | None:
    """A mark's text, however tokenizer_config.json has it."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _chat_template(settings: dict[str, Any]) -> str | None:
    """The template of tokenizer_config.json; of several the one called default."""
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((each["template"] for each in found if each["name"] == "default"), None)
    return found


@cache
def _compiled(template: str) -> Any:
    """A template as the transformers library runs it: in jinja's sandbox, with the names that templates count on."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an assistant's words for training; here they are only words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
