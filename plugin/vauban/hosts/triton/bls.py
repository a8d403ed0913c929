"""Tensors and calls of Triton's Python backend, behind the guard's own words.

`utils` is always `triton_python_backend_utils`, which only the models' own processes have.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from vauban.errors import ScreeningFailed, StateUnavailable
from vauban.hosts.triton.answers import Failed, failed
from vauban.hosts.triton.callers import HEADERS
from vauban.hosts.triton.extraction import ASKED, KNOWN
from vauban.hosts.triton.output import Answer, Job
from vauban.hosts.triton.render import GRAPH_INPUT, GRAPH_OUTPUTS, SCREEN, SCREENED
from vauban.hosts.triton.requests import OUTPUTS, read_parameters

LLM: Final = "llm"
KEEP_RESPONSES_S: Final = 2.0
"""How long the responses to a call are kept after the last; the backend needs milliseconds."""
EXTRACTION: Final = "guard_extraction"
STEP_THREADS: Final = 128
LLM_THREADS: Final = 256
"""Requests of one model that the LLM works on at once; others wait for one of them to end."""
ID_CHARS: Final = 32
"""Of the id of a call of the LLM."""
CANCEL: Final = "vauban_cancel"
"""Request parameter of the embedded `llm`: ends the request with this id."""
SALT: Final = "vauban_cache_salt"
"""Another one: the salt for the prefix cache."""


class Wire:
    """Makes and reads what the Python backend passes around."""

    def __init__(self, utils: Any) -> None:
        self._utils = utils

    @staticmethod
    def values(request: Any) -> dict[str, Any]:
        """The inputs of a request by name."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def tensors(self, values: Mapping[str, Any], shape: tuple[int, ...] = (-1,)) -> list[Any]:
        return [self._utils.Tensor(k, _array(v).reshape(shape)) for k, v in values.items()]

    def answer(self, values: Mapping[str, Any], shape: tuple[int, ...] = (-1,)) -> Any:
        return self._utils.InferenceResponse(self.tensors(values, shape))

    def failure(self, error: Exception) -> Any:
        told = failed(error)
        found = self._utils.TritonError(told.message, getattr(self._utils.TritonError, told.code))
        return self._utils.InferenceResponse(error=found)

    def end(self, sender: Any, response: Any = None) -> None:
        """Say that nothing more comes."""
        final = self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is None:
            sender.send(flags=final)
        else:
            sender.send(response, flags=final)


def let_go() -> None:
    """For a model's `finalize`: free what only Python's collector finds.

    It would find a request there when Python ends, and the memory that a request shares with the
    server is gone by then. The process dies of that, or waits for ever for a lock which is no
    longer one, and the server waits for the process (Triton 2.51).
    """
    gc.collect()


class Threads:
    """Wait for other models. What waits for the LLM has threads of its own: the guard's steps, and
    what cancels the LLM's work, must not wait for them.

    Triton's own `async_exec` has one thread per core and four more for all of it, and gives
    nothing back before the first response.
    """

    def __init__(self, name: str) -> None:
        self.steps = ThreadPoolExecutor(STEP_THREADS, f"{name}-steps")
        self.llm = ThreadPoolExecutor(LLM_THREADS, f"{name}-llm")
        self.kept = Kept()


class Kept:
    """Responses that were read to their end, held for `KEEP_RESPONSES_S`.

    A process that dropped them at once died of a segmentation fault, freeing one, after some
    thousand calls (Triton 2.51). The backend has a thread that lets go of them, too, a moment
    later, and holds no lock of Python's when it is the last to do so.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, Any]] = deque()
        self._lock = threading.Lock()

    def add(self, responses: Any) -> None:
        now = self._clock()
        with self._lock:
            self._kept.append((now, responses))
            while self._kept[0][0] < now - KEEP_RESPONSES_S:
                self._kept.popleft()


class LlmCall:
    """One call of the LLM. Its responses are read on a thread, to the end in any case: what
    nobody reads the backend would keep for ever.

    :param arrived: called on that thread with each response, and with None at the end.
    """

    def __init__(self, request: Any, kept: Kept, arrived: Callable[[Any], object]) -> None:
        self._request = request
        self._kept = kept
        self._arrived = arrived
        self.responses: Any = None

    def read(self) -> None:
        """:raises Exception: the backend's own, where the call could not be made."""
        try:
            # Comes with the first response.
            self.responses = self._request.exec(decoupled=True)
            for one in self.responses:
                self._arrived(one)
        finally:
            self._kept.add(self.responses)
            self._arrived(None)


class TritonCalls:
    """Calls other models for one request. See `flow.Calls`.

    :param parameters: the request's parameters, JSON; those that say who asks are given on.
    :param embedded: `llm` is vauban's own, which understands `CANCEL`.
    :raises MalformedRequest: a parameter is given twice.
    """

    def __init__(
        self, utils: Any, parameters: str | None, threads: Threads, *, embedded: bool
    ) -> None:
        self._utils = utils
        self._wire = Wire(utils)
        found = read_parameters(parameters)
        self._parameters = {name: found[name] for name in HEADERS if name in found}
        self._threads = threads
        self._embedded = embedded

    async def screen(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What `guard_screen` says."""
        request = self._utils.InferenceRequest(
            model_name=SCREEN,
            requested_output_names=[name for name, _ in SCREENED],
            inputs=self._wire.tensors(inputs, (1,)),
            parameters=self._parameters,
        )
        response = await _wait(self._threads.steps, request.exec)
        if response.has_error():
            raise _failure(response)
        return {t.name(): t.as_numpy().reshape(-1)[0] for t in response.output_tensors()}

    async def stream(self, job: Job) -> AsyncGenerator[Answer, None]:
        """The LLM's responses. Closed early, it tells the LLM to stop."""
        name = secrets.token_hex(ID_CHARS // 2)
        wanted = [out for out, flag in OUTPUTS.items() if not flag or job.inputs.get(flag)]
        request = self._utils.InferenceRequest(
            model_name=LLM,
            requested_output_names=wanted,
            inputs=self._wire.tensors(job.inputs, (1,)),
            request_id=name,
            parameters={SALT: job.salt} if job.salt and self._embedded else {},
        )
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Any] = asyncio.Queue()  # grows to an answer at most
        call = LlmCall(
            request,
            self._threads.kept,
            lambda one: loop.call_soon_threadsafe(arrived.put_nowait, one),
        )
        reading = loop.run_in_executor(self._threads.llm, call.read)
        ended = False
        try:
            while (one := await arrived.get()) is not None:
                if one.has_error():
                    raise _failure(one)
                answer = {t.name(): t.as_numpy().reshape(-1) for t in one.output_tensors()}
                if answer:
                    yield {key: _plain(value) for key, value in answer.items()}
            await reading
            ended = True
        finally:
            if not ended:
                reading.cancel()  # where no thread was free for it yet
                await self._cancel(call, name)
            del reading  # see next_part

    async def _cancel(self, call: LlmCall, name: str) -> None:
        if hasattr(call.responses, "cancel"):  # Triton from 25.04 on
            call.responses.cancel()
        elif self._embedded:
            request = self._utils.InferenceRequest(
                model_name=LLM,
                requested_output_names=["text_output"],
                inputs=self._wire.tensors({"text_input": ""}, (1,)),
                parameters={CANCEL: name},
            )
            cancelling = LlmCall(request, self._threads.kept, lambda _: None)
            await _wait(self._threads.steps, cancelling.read)


def _failure(response: Any) -> Failed:
    """Another model's error, which goes on as it is."""
    error = response.error()
    return Failed(error.message(), error.code().name)


async def _wait(pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


class GraphModel:
    """The encoder's graph in another model of the server. See `detectors.onnx.Run`."""

    def __init__(self, utils: Any, model: str) -> None:
        self._utils = utils
        self._model = model

    def __call__(self, ids: Any) -> tuple[Any, Any]:
        """:raises ScreeningFailed: the model answered with an error."""
        request = self._utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(GRAPH_OUTPUTS),
            inputs=[self._utils.Tensor(GRAPH_INPUT, ids)],
        )
        response = request.exec()
        if response.has_error():
            raise ScreeningFailed("the encoder's graph answered with an error")
        found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        scores, embeddings = (found[name] for name in GRAPH_OUTPUTS)
        return scores, embeddings


class UsersModel:
    """`guard_extraction`, for a model that is not asynchronous. See `extraction.Users`."""

    def __init__(self, utils: Any) -> None:
        self._utils = utils
        self._wire = Wire(utils)

    def __call__(self, asked: bytes) -> bytes:
        """:raises StateUnavailable: the model answered with an error."""
        request = self._utils.InferenceRequest(
            model_name=EXTRACTION,
            requested_output_names=[KNOWN],
            inputs=self._wire.tensors({ASKED: asked}, (1,)),
        )
        response = request.exec()
        if response.has_error():
            raise StateUnavailable("guard_extraction answered with an error")
        (known,) = response.output_tensors()
        return bytes(known.as_numpy().reshape(-1)[0])


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if all(isinstance(item, bool) for item in items):
        return np.array(items, dtype=bool)
    if all(isinstance(item, int) for item in items):
        return np.array(items, dtype=np.uint32)
    encoded = [item.encode() if isinstance(item, str) else bytes(item) for item in items]
    array = np.empty(len(encoded), dtype=object)
    array[:] = encoded
    return array


def _plain(value: Any) -> list[Any]:
    """Texts as str, numbers as int."""
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else item
            for item in value.tolist()]  # fmt: skip
