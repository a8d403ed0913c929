"""`guard_encoder`: a batch of sealed windows in, sealed verdicts out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vauban.detectors.windows import Windows
from vauban.errors import MalformedRequest, RequestError, StateUnavailable
from vauban.guard import Guard, encode_each
from vauban.hosts.triton.extraction import Watching, Who
from vauban.hosts.triton.front import WINDOWS
from vauban.hosts.triton.seal import Bundle, Once, Seal, Tickets
from vauban.policy import Policy
from vauban.telemetry import AuditLog, Decision
from vauban.types import Mode, Reason, Verdict

if TYPE_CHECKING:
    from vauban.detectors.encoder import Encoded

logger = logging.getLogger(__name__)

VERDICT: Final = "verdict"
ROUTE: Final = "triton"

Encode = Callable[[Sequence[Windows]], "Sequence[Encoded]"]


class GuardEncoder:
    """Judges requests; Triton's dynamic batcher brings them together.

    :param encode: `Encoder.encode`.
    :param observe: called with every decision, for the host's metrics.
    :param watching: told of what was encoded for whom; None where nobody watches.
    :param on_block: called with the ticket of every request that is blocked.
    :param tickets: default: for a model of one process. A request that was let in once is encoded
        once, or its windows could be sent here past the limit of requests.
    """

    def __init__(
        self,
        policy: Policy,
        encode: Encode,
        seal: Seal,
        observe: Callable[[Decision], None],
        watching: Watching | None = None,
        tickets: Tickets | None = None,
        on_block: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self._tickets = tickets or Once()
        self._digest = policy.digest
        self._guard = Guard(policy)
        self._unread_blocks = self._guard.judge(Reason.UNREAD_TEXT).blocked
        self._encode = encode
        self._seal = seal
        self._observe = observe
        self._on_block = on_block
        self._watching = watching if policy.extraction.mode is not Mode.OFF else None
        self._audit = AuditLog(policy.audit)

    def __call__(self, batch: Sequence[bytes]) -> list[bytes | RequestError]:
        """One answer per request, in order: the sealed verdict, or that the windows are not ours.

        The verdict says `blocked`, `reason` and `score` in [0, 1].
        """
        opened = [self._open(sealed) for sealed in batch]
        waiting = [item for item in opened if not isinstance(item, RequestError)]
        readable = [w for w in waiting if w[0].fields["complete"] or not self._unread_blocks]
        started = time.perf_counter()
        off = not self._policy.encodes
        outcomes = [] if off else encode_each(self._encode, [w for _, w in readable])
        encode_ms = (time.perf_counter() - started) * 1000
        self._tell([bundle for bundle, _ in readable], outcomes)
        found: dict[str, Encoded | Reason] = {
            bundle.ticket: outcome
            for (bundle, _), outcome in zip(readable, outcomes, strict=not off)
        }
        answers: list[bytes | RequestError] = []
        for item in opened:
            if isinstance(item, RequestError):
                answers.append(item)
                continue
            bundle, windows = item
            outcome = found.get(bundle.ticket, Reason.OFF if off else Reason.UNREAD_TEXT)
            answers.append(self._judge(bundle, windows, outcome, len(readable), encode_ms))
        return answers

    def _tell(self, bundles: Sequence[Bundle], outcomes: Sequence[Encoded | Reason]) -> None:
        """Tell who asked what, of all requests in one call. Where that fails, `guard_input` will
        not learn how users are treated either, and the policy says what then."""
        if self._watching is None:
            return
        seen = [
            (Who(**bundle.fields["caller"]), outcome.embedding)
            for bundle, outcome in zip(bundles, outcomes, strict=False)
            if not isinstance(outcome, Reason) and outcome.embedding is not None
        ]
        if not seen:
            return
        try:
            self._watching.watch([who for who, _ in seen], np.stack([row for _, row in seen]))
        except StateUnavailable:
            logger.error("%d requests stay unseen: guard_extraction is too far behind", len(seen))

    def _open(self, sealed: bytes) -> tuple[Bundle, Windows] | RequestError:
        try:
            bundle = self._seal.open(WINDOWS, sealed)
            self._tickets.take(bundle.ticket)
            return bundle, Windows.from_bytes(bundle.data)
        except MalformedRequest as error:
            return error

    def _judge(
        self, bundle: Bundle, windows: Windows, outcome: Encoded | Reason, batch: int,
        encode_ms: float,
    ) -> bytes:  # fmt: skip
        failed = isinstance(outcome, Reason)
        verdict = self._guard.judge(outcome if isinstance(outcome, Reason) else outcome.score)
        self._record(bundle, windows, verdict, None if failed else batch, encode_ms)
        if verdict.blocked:
            self._on_block(bundle.ticket)
        fields: dict[str, Any] = {
            "blocked": verdict.blocked, "reason": verdict.reason.value, "score": verdict.score,
        }  # fmt: skip
        return self._seal.close(VERDICT, Bundle(bundle.ticket, fields))

    def _record(
        self, bundle: Bundle, windows: Windows, verdict: Verdict, batch: int | None,
        encode_ms: float,
    ) -> None:  # fmt: skip
        context = bundle.fields
        decision = Decision(
            request_id=bundle.ticket,
            principal=context["caller"]["id"],
            route=ROUTE,
            action=verdict.action.name.lower(),
            proposed=verdict.proposed.name.lower(),
            reason=verdict.reason.value,
            policy=self._digest,
            standing=context["standing"],
            score=verdict.score if batch and verdict.signals else None,
            chars=context["chars"],
            segments=context["segments"],
            tokens=windows.tokens,
            batch=batch or 0,
            front_ms=context["front_ms"],
            encode_ms=encode_ms if batch else 0.0,
            findings=tuple((name, count) for name, count in context["findings"]),
        )
        self._observe(decision)
        self._audit.decision(decision)
