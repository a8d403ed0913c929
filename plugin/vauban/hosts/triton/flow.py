"""`guarded_llm_bls`: input, verdict, and only then the LLM, streamed.

Knows Triton only through `Calls`, so that one test drives it without a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from vauban.errors import Overloaded
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.front import PROMPT
from vauban.hosts.triton.output import Answer, Findings, GuardOutput, Job, Jobs, joined
from vauban.hosts.triton.seal import Seal
from vauban.policy import Policy

POLL_S: Final = 0.1
"""How often it is looked, while the LLM says nothing, whether anybody still waits."""


class Calls(Protocol):
    """The other models. What they raise goes to the client as it is."""

    async def screen(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Input and encoder: the sealed prompt and verdict."""

    def stream(self, job: Job) -> AsyncGenerator[Answer, None]:
        """The LLM's responses; closing the iterator ends its work."""


class GuardedFlow:
    """Serves requests, at most `limits.max_in_flight` at once.

    :param observe: called with what was found in each answer.
    """

    def __init__(
        self, policy: Policy, seal: Seal, jobs: Jobs,
        observe: Callable[[Findings], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._seal = seal
        self._jobs = jobs
        self._output = GuardOutput(policy, seal, observe)
        self._free = policy.limits.max_in_flight

    async def serve(
        self,
        calls: Calls,
        inputs: Mapping[str, Any],
        send: Callable[[Answer], Awaitable[None]],
        left: Callable[[], bool],
    ) -> Answer | None:
        """The last of what the client gets, which `send` has not been called with.

        :param left: whether the client has gone.
        :raises RequestError: the request can't be served.
        """
        if not self._free:
            raise Overloaded("too many requests at once")
        self._free -= 1
        try:
            return await self._serve(calls, inputs, send, left)
        finally:
            self._free += 1

    async def _serve(
        self,
        calls: Calls,
        inputs: Mapping[str, Any],
        send: Callable[[Answer], Awaitable[None]],
        left: Callable[[], bool],
    ) -> Answer | None:
        screened = await calls.screen(inputs)
        verdict = self._seal.open(VERDICT, screened[VERDICT])
        if refusal := self._output.refusal(verdict):
            return refusal
        job = self._jobs.open(screened[PROMPT])
        outgoing = self._output.outgoing(job.terms)
        stream = calls.stream(job)
        whole: list[Answer] = []
        try:
            while not outgoing.stopped and (part := await next_part(stream, left)) is not None:
                whole.append(outgoing.part(part))
                if job.stream:
                    await send(whole.pop())
            if not outgoing.stopped and not left() and (rest := outgoing.end()):
                whole.append(rest)
            # What isn't streamed is one response, as clients expect.
            return joined(whole) if whole and not left() else None
        finally:
            await stream.aclose()
            self._output.record(job.ticket, job.terms, outgoing)


async def next_part(
    stream: AsyncGenerator[Answer, None], left: Callable[[], bool]
) -> Answer | None:
    """The next part; None at the end, or when nobody waits for it any more."""
    waiting = asyncio.ensure_future(anext(stream, None))
    try:
        while not left():
            await asyncio.wait({waiting}, timeout=POLL_S)
            if waiting.done():
                return waiting.result()
        return None
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        # An error that it holds would hold this frame, and so itself and the request of our caller.
        del waiting
