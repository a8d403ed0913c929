"""guard_input: who asks, what the model gets, what the encoder must see."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from vauban.errors import ConfigError
from vauban.hosts.triton.bls import UsersModel, Wire, let_go
from vauban.hosts.triton.extraction import Users
from vauban.hosts.triton.front import PROMPT, WINDOWS, GuardInput
from vauban.hosts.triton.render import ENSEMBLE
from vauban.hosts.triton.seal import Seal, server_secret
from vauban.hosts.triton.served import ServedModel
from vauban.hosts.triton.settings import policy_of, texts_of
from vauban.mark import Sealer
from vauban.protocol.owner import Owners


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        policy, texts = policy_of(config), texts_of(config)
        if not texts.get("MODEL"):
            raise ConfigError("MODEL must name the served model's directory")
        served = ServedModel(Path(texts["MODEL"]), int(texts.get("MAX_MODEL_LEN") or 0))
        secret = server_secret()
        seal = Seal(secret)
        owners = Owners(Sealer(secret), policy.output)
        state = policy.state
        users = Users(UsersModel(pb_utils), seal, state.max_users, state.refresh_ms / 1000)
        self._read = GuardInput(policy, served, seal, owners, ENSEMBLE, users=users)
        self._wire = Wire(pb_utils)

    def execute(self, requests):
        return [self._one(request) for request in requests]

    def finalize(self):
        let_go()

    def _one(self, request):
        try:
            prompt, windows = self._read(self._wire.values(request), request.parameters())
        except Exception as error:  # noqa: BLE001 - its message may hold text
            return self._wire.failure(error)
        return self._wire.answer({PROMPT: prompt, WINDOWS: windows})
