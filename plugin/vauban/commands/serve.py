"""`vauban serve`: start vLLM with both halves of the guard, on CUDA and CPU builds alike."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any

from vauban.access.identity import Identity, require_safe_bind
from vauban.errors import PolicyError
from vauban.hosts.vllm.runtime import without_runtime
from vauban.policy import Policy
from vauban.policy_sources import FLAG_PREFIX, POLICY_FILE_VARIABLE, load_policy
from vauban.state.store import require_shared
from vauban.types import Mode

LOOPBACK = "127.0.0.1"
_CONFIG_FLAG = "--additional-config"
_SECTION = "vauban"
# Groups that vLLM loads whole unless VLLM_PLUGINS is set, and then only by name.
_DEFAULT_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)


def server_command(
    model: str, flags: Sequence[str], policy_file: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of a guarded vLLM server.

    :param flags: any flags of `vllm serve`, given on unchanged; `--additional-config.vauban.*`
        sets policy fields.
    :raises ConfigError: the policy is wrong, or the server would be open to strangers.
    """
    environ = without_runtime(os.environ)
    if policy_file is not None:
        environ[POLICY_FILE_VARIABLE] = str(policy_file.resolve())
    policy = load_policy(_policy_flags(flags), environ=environ).policy
    arguments = [*flags, *_default_host(policy, flags)]
    require_safe_bind(Identity(policy.identity), _value_of(arguments, "--uds", "--host"))
    if policy.response.mode is not Mode.OFF:  # the front checks this, too, but late
        require_shared(
            policy.state,
            api_servers=_count_of(flags, "--api-server-count", "-asc"),
            engines=_count_of(flags, "--data-parallel-size", "-dp"),
        )
    # uvicorn would believe whoever is on this machine; `identity.trusted_proxies` says whom to.
    environ.setdefault("FORWARDED_ALLOW_IPS", "")
    environ["VLLM_PLUGINS"] = ",".join(_plugins(environ.get("VLLM_PLUGINS")))
    return [*_launcher(model), *arguments], environ


def serve(model: str, flags: Sequence[str], policy_file: Path | None = None) -> None:
    """Become the server: this process is replaced by vLLM's."""
    command, environ = server_command(model, flags, policy_file)
    os.execve(command[0], command, environ)  # noqa: S606 - no shell, our own interpreter


def _launcher(model: str) -> list[str]:
    try:
        distribution("vllm")
    except PackageNotFoundError:
        # The CPU build registers no distribution of that name, and vLLM's own command needs it.
        return [sys.executable, "-m", "vauban.hosts.vllm", "--model", model]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]


def _default_host(policy: Policy, flags: Sequence[str]) -> list[str]:
    """Without keys, listen on loopback instead of vLLM's default, all interfaces."""
    if _value_of(flags, "--uds", "--host") is not None:
        return []
    has_credentials = policy.identity.keys_file or policy.identity.jwks_file
    return [] if has_credentials else ["--host", LOOPBACK]


def _plugins(allowed: str | None) -> list[str]:
    """VLLM_PLUGINS with vauban in it, and nothing lost that vLLM would have loaded without it."""
    if allowed is not None:
        names = [name for name in allowed.split(",") if name]
    else:
        names = [point.name for group in _DEFAULT_GROUPS for point in entry_points(group=group)]
    return list(dict.fromkeys([*names, _SECTION]))


def _value_of(flags: Sequence[str], *names: str) -> str | None:
    """The value of the first of these flags that is given, `--name value` or `--name=value`."""
    for name in names:
        found = None
        for index, flag in enumerate(flags):
            if flag == name and index + 1 < len(flags):
                found = flags[index + 1]
            elif flag.startswith(f"{name}="):
                found = flag.partition("=")[2]
        if found is not None:
            return found
    return None


def _count_of(flags: Sequence[str], *names: str) -> int:
    """A number among the flags; 1 where it is not given, or not a number, which vLLM will tell."""
    value = _value_of(flags, *names)
    return int(value) if value is not None and value.isdecimal() else 1


def _policy_flags(flags: Sequence[str]) -> Mapping[str, Any]:
    """The policy fields among vLLM's flags, so that a wrong one stops before vLLM starts."""
    nested: dict[str, Any] = {}
    if (whole := _value_of(flags, _CONFIG_FLAG)) is not None:
        try:
            config = json.loads(whole)
        except ValueError:
            raise PolicyError(f"{_CONFIG_FLAG}: not valid JSON") from None
        nested = config.get(_SECTION, {}) if isinstance(config, dict) else {}
        if not isinstance(nested, dict):
            raise PolicyError(f"{_CONFIG_FLAG}: {_SECTION} must be a mapping of policy sections")
    for index, flag in enumerate(flags):
        if not flag.startswith(FLAG_PREFIX):
            continue
        path, given, value = flag[len(FLAG_PREFIX) :].partition("=")
        if not given:
            if index + 1 == len(flags):
                raise PolicyError(f"{flag}: a value is missing")
            value = flags[index + 1]
        *parents, leaf = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise PolicyError(f"{flag}: {parent} is not a section")
        node[leaf] = _parsed(value)
    return nested


def _parsed(value: str) -> Any:
    """As vLLM reads it: JSON where it is JSON, else text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
