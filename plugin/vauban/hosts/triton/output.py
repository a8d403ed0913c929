"""What the LLM gets of a request, and what the client gets of its answer."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final

from vauban.detectors.windows import Windows
from vauban.errors import MalformedRequest
from vauban.hosts.triton.answers import Blocked, Failed, failed
from vauban.hosts.triton.encoder import ROUTE, VERDICT
from vauban.hosts.triton.front import PROMPT, Terms
from vauban.hosts.triton.requests import OUTPUTS
from vauban.hosts.triton.seal import Bundle, Once, Seal, Tickets
from vauban.mark import RESERVED_KEY, Mark, Order, Sealer, new_nonce
from vauban.policy import Policy
from vauban.telemetry import AuditLog
from vauban.text.pii import load_pii
from vauban.text.sanitize import Sanitizer, Stream
from vauban.types import Reason

ANSWER: Final = "answer"
CONTENT_FILTER: Final = "content_filter"
LONGEST_ANSWER_S: Final = 24 * 3600
"""How long a verdict waits for the answer that it is about."""
_NOT_YET: Final = "None"
"""What the LLM says for the reason of a text that has not ended."""
_ASKS_FOR_REASON: Final = OUTPUTS["finish_reason"]

Answer = Mapping[str, Sequence[Any]]
"""Outputs of the LLM by name; each has one element per text."""
Findings = Mapping[tuple[str, str], int]
"""How often a detector found something, by detector and action."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the LLM. `salt`: for its prefix cache, empty for none."""

    ticket: str
    inputs: Mapping[str, Any]
    terms: Terms
    stream: bool
    salt: str = ""


class Jobs:
    """Opens the bundles that `guard_input` made for the LLM, each once.

    The engine half of vauban, which vLLM loads by itself, screens whatever reaches the engine
    without a mark; so a client that calls the LLM model itself is screened there. What comes
    from here has its verdict already, and the mark says so.

    :param tickets: default: for a model of one process.
    """

    def __init__(self, seal: Seal, sealer: Sealer, tickets: Tickets | None = None) -> None:
        self._seal = seal
        self._sealer = sealer
        self._tickets = tickets or Once()

    def open(self, sealed: bytes) -> Job:
        """:raises MalformedRequest: not made by `guard_input`, too old, or used before."""
        bundle = self._seal.open(PROMPT, sealed)
        self._tickets.take(bundle.ticket)
        fields = bundle.fields
        sampling = dict(fields["sampling"])
        mark = Mark(Order.PASS, new_nonce(), "", Windows(()))
        extra = {**(sampling.get("extra_args") or {}), RESERVED_KEY: self._sealer.seal_mark(mark)}
        sampling["extra_args"] = extra
        inputs: dict[str, Any] = {
            "text_input": fields["text"],
            "stream": fields["stream"],
            "sampling_parameters": json.dumps(sampling),
            "exclude_input_in_output": True,
        }
        terms = Terms(**fields["terms"])
        # The end of a text is asked for in any case: what is held back of it comes out there.
        inputs.update(dict.fromkeys((*terms.options, _ASKS_FOR_REASON), True))
        return Job(bundle.ticket, inputs, terms, fields["stream"], fields["salt"])

    def close(self, job: Job, answer: Answer) -> bytes:
        """Seal the LLM's answer for `guard_output`: nobody reads it before the verdict."""
        fields = {
            "terms": asdict(job.terms),
            "answer": {k: list(v) for k, v in answer.items()},
        }
        return self._seal.close(ANSWER, Bundle(job.ticket, fields))

    def fail(self, job: Job, error: Exception) -> bytes:
        """Seal why there is no answer. See `GuardOutput`."""
        told = failed(error)
        return self._seal.close(ANSWER, Bundle(job.ticket, {"failed": [told.message, told.code]}))


class Outgoing:
    """One answer on its way to the client, sanitised text by text.

    What comes out does not depend on how the LLM cut it into parts. `stopped`: a detector has
    ended it; nothing more comes out, and the LLM need not go on.
    """

    def __init__(self, terms: Terms, rules: Sanitizer) -> None:
        self.stopped = False
        self._terms = terms
        self._rules = rules
        self._streams: list[Stream | None] = []
        self._cut: set[int] = set()
        self._findings: Counter[tuple[str, str]] = Counter()

    @property
    def findings(self) -> Findings:
        """What was found so far."""
        return sum((s.findings for s in self._streams if s), self._findings)

    def part(self, answer: Answer) -> Answer:
        """What the client gets of one part; parts of one text stand at the same index."""
        said = [str(text) for text in answer.get("text_output", ())]
        reasons = [str(reason) for reason in answer.get("finish_reason", ())]
        reasons += [_NOT_YET] * (len(said) - len(reasons))
        texts = [
            self._feed(index, text, ended=reasons[index] != _NOT_YET)
            for index, text in enumerate(said)
        ]
        asked = {name: v for name, v in answer.items() if self._is_asked(name)}
        return {**asked, "text_output": texts, **self._stop(reasons)}

    def end(self) -> Answer | None:
        """What was still held back where the LLM did not say that a text has ended."""
        texts = [self._finish(index) for index in range(len(self._streams))]
        stop = self._stop([_NOT_YET] * len(texts))
        return {"text_output": texts, **stop} if stop or any(texts) else None

    def _is_asked(self, output: str) -> bool:
        return OUTPUTS.get(output) == "" or OUTPUTS.get(output) in self._terms.options

    def _feed(self, index: int, text: str, *, ended: bool) -> str:
        if index == len(self._streams):
            self._streams.append(None)
            text = self._terms.repeat + text
        stream = self._streams[index]
        if stream is None:
            stream = self._streams[index] = self._rules.stream()
        out = stream.feed(text)
        self._note(index, stream)
        return out + self._finish(index) if ended else out

    def _finish(self, index: int) -> str:
        stream, self._streams[index] = self._streams[index], None
        if stream is None:
            return ""
        rest = stream.finish()
        self._findings += stream.findings
        self._note(index, stream)
        return rest

    def _note(self, index: int, stream: Stream) -> None:
        if stream.stopped:
            self.stopped = True
            self._cut.add(index)

    def _stop(self, reasons: Sequence[str]) -> Answer:
        """Why each text ends, once one of them is stopped: with it all that have not ended."""
        if not self.stopped:
            return {}
        over = [i in self._cut or reason == _NOT_YET for i, reason in enumerate(reasons)]
        return {
            "finish_reason": [
                CONTENT_FILTER if one else reason for one, reason in zip(over, reasons, strict=True)
            ]
        }


class GuardOutput:
    """Lets an answer out once its verdict is in, without what must not leave.

    Whatever ends a request of the ensemble ends it here, where no other step is at work. Before
    2026 Triton kept for ever what belongs to an ensemble's request one step of which failed beside
    another one (core, pull request 466), and waited for it at its end.

    :param observe: called with what was found in each answer, for the host's metrics.
    :raises ConfigError: the policy asks for what is not installed.
    """

    def __init__(
        self, policy: Policy, seal: Seal, observe: Callable[[Findings], None] = lambda _: None
    ) -> None:
        self._policy = policy
        self._digest = policy.digest
        self._seal = seal
        self._observe = observe
        self._audit = AuditLog(policy.audit)
        self._pii = load_pii(policy.output, seal.tag(b"pii"))

    def __call__(self, verdict: bytes, answer: bytes) -> Answer:
        """A whole answer.

        :raises MalformedRequest: the two belong to different requests, or are not ours.
        :raises Blocked: the request was blocked.
        :raises Failed: there is no answer.
        """
        said = self._seal.open(ANSWER, answer)
        judged = self._seal.open(VERDICT, verdict, LONGEST_ANSWER_S)
        if not secrets.compare_digest(said.ticket, judged.ticket):
            raise MalformedRequest("the verdict is about another request")
        if refusal := self.refusal(judged):
            return refusal
        if "failed" in said.fields:
            raise Failed(*said.fields["failed"])
        terms = Terms(**said.fields["terms"])
        outgoing = self.outgoing(terms)
        parts = [outgoing.part(said.fields["answer"])]
        if not outgoing.stopped and (rest := outgoing.end()):
            parts.append(rest)
        self.record(said.ticket, terms, outgoing)
        return joined(parts)

    def refusal(self, judged: Bundle) -> Answer | None:
        """The answer to a blocked request under `answer.blocked: refusal`; None for one that may
        go on.

        :raises Blocked: it may not, and the policy answers that with an error.
        """
        if not judged.fields["blocked"]:
            return None
        answer = self._policy.answer
        if answer.blocked == "error":
            raise Blocked(Reason(judged.fields["reason"]))
        return {"text_output": [answer.refusal], "finish_reason": [CONTENT_FILTER]}

    def outgoing(self, terms: Terms) -> Outgoing:
        rules = Sanitizer(self._policy.output, terms.told, terms.canaries, self._pii)
        return Outgoing(terms, rules)

    def record(self, ticket: str, terms: Terms, outgoing: Outgoing) -> None:
        """Count and audit what was found in an answer: detectors and actions, no text."""
        if not (found := outgoing.findings):
            return
        self._observe(found)
        self._audit.output(
            findings={f"{d}.{action}": n for (d, action), n in sorted(found.items())},
            request_id=ticket,
            principal=terms.principal,
            route=ROUTE,
            policy=self._digest,
        )


def joined(parts: Sequence[Answer]) -> Answer:
    """The parts of an answer as one; of what is not text the last counts."""
    whole: dict[str, Sequence[Any]] = {}
    for part in parts:
        pairs = zip_longest(whole.get("text_output", ()), part["text_output"], fillvalue="")
        whole |= {**part, "text_output": [text + more for text, more in pairs]}
    return whole
