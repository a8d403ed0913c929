"""What was taken out of a channel, and what stands in its place."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

_end = attrgetter("end")


@dataclass(frozen=True, slots=True)
class Cut:
    """Characters `start` to `end` of a channel, taken out."""

    start: int
    end: int
    detector: str
    mark: str


class Cuts:
    """The cuts of one channel, in order: `past` has been let out, `open` still may grow."""

    def __init__(self) -> None:
        self.past: list[Cut] = []
        self.open: list[Cut] = []

    def add(self, start: int, end: int, detector: str, mark: str) -> None:
        """What overlaps becomes one cut, under the mark of the one that begins first."""
        while self.open and (
            self.open[-1].end > start
            or (self.open[-1].end == start and self.open[-1].detector == detector)
        ):
            known = self.open.pop()
            if known.start <= start:
                start, detector, mark = known.start, known.detector, known.mark
            end = max(end, known.end)
        self.open.append(Cut(start, end, detector, mark))

    def after(self, released: int) -> list[Cut]:
        gone = bisect_right(self.open, released, key=_end)
        return self.open[gone:]

    def forget(self, released: int) -> None:
        """Nothing before that can be taken out any more."""
        gone = bisect_right(self.open[:-1], released, key=_end)
        self.past += self.open[:gone]
        del self.open[:gone]

    def touch(self, start: int, end: int) -> bool:
        """Whether anything between was taken out. Quick for what was let out lately."""
        for cut in chain(reversed(self.open), reversed(self.past)):
            if cut.end <= start:
                return False
            if cut.start < end:
                return True
        return False

    def __bool__(self) -> bool:
        return bool(self.open or self.past)
