"""Real vLLM servers with the guard in them, on a stand-in model and with the shipped encoder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from vauban.commands.local_server import LocalServer, free_port, running
from vauban.commands.serve import server_command
from vauban.standin import MAX_MODEL_LEN, make_standin

MODEL = "standin"
ANSWER_S = 120


class Live:
    """A running server and the ways to talk to it."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self.url = server.url
        self.http = httpx.Client(base_url=server.url, timeout=ANSWER_S)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def answers(self, url: str) -> bool:
        try:
            return self.http.get(url, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def log(self) -> str:
        return self.server.log.read_text(encoding="utf-8", errors="replace")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have these labels."""
        found = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            key, _, inside = sample.partition("{")
            if key == name and all(f'{n}="{v}"' in inside for n, v in labels.items()):
                found += float(value)
        return found

    def settle(self, name: str, wanted: float, seconds: float = 30) -> float:
        """A metric once it has reached a value, or as it is after `seconds`."""
        deadline = time.monotonic() + seconds
        while (value := self.metric(name)) != wanted and time.monotonic() < deadline:
            time.sleep(0.2)
        return value

    def decisions(self) -> list[dict[str, Any]]:
        """The audit events so far."""
        lines = (line for line in self.log().splitlines() if line.startswith("{"))
        return [row for row in map(json.loads, lines) if row.get("event") == "decision"]


Start = Callable[..., AbstractContextManager[Live]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_standin(tmp_path_factory.mktemp("model") / "standin")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Start:
    """start(*flags, environ=..., path=...) -> a guarded server, as a context manager.

    A variable of `environ` that is None is taken away.
    """

    state = tmp_path_factory.mktemp("state")

    @contextmanager
    def run(
        *flags: str, environ: dict[str, str | None] | None = None, path: Path | None = None,
        max_model_len: int = MAX_MODEL_LEN, wait: bool = True,
    ) -> Iterator[Live]:  # fmt: skip
        port = free_port(None)
        command, inherited = server_command(
            str(path or model),
            [
                "--served-model-name", MODEL, "--port", str(port), "--enforce-eager",
                "--dtype", "float32", "--max-model-len", str(max_model_len), "--enable-scale-out",
                *flags,
            ],
        )  # fmt: skip
        wanted = {
            **inherited,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "XDG_STATE_HOME": str(state),  # approvals are kept there
            **(environ or {}),
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        log = tmp_path_factory.mktemp("server") / "server.log"
        with running(command, given, port, log) as server:
            live = Live(server)
            if wait:
                server.wait_ready(live.answers)
            yield live
            live.http.close()

    return run


@pytest.fixture(scope="session")
def live(start: Start) -> Iterator[Live]:
    """The one server that most tests share."""
    with start("--additional-config.vauban.answer.details", "true") as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the server's log beside a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Live):
                report.sections.append(("end of the server's log", value.server.tail()))
