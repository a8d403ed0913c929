"""Text to token windows, so that every token is read by the encoder.

Each text is cut into windows of at most `max_tokens` (special tokens included) that overlap; the
windows of a text are equally long, so there is no short tail with little context. No torch here:
the API server needs only this when the encoder runs in the engine.

Covers: text of any length; literal special tokens in the text (read as plain characters).
Does not cover: what a third-party classifier's tokenizer drops by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vauban.detectors import checkpoint
from vauban.detectors.classifier_config import ClassifierConfig, read_classifier_config
from vauban.detectors.wordpiece import ChunkedTokenizer, UncasedWordPiece
from vauban.errors import WeightsError
from vauban.policy import EncoderPolicy

Ids = NDArray[np.int32]

_MAGIC = b"VW\x01"
_HEADER = struct.Struct("<3sBH")  # magic, bytes per id, models


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows of one request: per model, per window, int32 ids.

    Model 0 is the encoder, the others are `policy.encoder.classifiers` in order.
    """

    per_model: tuple[tuple[Ids, ...], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens over all models and windows, special tokens included."""
        return sum(len(ids) for windows in self.per_model for ids in windows)

    def to_bytes(self) -> bytes:
        """Little-endian: header; per model the number of windows and their lengths; all ids."""
        flat = [ids for windows in self.per_model for ids in windows]
        joined = np.concatenate(flat) if flat else np.empty(0, np.int32)
        width = 2 if not joined.size or int(joined.max()) < 65_536 else 4
        parts = [_HEADER.pack(_MAGIC, width, len(self.per_model))]
        for windows in self.per_model:
            lengths = np.fromiter((len(ids) for ids in windows), "<u4", len(windows))
            parts += [struct.pack("<I", len(windows)), lengths.tobytes()]
        parts.append(joined.astype("<u2" if width == 2 else "<u4").tobytes())
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Windows:
        """:raises ValueError: `data` is not exactly what `to_bytes` writes."""
        try:
            magic, width, models = _HEADER.unpack_from(data)
        except struct.error:
            raise ValueError("token windows: too short") from None
        if magic != _MAGIC or width not in (2, 4):
            raise ValueError("token windows: unknown format")
        at = _HEADER.size
        all_lengths: list[list[int]] = []
        for _ in range(models):
            if at + 4 > len(data):
                raise ValueError("token windows: truncated")
            (count,) = struct.unpack_from("<I", data, at)
            if count * 4 > len(data) - at - 4:
                raise ValueError("token windows: truncated")
            all_lengths.append(np.frombuffer(data, "<u4", count, at + 4).tolist())
            at += 4 + 4 * count
        total = sum(sum(lengths) for lengths in all_lengths)
        if total * width != len(data) - at or any(0 in lengths for lengths in all_lengths):
            raise ValueError("token windows: lengths do not match the data")
        ids = np.frombuffer(data, "<u2" if width == 2 else "<u4", total, at)
        if width == 4 and total and int(ids.max()) > np.iinfo(np.int32).max:
            raise ValueError("token windows: id out of range")
        stream = ids.astype(np.int32)
        per_model, start = [], 0
        for lengths in all_lengths:
            windows = []
            for length in lengths:
                windows.append(stream[start : start + length])
                start += length
            per_model.append(tuple(windows))
        return cls(tuple(per_model))


class _ToIds(Protocol):
    def __call__(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class _Cutter:
    """One model's tokenizer and window shape."""

    to_ids: _ToIds
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    body_tokens: int
    overlap_tokens: int

    def __call__(self, text: str) -> Iterator[Ids]:
        ids = self.to_ids(text)
        if not ids:
            return
        frame = len(self.prefix) + len(self.suffix)
        for start, end in spans(len(ids), self.body_tokens, self.overlap_tokens):
            window = np.empty(end - start + frame, np.int32)
            window[: len(self.prefix)] = self.prefix
            window[len(self.prefix) : len(self.prefix) + end - start] = ids[start:end]
            window[len(window) - len(self.suffix) :] = self.suffix
            yield window


def spans(tokens: int, body: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Cut [0, tokens) into the fewest spans of at most `body`, neighbours sharing >= `overlap`.

    All spans are equally long, and together they cover every position.
    """
    count = 1 if tokens <= body else -(-(tokens - overlap) // (body - overlap))
    length = min(tokens, -(-(tokens + (count - 1) * overlap) // count))
    for i in range(count):
        start = 0 if count == 1 else i * (tokens - length) // (count - 1)
        yield start, start + length


def windows_worth(windows: Sequence[Ids], max_tokens: int) -> float:
    """How many windows of `max_tokens` the tokens of these would fill; at least 1.

    Equal ones count once: whoever repeats a window adds no chance of a false alarm.
    """
    different = {ids.tobytes(): len(ids) for ids in windows}
    return max(1.0, sum(different.values()) / max_tokens)


class WindowTokenizer:
    """Cuts the texts of a request into windows for every model of the policy. Thread-safe."""

    def __init__(self, cutters: Iterable[_Cutter]) -> None:
        self._cutters = tuple(cutters)

    @classmethod
    def load(cls, policy: EncoderPolicy) -> WindowTokenizer:
        """:raises WeightsError: a tokenizer file is missing, damaged or does not fit."""
        directory = policy.weights or checkpoint.shipped()
        config = checkpoint.read_config(directory)
        tokenizer, to_ids = _reading(checkpoint.read_tokenizer(directory, config), str(directory))
        if tokenizer.get_vocab_size() > config.architecture.vocab_size:
            raise WeightsError(f"{directory}: the tokenizer has more tokens than the model")
        window = config.window
        ours = _cutter(tokenizer, to_ids, window.max_tokens, window.overlap_tokens, str(directory))
        others = (_classifier_cutter(read_classifier_config(p)) for p in policy.classifiers)
        return cls([ours, *others])

    def __call__(self, texts: Sequence[str]) -> Windows:
        """Every token of every text is in at least one window; empty texts have none.

        Half a surrogate pair, which JSON can bring and no tokenizer takes, is read as U+FFFD.
        """
        texts = [_whole(text) for text in texts]
        return Windows(
            tuple(
                tuple(window for text in texts for window in cutter(text))
                for cutter in self._cutters
            )
        )

    def to_ids(self, text: str) -> list[int]:
        """The encoder's ids of a whole text, special tokens left out."""
        return self._cutters[0].to_ids(text)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _classifier_cutter(config: ClassifierConfig) -> _Cutter:
    origin = str(config.directory)
    text = checkpoint.read_file(config.tokenizer_path).decode(errors="replace")
    tokenizer = _parse(text, origin)
    to_ids = ChunkedTokenizer(tokenizer)
    return _cutter(tokenizer, to_ids, config.max_tokens, config.overlap_tokens, origin)


@lru_cache(maxsize=2)
def _reading(text: str, origin: str) -> tuple[Tokenizer, _ToIds]:
    """A checkpoint's tokenizer and the way to its ids. Kept, as the guard and the encoder of a
    process both want it and 30,000 tokens take a quarter of a second to read."""
    tokenizer = _parse(text, origin)
    fast = UncasedWordPiece.fits(tokenizer)
    return tokenizer, UncasedWordPiece(tokenizer) if fast else ChunkedTokenizer(tokenizer)


def _parse(text: str, origin: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # what `tokenizers` raises has no type of its own
        raise WeightsError(f"{origin}: tokenizer.json can't be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[PAD]" written by a user is text, not padding
    return tokenizer


def _cutter(
    tokenizer: Tokenizer, to_ids: _ToIds, max_tokens: int, overlap_tokens: int, origin: str
) -> _Cutter:
    framed = tokenizer.encode("a")
    special = framed.special_tokens_mask
    if 0 not in special:
        raise WeightsError(f"{origin}: the tokenizer reads nothing in a one-letter text")
    first, last = special.index(0), len(special) - special[::-1].index(0)
    prefix, suffix = tuple(framed.ids[:first]), tuple(framed.ids[last:])
    body = max_tokens - len(prefix) - len(suffix)
    if body < 1 or 2 * overlap_tokens > body:
        raise WeightsError(f"{origin}: windows of {max_tokens} tokens leave no room for text")
    return _Cutter(to_ids, prefix, suffix, body, overlap_tokens)
