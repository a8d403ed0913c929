"""A real tritonserver with the guarded models and a real vLLM in it; one for the whole run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from triton_canary import CANARY

from vauban.access.keyfile import add_key
from vauban.commands.local_server import LocalServer, free_port, running
from vauban.hosts.triton.render import Models, render
from vauban.hosts.triton.server import (
    ADMIN_HEADER,
    ADMIN_VARIABLE,
    Ports,
    find_server,
    server_command,
)
from vauban.policy import Policy
from vauban.standin import MAX_MODEL_LEN
from vauban.types import RateLimit

ADMIN = "the-operators-own"
ANSWER_S = 120
ECHO = Path(__file__).with_name("echo_llm.py")


def new_key(keys: Path, name: str, *, service: bool = False) -> str:
    key, _ = add_key(
        keys, name, ["*"], created=datetime.now(UTC), expires=None, limit=RateLimit(),
        service=service,
    )  # fmt: skip
    return key.text


class Triton:
    """A running server and the ways to talk to it. `key`: opens everything."""

    def __init__(self, server: LocalServer, ports: Ports, key: str, repository: Path) -> None:
        self.server = server
        self.ports = ports
        self.key = key
        self.repository = repository
        self.headers = {"authorization": f"Bearer {key}"}
        self.url = f"http://127.0.0.1:{ports.http}"
        self.http = httpx.Client(base_url=self.url, timeout=ANSWER_S)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    def ready(self) -> bool:
        try:
            return self.http.get("/v2/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def generate(self, model: str, key: str | None = "", **inputs: Any) -> httpx.Response:
        """Triton's generate endpoint; the key goes as a parameter, None for none."""
        sent = self.key if key == "" else key
        body = {**inputs, **({"x-api-key": sent} if sent else {})}
        return self.http.post(f"/v2/models/{model}/generate", json=body)

    def ask(self, model: str, text: str, **sampling: Any) -> httpx.Response:
        sampling = {"max_tokens": 4, **sampling}
        return self.generate(
            model, text_input=text, sampling_parameters=json.dumps(sampling),
            exclude_input_in_output=True,
        )  # fmt: skip

    def person(self, name: str) -> str:
        """A key of its own for somebody, which the server knows within a second."""
        return new_key(self.repository.parent / "keys.json", name)

    def admin(self, call: str) -> httpx.Response:
        return self.http.post(
            f"/v2/repository/models/{call}", json={}, headers={ADMIN_HEADER: ADMIN}
        )

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have these labels."""
        text = httpx.get(f"http://127.0.0.1:{self.ports.metrics}/metrics", timeout=30).text
        found = 0.0
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            key, _, inside = sample.partition("{")
            if key == name and all(f'{n}="{v}"' in inside for n, v in labels.items()):
                found += float(value)
        return found

    def stub(self, model: str) -> int:
        """The process that runs a model."""
        wanted = f"/{model}/1/model.py"
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().decode().split("\0")
                group = os.getpgid(int(process.name))
            except (OSError, ValueError):
                continue
            mine = group == self.server.process.pid
            if mine and "triton_python_backend_stub" in line[0] and line[1].endswith(wanted):
                return int(process.name)
        raise AssertionError(f"no process runs {model}")

    def kill(self, model: str) -> None:
        os.kill(self.stub(model), signal.SIGKILL)


Start = Callable[..., AbstractContextManager[Triton]]


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Start:
    """start_triton(echo=False, **policy sections) -> a server, as a context manager.

    :param echo: a model that repeats its input stands where vLLM does, for faults that need no LLM.
    """

    @contextmanager
    def run(*, echo: bool = False, wait: bool = True, **sections: Any) -> Iterator[Triton]:
        place = tmp_path_factory.mktemp("triton")
        keys = place / "keys.json"
        # What tests ask resembles no person's questions.
        key = new_key(keys, "tests", service=True)
        sections.setdefault("identity", {"keys_file": str(keys)})
        sections.setdefault("injection", {"unmarked": "screen"})
        sections.setdefault("state", {"store": f"sqlite:///{place / 'state.db'}"})
        sections.setdefault(
            "response", {"service_ceiling": "flagged", "slow_requests_per_min": 100_000}
        )
        policy = Policy.model_validate(sections)
        repository = place / "models"
        render(repository, policy, Models(str(model), MAX_MODEL_LEN))
        if echo:
            (repository / "llm" / "1" / "model.py").write_text(ECHO.read_text())
        ports = Ports(free_port(None), free_port(None), free_port(None))
        environ = {**os.environ, ADMIN_VARIABLE: ADMIN}
        command, given = server_command(
            find_server(), repository, policy, address="127.0.0.1", ports=ports, environ=environ
        )
        with running(command, given, ports.http, place / "server.log") as server:
            triton = Triton(server, ports, key, repository)
            if wait:
                server.wait_ready(lambda _: triton.ready())
            yield triton
            triton.http.close()

    return run


@pytest.fixture(scope="session")
def triton(start_triton: Start) -> Iterator[Triton]:
    """The one server that most tests share."""
    # Much stricter than it ships, so that a thief is banned after a hundred queries.
    extraction = dict.fromkeys(("flag_at", "slow_at", "degrade_at", "ban_at"), 0.34)
    extraction["step_queries"] = 16
    with start_triton(output={"canaries": [CANARY]}, extraction=extraction) as server:
        yield server
        server.http.close()  # Triton waits for clients that keep their connection
        server.server.process.terminate()
        # Not after it has waited in vain for a request or for a model's process to end.
        code = server.server.process.wait(timeout=120)
        told = server.server.log.read_text(errors="replace").splitlines()
        unloaded = [line for line in told if "successfully unloaded" in line]
        assert code == 0, "\n".join([*unloaded, server.server.tail()])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the server's log beside a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Triton):
                report.sections.append(("end of the server's log", value.server.tail()))
