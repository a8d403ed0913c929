"""Chat-template control tokens that a user wrote, broken so that no tokenizer makes them special.

A space goes in front of the token's last character: `<|im_start|>` becomes `<|im_start| >`. That
stays readable, and for `<s>` and `</s>`, which are HTML as well, the result `<s >` is the same
HTML. Those two are broken only if the served tokenizer has them, or if it is unknown.

Covers: every `<|word|>` (also with the full-width bars of DeepSeek), the bracketed tokens of the
Llama, Mistral and Gemma families, whatever the caller lists, and their spellings that NFKC folds
together (a tokenizer may normalise before it matches). Does not cover: a token split over two
pieces of text that a chat template joins, tokenizers that change letter case or strip accents
before they match, and plain words such as "Human:".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import chain
from typing import Any

import regex

_FAMILY_TOKENS = """
[INST] [/INST] <<SYS>> <</SYS>> [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS]
[/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT] [MODEL_SETTINGS]
[/MODEL_SETTINGS] <start_of_turn> <end_of_turn> <|turn> <turn|> <|channel> <channel|>
<|tool_call> <tool_call|> <BOS_TOKEN> <EOS_TOKEN> [gMASK]
"""
FAMILY_TOKENS = frozenset(_FAMILY_TOKENS.split())
HTML_TOKENS = frozenset({"<s>", "</s>"})
# What BERT- and RoBERTa-class tokenizers take as their own; for the text that a detector reads.
ENCODER_TOKENS = HTML_TOKENS | {
    "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]",
    "<cls>", "<sep>", "<pad>", "<mask>", "<unk>", "<bos>", "<eos>",
}  # fmt: skip
_GENERIC = r"<\|[\w./:+▁-]{1,64}\|>"
_GENERIC_MAX_CHARS = 68
_BRACKETED_NAME = regex.compile(r"[<\[{(｜][^\s]*[>\])}｜]")

# Blocks whose characters NFKC folds to one ASCII character.
_COMPATIBILITY_BLOCKS = (
    range(0x00A0, 0x0180), range(0x02B0, 0x0380), range(0x1D2C, 0x1DC0), range(0x1FEF, 0x1FF0),
    range(0x2000, 0x2190), range(0x2460, 0x2500), range(0x2C7C, 0x2C7E), range(0xFE10, 0xFE70),
    range(0xFF01, 0xFF61), range(0x1D400, 0x1D800), range(0x1F130, 0x1F150),
)  # fmt: skip


def _compatibility_map() -> dict[int, str]:
    pairs = (
        (code, unicodedata.normalize("NFKC", chr(code)))
        for code in chain.from_iterable(_COMPATIBILITY_BLOCKS)
    )
    return {code: char for code, char in pairs if len(char) == 1 and "!" <= char <= "~"}


class ControlTokens:
    """Finds and breaks control tokens.

    :param tokens: the exact strings to break, besides the generic `<|word|>`. Strings of fewer
        than two characters, or with white space in them, can't be broken and are left out.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._compatible = _compatibility_map()
        self._changed_chars = frozenset(map(chr, self._compatible))
        generic = regex.compile(_GENERIC)
        exact = {
            folded
            for folded in (token.strip().translate(self._compatible) for token in tokens)
            if len(folded) > 1 and not any(map(str.isspace, folded))
            and not generic.fullmatch(folded)
        }  # fmt: skip
        self._pattern = regex.compile(rf"{_GENERIC}|\L<exact>", exact=exact)
        self._max_rounds = 2 * max(map(len, exact), default=0) + _GENERIC_MAX_CHARS
        self._last_chars = frozenset(token[-1] for token in exact) | {">"}

    def neutralise(self, text: str) -> tuple[str, int]:
        """`text` with every control token broken, and how many there were. Idempotent."""
        count = 0
        # Breaking one token can leave another that overlapped it; the pieces get shorter each
        # round, so two rounds are rare and the limit is never reached.
        for _ in range(self._max_rounds):
            breaks = self._breaks(text)
            if not breaks:
                break
            count += len(breaks)
            pieces = (text[a:b] for a, b in zip([0, *breaks], [*breaks, len(text)], strict=True))
            text = " ".join(pieces)
        return text, count

    def _breaks(self, text: str) -> list[int]:
        # One character for one: what is found in the folded copy stands at the same place in text.
        plain = text.isascii() or self._changed_chars.isdisjoint(frozenset(text))
        folded = text if plain else text.translate(self._compatible)
        if not any(char in folded for char in self._last_chars):
            return []
        return [match.end() - 1 for match in self._pattern.finditer(folded)]


def special_tokens(tokenizer: Any) -> list[str]:
    """The served tokenizer's special tokens, as text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    # Also those not flagged as special: templates use `<tool_response>` and the like just so.
    control = {str(token) for token in added.values() if _BRACKETED_NAME.fullmatch(str(token))}
    return sorted(control | set(getattr(tokenizer, "all_special_tokens", [])))
