"""guard_encoder: scores a batch of requests and judges each.

With torch in this process, or with the graph of the model that ONNX_MODEL names.
"""

import json

import torch
import triton_python_backend_utils as pb_utils

from vauban.detectors.encoder import Encoder
from vauban.detectors.onnx import GraphElsewhere
from vauban.errors import RequestError
from vauban.hosts.triton.bls import GraphModel, UsersModel, Wire, let_go
from vauban.hosts.triton.encoder import VERDICT, GuardEncoder
from vauban.hosts.triton.extraction import Users, Watching
from vauban.hosts.triton.front import WINDOWS
from vauban.hosts.triton.metrics import TritonMetrics
from vauban.hosts.triton.seal import Seal, SharedOnce, server_secret
from vauban.hosts.triton.settings import policy_of, texts_of


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        policy = policy_of(config)
        wanted = policy.encoder.device
        device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        elsewhere = None
        if graph := texts_of(config).get("ONNX_MODEL"):
            device = "cpu"
            elsewhere = GraphElsewhere(policy.encoder, GraphModel(pb_utils, graph))
        encoder = Encoder.load(policy.encoder, device, elsewhere)
        self._metrics = TritonMetrics(pb_utils)
        secret = server_secret()
        seal = Seal(secret)
        self._watching = Watching(Users(UsersModel(pb_utils), seal))
        self._judge = GuardEncoder(
            policy, encoder.encode, seal, self._metrics.observe, self._watching,
            on_block=SharedOnce(secret).refuse,
        )  # fmt: skip
        self._wire = Wire(pb_utils)

    def execute(self, requests):
        """Every request of the batch is one row or more; each row is one client's."""
        rows = [self._wire.values(request)[WINDOWS].reshape(-1).tolist() for request in requests]
        answers = iter(self._judge([row for request in rows for row in request]))
        return [self._answer([next(answers) for _ in request]) for request in rows]

    def finalize(self):
        self._watching.close()
        self._metrics.close()
        let_go()

    def _answer(self, judged):
        for one in judged:
            if isinstance(one, RequestError):
                return self._wire.failure(one)
        return self._wire.answer({VERDICT: judged}, (-1, 1))
