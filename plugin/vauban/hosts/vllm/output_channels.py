"""The readers of one answer's channels; see `output.py`."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from vauban.text.sanitize import Sanitizer, Stream
from vauban.text.sequel import Series

Key = tuple[Any, ...]
_MAX_KNOWN_TEXTS: Final = 8


class Channels:
    """The readers of one answer, and what all of them found.

    `said`: where it is not None, what has come out of each channel is collected there.

    :param repeats: texts come once more, whole, when they are complete; see `repeated`.
    """

    def __init__(self, rules: Sanitizer, *, repeats: bool = False) -> None:
        self.rules = rules
        self.findings: Counter[tuple[str, str]] = Counter()
        self.said: dict[Key, list[str]] | None = None
        self._open: dict[Key, Stream] = {}
        self._series: dict[str, Series] = {}
        self._series_of: dict[Key, Series] = {}
        self._last: dict[Any, Stream] = {}
        self._before_last: Stream | None = None
        self._repeats = repeats
        self._pieces: dict[Key, tuple[bool, list[str], list[str]]] = {}
        self._known: dict[tuple[str, bool], str] = {}

    def feed(
        self, key: Key, text: str, *, json: bool = False, series: str | None = None,
        turn: Any = None,
    ) -> tuple[str, Stream]:  # fmt: skip
        """
        :param series: programs put the channel behind the last one of the same series.
        :param turn: whose channels are shown one below the other: what begins at the end of one may
            end in the next.
        """
        stream = self._open.get(key)
        if stream is None and series is not None:
            self._series_of[key] = self._one_of(series)
            stream = self._series_of[key].begin()
        elif stream is None:
            stream = self.rules.stream(json=json)
        if key not in self._open:
            self._open[key] = stream
            self._before_last, self._last[turn] = self._last.get(turn), stream
            stream.stands_behind(self._before_last)
        cleaned = stream.feed(text)
        if self._repeats:
            _, fed, left = self._pieces.setdefault(key, (json, [], []))
            fed.append(text)
            left.append(cleaned)
        return self._heard(key, cleaned), stream

    def _one_of(self, series: str) -> Series:
        return self._series.setdefault(series, Series(self.rules))

    def reader(self, key: Key) -> Stream | None:
        """That of a channel which has begun and not ended."""
        return self._open.get(key)

    def of_choice(self, index: int) -> list[Key]:
        """The channels of a choice that have not ended, in the order in which they began."""
        return [key for key in self._open if key[0] == index]

    def close(self, key: Key) -> tuple[str, Stream | None]:
        """What is left of a channel that has ended, and its reader."""
        stream = self._open.pop(key, None)
        if stream is None:
            return "", None
        series = self._series_of.pop(key, None)
        rest = stream.finish() if series is None else series.end(stream)
        self.findings.update(stream.findings)
        if self._repeats:
            json, fed, left = self._pieces.pop(key)
            self._know("".join(fed), json, "".join([*left, rest]))
        return self._heard(key, rest), stream

    def close_all(self) -> None:
        """Nothing more is read; what is held is dropped."""
        for stream in self._open.values():
            self.findings.update(stream.findings)
        self._open.clear()

    def whole(
        self, text: str, *, json: bool = False, series: str | None = None, turn: Any = None
    ) -> tuple[str, Stream]:
        """See `feed`."""
        key = ("whole", len(self.said or ()))
        cleaned, stream = self.feed(key, text, json=json, series=series, turn=turn)
        return cleaned + self.close(key)[0], stream

    def _heard(self, key: Key, text: str) -> str:
        if self.said is not None and text:
            self.said.setdefault(key, []).append(text)
        return text

    def repeated(
        self, text: str, *, json: bool = False, series: str | None = None
    ) -> tuple[str, Stream | None]:
        """What is left of a text that was read before, piece by piece, and now comes whole. Where
        it is said otherwise, it is read once more, in the place of the last one."""
        if (text, json) in self._known:
            return self._known[text, json], None
        again = self._one_of(series).again() if series else self.rules.stream(json=json)
        again.stands_behind(self._before_last)
        cleaned = again.feed(text) + again.finish()
        if again.stopped:
            self.findings.update(again.findings)
        else:
            self._know(text, json, cleaned)
        return cleaned, again

    def _know(self, text: str, json: bool, left: str) -> None:
        self._known[text, json] = left
        if len(self._known) > _MAX_KNOWN_TEXTS:
            del self._known[next(iter(self._known))]
