"""What the engine half does with the requests that are new in a step, without vLLM's tensors."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vauban.errors import RequestTooLarge
from vauban.guard import Guard
from vauban.hosts.vllm.channel import Report, ReportSender, announce_engine
from vauban.hosts.vllm.runtime import open_runtime
from vauban.hosts.vllm.settings import policy_of
from vauban.mark import Mark, Order, Sealer
from vauban.protocol.bodies import NO_CHARACTER
from vauban.screening import Screened, ScreenQueue, watcher
from vauban.types import Mode, Origin, Reason, Segment, Verdict

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

MAX_REMEMBERED_MARKS = 65_536

Prompt = Callable[[], "list[int] | None"]


@dataclass(eq=False, slots=True)
class Decision:
    """Whether a request is vetoed; None = not known yet. Shared by all rows of one request.

    `asked_by`: the front that waits for the outcome, and the nonce it knows the request by.
    """

    veto: bool | None = None
    screened: Future[Screened] | None = None
    asked_by: tuple[str, bytes] | None = None


class StepScreener:
    """Turns marks (or, without a mark, the prompt itself) into decisions, one batch per step.

    The children of one HTTP request (`n > 1`, several prompts) and a request that resumes after
    preemption carry the same mark and share its decision: nothing is encoded twice.

    :param decode: token ids of an unmarked prompt to text.
    """

    def __init__(
        self,
        guard: Guard,
        queue: ScreenQueue,
        sealer: Sealer,
        sender: ReportSender,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._guard = guard
        self._queue = queue
        self._sealer = sealer
        self._sender = sender
        self._decode = decode
        self._remembered: OrderedDict[bytes, Decision] = OrderedDict()

    @classmethod
    def load(cls, vllm_config: VllmConfig, device: torch.device) -> StepScreener:
        """:raises ConfigError: wrong policy, missing weights, or a runtime that is not private."""
        from vllm.tokenizers import cached_tokenizer_from_config

        from vauban.detectors.encoder import Encoder
        from vauban.hosts.vllm.stream import on_own_stream

        policy = policy_of(vllm_config)
        runtime = open_runtime()
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        encoder = Encoder.load(policy.encoder, device)
        watch = watcher(policy.extraction, policy.state)
        screener = cls(
            Guard(policy),
            ScreenQueue(on_own_stream(encoder.encode, device), policy.encoder.queue_tokens, watch),
            runtime.sealer,
            ReportSender(runtime.sealer, runtime.directory),
            # Read as text, the template's own control tokens would look like a forgery.
            partial(tokenizer.decode, skip_special_tokens=True),
        )
        announce_engine(runtime.directory, policy.digest)
        logger.info("vauban screens in the engine, policy %s", policy.digest)
        return screener

    def launch(self, requests: Sequence[tuple[Any, Prompt]]) -> list[Decision]:
        """Start screening; the work of all requests goes into one batch.

        :param requests: (what stands under the reserved key, how to get the prompt's token ids).
        """
        decisions: list[Decision] = []
        jobs: list[tuple[Mark | None, Decision]] = []
        batch = []
        for sealed, prompt in requests:
            mark = self._sealer.open_mark(sealed) if sealed is not None else None
            if sealed is not None and mark is None:
                logger.warning("a request carried a forged mark; it is treated as unmarked")
            known = self._remembered.get(mark.nonce) if mark is not None else None
            if known is not None:
                decisions.append(known)
                continue
            decision = Decision()
            decisions.append(decision)
            windows = mark.windows if mark is not None else None
            if mark is not None:
                self._remember(mark.nonce, decision)
                if mark.order is Order.PASS:
                    decision.veto = False
            else:
                windows = self._read_unmarked(prompt, decision)
            if decision.veto is None and windows is not None:
                jobs.append((mark, decision))
                batch.append(windows)
        callers = [mark.caller if mark is not None else None for mark, _ in jobs]
        futures = self._queue.submit(batch, callers)
        for (mark, decision), future in zip(jobs, futures, strict=True):
            decision.screened = future
            if mark is not None:
                decision.asked_by = mark.reply, mark.nonce
                future.add_done_callback(partial(self._report, mark.reply, mark.nonce))
        return decisions

    def settle(self, decisions: Sequence[Decision]) -> None:
        """Wait for the encoder and judge. A wait over the policy's timeout is a failure."""
        deadline = time.monotonic() + self._guard.policy.encoder.timeout_ms / 1000
        for decision in decisions:
            if decision.veto is not None:
                continue
            verdict = self._guard.judge(Reason.SCREEN_FAILED)
            if decision.screened is not None:
                try:
                    screened = decision.screened.result(max(0.0, deadline - time.monotonic()))
                    outcome = screened.outcome
                    verdict = self._guard.judge(
                        outcome if isinstance(outcome, Reason) else outcome.score
                    )
                except TimeoutError:
                    verdict = self._guard.judge(Reason.SCREEN_TIMEOUT)
                    if not decision.screened.cancel():
                        self._give_up(decision)
            decision.veto = verdict.blocked
            decision.screened = decision.asked_by = None

    def _give_up(self, decision: Decision) -> None:
        """Tell the front now: the score that is still to come could allow the answer that is being
        vetoed here. A front takes the first report only."""
        if decision.asked_by is not None:
            late: Future[Screened] = Future()
            late.set_result(Screened(Reason.SCREEN_TIMEOUT))
            self._report(*decision.asked_by, late)

    def _remember(self, nonce: bytes, decision: Decision) -> None:
        self._remembered[nonce] = decision
        while len(self._remembered) > MAX_REMEMBERED_MARKS:
            self._remembered.popitem(last=False)

    def _read_unmarked(self, prompt: Prompt, decision: Decision) -> Any:
        """A request that came past the front. Returns windows to encode, or decides at once."""
        rule = self._guard.policy.injection
        if rule.unmarked == "allow" or rule.mode is Mode.OFF:
            decision.veto = False
            return None
        if rule.unmarked == "veto":
            decision.veto = True
            return None
        ids = prompt()
        if ids is None:  # prompt embeddings: there is no text to read
            decision.veto = self._failed().blocked
            return None
        try:
            text = self._decode(ids)
            if NO_CHARACTER in text:  # byte tokens that hide what stands beside them
                raise ValueError("not whole text")
            reading = self._guard.read([Segment(text, Origin.USER)])
        except (RequestTooLarge, OverflowError, IndexError, TypeError, ValueError):
            # Too large, or ids that the tokenizer does not have: nothing that could be read.
            decision.veto = self._failed().blocked
            return None
        if not reading.complete:
            decision.veto = self._failed().blocked
            return None
        return reading.windows

    def _failed(self) -> Verdict:
        return self._guard.judge(Reason.UNREAD_TEXT)

    def _report(self, reply: str, nonce: bytes, done: Future[Screened]) -> None:
        late = Screened(Reason.SCREEN_TIMEOUT)
        screened = late if done.cancelled() else done.result()
        outcome = screened.outcome
        failed = isinstance(outcome, Reason)
        report = Report(
            nonce=nonce,
            score=None if failed else outcome.score,  # type: ignore[union-attr]
            failure=outcome if isinstance(outcome, Reason) else None,
            batch=screened.batch,
            queue_ms=screened.queue_ms,
            encode_ms=screened.encode_ms,
            evidence=screened.evidence,
        )
        self._sender.send(reply, [report])
