"""guard_output: lets an answer out once its verdict is in, without what must not leave."""

import json

import triton_python_backend_utils as pb_utils

from vauban.hosts.triton.bls import Wire, let_go
from vauban.hosts.triton.encoder import VERDICT
from vauban.hosts.triton.metrics import OutputMetrics
from vauban.hosts.triton.output import ANSWER, GuardOutput
from vauban.hosts.triton.seal import Seal, server_secret
from vauban.hosts.triton.settings import policy_of


class TritonPythonModel:
    def initialize(self, args):
        policy = policy_of(json.loads(args["model_config"]))
        self._metrics = OutputMetrics(pb_utils, args["model_name"])
        self._output = GuardOutput(policy, Seal(server_secret()), self._metrics.observe)
        self._wire = Wire(pb_utils)

    def execute(self, requests):
        return [self._one(request) for request in requests]

    def finalize(self):
        self._metrics.close()
        let_go()

    def _one(self, request):
        values = self._wire.values(request)
        verdict, answer = (values[name].reshape(-1)[0] for name in (VERDICT, ANSWER))
        try:
            return self._wire.answer(self._output(verdict, answer))
        except Exception as error:  # noqa: BLE001 - it must not fail the whole batch
            return self._wire.failure(error)
