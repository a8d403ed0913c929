"""Takes out of a model's answer what must not leave, before the client sees it.

A `Sanitizer` holds the rules of one answer, a `Stream` reads one channel of it: the text, the
reasoning, or the arguments of one tool call. Text is read unit by unit, and a unit is judged when
it is complete, by itself and by what stood before it. So what comes out depends on the whole text
only, never on how it was cut into pieces. Held back are the last `hold_back` characters, a word
that is not complete, and a run of the operator's words that may become a leak; all are bounded.

Covers: credentials, also long ones (of a key block each line; of a word over `MAX_WORD_CHARS` the
rest shares what came before); canaries; the operator's sentences; pictures and links to other
hosts; markup that runs; control characters.
Does not cover: other things that the model was told to write in disguise.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from vauban.policy_output import OUTPUT_DETECTORS, OutputPolicy
from vauban.text import canary, controls
from vauban.text.canary import Listener
from vauban.text.cuts import Cuts
from vauban.text.halves import MAX_HALF_CHARS, secret_across
from vauban.text.json_strings import JsonStrings, PlainEscapes
from vauban.text.overlap import Follower, Overlap
from vauban.text.passages import JSON_UNIT, MAX_TICKS, MAX_WORD_CHARS, UNIT, Passage, Passages
from vauban.text.pii import Entity, Pii, PiiReader
from vauban.text.quiet import LOOK_AHEAD_CHARS, NotableWords, first_notable

BLOCK_CHARS: Final = 768
_HISTORY_CHARS: Final = MAX_HALF_CHARS
_ENDING = ("stop", "hold")


class Sanitizer:
    """The rules for one answer.

    :param operator_texts: what must not be repeated at length.
    :param canaries: marks that must not be said, beside those of the policy.
    :param pii: finds personal data; see `pii.load_pii`.
    """

    def __init__(
        self,
        policy: OutputPolicy,
        operator_texts: Iterable[str] = (),
        canaries: Iterable[str] = (),
        pii: Pii | None = None,
    ) -> None:
        self.policy = policy
        self.actions: dict[str, str] = {name: getattr(policy, name) for name in OUTPUT_DETECTORS}
        looked_for = (*policy.canaries, *canaries) if self.actions["canary"] != "off" else ()
        self.canaries = canary.spellings(looked_for)
        self.canary_ends = canary.ends_of(self.canaries)
        texts = operator_texts if self.actions["prompt"] != "off" else ()
        self.overlap = Overlap(texts, policy.prompt_words)
        self.pii = pii
        self.hosts = tuple(host.lower().strip(".") for host in policy.allowed_hosts)

    def stream(self, *, json: bool = False, markup: bool = True) -> Stream:
        """A reader for one channel.

        :param json: the text is JSON, as the arguments of a tool call are.
        :param markup: somebody's program may render it.
        """
        return Stream(self, json=json, markup=markup)

    def whole(self, text: str, *, json: bool = False, markup: bool = True) -> tuple[str, Stream]:
        """What may go out of a whole text, and the reader it went through."""
        stream = self.stream(json=json, markup=markup)
        return stream.feed(text) + stream.finish(), stream

    def with_actions(self, **others: str) -> Sanitizer:
        """The same rules, but each action that is named does something else."""
        made = copy.copy(self)
        made.actions = {name: others.get(action, action) for name, action in self.actions.items()}
        return made

    def takes(self, detector: str) -> bool:
        """Whether what this detector finds is taken out."""
        return self.actions[detector] not in ("monitor", "off")

    def mark(self, detector: str) -> str:
        if detector == "control":
            return ""
        if self.actions[detector] == "replace":
            return self.policy.replacement
        return f"[redacted: {detector}]"


class Stream:
    """Reads one channel. `stopped`: a detector ended the answer; nothing more comes out. `held`: it
    did so until somebody releases the answer.

    `findings` counts by detector and action. `fed` and `released` are characters, without dropped
    control characters; `cuts` is what was taken out.
    """

    def __init__(self, rules: Sanitizer, *, json: bool, markup: bool) -> None:
        self.stopped = self.held = False
        self.findings: Counter[tuple[str, str]] = Counter()
        self.cuts = Cuts()
        self.released = 0
        self._rules = rules
        self._hold = rules.policy.hold_back
        self._json = json
        self._unit = JSON_UNIT if json else UNIT
        self._passages = Passages(rules.hosts, markup=markup and not json, json=json)
        self._strings = JsonStrings() if json else None
        self._plain = PlainEscapes() if json else None
        self._pii = PiiReader(rules.pii) if rules.pii is not None else None
        self._buffer = ""
        self._base = self._read_to = 0  # where in the channel the buffer begins
        self._words = NotableWords(counts_drawn=not rules.takes("entropy"))
        self._floor = 0  # retroactive cuts begin here at the earliest
        self._follower = Follower(rules.overlap) if rules.overlap else None
        self._listener = Listener(rules.canaries, rules.canary_ends) if rules.canaries else None
        self._before = ""  # the last words of what stands before

    @property
    def fed(self) -> int:
        return self._base + len(self._buffer)

    @property
    def taken(self) -> int:
        """As `fed`, with the beginning of an escape, which is not read yet."""
        return self.fed + (len(self._plain.rest) if self._plain is not None else 0)

    def feed(self, text: str) -> str:
        """Read on; returns what may go out now."""
        if self._plain is not None:
            text = self._plain.feed(text)
        if self.stopped or not text:
            return ""
        clean = self._rules.actions["control"] == "off" or not controls.are_in(text)
        for piece in (text,) if clean else self._without_control(text):
            self._buffer += piece
            self._read(final=False)
            if self.stopped:
                break
        return self._release(self._read_to - self._hold, final=False)

    def finish(self) -> str:
        """The rest, at the end of the channel."""
        if self.stopped:
            return ""
        if self._plain is not None:
            self._buffer += self._plain.rest
        self._read(final=True)
        if self._pii is not None:
            self._identified(self._pii.close(self._buffer, self._base))
        for passage in self._passages.end():
            self._act(passage)
        return self._release(self.fed, final=True)

    def stands_behind(self, other: Stream | None) -> None:
        """Another text is shown right before this one, which has not begun: canaries, credentials
        and the operator's words that begin there may end here."""
        if other is None:
            return
        unread = other._buffer[other._read_to - other._base :]
        if self._listener is not None and other._listener is not None:
            self._listener.stands_behind(other._listener, unread)
        if self._follower is not None and other._follower is not None:
            self._follower.stands_behind(other._follower, unread)
        self._before = (other._before + other._buffer)[-MAX_HALF_CHARS:]

    def branch(self) -> Stream:
        """A reader of what is put behind this text, which has not been finished. It gives out
        nothing of this text and takes nothing out of it, and counts only what it takes out."""
        rules = self._rules.with_actions(monitor="off")
        made = copy.deepcopy(self, {id(self._rules): rules, id(rules.pii): rules.pii})
        made.findings, made.cuts = Counter(), Cuts()
        made.released = made._floor = self.fed
        return made

    def _without_control(self, text: str) -> Iterator[str]:
        """The pieces between control characters, each of which is counted when it is reached."""
        action = self._rules.actions["control"]
        last = 0
        for found in controls.CONTROL.finditer(text):
            yield text[last : found.start()]
            if action in _ENDING:
                self._read(final=True)
                if not self.stopped:
                    self._count("control", 1)
                    self._halt("control", self.fed)
                return
            self._count("control", 1)
            last = found.start() if action == "monitor" else found.end()
        yield text[last:]

    # -- reading -------------------------------------------------------------------------------

    def _read(self, *, final: bool) -> None:
        buffer, at = self._buffer, self._read_to - self._base
        while not self.stopped and at < len(buffer):
            quiet_to, step = self._skip_quiet(buffer, at)
            at = self._read_units(buffer, quiet_to, quiet_to + step, final=final)
            self._read_to = self._base + at if not self.stopped else self._read_to
            if at < min(quiet_to + step, len(buffer)):
                return  # a unit at the end is not complete

    def _read_units(self, buffer: str, start: int, stop: int, *, final: bool) -> int:
        """Read until something may be skipped at or after `stop`; returns how far it came."""
        end = len(buffer)
        last = start
        gap = self._passages.gap
        for found in self._unit.finditer(buffer, start):
            a, b = found.span()
            if (a >= stop and self._may_skip) or (b == end and not final and self._may_grow(found)):
                end = a
                break
            if last < a:
                gap(buffer[last:a])
            self._step(buffer, a, b, is_word=found.lastindex is not None)
            if self.stopped:
                return b
            last = b
        if self._json and not final and (at := buffer.find("\\", last, end)) >= 0:
            end = at  # the rest of an escape is to come
        gap(buffer[last:end])
        if self._pii is not None:
            self._identified(self._pii.gap(buffer, self._base, end))
        return end

    def _may_grow(self, found: re.Match[str]) -> bool:
        text = found.group()
        if found.group(1) is not None:
            return len(text) < MAX_WORD_CHARS
        return text == "!" or (text[0] == "`" and len(text) < MAX_TICKS)

    def _skip_quiet(self, buffer: str, start: int) -> tuple[int, int]:
        """Pass over text in which no rule could find anything; the result is as if it had been
        read unit by unit. Gives where it came to, and how much to read before it is tried again."""
        while len(buffer) - start > BLOCK_CHARS + LOOK_AHEAD_CHARS and not self._json:
            if not self._may_skip:
                return start, 1
            end = self._words.next(buffer, self._base, start)
            if end is None:
                return start, BLOCK_CHARS
            at, pii = self._passages, self._pii
            end = end if pii is None else pii.first(buffer, start, end)
            stop, fence = first_notable(buffer, start, end, fence=at.fence, in_html=at.is_html)
            to_read = self._words.to_read(stop - start)
            if stop == start:
                return start, to_read
            text = buffer[start:stop]
            if not self._pass_over(text, start):
                return start, min(len(text), BLOCK_CHARS)
            at.skip(text, fence)
            start = stop
            if drawn := self._words.passed(self._base + start):
                self._count("entropy", drawn)
            self._floor = max(self._floor, self._base + start - self._hold)
        return start, BLOCK_CHARS

    @property
    def _may_skip(self) -> bool:
        identifies = self._pii is not None and self._pii.open_from is not None
        follows = self._follower is not None and self._follower.run
        if follows or identifies or (self._before and not self._read_to):
            return False
        return self._passages.may_skip

    def _pass_over(self, text: str, start: int) -> bool:
        """Whether neither a canary nor the operator's words are in a text, which then is read."""
        said = None
        if self._follower is not None:
            at = self._base + start
            said = self._follower.passes_over(text, at, at + len(text) - self._hold)
            if said is None:
                return False
        if self._listener is not None and not self._listener.passes_over(text):
            return False
        if said is not None and self._follower is not None:
            self._follower.skip_to(said)
        return True

    def _step(self, buffer: str, a: int, b: int, *, is_word: bool) -> None:
        start = self._base + a
        if start - self._hold > self._floor:
            self._floor = max(self._floor, self._open(start - self._hold))
        if self._pii is not None:
            self._identified(self._pii.unit(buffer, self._base, a, b, is_word=is_word))
        if not start and self._before and (end := secret_across(self._before, buffer[:b])):
            self._act(Passage("secrets", a, end))
        for passage in self._passages.unit(buffer, a, b, is_word=is_word):
            self._act(passage)
        if self._json and not is_word and controls.JSON_CONTROL.fullmatch(buffer, a, b):
            self._act(Passage("control", a, b))
        if self._follower is not None and not self.stopped:
            for first, end, begins in self._follower.unit(buffer[a:b], start):
                if begins:
                    self._count("prompt", 1)
                self._take("prompt", first, end)
        if is_word and self._listener is not None and not self.stopped:
            heard = self._listener.hears(buffer, a, b)
            if heard is not None:
                self._act(Passage("canary", heard, b))

    def _open(self, otherwise: int) -> int:
        """Where what is held for another reason than `hold_back` begins."""
        if self._follower is not None and self._rules.takes("prompt"):
            run_from = self._follower.suspect
            otherwise = otherwise if run_from is None else min(otherwise, run_from)
        if self._pii is not None and self._pii.open_from is not None:
            otherwise = min(otherwise, self._pii.open_from)
        suspect = self._passages.suspect
        return otherwise if suspect is None else min(otherwise, self._base + suspect)

    def _identified(self, entities: Iterable[Entity]) -> None:
        for one in entities:
            if self.stopped or self._rules.pii is None:
                return
            self._count("pii", 1)
            mark = self._rules.pii.mark(one.kind, self._text(one.start, one.end))
            self._take("pii", one.start, one.end, mark)

    # -- what to do ------------------------------------------------------------------------------

    def _act(self, passage: Passage) -> None:
        if self._rules.actions[passage.detector] == "off" or self.stopped:
            return
        if passage.counts:
            self._count(passage.detector, 1)
        self._take(passage.detector, self._base + passage.start, self._base + passage.end)

    def _count(self, detector: str, number: int) -> None:
        action = self._rules.actions[detector]
        if action != "off":
            self.findings[detector, action] += number

    def _take(self, detector: str, start: int, end: int, mark: str | None = None) -> None:
        if not self._rules.takes(detector):
            return
        start = max(start, self._floor)
        if self._rules.actions[detector] in _ENDING:
            self._halt(detector, start)
            return
        if start < end:
            mark = self._rules.mark(detector) if mark is None else mark
            self.cuts.add(start, end, detector, mark)

    def _halt(self, detector: str, at: int) -> None:
        self.stopped = True
        self.held = self._rules.actions[detector] == "hold"
        self._read_to = at

    def _release(self, upto: int, *, final: bool) -> str:
        upto = self._read_to if self.stopped else upto if final else self._open(upto)
        if upto <= self.released:
            return ""
        out: list[str] = []
        at = self.released
        for cut in self.cuts.after(at):
            if cut.start >= upto:
                break
            mark = cut.mark if cut.start >= at else ""
            out.append(self._written(max(at, cut.start), at))
            at = min(cut.end, upto)
            if self._strings is None:
                out.append(mark)
            else:
                out.append(self._strings.drop(self._text(max(cut.start, self.released), at), mark))
        if at < upto:
            out.append(self._written(upto, at))
        self.released = upto
        self._forget()
        return "".join(out)

    def _text(self, start: int, end: int) -> str:
        return self._buffer[start - self._base : end - self._base]

    def _written(self, end: int, start: int) -> str:
        text = self._text(start, end)
        if self._strings is not None:
            self._strings.follow(text)
        return text

    def _forget(self) -> None:
        """Drop what was let out, but for what rules look back on."""
        spare = min(self.released, self._read_to) - _HISTORY_CHARS - self._base
        if spare > BLOCK_CHARS:
            self._buffer = self._buffer[spare:]
            self._base += spare
            self._passages.forget(spare)
            self.cuts.forget(self.released)
