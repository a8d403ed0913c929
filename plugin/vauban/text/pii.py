"""Finds personal data in what a model says, by the pattern recognisers of Microsoft Presidio.

Only recognisers that need no language model are used, and nothing is fetched: the list of public
suffixes that addresses are checked by is the one in the `tldextract` package.

Covers: what has a form or a checksum: mail addresses, phone numbers, cards, bank accounts, numbers
of authorities. Does not cover: names, places and dates; words over `MAX_WORD_CHARS`; numbers
outside of strings in the arguments of tools; what the model was told to write in disguise.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vauban.errors import ConfigError
from vauban.policy_output import OutputPolicy
from vauban.text.passages import WORD_CHARS

MAX_ENTITY_CHARS: Final = 48
"""A longer one that is written in several words may be missed."""
MAX_WORD_CHARS: Final = 320
"""A mail address has 254 at most."""
_MAX_GAP_CHARS: Final = 3
_ADDRESS: Final = "EMAIL_ADDRESS"
_MIN_DIGITS: Final = 7
_HASH_CHARS: Final = 16
_MEMBER = re.compile(r"[^\s]*[0-9@][^\s]*|[A-Z]{1,4}|[-./+]{1,3}")
SIGN: Final = re.compile(r"[0-9@]")
"""Where none of these is, there is nothing to find."""
_WORD_LETTERS = "".join(c for c in map(chr, range(33, 127)) if re.match(f"[{WORD_CHARS}]", c))
_SHOWN = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Entity:
    """`kind` as Presidio names it; positions in the text that was read."""

    kind: str
    start: int
    end: int


class Recognizer(Protocol):
    """See `presidio_analyzer.LocalRecognizer`."""

    supported_entities: list[str]

    def analyze(self, text: str, entities: list[str]) -> list[Any]: ...


class Pii:
    """Presidio's recognisers for the entities of a policy, and what is written in their place.

    :param secret: keys the hashes.
    """

    def __init__(
        self, policy: OutputPolicy, recognizers: Iterable[Recognizer], secret: bytes
    ) -> None:
        self._policy = policy
        self._key = hmac.digest(secret, b"vauban pii", "sha256")
        self._recognizers = [(one, list(one.supported_entities)) for one in recognizers]

    def find(self, text: str) -> list[Entity]:
        """What stands in a text, in order, none over another: the surer, then the longer counts."""
        address, number = "@" in text, sum(map(str.isdigit, text)) >= _MIN_DIGITS
        found = [
            (-one.score, one.start - one.end, Entity(one.entity_type, one.start, one.end))
            for recognizer, kinds in self._recognizers
            if (address if kinds == [_ADDRESS] else number)
            for one in recognizer.analyze(text, kinds)
            if one.score >= self._policy.pii_score and one.entity_type in self._policy.pii_entities
        ]
        kept: list[Entity] = []
        for _, _, entity in sorted(found, key=lambda row: (row[0], row[1], row[2].start)):
            if all(entity.end <= other.start or other.end <= entity.start for other in kept):
                kept.append(entity)
        return sorted(kept, key=lambda entity: entity.start)

    def mark(self, kind: str, text: str) -> str:
        """What takes the place of an entity."""
        action = self._policy.pii
        if action == "replace":
            return self._policy.replacement
        if action == "mask":
            return _SHOWN.sub("*", text)
        if action == "hash":
            plain = "".join(_SHOWN.findall(text)).casefold()
            digest = hmac.new(self._key, f"{kind} {plain}".encode(), hashlib.sha256)
            return f"[{kind} {digest.hexdigest()[:_HASH_CHARS]}]"
        return f"[redacted: {kind}]"


class PiiReader:
    """Follows one text, unit by unit, and has it searched where numbers or addresses stand.

    Words with digits or an `@` that follow each other are read together, once nothing more can
    belong to them, or piece by piece where they go on for long. What is found depends on the text
    only.
    """

    def __init__(self, pii: Pii) -> None:
        self._pii = pii
        self._starts: list[int] = []  # of the words that are read together
        self._to = 0
        self._read_to = 0  # whatever ends before was found
        self._settled = 0  # where the last one ended

    @property
    def open_from(self) -> int | None:
        """Where words begin that are not judged yet."""
        return self._starts[0] if self._starts else None

    def unit(self, buffer: str, base: int, a: int, b: int, *, is_word: bool) -> Iterator[Entity]:
        """The next unit, `buffer[a:b]`; what is certain by it. The buffer begins at `base`."""
        if self._starts and not (is_word and self._goes_on(buffer, base, a, b)):
            yield from self.close(buffer, base)
        fits = is_word and b - a <= MAX_WORD_CHARS
        if fits and (self._starts or SIGN.search(buffer, a, b)):
            self._starts.append(base + a)
            self._to = base + b
            if self._to - max(self._starts[0], self._read_to) > 2 * MAX_ENTITY_CHARS:
                self._read_to = self._to - MAX_ENTITY_CHARS
                yield from self._search(buffer, base, upto=self._read_to)
                # Whatever ends behind it begins after the last of these.
                oldest = self._read_to - MAX_ENTITY_CHARS
                before = [s for s in self._starts if s <= oldest]
                self._starts = before[-1:] + self._starts[len(before) :]

    def first(self, buffer: str, start: int, end: int) -> int:
        """Where the first word of `buffer[start:end]` begins that has to be read; `end` if none
        has."""
        found = SIGN.search(buffer, start, end)
        if found is None:
            return end
        before = buffer[start : found.start()]
        return start + len(before.rstrip(_WORD_LETTERS))

    def gap(self, buffer: str, base: int, end: int) -> Iterator[Entity]:
        """The text was read up to `end`, and no unit begins before."""
        if self._starts and base + end - self._to > _MAX_GAP_CHARS:
            yield from self.close(buffer, base)

    def close(self, buffer: str, base: int) -> Iterator[Entity]:
        """Nothing more belongs to what was read."""
        if self._starts:
            yield from self._search(buffer, base, upto=self._to)
            self._starts = []

    def _goes_on(self, buffer: str, base: int, a: int, b: int) -> bool:
        gap = buffer[self._to - base : a]
        fits = len(gap) <= _MAX_GAP_CHARS and "\n" not in gap and b - a <= MAX_WORD_CHARS
        return fits and _MEMBER.fullmatch(buffer, a, b) is not None

    def _search(self, buffer: str, base: int, upto: int) -> Iterator[Entity]:
        start = self._starts[0]
        for one in self._pii.find(buffer[start - base : self._to - base]):
            entity = Entity(one.kind, start + one.start, start + one.end)
            if self._settled <= entity.start and entity.end <= upto:
                self._settled = entity.end
                yield entity


def load_pii(policy: OutputPolicy, secret: bytes) -> Pii | None:
    """The recognisers that a policy asks for; None: it asks for none.

    :raises ConfigError: Presidio is not installed, or has no such recogniser.
    """
    if policy.pii == "off":
        return None
    try:
        from presidio_analyzer import predefined_recognizers
    except ModuleNotFoundError:
        raise ConfigError(
            f"output.pii is {policy.pii}, but Presidio is not installed: pip install 'vauban[pii]',"
            " or set output.pii to off"
        ) from None
    known = _known(predefined_recognizers)
    wanted = list(dict.fromkeys(policy.pii_entities))
    if missing := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"output.pii_entities: {missing[0]} can't be found without a language model; there are"
            f" {', '.join(sorted(known))}"
        )
    made: dict[Any, Recognizer] = {kind: _made(kind, policy) for n in wanted for kind in known[n]}
    return Pii(policy, made.values(), secret)


def _known(module: Any) -> dict[str, list[Any]]:
    """Presidio's classes that need patterns only, by the entity they find."""
    from presidio_analyzer import PatternRecognizer

    found: dict[str, list[Any]] = {}
    kinds: list[Any] = [kind for kind in vars(module).values() if inspect.isclass(kind)]
    for kind in kinds:
        if issubclass(kind, (PatternRecognizer, module.PhoneRecognizer)):
            for entity in kind().supported_entities:
                found.setdefault(entity, []).append(kind)
    return found


def _made(kind: Any, policy: OutputPolicy) -> Any:
    from presidio_analyzer.predefined_recognizers import EmailRecognizer, PhoneRecognizer

    if issubclass(kind, PhoneRecognizer):
        return kind(supported_regions=policy.pii_regions)
    if issubclass(kind, EmailRecognizer):
        from tldextract import TLDExtract

        # Presidio's own asks the network for a newer list.
        extract = TLDExtract(suffix_list_urls=(), cache_dir=None)

        class OfflineEmail(kind):  # type: ignore[misc]
            def validate_result(self, pattern_text: str) -> bool:
                return extract(pattern_text).fqdn != ""

        return OfflineEmail()
    return kind()
