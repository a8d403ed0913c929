"""What `serving` compares: vLLM with the guard, without it, with a classifier in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cobatch import policy_arguments
from benchmarks.servers import Server, free_port, guarded_vllm, plain_vllm, running, uvicorn_app
from benchmarks.vs_proxy import PROXIES, Arm
from rich.console import Console

from vauban.errors import ToolFailed
from vauban.redteam.environment import python_of, tool_environ

OFF, ON, MONITOR, PROXY, LLM_GUARD = "off", "on", "monitor", "proxy", "llm-guard"
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
def arms(directory: Path, console: Console) -> Iterator[dict[str, Arm]]:
    """All of them, started one after the other. llm-guard's is missing where it can't be installed,
    and the console says why."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(plain_vllm(directory, LENGTH_FLAGS))
        found = {OFF: Arm(plain.url, (plain,))}
        for name, policy in POLICIES.items():
            place = directory / name
            place.mkdir()
            audit = {"audit": {"log": str(place / "audit.jsonl")}}
            given = [*LENGTH_FLAGS, *policy_arguments({**policy, **audit})]
            server = stack.enter_context(guarded_vllm(place, given))
            found[name] = Arm(server.url, (server,))
        judges = {PROXY: uvicorn_app("benchmarks.peer:classifier", directory, _PEER)}
        try:
            python = python_of("llm-guard", console)
        except ToolFailed as error:
            console.print(f"llm-guard is left out: {error}", markup=False)
        else:
            judges[LLM_GUARD] = _llm_guard(python, directory)
        for name, starting in judges.items():
            judge = stack.enter_context(starting)
            ways = {**_PEER, "PEER_UPSTREAM": plain.url, "PEER_CLASSIFIER": judge.url}
            proxy = stack.enter_context(uvicorn_app("benchmarks.peer:proxy", directory, ways))
            found[name] = Arm(proxy.url, (plain, judge, proxy))
        yield found


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
