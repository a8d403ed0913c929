"""A real server, a real Redis server and the real command line: banned, remembered, lost, found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from redis_server import RedisServer
from vauban.access.keyfile import add_key
from vauban.types import RateLimit

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CHAT = "/v1/chat/completions"
ASK = {
    "model": "standin", "max_tokens": 4,
    "messages": [{"role": "user", "content": "What is the capital of Australia?"}],
}  # fmt: skip
FLAG = "--additional-config.vauban."


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer(save=True)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    texts, ids = {}, {}
    for name, scopes in (("user", ("*",)), ("other", ("*",)), ("operator", ("*", "admin"))):
        key, record = add_key(
            path, name, scopes, created=datetime.now(UTC), expires=None, limit=RateLimit()
        )
        texts[name], ids[name] = key.text, record.id
    return path, texts, ids


@pytest.fixture(scope="module")
def begin(start: Any, redis: RedisServer, keys: Any) -> Callable[[], Any]:
    return lambda: start(
        f"{FLAG}identity.keys_file", str(keys[0]), f"{FLAG}state.store", redis.url,
        f"{FLAG}state.refresh_ms", "100", f"{FLAG}state.stale_after_ms", "1000",
        f"{FLAG}state.timeout_ms", "300", f"{FLAG}response.slow_requests_per_min", "2",
        "--scheduling-policy", "priority", max_model_len=1024,
    )  # fmt: skip


def ask(server: Any, key: str) -> Any:
    return server.post(CHAT, ASK, authorization=f"Bearer {key}")


def vauban(server: Any, key: str, *arguments: str) -> Any:
    """The command as an operator types it; what it printed as JSON."""
    done = subprocess.run(
        [Path(sys.executable).with_name("vauban"), "users", *arguments, "--url", server.url,
         "--json"],
        env={**os.environ, "VAUBAN_KEY": key}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def admin(server: Any, key: str, method: str, path: str, **body: Any) -> Any:
    """The routes themselves: a command takes seconds to start."""
    response = server.http.request(
        method, f"/vauban/users/{path}", json=body or None,
        headers={"authorization": f"Bearer {key}"},
    )  # fmt: skip
    assert response.status_code == 200, response.text
    return response.json()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_ban_outlives_the_server_and_the_store(
    begin: Callable[[], Any], redis: RedisServer, keys: Any
) -> None:
    _, key, ids = keys
    with begin() as server:
        check_banned_and_unbanned(server, key, ids)
        check_slowed(server, key, ids)
        vauban(server, key["operator"], "ban", ids["user"], "--reason", "scraping", "--for", "1h")
        assert ask(server, key["user"]).status_code == 403
        os.killpg(server.server.process.pid, signal.SIGKILL)
        server.server.process.wait()
    with begin() as server:
        assert ask(server, key["user"]).status_code == 403
        assert ask(server, key["other"]).status_code == 200
        check_lost_and_found(server, redis, key)
        (banned,) = vauban(server, key["operator"], "list")["users"]
        assert (banned["id"], banned["reason"]) == (f"key:{ids['user']}", "scraping")
        check_told(server, key, ids)


def check_banned_and_unbanned(server: Any, key: dict[str, str], ids: dict[str, str]) -> None:
    assert ask(server, key["user"]).status_code == 200
    user = f"key:{ids['user']}"
    shown = admin(server, key["operator"], "POST", f"{user}/ban", reason="r", seconds=600)
    assert shown["level"] == "banned"
    refused = ask(server, key["user"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "banned")
    assert 0 < int(refused.headers["retry-after"]) <= 600
    with pytest.raises(openai.PermissionDeniedError, match="banned until"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key["user"]).responses.create(
            model="standin", input="Hello"
        )
    with pytest.raises(anthropic.PermissionDeniedError, match="banned until"):
        anthropic.Anthropic(base_url=server.url, api_key=key["user"]).messages.create(**ASK)
    assert ask(server, key["other"]).status_code == 200
    admin(server, key["operator"], "POST", f"{user}/unban", reason="a mistake")
    assert ask(server, key["user"]).status_code == 200


def check_slowed(server: Any, key: dict[str, str], ids: dict[str, str]) -> None:
    """vLLM takes the worse priority, on every protocol that has one."""
    user = f"key:{ids['user']}"
    admin(server, key["operator"], "POST", f"{user}/level", level="slowed", reason="r")
    bearer = {"authorization": f"Bearer {key['user']}"}
    assert server.post("/v1/messages", ASK, **bearer).status_code == 200
    body = {"model": "standin", "input": "Hello", "max_output_tokens": 4}
    assert server.post("/v1/responses", body, **bearer).status_code == 200
    assert ask(server, key["user"]).status_code == 429
    jump = {"authorization": f"Bearer {key['other']}"}
    assert server.post(CHAT, {**ASK, "priority": -1}, **jump).status_code == 403
    assert server.post(CHAT, {**ASK, "priority": 1}, **jump).status_code == 200


def check_lost_and_found(server: Any, redis: RedisServer, key: dict[str, str]) -> None:
    redis.kill()
    until(lambda: ask(server, key["other"]).status_code == 503)
    assert ask(server, key["other"]).json()["error"]["code"] == "state_unavailable"
    assert ask(server, key["user"]).status_code == 503
    metrics = server.http.get("/metrics", headers={"authorization": f"Bearer {key['other']}"})
    assert metrics.status_code == 200
    assert admin(server, key["operator"], "GET", "key:000000000000")["current"] is False
    redis.start()
    until(lambda: ask(server, key["other"]).status_code == 200)
    assert ask(server, key["user"]).status_code == 403


def check_told(server: Any, key: dict[str, str], ids: dict[str, str]) -> None:
    metrics = server.http.get(
        "/metrics", headers={"authorization": f"Bearer {key['operator']}"}
    ).text
    assert 'vauban_principals{level="banned"} 1.0' in metrics
    admin(server, key["operator"], "DELETE", f"key:{ids['user']}")
    rows = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    (event,) = [row for row in rows if row["event"] == "standing"]
    assert (event["action"], event["by"]) == ("forget", f"key:{ids['operator']}")
    assert event["principal"] == f"key:{ids['user']}"
    for text in (*key.values(), "scraping", "capital"):
        assert text not in server.log()
    assert ask(server, key["user"]).status_code == 403  # forgotten, and still banned
