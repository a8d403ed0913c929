"""A chat endpoint on loopback that answers, blocks, throttles, hangs or hangs up, as told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCKED = {"error": {"code": "content_filter", "reason": "prompt_injection", "message": "no"}}


class Target(ThreadingHTTPServer):
    """`mode` may be changed while it runs. `seen` has the bodies, `keys` the credentials; `models`
    are listed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "answer"
        self.seen: list[Any] = []
        self.keys: list[str | None] = []
        self.models: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Target

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.server.models], "version": "9.9.9"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        text = body["messages"][-1]["content"]
        mode = self.server.mode
        if mode == "hang":
            time.sleep(5)
        elif mode in ("drip", "flood"):
            self._never_ends(mode)
        elif mode == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif mode == "throttle" or (mode == "throttle twice" and len(self.server.seen) <= 2):
            self._send(429, {"error": {"code": "rate_limit_exceeded"}}, **{"retry-after": "0"})
        elif mode == "broken":
            self._send(500, {})
        elif mode == "nonsense":
            self._send(200, [1])
        elif mode == "block" or (mode == "guard" and "ignore" in text.lower()):
            self._send(400, BLOCKED, **{"x-vauban-policy": "abc123", "x-vauban-added-ms": "12.5"})
        elif mode == "attacker":
            self._send(200, answer(attack(body["messages"][0]["content"])))
        else:
            self._send(200, answer(text), **{"x-vauban-added-ms": "7.5"})

    def _never_ends(self, mode: str) -> None:
        """Slowly or fast, until the client leaves."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        piece, pause_s = (b" ", 0.1) if mode == "drip" else (b" " * 2**20, 0.0)
        with suppress(OSError):
            for _ in range(50):
                self.wfile.write(piece)
                time.sleep(pause_s)

    def _send(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def attack(instructions: str) -> str:
    """What PyRIT's attacker model is to answer; this one has no idea but the objective itself."""
    objective = instructions.partition("conversation objective is to: ")[2].partition("\n")[0]
    return json.dumps({"next_message": objective, "rationale": "none", "last_response_summary": ""})


def answer(text: str, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]
    }  # fmt: skip


@contextmanager
def serving() -> Iterator[Target]:
    target = Target()
    thread = threading.Thread(target=target.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield target
    finally:
        target.shutdown()
        target.server_close()
        thread.join(5)
