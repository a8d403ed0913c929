"""guarded_llm_bls: the guard first, then the LLM, streamed."""

import asyncio
import json

import triton_python_backend_utils as pb_utils

from vauban.hosts.triton.bls import Threads, TritonCalls, Wire, let_go
from vauban.hosts.triton.flow import GuardedFlow
from vauban.hosts.triton.metrics import OutputMetrics
from vauban.hosts.triton.output import Jobs
from vauban.hosts.triton.seal import Seal, server_secret
from vauban.hosts.triton.settings import policy_of, texts_of
from vauban.mark import Sealer


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._embedded = texts_of(config).get("LLM_BACKEND", "python") == "python"
        secret = server_secret()
        seal = Seal(secret)
        self._metrics = OutputMetrics(pb_utils, args["model_name"])
        jobs = Jobs(seal, Sealer(secret))
        self._flow = GuardedFlow(policy_of(config), seal, jobs, self._metrics.observe)
        self._threads = Threads("guarded_llm_bls")
        self._wire = Wire(pb_utils)

    async def execute(self, requests):
        await asyncio.gather(*(self._one(request) for request in requests))

    def finalize(self):
        self._metrics.close()
        let_go()

    async def _one(self, request):
        sender = request.get_response_sender()

        async def send(answer):
            sender.send(self._wire.answer(answer))

        try:
            calls = TritonCalls(
                pb_utils, request.parameters(), self._threads, embedded=self._embedded
            )
            inputs = self._wire.values(request)
            last = await self._flow.serve(calls, inputs, send, sender.is_cancelled)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may wait for ever
            self._wire.end(sender, self._wire.failure(error))
        else:
            self._wire.end(sender, self._wire.answer(last) if last else None)
