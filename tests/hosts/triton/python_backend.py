"""Triton's Python backend in this process: as much of its API as the guard's models use.

It runs the models' own files, so their glue is tested where no server can be started. Tensors have
the shapes and types that the real backend gives; `tests/live/triton` has the real one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np

from vauban.hosts.triton.render import ENSEMBLES, STEPS

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        assert array.dtype != object or all(isinstance(item, bytes) for item in array.flat)
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


ErrorCode = Enum("ErrorCode", ["INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"])


class TritonError:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = ErrorCode

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: Any = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors


class Sender:
    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.finished = asyncio.Event()
        self.cancelled = False
        self._loop = asyncio.get_running_loop()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.finished.is_set()
        if response is not None:
            self.responses.append(response)
        if flags:
            self._loop.call_soon_threadsafe(self.finished.set)

    def is_cancelled(self) -> bool:
        return self.cancelled


class Metric:
    def __init__(self) -> None:
        self.values: list[float] = []

    def increment(self, value: float) -> None:
        self.values.append(value)

    observe = increment


class Logger:
    @staticmethod
    def log_info(text: str) -> None:
        """Triton writes it to its own log."""


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = range(3)
    there: ClassVar[WeakSet[MetricFamily]] = WeakSet()

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.there.add(self)
        self.name = name
        self.metrics: dict[str, Metric] = {}

    def Metric(self, labels: dict[str, str], buckets: Any = None) -> Metric:  # noqa: N802
        return self.metrics.setdefault(json.dumps(labels), Metric())


class Server:
    """The models of a repository, loaded by name, and requests to them."""

    def __init__(self, repository: Path) -> None:
        MetricFamily.there.clear()  # those of a server before
        self.repository = repository
        self.models: dict[str, Any] = {}
        self.utils = self._module()

    def load(self, name: str, parameters: dict[str, str]) -> None:
        """Load a model with its file and these parameters.

        :raises Exception: what its `initialize` raises.
        """
        sys.modules["triton_python_backend_utils"] = self.utils
        path = self.repository / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"triton_model_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        values = {key: {"string_value": value} for key, value in parameters.items()}
        config = json.dumps({"parameters": values, "instance_group": [{"count": 1}]})
        place = str(self.repository / name)
        model.initialize({"model_config": config, "model_repository": place, "model_name": name})
        self.models[name] = model

    async def infer(self, request: Any) -> list[InferenceResponse]:
        """All responses to a request."""
        if request.model_name in ENSEMBLES:
            return [await self._ensemble(request)]
        model = self.models.get(request.model_name)
        if model is None:
            return [_missing()]
        self.loop, self.thread = asyncio.get_running_loop(), threading.current_thread()
        request.sender = Sender()
        answers = model.execute([request])
        if asyncio.iscoroutine(answers):
            answers = await answers
        if answers is None:
            await asyncio.wait_for(request.sender.finished.wait(), 60)
            return request.sender.responses
        return list(answers)

    async def _ensemble(self, request: Any) -> InferenceResponse:
        """Step after step, each with those of its inputs that there are by then."""
        steps, outputs = ENSEMBLES[request.model_name]
        there = {tensor.name(): tensor for tensor in request.inputs()}
        for name in steps:
            wanted = [there[key] for key, _ in STEPS[name].inputs if key in there]
            if STEPS[name].batched:
                wanted = [Tensor(one.name(), one.as_numpy().reshape(1, 1)) for one in wanted]
            (response,) = await self.infer(
                self.utils.InferenceRequest(name, wanted, parameters=request.parameters())
            )
            if response.has_error():
                return response
            there |= {tensor.name(): tensor for tensor in response.output_tensors()}
        return InferenceResponse([there[name] for name, _ in outputs])

    def _module(self) -> ModuleType:
        server = self

        class InferenceRequest:
            def __init__(
                self, model_name: str, inputs: Sequence[Tensor],
                requested_output_names: Sequence[str] = (), parameters: Any = None,
                request_id: str = "",
            ) -> None:  # fmt: skip
                self.model_name = model_name
                self._inputs, self._parameters = list(inputs), parameters
                self._request_id = request_id
                self.sender: Sender

            def inputs(self) -> list[Tensor]:
                return self._inputs

            def parameters(self) -> str:
                if isinstance(self._parameters, str):
                    return self._parameters
                return json.dumps(self._parameters or {})

            def request_id(self) -> str:
                return self._request_id

            def get_response_sender(self) -> Sender:
                return self.sender

            def exec(self, *, decoupled: bool = False) -> Any:
                """Blocks, so it is called from other threads; a model that is not asynchronous may
                also be called by another one that isn't."""
                if threading.current_thread() is server.thread:
                    model = server.models.get(self.model_name)
                    return model.execute([self])[0] if model else _missing()
                responses = asyncio.run_coroutine_threadsafe(server.infer(self), server.loop)
                if not decoupled:
                    return responses.result(60)[0]
                # The real backend ends a stream with a response that is empty.
                return _iterate([*responses.result(60), InferenceResponse()])

        module = ModuleType("triton_python_backend_utils")
        for value in (
            Tensor,
            TritonError,
            InferenceResponse,
            InferenceRequest,
            MetricFamily,
            Logger,
        ):
            setattr(module, value.__name__, value)
        module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = TRITONSERVER_RESPONSE_COMPLETE_FINAL  # type: ignore[attr-defined]
        return module


def _missing() -> InferenceResponse:
    return InferenceResponse(error=TritonError("no such model"))


def _iterate(responses: list[InferenceResponse]) -> Iterator[InferenceResponse]:
    yield from responses
