"""Reads texts that stand one behind the other in an answer: messages, blocks. Programs put them
together (the `output_text` of OpenAI's SDK is such a text), so what is taken out of one text must
not come out of two either.

Each text is read by itself, as somebody may show it, and what is left of it is read again as what
stands behind the texts before. Those have left already: of what begins in them and ends here, the
part that is here is taken out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

from vauban.text.halves import MAX_HALF_CHARS, secret_across
from vauban.text.sanitize import Sanitizer, Stream

_MIN_HALF_CHARS: Final = 4
"""A name of a country before a checksum is no key."""


class Series:
    """Such texts. One is open at a time; a second one is read by itself."""

    def __init__(self, rules: Sanitizer) -> None:
        self._rules = rules
        self._before: Stream | None = None
        self._before_last: Stream | None = None

    def begin(self) -> Stream:
        """The reader of the next text."""
        before, self._before = self._before, None
        self._before_last = None if before is None else before.branch()
        return self._rules.stream() if before is None else Sequel(self._rules, before)

    def again(self) -> Stream:
        """A reader of the last text that was begun, should it be said once more, and otherwise."""
        before = self._before_last
        return self._rules.stream() if before is None else Sequel(self._rules, before.branch())

    def end(self, stream: Stream) -> str:
        """The rest of a text, whose reader this is."""
        if not isinstance(stream, Sequel):
            self._before = stream.branch()
            return stream.finish()
        rest = stream.finish()
        self._before = stream.branch()
        return rest


class Sequel(Stream):
    """Reads a text that stands behind others.

    :param before: the branch of the last of these.
    """

    def __init__(self, rules: Sanitizer, before: Stream) -> None:
        super().__init__(rules, json=False, markup=True)
        self._together = self._next = before

    def feed(self, text: str) -> str:
        """See `Stream.feed`."""
        said = self._together.feed(super().feed(text))
        if self.stopped:
            said += self._together.finish()
        self._note()
        return said

    def finish(self) -> str:
        """See `Stream.finish`."""
        said = self._together.feed(super().finish())
        self._next = self._together.branch()
        said += self._together.finish()
        self._note()
        return said

    def branch(self) -> Stream:
        """See `Stream.branch`, but once it is finished."""
        return self._next

    def _note(self) -> None:
        if self._together.stopped:
            self.stopped, self.held = True, self._together.held
        self.findings.update(self._together.findings)
        self._together.findings.clear()


def leaks_jointly(rules: Sanitizer, texts: Sequence[str]) -> bool:
    """Whether texts that somebody could put together say a canary or the operator's sentences, as
    far as these rules take them out, or a credential of which at least `_MIN_HALF_CHARS` stand on
    each side of where two of them meet."""
    before = ""
    for text in texts if rules.takes("secrets") else ():
        if secret_across(before, text, _MIN_HALF_CHARS) is not None:
            return True
        before = (before + text)[-MAX_HALF_CHARS:]
    if not (rules.canaries or rules.overlap):
        return False
    strict = copy.copy(rules)
    strict.pii = None
    strict.actions = {
        name: "redact" if name in ("canary", "prompt") and rules.takes(name) else "off"
        for name in rules.actions
    }
    return bool(strict.whole("\n".join(texts), markup=False)[1].findings)
