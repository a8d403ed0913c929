"""Two views of one text: what the model gets, and what the detector reads.

The model's view has only the invisible taken out (`unicode_clean.py`) and control tokens broken
(`control_tokens.py`); ordinary text of any script, code and maths come through unchanged. The
detector's view is the same text folded further (`fold.py`), plus every hidden or encoded message
in it (`hidden.py`, `decode.py`) as a segment of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vauban.policy import NormalizePolicy
from vauban.text.control_tokens import ENCODER_TOKENS, FAMILY_TOKENS, HTML_TOKENS, ControlTokens
from vauban.text.decode import decode_spans
from vauban.text.fold import fold_characters, fold_words
from vauban.text.hidden import hidden_messages
from vauban.text.unicode_clean import clean
from vauban.types import Mode


@dataclass(frozen=True, slots=True)
class Normalized:
    """One text after normalisation.

    `model`: what the model gets. `guard`: what the detector reads, the folded text first, then one
    segment per encoding found; none is blank, and a blank text has none. `findings`: how often
    each trick was found, without any text. `complete`: False when text is encoded deeper, or
    decodes to more, than the policy's bounds allow, so that some of it is not in `guard`.
    """

    model: str
    guard: tuple[str, ...]
    findings: Mapping[str, int]
    complete: bool


class _Segments:
    """The decoded segments of one text, within the policy's bound."""

    def __init__(self, seen: str, max_chars: int) -> None:
        self.texts: list[str] = []
        self.complete = True
        self._seen = {seen}
        self._left_chars = max_chars

    def add(self, text: str) -> bool:
        """Take `text` unless it is known; what is over the bound is cut and noted."""
        if not text.strip() or text in self._seen:
            return False
        self._seen.add(text)
        if len(text) > self._left_chars:
            self.complete = False
            text = text[: self._left_chars]
        self._left_chars -= len(text)
        if text.strip():
            self.texts.append(text)
        return True


class Normalizer:
    """Callable that normalises one text. Stateless after construction, so threads may share it.

    :param control_tokens: the served tokenizer's special tokens. None given means the tokenizer is
        unknown; then `<s>` and `</s>` are broken too.
    """

    def __init__(self, policy: NormalizePolicy, control_tokens: Iterable[str] = ()) -> None:
        self._policy = policy
        served = frozenset(control_tokens)
        self._model_tokens = ControlTokens(FAMILY_TOKENS | (served or HTML_TOKENS))
        self._guard_tokens = ControlTokens(FAMILY_TOKENS | served | ENCODER_TOKENS)

    def __call__(self, text: str) -> Normalized:
        mode = self._policy.mode
        if mode is Mode.OFF:
            return Normalized(text, (text,) if text.strip() else (), MappingProxyType({}), True)
        cleaned, found = self._clean(text)
        folded, plain, changes = self._fold(cleaned)
        found += changes
        segments = _Segments(folded, self._policy.max_decoded_chars)
        level = [plain] if folded == plain else [plain, folded]
        for kind, message in hidden_messages(text):
            found[kind] += 1
            level += self._add(message, segments)
        too_deep = self._decode(level, segments, found)
        if not segments.complete:
            found["decode_bound"] += 1
        guard = (folded, *segments.texts) if folded.strip() else tuple(segments.texts)
        model = cleaned if mode is Mode.ENFORCE else text
        complete = segments.complete and not too_deep
        return Normalized(model, guard, MappingProxyType(dict(found)), complete)

    def neutralises(self, text: str) -> bool:
        """Whether a text, as it is, holds a control token that this normaliser would break."""
        enforced = self._policy.mode is Mode.ENFORCE and self._policy.neutralise_control_tokens
        return enforced and self._model_tokens.neutralise(text)[1] > 0

    def _clean(self, text: str) -> tuple[str, Counter[str]]:
        cleaned, found = clean(text)
        if not self._policy.neutralise_control_tokens:
            return cleaned, found
        # A space put into a token may part an emoji sequence: clean until nothing changes.
        while True:
            broken, count = self._model_tokens.neutralise(cleaned)
            if not count:
                return cleaned, found
            found["control_token"] += count
            cleaned, more = clean(broken)
            found += more

    def _fold(self, cleaned: str) -> tuple[str, str, Counter[str]]:
        """The detector's text, the text before words were changed (base64 is), and the counts."""
        plain, look_alikes = fold_characters(cleaned)
        folded, changes = fold_words(plain)
        if look_alikes:
            changes["confusable"] = look_alikes
        return self._guard_tokens.neutralise(folded)[0], plain, changes

    def _add(self, message: str, segments: _Segments) -> list[str]:
        """Make a message a segment; returns its forms to decode further, none if it is known."""
        folded, plain, _ = self._fold(clean(message)[0])
        if not segments.add(folded):
            return []
        return [plain] if folded == plain else [plain, folded]

    def _decode(self, level: list[str], segments: _Segments, found: Counter[str]) -> bool:
        """Decode `level`, then what that gave, as deep as the policy says.

        True when something is encoded more often than that: it stays unread.
        """
        for _ in range(self._policy.decode_depth):
            deeper: list[str] = []
            for text in level:
                for kind, decoded, spans in decode_spans(text):
                    fresh = self._add(decoded, segments)
                    if fresh:
                        found[kind] += spans
                        deeper += fresh
                    if not segments.complete:
                        return False
            if not deeper:
                return False
            level = deeper
        deeper_spans = sum(item.spans for text in level for item in decode_spans(text))
        if self._policy.decode_depth and deeper_spans:
            found["decode_depth"] += deeper_spans
            return True
        return False
