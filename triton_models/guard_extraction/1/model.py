"""guard_extraction: who explores the model, and how every user is treated. One for the server."""

import json
import os

import triton_python_backend_utils as pb_utils

# FAISS works on a row or a few at a time here: a second thread only waits for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from vauban.hosts.triton.bls import Wire, let_go
from vauban.hosts.triton.extraction import ASKED, KNOWN, GuardExtraction, at_start
from vauban.hosts.triton.metrics import UserMetrics
from vauban.hosts.triton.seal import Seal, server_secret
from vauban.hosts.triton.settings import policy_of


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        policy = policy_of(config)
        self._metrics = UserMetrics(pb_utils)
        self._users = GuardExtraction(
            policy,
            Seal(server_secret()),
            instances=sum(int(group["count"]) for group in config.get("instance_group", [])),
            on_evidence=self._metrics.observe,
            on_transition=self._metrics.observe_transition,
        )
        self._wire = Wire(pb_utils)
        pb_utils.Logger.log_info(f"guard_extraction: {at_start(policy)}")

    def execute(self, requests):
        return [self._one(request) for request in requests]

    def finalize(self):
        self._users.close()
        self._metrics.close()
        let_go()

    def _one(self, request):
        try:
            known = self._users(self._wire.values(request)[ASKED].reshape(-1)[0])
        except Exception as error:  # noqa: BLE001 - the caller's next step is the policy's
            return self._wire.failure(error)
        return self._wire.answer({KNOWN: known})
