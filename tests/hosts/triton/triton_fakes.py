"""What tests of the Triton host share besides fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from vauban.hosts.triton.encoder import GuardEncoder
from vauban.hosts.triton.front import GuardInput
from vauban.hosts.triton.seal import Seal
from vauban.policy import Policy
from vauban.telemetry import Decision

SECRET = bytes(range(32))
CONTEXT = 512
THRESHOLDS = {"block_at": 0.9, "flag_at": 0.5}
TRIGGER = "volcano"
"""What `FakeEncoder` of tests/conftest.py scores high."""

MakeInput = Callable[..., GuardInput]


def bytes_tensor(value: str) -> Any:
    array = np.empty(1, object)
    array[0] = value.encode()
    return array


def completion(text: str, **options: Any) -> dict[str, Any]:
    """The tensors of a completion; options are sampling parameters."""
    values = {"text_input": bytes_tensor(text)}
    if options:
        values["sampling_parameters"] = bytes_tensor(json.dumps(options))
    return values


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in messages]
    return {"messages": bytes_tensor(json.dumps(turns))}


class Judged:
    """`guard_encoder` and what it observed."""

    def __init__(
        self, seal: Seal, encode: Any, users: Any = None,
        on_block: Callable[[str], None] = lambda _: None, **sections: Any,
    ) -> None:  # fmt: skip
        injection = THRESHOLDS | sections.pop("injection", {})
        policy = Policy.model_validate(
            {"audit": {"log": "off"}, "injection": injection, **sections}
        )
        self.decisions: list[Decision] = []
        self.judge = GuardEncoder(
            policy, encode, seal, self.decisions.append, users, on_block=on_block
        )
