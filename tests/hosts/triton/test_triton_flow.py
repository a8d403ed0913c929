"""guarded_llm_bls: the verdict first, then the LLM; a client that leaves ends its work."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
import pytest
from triton_fakes import SECRET, TRIGGER, Judged, MakeInput, completion

from vauban.errors import Overloaded, RequestError
from vauban.hosts.triton.answers import Blocked
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.flow import GuardedFlow, next_part
from vauban.hosts.triton.front import PROMPT
from vauban.hosts.triton.output import Answer, Job, Jobs
from vauban.hosts.triton.seal import Seal
from vauban.mark import Sealer
from vauban.policy import Policy


class Models:
    """The other models, in this process. `parts`: how many the LLM says; it waits before each
    for `go`."""

    def __init__(self, make_input: MakeInput, judged: Judged, parts: int = 3) -> None:
        self._input = make_input()
        self._judge = judged.judge
        self.parts = parts
        self.jobs: list[Job] = []
        self.asked = asyncio.Event()
        self.closed = self.said = 0
        self.go = asyncio.Event()
        self.go.set()

    async def screen(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        prompt, windows = self._input(inputs, "")
        (answer,) = self._judge([windows])
        if isinstance(answer, RequestError):
            raise answer
        return {PROMPT: prompt, VERDICT: answer}

    async def stream(self, job: Job) -> AsyncGenerator[Answer, None]:
        self.jobs.append(job)
        self.asked.set()
        try:
            for number in range(self.parts):
                await self.go.wait()
                self.said += 1
                yield {"text_output": [f"t{number} "]}
        finally:
            self.closed += 1


class Client:
    def __init__(self) -> None:
        self.got: list[str] = []
        self.gone = False

    async def send(self, answer: Answer) -> None:
        self.got += answer["text_output"]

    def left(self) -> bool:
        return self.gone


class Flow(GuardedFlow):
    """Sends also what is left to be sent, as the model does."""

    async def serve(self, calls: Any, inputs: Any, send: Any, left: Any) -> None:
        if last := await super().serve(calls, inputs, send, left):
            await send(last)


def flow(seal: Seal, **sections: Any) -> Flow:
    return Flow(Policy.model_validate(sections), seal, Jobs(seal, Sealer(SECRET)))


@pytest.fixture
def judged(seal: Seal, fake_encoder: Any) -> Judged:
    return Judged(seal, fake_encoder.encode)


async def test_an_allowed_request_is_streamed(
    make_input: MakeInput, seal: Seal, judged: Judged
) -> None:
    models, client = Models(make_input, judged), Client()
    asked = completion("hello ") | {"stream": np.array([True])}
    await flow(seal).serve(models, asked, client.send, client.left)
    assert "".join(client.got) == "t0 t1 t2 "
    assert len(client.got) > 1
    assert models.closed == 1


async def test_what_is_not_streamed_is_one_response(
    make_input: MakeInput, seal: Seal, judged: Judged
) -> None:
    """Triton's generate endpoint and its OpenAI frontend take no more."""
    models, client = Models(make_input, judged), Client()
    await flow(seal).serve(models, completion("hello "), client.send, client.left)
    assert client.got == ["hello t0 t1 t2 "]


async def test_a_blocked_request_never_reaches_the_llm(
    make_input: MakeInput, seal: Seal, judged: Judged
) -> None:
    models, client = Models(make_input, judged), Client()
    with pytest.raises(Blocked):
        await flow(seal).serve(models, completion(TRIGGER), client.send, client.left)
    assert not models.jobs
    assert not client.got


async def test_a_stop_ends_the_llms_work(make_input: MakeInput, seal: Seal, judged: Judged) -> None:
    models, client = Models(make_input, judged, parts=1000), Client()
    stopping = flow(seal, output={"canaries": ["t7t8t9t10t11"]}, audit={"log": "off"})
    await stopping.serve(models, completion("hello "), client.send, client.left)
    assert "".join(client.got) == "hello t0 t1 t2 t3 t4 t5 t6 "
    assert models.closed == 1
    assert models.said < 20


async def test_a_refusal_is_an_answer_without_the_llm(
    make_input: MakeInput, seal: Seal, fake_encoder: Any
) -> None:
    refusing = {"blocked": "refusal", "refusal": "No."}
    judged = Judged(seal, fake_encoder.encode, answer=refusing)
    models, client = Models(make_input, judged), Client()
    guarded = flow(seal, answer=refusing)
    await guarded.serve(models, completion(TRIGGER), client.send, client.left)
    assert client.got == ["No."]
    assert not models.jobs


async def test_when_the_client_leaves_the_llm_is_stopped(
    make_input: MakeInput, seal: Seal, judged: Judged
) -> None:
    models, client = Models(make_input, judged), Client()
    models.go.clear()
    serving = asyncio.create_task(
        flow(seal).serve(models, completion("hello"), client.send, client.left)
    )
    await asyncio.wait_for(models.asked.wait(), 10)
    client.gone = True
    await asyncio.wait_for(serving, 10)
    assert models.closed == 1
    assert not client.got


async def test_over_the_limit_is_an_answer_and_the_place_is_given_back(
    make_input: MakeInput, seal: Seal, judged: Judged
) -> None:
    models, client = Models(make_input, judged), Client()
    guarded = flow(seal, limits={"max_in_flight": 1})
    models.go.clear()
    first = asyncio.create_task(
        guarded.serve(models, completion("hello"), client.send, client.left)
    )
    await asyncio.wait_for(models.asked.wait(), 10)
    with pytest.raises(Overloaded):
        await guarded.serve(models, completion("hello"), client.send, client.left)
    models.go.set()
    await first
    await guarded.serve(models, completion("again"), client.send, client.left)


async def test_an_error_of_the_llm_frees_its_request_at_once() -> None:
    """At the collector's next run it may be too late. See `bls.let_go`."""

    class Request:
        pass

    async def fails(request: Request) -> AsyncGenerator[Answer, None]:
        if isinstance(request, Request):
            raise ValueError("the LLM's own")
        yield {}

    async def ask() -> weakref.ref[Request]:
        request = Request()
        there = weakref.ref(request)
        with pytest.raises(ValueError, match="the LLM's own"):
            await next_part(fails(request), lambda: False)
        return there

    gc.disable()
    try:
        there = await ask()
        await asyncio.sleep(0)
        assert there() is None
    finally:
        gc.enable()
