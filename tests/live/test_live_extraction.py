"""A thief with one key and a person with another, on a real server that is killed in between."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vauban.access.keyfile import add_key
from vauban.types import RateLimit

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CHAT = "/v1/chat/completions"
FLAG = "--additional-config.vauban."
QUERIES = 480
VERBS = ("Write", "Explain", "Plan", "Compare", "Outline", "Criticise", "Draft", "Describe")
FORMS = (
    "an essay", "a poem", "a short story", "a lesson plan", "a press release", "a dialogue",
    "a list of facts", "a Python script", "a recipe", "a contract clause", "a speech", "a quiz",
)  # fmt: skip
SUBJECTS = (
    "volcanoes", "tax law", "jazz", "bread", "glaciers", "chess", "orbits", "beekeeping", "opera",
    "steel", "fungi", "elections", "sailing", "Latin verbs", "bridges", "vaccines", "poker",
    "coral", "fonts", "knots", "earthquakes", "gardening", "compilers", "wine", "maps", "ballet",
    "ants", "insurance", "origami", "tides", "cartoons", "railways", "dinosaurs", "perfume",
    "prime numbers", "horses", "concrete", "dreams", "pottery", "satellites", "tea", "wolves",
)  # fmt: skip
TURNS = (
    "How do I begin with {}?", "What do I need to buy for {}?", "What is hard about {}?",
    "How long does it take to learn {}?", "Which book about {} do you recommend?",
    "Can I learn {} with children?", "What does {} cost in a year?",
)  # fmt: skip


def thief(rng: random.Random) -> Iterator[str]:
    """Fills a taxonomy, in any order."""
    while True:
        one, two = rng.sample(SUBJECTS, 2)
        yield f"{rng.choice(VERBS)} {rng.choice(FORMS)} about {one} and {two}."


def person(rng: random.Random) -> Iterator[str]:
    """Asks a few things about one hobby, then a few about another."""
    hobbies = rng.sample(SUBJECTS, 6)
    while True:
        hobby = rng.choice(hobbies)
        for turn in rng.sample(TURNS, rng.randint(3, len(TURNS))):
            yield turn.format(hobby)


def _random(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - which text comes next


def body(text: str) -> dict[str, Any]:
    return {"model": "standin", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    path, texts, ids = tmp_path / "keys.json", {}, {}
    scopes_of = dict.fromkeys(("thief", "person", "lister"), ("*",)) | {"operator": ("*", "admin")}
    for name, scopes in scopes_of.items():
        key, record = add_key(
            path, name, scopes, created=datetime.now(UTC), expires=None, limit=RateLimit()
        )
        texts[name], ids[name] = key.text, record.id
    return path, texts, ids


def test_a_thief_is_degraded_then_banned_and_a_person_notices_nothing(
    start: Any, keys: Any, tmp_path: Path
) -> None:
    path, key, ids = keys
    flags = (
        f"{FLAG}identity.keys_file", str(path), f"{FLAG}answer.details", "true",
        f"{FLAG}state.store", f"sqlite:///{tmp_path / 'state.db'}",
        f"{FLAG}extraction.ban_at", "0.55", f"{FLAG}state.refresh_ms", "50",
        f"{FLAG}response.slow_requests_per_min", "100000",
    )  # fmt: skip
    with start(*flags, max_model_len=1024) as server:
        levels = {"thief": [], "person": []}
        asked = {"thief": thief(_random(1)), "person": person(_random(2))}
        statuses = {"thief": [], "person": []}
        for _ in range(QUERIES):
            for name, texts in asked.items():
                answer = server.post(CHAT, body(next(texts)), authorization=f"Bearer {key[name]}")
                statuses[name].append(answer.status_code)
                level = answer.headers.get("x-vauban-standing", "")
                if level and (not levels[name] or levels[name][-1] != level):
                    levels[name].append(level)
            if statuses["thief"][-1] == 403:
                break
        assert levels["thief"][:4] == ["clear", "flagged", "slowed", "degraded"]
        assert statuses["thief"][-1] == 403
        assert levels["person"] == ["clear"]
        assert 403 not in statuses["person"]
        shown = server.http.get(
            f"/vauban/users/key:{ids['thief']}",
            headers={"authorization": f"Bearer {key['operator']}"},
        ).json()
        assert "volcano" not in str(shown)
        assert shown["evidence"]["proposed"] == "service"  # as steady, and banned all the same
        check_lists(server, key["lister"])
        os.killpg(server.server.process.pid, signal.SIGKILL)
        server.server.process.wait()
    with start(*flags, max_model_len=1024) as server:
        again = server.post(CHAT, body("Hello"), authorization=f"Bearer {key['thief']}")
        assert again.status_code == 403
        other = server.post(CHAT, body("Hello"), authorization=f"Bearer {key['person']}")
        assert other.status_code == 200


def check_lists(server: Any, key: str) -> None:
    """Whoever sends prompts by the list has asked as many queries."""
    texts = thief(_random(3))
    for _ in range(6):
        many = {"model": "standin", "max_tokens": 1, "prompt": [next(texts) for _ in range(40)]}
        answer = server.post("/v1/completions", many, authorization=f"Bearer {key}")
        assert answer.status_code in (200, 400), answer.text
    assert answer.headers["x-vauban-standing"] in ("flagged", "slowed", "degraded")
