"""Text to token ids.

Covers: text of any size (cut at spaces, so memory is bounded and other threads run in between).
The shipped tokenizer.json also covers words that BERT's own would swallow whole as one unknown
token (over 100 characters, or holding one unknown character) and so hide from the encoder.
Does not cover: what a third-party classifier's tokenizer drops by itself.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from itertools import groupby

from tokenizers import Tokenizer

_CHUNK_CHARS = 16_384

MAX_WORD_CHARS = 64
"""The shipped tokenizer cuts longer words; BERT's own would read them as one unknown token."""

UNCASED_NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}


class ChunkedTokenizer:
    """Any tokenizer, in pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for chunk in _chunks(text):
            ids += self._tokenizer.encode(chunk, add_special_tokens=False).ids
        return ids


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _CHUNK_CHARS:
        end = start + _CHUNK_CHARS
        cut = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        cut = cut if cut > 0 else end
        yield text[start:cut]
        start = cut
    yield text[start:]


class UncasedWordPiece:
    """An uncased BERT tokenizer with a fast path for ASCII, about four times as fast.

    Same ids as the tokenizer itself (a test compares them): BERT's normaliser and pre-tokeniser
    never look across a space, so text may be cut there and each part go its way.
    """

    _CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
    _WORDS = re.compile(rf"[a-z0-9]{{1,{MAX_WORD_CHARS}}}|[!-/:-@\[-`{{-~]")

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocab: dict[str, int] = tokenizer.get_vocab()
        words = {word: i for word, i in vocab.items() if word.isascii()}
        self._whole = {w: i for w, i in words.items() if w.isalnum() or len(w) == 1}
        self._rest = {w[2:]: i for w, i in words.items() if w[:2] == "##" and w[2:].isalnum()}
        self._longest = max(map(len, [*self._whole, *self._rest]), default=1)
        self._slow = ChunkedTokenizer(tokenizer)

    @staticmethod
    def fits(tokenizer: Tokenizer) -> bool:
        """Whether the fast path would give the tokenizer's ids."""
        spec = json.loads(tokenizer.to_str())
        vocab = tokenizer.get_vocab()
        alnum = string.ascii_lowercase + string.digits
        return (
            spec["normalizer"] == UNCASED_NORMALIZER
            and spec["model"]["type"] == "WordPiece"
            and spec["model"]["max_input_chars_per_word"] >= MAX_WORD_CHARS
            and (spec["pre_tokenizer"] or {}).get("type") == "Sequence"
            and spec["pre_tokenizer"]["pretokenizers"][0] == {"type": "BertPreTokenizer"}
            and all(c in vocab for c in alnum + string.punctuation)
            and all("##" + c in vocab for c in alnum)
        )

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for chunk in _chunks(text):
            for is_ascii, words in groupby(chunk.split(" "), str.isascii):
                part = " ".join(words)
                ids += self._ascii(part) if is_ascii else self._slow(part)
        return ids

    def _ascii(self, text: str) -> list[int]:
        if self._CONTROL.search(text):  # removed by the normaliser, which may join words
            return self._slow(text)
        ids: list[int] = []
        whole = self._whole
        for word in self._WORDS.findall(text.lower()):
            token = whole.get(word)
            if token is not None:
                ids.append(token)
            else:
                self._pieces(word, ids)
        return ids

    def _pieces(self, word: str, ids: list[int]) -> None:
        """Longest match first, as WordPiece does; every ASCII letter and digit is in the vocab."""
        start, size, vocab = 0, len(word), self._whole
        while start < size:
            end = min(size, start + self._longest)
            while (token := vocab.get(word[start:end])) is None:
                end -= 1
            ids.append(token)
            start, vocab = end, self._rest
