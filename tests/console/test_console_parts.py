"""What the console's pages are made of: escaping, comparing, drawing, names, sessions."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.access.arguments import canonical
from vauban.console.changes import MAX_COMPARED_LINES, changes, lines_of
from vauban.console.charts import MAP_SIZE, SCORES_HEIGHT, places, scores
from vauban.console.guarded import GuardedServer, ServerDown
from vauban.console.render import environment, plain, words
from vauban.console.sessions import Sessions
from vauban.console.shield import Place
from vauban.errors import ConfigError
from vauban.policy_console import ConsolePolicy

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def approval(arguments: Any, **fields: Any) -> dict[str, Any]:
    call = {"tool": "pay", "arguments": canonical(arguments), "why": "destructive"}
    made = {"id": "apr_1", "state": "pending", "caller": "key:a", "calls": [call], "created": ""}
    return {**made, **fields}


@given(st.text())
def test_whatever_a_template_prints_is_ascii_and_no_markup(text: str) -> None:
    page = environment().from_string('<p title="{{ it }}">{{ it }}</p>').render(it=text)
    inner = page.removeprefix('<p title="').removesuffix("</p>")
    assert page.isascii()
    assert not set("<>\"'") & set(inner.replace('">', "", 1))
    assert plain(text).replace("\n", "").isprintable()


@given(st.text())
def test_words_of_operators_keep_their_letters_and_bring_no_markup(text: str) -> None:
    shown = str(words(text))
    assert shown.isprintable()
    assert not set("<>\"'") & set(shown)


@given(JSON)
def test_nothing_of_the_arguments_is_left_out(value: Any) -> None:
    lines = lines_of(canonical({"it": value}))
    assert json.loads("\n".join(lines)) == {"it": value}
    assert all(line.isascii() and line.isprintable() for line in lines)


@given(JSON, JSON)
def test_a_comparison_holds_both_whole(old: Any, new: Any) -> None:
    earlier = approval({"it": old}, id="apr_0", state="released")
    (change,) = changes(approval({"it": new}), [earlier])
    for marks, value in ((" +", new), (" -", old)):
        shown = [line.text for line in change.lines if line.mark in marks]
        assert shown == lines_of(canonical({"it": value}))
    assert change.against is earlier


@pytest.mark.parametrize(
    "other",
    [{"state": "denied"}, {"state": "pending"}, {"state": "expired"}, {"caller": "key:b"},
     {"id": "apr_1"}],
)  # fmt: skip
def test_what_is_no_measure(other: dict[str, str]) -> None:
    earlier = approval({"to": "x"}, **{"id": "apr_0", "state": "released", **other})
    (change,) = changes(approval({"to": "x"}), [earlier])
    assert change.against is None
    assert {line.mark for line in change.lines} == {"+"}


@pytest.mark.parametrize("told", [{}, {"status": "ok"}, {"id": 1, "scopes": []}, {"id": "x"}])
async def test_a_server_that_is_no_guarded_one(told: dict[str, Any]) -> None:
    server = GuardedServer("http://test", local=True, timeout_ms=5_000)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=told))
    server._client = httpx.AsyncClient(base_url="http://test", transport=transport)
    with pytest.raises(ServerDown):
        await server.who("a-key-of-this-test")
    await server.close()


def test_a_call_too_long_to_compare_is_shown_whole() -> None:
    many = {"it": list(range(MAX_COMPARED_LINES))}
    (change,) = changes(approval(many), [approval(many, id="apr_0", state="released")])
    assert change.too_long_to_compare
    assert len(change.lines) == MAX_COMPARED_LINES + 4


@given(
    st.lists(
        st.fixed_dictionaries(
            {name: st.floats(-2, 2) for name in ("score", "x", "y")} | {"time": st.just(0.0)}
        ),
        min_size=1, max_size=60,
    )
)  # fmt: skip
def test_pictures_stay_inside_their_frames(points: list[dict[str, float]]) -> None:
    curve = scores(points, {"flagged": 0.34, "banned": 0.67})
    assert curve is not None
    heights = [float(part.split("H")[0].split("h")[0]) for part in curve.path.split("V")[1:]]
    assert all(0 <= height <= SCORES_HEIGHT for height in heights)
    drawn = places(points, [[0.0, 0.5], [-0.3, 0.2]])
    assert drawn is not None
    assert sum(dots.count("M") for dots in drawn.ages) == len(points)
    numbers = "".join(drawn.ages).replace("h0", " ").replace("M", " ").split()
    assert all(0 <= float(number) <= MAP_SIZE for number in numbers)


def test_nothing_to_draw() -> None:
    assert scores([], {}) is None
    assert places([], [[0.0, 0.0]]) is None
    assert places([{"x": 0.0, "y": 0.0}], []) is None


def test_a_session_is_found_by_its_own_id_alone() -> None:
    now = 0.0
    sessions = Sessions(ConsolePolicy(max_sessions=2), lambda: now)
    first = sessions.begin("k", "key:a", frozenset())
    found = sessions.find(first, acts=True)
    assert found is not None
    for wrong in ("", first[:-1], first + "=", first.swapcase(), "\ud800"):
        assert sessions.find(wrong, acts=True) is None
    assert not found.is_own_form("")
    assert found.is_own_form(found.csrf)
    assert "'k'" not in repr(found)
    assert found.csrf not in repr(found)
    second = sessions.begin("k", "key:a", frozenset())
    now = 1.0
    assert sessions.find(first, acts=True) is not None
    sessions.begin("k", "key:a", frozenset())
    assert len(sessions) == 2
    assert sessions.find(second, acts=True) is None  # idle longest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"host": "192.0.2.1"}, "--public-url"), ({"host": "::", "tls": True}, "--public-url"),
        ({"host": "192.0.2.1", "public_url": "http://console.example"}, "https"),
        ({"host": "127.0.0.1", "public_url": "https://a.example/path"}, "https://NAME"),
        ({"host": "127.0.0.1", "public_url": "console.example"}, "https://NAME"),
        ({"host": "127.0.0.1", "public_url": "https://a:b"}, "https://NAME"),
    ],
)  # fmt: skip
def test_places_where_the_console_is_not_put(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Place.at(options.pop("host"), 8088, **options)


def test_places_where_it_is() -> None:
    local = Place.at("127.0.0.1", 8088)
    assert local.hosts == {"127.0.0.1:8088", "localhost:8088", "[::1]:8088"}
    assert not local.encrypted
    public = Place.at("192.0.2.1", 8088, public_url="https://Console.example:443/")
    assert "https://console.example" in public.origins
    assert public.encrypted
    assert (
        "console.example:8443" in Place.at("::", 1, public_url="https://console.example:8443").hosts
    )
    assert Place.at("::1", 1, tls=True).encrypted
