"""guard_llm: calls `llm` with what guard_input made, and seals what it says.

The ensemble's way to the LLM. Whole answers only, so not decoupled: Triton lets no step of an
ensemble take one input from a decoupled model and another one from elsewhere. The requests of one
batch run side by side, and an instance takes its next batch when all of them are done.
"""

import asyncio
import json

import triton_python_backend_utils as pb_utils

from vauban.errors import MalformedRequest
from vauban.hosts.triton.bls import Threads, TritonCalls, Wire, let_go
from vauban.hosts.triton.flow import next_part
from vauban.hosts.triton.front import PROMPT
from vauban.hosts.triton.output import ANSWER, Jobs
from vauban.hosts.triton.seal import Seal, SharedOnce, server_secret
from vauban.hosts.triton.settings import texts_of
from vauban.mark import Sealer


class TritonPythonModel:
    def initialize(self, args):
        texts = texts_of(json.loads(args["model_config"]))
        self._embedded = texts.get("LLM_BACKEND", "python") == "python"
        secret = server_secret()
        self._tickets = SharedOnce(secret)
        self._jobs = Jobs(Seal(secret), Sealer(secret), self._tickets)
        self._threads = Threads("guard_llm")
        self._wire = Wire(pb_utils)

    async def execute(self, requests):
        return await asyncio.gather(*(self._one(request) for request in requests))

    def finalize(self):
        let_go()

    async def _one(self, request):
        try:
            rows = self._wire.values(request)[PROMPT].reshape(-1)
            answers = [await self._answer(self._jobs.open(sealed)) for sealed in rows]
            return self._wire.answer({ANSWER: answers}, (-1, 1))
        except Exception as error:  # noqa: BLE001 - a fault of one must not fail the whole batch
            return self._wire.failure(error)

    async def _answer(self, job):
        try:
            return self._jobs.close(job, await self._whole(job))
        except Exception as error:  # noqa: BLE001 - see GuardOutput
            return self._jobs.fail(job, error)

    async def _whole(self, job):
        if job.stream:
            raise MalformedRequest("guarded_llm answers whole; guarded_llm_bls streams")
        calls = TritonCalls(pb_utils, None, self._threads, embedded=self._embedded)
        stream = calls.stream(job)
        whole = {}
        try:
            while part := await next_part(stream, lambda: self._tickets.refused(job.ticket)):
                whole.update(part)
        finally:
            await stream.aclose()
        return whole
