"""What was taken out of a channel, and what stands in its place."""

from __future__ import annotations

from dataclasses import dataclass


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
        return [cut for cut in self.open if cut.end > released]

    def forget(self, released: int) -> None:
        """Nothing before that can be taken out any more."""
        gone = sum(cut.end <= released for cut in self.open[:-1])
        self.past, self.open = self.past + self.open[:gone], self.open[gone:]

    def touch(self, start: int, end: int) -> bool:
        """Whether anything between was taken out."""
        return any(cut.start < end and start < cut.end for cut in (*self.past, *self.open))

    def __bool__(self) -> bool:
        return bool(self.open or self.past)
