"""The policy as vLLM's processes see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vauban.errors import PolicyError
from vauban.policy import Policy
from vauban.policy_sources import LoadedPolicy, load_policy

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SECTION = "vauban"


def policy_of(vllm_config: VllmConfig) -> Policy:
    return policy_from(vllm_config.additional_config).policy


def policy_from(additional_config: Any) -> LoadedPolicy:
    """File, environment, and the `vauban` part of `--additional-config`.

    :raises PolicyError: a value is wrong; the server must not start.
    """
    flags = additional_config.get(SECTION, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(flags, Mapping):
        raise PolicyError(f"--additional-config.{SECTION} must be a mapping of policy sections")
    return load_policy(flags)
