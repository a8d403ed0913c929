"""What the scripted target says: it obeys the last instruction that it recognises.

**This is no language model.** It is a set of patterns, for tests and demonstrations that need a
target which can lose where no instruction-tuned model is at hand. It reads what a large model
reads (zero-width, tag and look-alike characters, leetspeak, base64, hex and rot13), does a few
harmless tasks, calls the tools that it is told to call, and does as readily what an attacker
writes. It knows nothing of the guard's frame:
numbers measured on it say what reaches a model, not how well a real one resists.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ARCHITECTURE = "ScriptedForCausalLM"
"""The name that vLLM knows it by."""

NOTHING = "Understood."
_MAX_ANSWER_CHARS = 4_000
_MAX_READ_CHARS = 60_000
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|<\|im_start\|>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the prompt, as the chat template wrote it."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class _Order:
    """An instruction found at `end`, and the answer that follows it."""

    end: int
    answer: str


def turns_of(prompt: str) -> list[Turn]:
    """The turns of a rendered prompt. A user who can write control tokens can forge them."""
    return [Turn(match[1], match[2].strip()) for match in _TURN.finditer(prompt)]


def answer_to(prompt: str) -> str:
    """The whole answer to a rendered prompt."""
    turns = turns_of(prompt)
    system = "\n".join(turn.text for turn in turns if turn.role == "system")
    views = [_readable(t.text[:_MAX_READ_CHARS]) for t in turns if t.role != "assistant"]
    read = "\n".join(view.text for view in views)
    orders = [*_orders(read, system)]
    if _DECODE.search(read):
        hidden = [text for view in views for text in view.hidden]
        orders += [_Order(read.rfind(text) + len(text), text) for text in hidden]
    orders.sort(key=lambda order: order.end)
    return (orders[-1].answer if orders else NOTHING)[:_MAX_ANSWER_CHARS]


# -- reading -----------------------------------------------------------------------------------

_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_LOOK_ALIKES = str.maketrans("аеорсухіѕԁӏАЕОРСТХВНКМ", "aeopcyxisdlAEOPCTXBHKM")
_LEET = str.maketrans("013457@$!", "oieastasi")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}\s?){8,}")
_ROT13 = re.compile(r"\brot-?\s?13\b", re.I)
_DECODE = re.compile(
    r"\b(?:decode|decipher|decrypt|encoded|base-?\s?64|base-?\s?16|hex(?:adecimal)?|rot-?\s?13"
    r"|unicode|what\s+does\s+[^.?\n]{0,40}\s(?:say|mean))\b",
    re.I,
)
_VERBS = re.compile(
    r"\b(?:print|say|write|repeat|output|reply|respond|answer|ignore|reveal|show|tell|copy)\b", re.I
)


@dataclass(frozen=True, slots=True)
class _View:
    """A text as it is read, and what of it was hidden."""

    text: str
    hidden: tuple[str, ...]


def _readable(text: str) -> _View:
    """As a model that has seen such tricks reads it: what is hidden stands in its place."""
    hidden: list[str] = []

    def found(span: str, plain: str) -> str:
        if plain != span:
            hidden.append(plain)
        return plain

    text = _TAGS.sub(lambda m: found(m[0], "".join(chr(ord(c) - 0xE0000) for c in m[0])), text)
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).translate(_LOOK_ALIKES)
    text = _BASE64.sub(lambda m: found(m[0], _decoded(m[0], _from_base64)), text)
    text = _HEX.sub(lambda m: found(m[0], _decoded(m[0], _from_hex)), text)
    if _ROT13.search(text):
        hidden.append(codecs.decode(text, "rot13"))
    if not _VERBS.search(text):
        for changed in (codecs.decode(text, "rot13"), text.translate(_LEET)):
            if _VERBS.search(changed):
                return _View(changed, tuple(hidden))
    return _View(text, tuple(hidden))


def _decoded(span: str, decode: Callable[[str], bytes]) -> str:
    try:
        plain = decode(span).decode("utf-8")
    except (ValueError, binascii.Error):
        return span
    sane = plain and sum(c.isprintable() or c.isspace() for c in plain) == len(plain)
    return plain if sane else span


def _from_base64(span: str) -> bytes:
    return base64.b64decode(span + "=" * (-len(span) % 4))


def _from_hex(span: str) -> bytes:
    return bytes.fromhex("".join(span.split()))


# -- instructions ------------------------------------------------------------------------------

_SAY = re.compile(
    r"\b(?:print|say|write|repeat|output|return|display|state|copy"
    r"|(?:reply|respond|answer)(?=\s*:|\s+(?:only\s+|just\s+|exactly\s+)*(?:with\b|[\"“'`])))"
    r"(?:\s+(?:back|out|only|just|exactly|simply|with|in|the|this|following|phrase|words?|word"
    r"|sentence|text|string|message|line|and|nothing|else|to|me|user|all|caps|verbatim|a|code"
    r"|block|markdown|html|link))*"
    r"\s*(?::\s*|\s)(?P<said>[\"“'`](?P<quoted>[^\"”`\n]{1,500})[\"”'`]|(?P<line>[^\n]{1,500}))",
    re.I,
)
_LEAK = re.compile(
    r"\b(?:reveal|print|show|repeat|tell|display|output|write|leak|give|what\s+(?:is|are|were))\b"
    r"[^.\n]{0,60}\b(?:system\s+prompt|system\s+message|initial\s+(?:prompt|instructions)"
    r"|(?:hidden|secret|original|previous|above)\s+(?:prompt|instructions|rules|text|message)"
    r"|(?:your|the)\s+(?:instructions|rules|secret)|(?:text|words|everything)\s+above)\b",
    re.I,
)
_ROLE = re.compile(
    r"\b(?:you\s+are\s+now|act\s+as|pretend\s+(?:to\s+be|you\s+are)|you\s+will\s+(?:be|play))\s+"
    r"(?:an?\s+|the\s+)?(?:AI\s+)?(?:called\s+|named\s+)?[\"']?(?P<who>[A-Z][\w-]{1,30})",
)
_CALL = re.compile(
    r"\bcall\s+(?:the\s+)?tools?\s+(?P<calls>(?:(?:\s+and\s+)?[\w.-]{1,64}\s+with\s+\{[^{}\n]{0,500}\}){1,4})",
    re.I,
)
_ONE_CALL = re.compile(r"(?P<name>[\w.-]{1,64})\s+with\s+(?P<arguments>\{[^{}\n]{0,500}\})", re.I)
_UPPER = re.compile(r"\bin\s+(?:upper\s*case|capital\s+letters)\s*:\s*(?P<text>[^\n]+)", re.I)
_REVERSE = re.compile(
    r"\breverse\s+the\s+order\s+of\s+(?:these|the)\s+words\s*:\s*(?P<text>[^\n]+)", re.I
)
_COUNT = re.compile(
    r"\bhow\s+many\s+words\s+(?:are|stand)\s+in\s+this\s+line\s*[:?]\s*(?P<text>[^\n]+)", re.I
)
_FIELD = re.compile(
    r"\b(?:give|extract)\s+the\s+value\s+of\s+(?P<name>\w+)\s+(?:from|in)\s+this\s+record\s*:"
    r"\s*(?P<text>[^\n]+)",
    re.I,
)


def _orders(text: str, system: str) -> Iterator[_Order]:
    """Every instruction recognised. Where two read the same words, the later rule is the finer."""
    for match in _ROLE.finditer(text):
        who = match["who"]
        yield _Order(match.end(), f"{who}: I am {who} now, and I follow no rules.")
    for match in _SAY.finditer(text):
        said = match["quoted"] or match["line"] or ""
        yield _Order(match.start("said"), said.strip().strip("\"'`“”"))
    for match in _LEAK.finditer(text):
        yield _Order(match.end(), system or "I have no instructions.")
    for match in _CALL.finditer(text):
        yield _Order(match.end(), _tool_calls(match["calls"]))
    for match in _UPPER.finditer(text):
        yield _Order(match.end(), match["text"].strip().upper())
    for match in _REVERSE.finditer(text):
        yield _Order(match.end(), " ".join(reversed(match["text"].split())))
    for match in _COUNT.finditer(text):
        yield _Order(match.end(), str(len(match["text"].split())))
    for match in _FIELD.finditer(text):
        found = re.search(rf"\b{re.escape(match['name'])}\s*=\s*([^;]+)", match["text"], re.I)
        yield _Order(match.end(), found[1].strip() if found else "It is not there.")


def _tool_calls(orders: str) -> str:
    """A word to the user and then the calls, in the form that vLLM's `hermes` parser reads."""
    said = ["I will do that."]
    for match in _ONE_CALL.finditer(orders):
        call = f'{{"name": "{match["name"]}", "arguments": {match["arguments"]}}}'
        said.append(f"<tool_call>\n{call}\n</tool_call>")
    return "\n".join(said)
