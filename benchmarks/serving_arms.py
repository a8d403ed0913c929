"""What `serving` compares: vLLM with the guard, without it, with a classifier in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cobatch import policy_arguments
from benchmarks.servers import Server, free_port, guarded_vllm, plain_vllm, running, uvicorn_app
from benchmarks.vs_proxy import PROXIES, Arm
from rich.console import Console

from vauban.errors import ToolFailed
from vauban.redteam.environment import python_of, tool_environ

OFF, ON, MONITOR, PROXY, LLM_GUARD = "off", "on", "monitor", "proxy", "llm-guard"
NAMES = (ON, MONITOR, PROXY, LLM_GUARD)
GUARDED = (ON, MONITOR)
BLOCK_AT = 0.9
"""Attacks score above it and filler below, so that times are not decided by false alarms."""
POLICIES: dict[str, dict[str, Any]] = {
    ON: {"injection": {"block_at": BLOCK_AT}},
    MONITOR: {
        "injection": {"block_at": BLOCK_AT, "mode": "monitor"},
        "extraction": {"mode": "monitor"},
    },
}
LENGTH_FLAGS = ("--max-model-len", "16384")
_PEER = {**PROXIES["proxy, batched"], "PEER_BLOCK_AT": str(BLOCK_AT)}


@contextlib.contextmanager
def arms(directory: Path, wanted: Collection[str], console: Console) -> Iterator[dict[str, Arm]]:
    """`off` and those wanted. llm-guard's is missing where it can't be installed, and the console
    says why.

    :param directory: has the stand-in model in `model`.
    """
    judges = {PROXY: uvicorn_app("benchmarks.peer:classifier", directory, _PEER)}
    if LLM_GUARD in wanted:
        try:
            judges[LLM_GUARD] = _llm_guard(python_of("llm-guard", console), directory)
        except ToolFailed as error:
            console.print(f"llm-guard is left out: {error}", markup=False)
    judges = {name: judge for name, judge in judges.items() if name in wanted}
    guarded = {name: _guarded(name, directory) for name in POLICIES if name in wanted}
    with contextlib.ExitStack() as stack:
        first = {OFF: plain_vllm(directory, LENGTH_FLAGS), **guarded, **judges}
        up = _started(stack, first)
        ways = {**_PEER, "PEER_UPSTREAM": up[OFF].url}
        proxies = {
            name: uvicorn_app(
                "benchmarks.peer:proxy", directory, {**ways, "PEER_CLASSIFIER": up[name].url}
            )
            for name in judges
        }
        fronts = _started(stack, proxies)
        yield {
            name: Arm(fronts[name].url, (up[OFF], server, fronts[name]))
            if name in fronts
            else Arm(server.url, (server,))
            for name, server in up.items()
        }


def _started(
    stack: contextlib.ExitStack, servers: Mapping[str, contextlib.AbstractContextManager[Server]]
) -> dict[str, Server]:
    """All at once: most of a start is waiting for one core's imports."""
    with ThreadPoolExecutor(len(servers) or 1) as pool:
        starting = {name: pool.submit(stack.enter_context, one) for name, one in servers.items()}
    return {name: one.result() for name, one in starting.items()}


@contextlib.contextmanager
def _guarded(name: str, directory: Path) -> Iterator[Server]:
    place = directory / name
    place.mkdir()
    (place / "model").symlink_to(directory / "model")
    audit = {"audit": {"log": str(place / "audit.jsonl")}}
    flags = [*LENGTH_FLAGS, *policy_arguments({**POLICIES[name], **audit})]
    with guarded_vllm(place, flags) as server:
        yield server


@contextlib.contextmanager
def _llm_guard(python: Path, directory: Path) -> Iterator[Server]:
    port = free_port()
    program = Path(__file__).parent / "llm_guard_server.py"
    command = [str(python), str(program), str(port), str(directory / "llm-guard-model")]
    scratch = directory / "llm-guard"
    scratch.mkdir()
    environ = {
        **tool_environ(scratch), "PYTHONPATH": str(Path(__file__).parents[1] / "plugin"),
        "OMP_NUM_THREADS": _PEER["OMP_NUM_THREADS"], "LLM_GUARD_THRESHOLD": str(BLOCK_AT),
    }  # fmt: skip
    with running(command, environ, port, directory / "llm-guard.log") as server:
        yield server
