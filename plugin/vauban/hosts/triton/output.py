"""What the LLM gets of a request, and what the client gets of its answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vauban.detectors.windows import Windows
from vauban.errors import MalformedRequest
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.front import PROMPT
from vauban.hosts.triton.seal import Bundle, Once, Seal
from vauban.mark import RESERVED_KEY, Mark, Order, Sealer, new_nonce
from vauban.policy import AnswerPolicy

ANSWER: Final = "answer"
LONGEST_ANSWER_S: Final = 24 * 3600
"""How long a verdict waits for the answer that it is about."""

Answer = Mapping[str, Sequence[Any]]
"""Outputs of the LLM by name; each has one element per text."""


class TextFilter(Protocol):
    """Edits one text as it grows. Made for it alone, so it may keep state and hold text back."""

    def feed(self, text: str) -> str:
        """What may go out, now that `text` came."""
        ...

    def end(self) -> str:
        """What was held back."""
        ...


class Unchanged:
    """Stands where a sanitiser of output will: text passes as it is."""

    def feed(self, text: str) -> str:
        return text

    def end(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the LLM. `repeat`: text that goes before the answer."""

    ticket: str
    inputs: Mapping[str, Any]
    repeat: str
    stream: bool


class Jobs:
    """Opens the bundles that `guard_input` made for the LLM, each once.

    The engine half of vauban, which vLLM loads by itself, screens whatever reaches the engine
    without a mark; so a client that calls the LLM model itself is screened there. What comes
    from here has its verdict already, and the mark says so.
    """

    def __init__(self, seal: Seal, sealer: Sealer) -> None:
        self._seal = seal
        self._sealer = sealer
        self._once = Once()

    def open(self, sealed: bytes) -> Job:
        """:raises MalformedRequest: not made by `guard_input`, too old, or used before."""
        bundle = self._seal.open(PROMPT, sealed)
        self._once.take(bundle.ticket)
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
        inputs.update(dict.fromkeys(fields["options"], True))
        return Job(bundle.ticket, inputs, fields["repeat"] or "", fields["stream"])

    def close(self, job: Job, answer: Answer) -> bytes:
        """Seal the LLM's answer for `guard_output`: nobody reads it before the verdict."""
        fields = {"repeat": job.repeat, "answer": {k: list(v) for k, v in answer.items()}}
        return self._seal.close(ANSWER, Bundle(job.ticket, fields))


class Outgoing:
    """One answer on its way to the client.

    :param repeat: text that goes before it.
    """

    def __init__(self, repeat: str, new_filter: Callable[[], TextFilter]) -> None:
        self._repeat = repeat
        self._new_filter = new_filter
        self._filters: list[TextFilter] = []

    def part(self, answer: Answer) -> Answer:
        """What the client gets of one part; parts of one text stand at the same index."""
        texts = [str(text) for text in answer.get("text_output", ())]
        while len(self._filters) < len(texts):
            self._filters.append(self._new_filter())
        edited = [edit.feed(text) for edit, text in zip(self._filters, texts, strict=False)]
        repeat, self._repeat = self._repeat, ""
        return {**answer, "text_output": [repeat + text for text in edited]}

    def end(self) -> Answer | None:
        """What the filters still held back, if anything."""
        texts = [edit.end() for edit in self._filters]
        return {"text_output": texts} if any(texts) else None


class GuardOutput:
    """Lets an answer out once its verdict is in.

    :param new_filter: makes what edits one text of an answer.
    """

    def __init__(
        self, policy: AnswerPolicy, seal: Seal, new_filter: Callable[[], TextFilter] = Unchanged
    ) -> None:
        self._policy = policy
        self._seal = seal
        self._new_filter = new_filter

    def __call__(self, verdict: bytes, answer: bytes) -> Answer:
        """A whole answer.

        :raises MalformedRequest: the two belong to different requests, or are not ours.
        """
        said = self._seal.open(ANSWER, answer)
        judged = self._seal.open(VERDICT, verdict, LONGEST_ANSWER_S)
        if not secrets.compare_digest(said.ticket, judged.ticket):
            raise MalformedRequest("the verdict is about another request")
        if refusal := self.refusal(judged):
            return refusal
        outgoing = self.outgoing(said.fields["repeat"])
        whole = dict(outgoing.part(said.fields["answer"]))
        if rest := outgoing.end():
            texts = zip(whole["text_output"], rest["text_output"], strict=True)
            whole["text_output"] = [text + more for text, more in texts]
        return whole

    def refusal(self, judged: Bundle) -> Answer | None:
        """The answer to a blocked request under `answer.blocked: refusal`; None for others."""
        if not judged.fields["blocked"]:
            return None
        return {"text_output": [self._policy.refusal], "finish_reason": ["content_filter"]}

    def outgoing(self, repeat: str) -> Outgoing:
        return Outgoing(repeat, self._new_filter)
