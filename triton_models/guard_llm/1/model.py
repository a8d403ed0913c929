"""guard_llm: calls `llm` with what guard_input made, and seals what it says.

The ensemble's way to the LLM. Whole answers only: a step of an ensemble waits for all its inputs
of the same turn, so a verdict that comes once can't hold back a stream.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import triton_python_backend_utils as pb_utils

from vauban.errors import MalformedRequest, RequestError
from vauban.hosts.triton.bls import StepFailed, TritonCalls, Wire
from vauban.hosts.triton.front import PROMPT
from vauban.hosts.triton.output import ANSWER, Jobs
from vauban.hosts.triton.seal import Seal, server_secret
from vauban.hosts.triton.settings import texts_of
from vauban.mark import Sealer

MAX_THREADS = 256


class TritonPythonModel:
    def initialize(self, args):
        texts = texts_of(json.loads(args["model_config"]))
        self._embedded = texts.get("LLM_BACKEND", "python") == "python"
        secret = server_secret()
        self._jobs = Jobs(Seal(secret), Sealer(secret))
        self._pool = ThreadPoolExecutor(MAX_THREADS, "guard_llm")
        self._wire = Wire(pb_utils)

    async def execute(self, requests):
        await asyncio.gather(*(self._one(request) for request in requests))

    async def _one(self, request):
        sender = request.get_response_sender()
        try:
            sealed = self._wire.values(request)[PROMPT].reshape(-1)[0]
            self._wire.end(sender, self._wire.answer({ANSWER: await self._whole(sealed)}))
        except (RequestError, StepFailed) as error:
            self._wire.end(sender, self._wire.failure(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may wait for ever
            self._wire.end(sender, self._wire.broken(error))

    async def _whole(self, sealed):
        job = self._jobs.open(sealed)
        if job.stream:
            raise MalformedRequest("guarded_llm answers whole; guarded_llm_bls streams")
        calls = TritonCalls(pb_utils, None, self._pool, embedded=self._embedded)
        whole = {}
        async for part in calls.stream(job):
            whole.update(part)
        return self._jobs.close(job, whole)
