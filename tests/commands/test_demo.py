"""The demo around its server: what it sends, how it judges the answers, and that nothing is left
running. The server here is a small stand-in; the live tests start the real one."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from vauban.commands import demo as demo_module
from vauban.commands.demo import demo, send
from vauban.commands.demo_requests import (
    DOCUMENT_WORDS,
    DemoRequest,
    burst_requests,
    demo_requests,
)
from vauban.commands.demo_table import (
    Outcome,
    all_expected,
    results_table,
    sharing_between,
)
from vauban.commands.local_server import LocalServer, ServerFailed, free_port, running
from vauban.errors import ConfigError, PolicyError
from vauban.telemetry import Decision, Metrics

# Answers in the form of a guarded server; keywords decide. It leaves its child behind when it ends.
# Arguments: port, mode, and a file for the child's process id.
FAKE_SERVER = r"""
import http.server, json, pathlib, subprocess, sys, time
port, mode, child_file = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
child_file.write_text(str(child.pid))
print("a line of the server's log", flush=True)
if mode == "dies":
    sys.exit(3)
words = ("ignore", "disregard", "forget", "any rules", "new instructions")

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header("x-vauban-" + name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b"")

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        last = json.loads(raw)["messages"][-1]["content"].replace("\u200b", "")
        seen = "".join(chr(ord(c) - 0xE0000) if ord(c) > 0xE0000 else c for c in last).lower()
        attack = any(w in seen for w in words) and "printer" not in seen
        if attack and mode != "blind":
            self.answer(400, b'{"error": {"code": "content_filter"}}', verdict="block",
                        score="0.99", reason="prompt_injection", **{"added-ms": "1.5"})
        else:
            self.answer(200, b'{"choices": []}', verdict="allow", score="0.01", reason="clean",
                        **{"added-ms": "1.5"})

http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fake_server(monkeypatch, tmp_path):
    """Put the fake in the place of vLLM; gives what chooses its mode and finds its child."""

    class Fake:
        mode = "guards"
        child_file = tmp_path / "child"
        logs = tmp_path

        def child_runs(self) -> bool:
            pid = int(self.child_file.read_text())
            for _ in range(100):
                try:
                    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                except FileNotFoundError:
                    return False
                if state == "Z":  # dead; whoever adopted it has not taken its status yet
                    return False
                time.sleep(0.02)
            return True

    fake = Fake()

    def command(model, flags, policy_file):
        assert flags[flags.index("--host") + 1] == "127.0.0.1"
        port = flags[flags.index("--port") + 1]
        line = [sys.executable, "-c", FAKE_SERVER, port, fake.mode, str(fake.child_file)]
        return line, dict(os.environ)

    monkeypatch.setattr(demo_module, "server_command", command)
    monkeypatch.setattr(demo_module, "make_standin", lambda directory: directory)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("vauban.commands.local_server.STOP_TIMEOUT_S", 0.3)
    monkeypatch.delenv("VAUBAN_POLICY", raising=False)
    return fake


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def shown(console: Console) -> str:
    return console.file.getvalue()


# -- the requests ------------------------------------------------------------------------------


def test_every_kind_of_request_is_sent():
    requests = demo_requests()
    assert len({request.title for request in requests}) == len(requests) >= 10
    assert {(r.attack, r.stream) for r in requests} >= {(False, True), (True, True)}
    assert any(r.messages[-1]["role"] == "tool" and r.attack for r in requests)


def test_the_long_documents_hide_the_injection_in_the_middle():
    clean, attack = (r for r in demo_requests() if "document" in r.title)
    assert (clean.attack, attack.attack) == (False, True)
    words = attack.messages[0]["content"].split()
    assert len(words) > DOCUMENT_WORDS < len(clean.messages[0]["content"].split())
    where = words.index("Ignore") / len(words)
    assert 0.45 < where < 0.55


def test_the_hidden_injections_can_not_be_found_by_a_plain_search():
    for title, words in (("zero-width", "everything you were told"), ("tag", "Disregard")):
        (request,) = (r for r in demo_requests() if title in r.title)
        assert request.attack
        assert words not in request.messages[0]["content"]


def test_the_burst_is_sixteen_different_requests_of_both_kinds():
    burst = burst_requests()
    assert len({str(request.messages) for request in burst}) == 16
    assert sum(request.attack for request in burst) == 4


# -- verdicts and the table --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "verdict", "expected"),
    [
        (True, "block", True),
        (True, "allow", False),
        (True, "flag", False),
        (True, "HTTP 401", False),
        (True, "no answer", False),
        (False, "allow", True),
        (False, "flag", True),
        (False, "block", False),
        (False, "HTTP 500", False),
        (False, "unguarded", False),
    ],
)
def test_what_counts_as_expected(attack, verdict, expected):
    assert Outcome(attack, verdict, "reason").expected is expected


def test_one_wrong_outcome_of_a_burst_is_enough():
    good, bad = Outcome(True, "block", ""), Outcome(True, "allow", "")
    assert all_expected([("one", [good]), ("burst", [good] * 16)])
    assert not all_expected([("one", [good]), ("burst", [*[good] * 15, bad])])


def test_the_table_marks_and_sums_up(console):
    rows = [
        ("asked", [Outcome(False, "allow", "clean", 0.01234, 3.21)]),
        ("missed", [Outcome(True, "allow", "clean", 0.5, 4.0)]),
        ("[bold]refused[/]", [Outcome(False, "HTTP 401", "invalid_api_key")]),
        (
            "burst",
            [Outcome(True, "block", "prompt_injection", 0.9, 8.0)]
            + [Outcome(False, "allow", "clean", 0.1, ms) for ms in (1.0, 2.0)],
        ),
    ]
    console.print(results_table(rows))
    lines = shown(console).splitlines()
    for words in (
        ("✓", "asked", "allow", "0.012", "clean", "3.2"),
        ("✗", "missed", "0.500"),
        ("✗", "[bold]refused[/]", "HTTP 401", "invalid_api_key"),
        ("✓", "burst", "2 allow", "0.100", "2 clean"),
        ("1 block", "0.900", "1 prompt_injection", "2.0"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


def test_sharing_is_read_from_the_servers_own_metrics():
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def reading(*batches: int) -> str:
        for batch in batches:
            metrics.observe(Decision("", "", "", "", "", "clean", "", score=0.1, batch=batch))
        return generate_latest(registry).decode()

    start = reading(1, 1, 4, 4, 4, 4)
    sharing = sharing_between(start, reading(1, 3, 3, 3))
    assert sharing is not None
    assert (sharing.screened, sharing.shared, sharing.mean_batch) == (4, 3, 2.5)
    assert sharing_between(start, start) is None
    assert sharing_between("", "") is None


# -- one request -------------------------------------------------------------------------------

HEADERS = {"x-vauban-reason": "prompt_injection", "x-vauban-score": "0.97"}
BLOCKED = {**HEADERS, "x-vauban-verdict": "block", "x-vauban-added-ms": "12.5"}
EVENTS = b'data: {"choices": []}\n\ndata: [DONE]\n\n'


async def outcome_of(response: httpx.Response | Exception, *, stream: bool = False) -> Outcome:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    request = DemoRequest("title", ({"role": "user", "content": "x"},), True, stream)
    async with openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="k", http_client=http, max_retries=0
    ) as client:
        return await send(client, request)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_request_is_read_from_its_headers(stream):
    error = {"error": {"code": "content_filter"}}
    outcome = await outcome_of(httpx.Response(400, json=error, headers=BLOCKED), stream=stream)
    assert outcome == Outcome(True, "block", "prompt_injection", 0.97, 12.5)


async def test_a_refusal_by_policy_is_a_block_too():
    answer = httpx.Response(200, json={"choices": []}, headers=BLOCKED)
    assert (await outcome_of(answer)).verdict == "block"


async def test_a_stream_is_read_to_its_end():
    headers = {"content-type": "text/event-stream", "x-vauban-verdict": "allow"}
    answer = httpx.Response(200, content=EVENTS, headers=headers)
    assert (await outcome_of(answer, stream=True)).verdict == "allow"


async def test_an_answer_without_a_verdict_is_never_taken_for_a_good_one():
    assert (await outcome_of(httpx.Response(200, json={"choices": []}))).verdict == "unguarded"


async def test_other_errors_are_named():
    refused = httpx.Response(401, json={"error": {"code": "invalid_api_key"}})
    assert await outcome_of(refused) == Outcome(True, "HTTP 401", "invalid_api_key")
    lost = await outcome_of(httpx.ConnectError("no"))
    assert lost == Outcome(True, "no answer", "APIConnectionError")


# -- the whole demo ----------------------------------------------------------------------------


def test_sends_everything_shows_it_and_stops_the_server(fake_server, console):
    assert demo(console, None, None, keep=False)
    text = shown(console)
    assert "✗" not in text
    assert all(request.title in text for request in demo_requests())
    assert not fake_server.child_runs()
    assert [path.name for path in fake_server.logs.iterdir()] == ["child"]


def test_a_guard_that_lets_attacks_pass_fails_the_demo_and_keeps_the_log(fake_server, console):
    fake_server.mode = "blind"
    assert not demo(console, None, None, keep=False)
    assert "✗" in shown(console)
    (log,) = fake_server.logs.glob("*.log")
    assert "a line of the server's log" in log.read_text()


def test_a_server_that_does_not_start_is_reported_with_its_log(fake_server, console):
    fake_server.mode = "dies"
    with pytest.raises(ServerFailed, match="status 3") as caught:
        demo(console, None, None, keep=False)
    (log,) = fake_server.logs.glob("*.log")
    assert "a line of the server's log" in str(caught.value)
    assert str(log) in str(caught.value)
    assert not fake_server.child_runs()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_kept_server_ends_with_the_signal(fake_server, console, monkeypatch, number):
    monkeypatch.setattr(LocalServer, "wait_ended", lambda _: signal.raise_signal(number))
    assert demo(console, free_port(None), None, keep=True)
    assert "/v1/chat/completions" in shown(console)
    assert not fake_server.child_runs()


def test_an_interrupt_while_it_starts_stops_the_server(fake_server, console, monkeypatch):
    def interrupted(self, answers):
        while not fake_server.child_file.is_file():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(LocalServer, "wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo(console, None, None, keep=False)
    assert not fake_server.child_runs()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_server_that_does_not_listen_to_signals_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("vauban.commands.local_server.STOP_TIMEOUT_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=1)"
    log = tmp_path / "log"
    command = [sys.executable, "-c", f"{deaf}; time.sleep(600)"]
    with running(command, os.environ, 1, log) as server:
        while not log.read_bytes():
            time.sleep(0.01)
    assert server.process.returncode == -signal.SIGKILL


def test_a_taken_port_is_an_error_before_anything_starts(fake_server, console):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .*in use"):
            demo(console, port, None, keep=False)
    assert not fake_server.child_file.exists()


def test_the_tail_is_short_even_of_a_huge_log(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 3_000_000 + b"\n" + b"last words\n" * 100)
    tail = LocalServer(None, 1, log).tail()
    assert len(tail) < 20_000
    assert tail.endswith(f"last words\nThe whole log: {log}")


def test_what_is_missing_is_named(fake_server, console, tmp_path, monkeypatch):
    keys = tmp_path / "policy.yaml"
    keys.write_text(f"identity: {{keys_file: {tmp_path / 'keys.json'}}}")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        demo(console, None, keys, keep=False)
    with pytest.raises(PolicyError, match="absent"):
        demo(console, None, tmp_path / "absent.yaml", keep=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'vauban\[cpu\]'"):
        demo(console, None, None, keep=False)
