"""A server that streams one chunk per token and refuses attacks, as the guard does; with a guard's
metrics. Run as a program: canned.py PORT."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY, Histogram, generate_latest

METRICS = (
    ("vauban_encoder_seconds", (0.1, 1.0), 0.05),
    ("vauban_encoder_batch_size", (1, 2, 4), 2),
)


CPU_S = 0.02  # the kernel counts a process's time in ticks of 10 ms


class Canned(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        if "instructions" in text:
            self.answer(400, b"{}")
            return
        for metric, value in self.server.metrics:
            metric.observe(value)
        if self.server.metrics:
            started = time.thread_time()
            while time.thread_time() - started < CPU_S:
                pass
        tokens = body.get("max_completion_tokens") or body["max_tokens"]
        deltas = [{"role": "assistant", "content": ""}] + [{"content": "a"}] * tokens
        events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        events.append({"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 5}})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self.answer(200, "".join(lines).encode())

    def do_GET(self):
        self.answer(200, generate_latest(REGISTRY) if self.server.metrics else b"")

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class CannedServer(ThreadingHTTPServer):
    metrics = ()

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Canned)
        self.bodies = []


if __name__ == "__main__":
    server = CannedServer(int(sys.argv[1]))
    server.metrics = [(Histogram(n, n, buckets=b), value) for n, b, value in METRICS]
    server.serve_forever()
