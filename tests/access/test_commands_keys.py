"""`vauban keys` as an operator types it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vauban.access.keyfile import read_key_file
from vauban.access.keys import KEY_CHARS, KeyTable, key_id_of
from vauban.commands.keys import app, parse_expires
from vauban.errors import ConfigError
from vauban.types import RateLimit


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("VAUBAN_POLICY", "VAUBAN_IDENTITY__KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_add_prints_the_key_and_nothing_else_on_stdout() -> None:
    result = run("add", "ci", "--scope", "chat", "--scope", "model:small*", "--tokens-per-min", "9")
    assert result.exit_code == 0
    text = result.stdout.removesuffix("\n")
    assert len(text) == KEY_CHARS
    assert text not in result.stderr
    store = read_key_file(Path("vauban-keys.json"))
    principal = KeyTable(store.keys, RateLimit()).verify(text, datetime.now(UTC).timestamp())
    assert principal.scopes == {"chat", "model:small*"}
    assert principal.limit == RateLimit(None, 9)


def test_a_key_ends_after_90_days_unless_told_otherwise() -> None:
    run("add", "a")
    run("add", "b", "--expires", "never")
    a, b = read_key_file(Path("vauban-keys.json")).keys
    assert a.expires == a.created + timedelta(days=90)
    assert a.scopes == ("*",)
    assert b.expires is None


def test_the_store_is_the_option_then_the_policy_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("add", "a")
    Path("policy.yaml").write_text("identity: {keys_file: from-policy.json}")
    monkeypatch.setenv("VAUBAN_POLICY", "policy.yaml")
    run("add", "b")
    monkeypatch.setenv("VAUBAN_IDENTITY__KEYS_FILE", "from-environment.json")
    run("add", "c")
    run("add", "d", "--file", "from-option.json")
    stores = {
        path.name: [key.name for key in read_key_file(path).keys] for path in Path().glob("*.json")
    }
    assert stores == {
        "vauban-keys.json": ["a"],
        "from-policy.json": ["b"],
        "from-environment.json": ["c"],
        "from-option.json": ["d"],
    }


def test_list_shows_no_secret() -> None:
    text = run("add", "a", "--requests-per-min", "5").stdout.strip()
    digest = read_key_file(Path("vauban-keys.json")).keys[0].sha256
    as_table, as_json = run("list"), run("list", "--json")
    row = json.loads(as_json.stdout)[0]
    assert (row["name"], row["id"], row["requests_per_min"]) == ("a", key_id_of(text), 5)
    assert key_id_of(text) in as_table.stdout
    for output in (as_table.output, as_json.output):
        assert text not in output
        assert digest not in output


def test_a_service_and_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run("add", "app", "--service", "--group", "acme/eu")
    run("add", "person")
    app_key, person = read_key_file(Path("vauban-keys.json")).keys
    assert (app_key.service, app_key.group) == (True, "acme/eu")
    assert (person.service, person.group) == (False, None)
    assert "service acme/eu" in " ".join(run("list").stdout.split())
    wrong = run("add", "c", "--group", "a\x1bb")
    assert wrong.exit_code == 1
    assert "group" in wrong.stderr


def test_a_key_is_declared_a_services_later() -> None:
    run("add", "app")
    for arguments, service in ((("app",), True), (("app", "--no"), False)):
        assert run("service", *arguments).exit_code == 0
        assert read_key_file(Path("vauban-keys.json")).keys[0].service is service


@pytest.mark.parametrize("by", ["name", "id"])
def test_revoke(by: str) -> None:
    text = run("add", "a").stdout.strip()
    assert run("revoke", "a" if by == "name" else key_id_of(text)).exit_code == 0
    assert read_key_file(Path("vauban-keys.json")).keys == ()
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "a b"),
        ("add", "new", "--scope", "[red]chta"),
        ("add", "new", "--expires", "soon"),
        ("add", "new", "--expires", "2020-01-01"),
        ("add", "new", "--requests-per-min", "0"),
        ("add", "taken"),
        ("add", "new", "--file", "none/keys.json"),
        ("revoke", "nobody"),
        ("service", "nobody"),
        ("revoke", "taken", "--file", "none.json"),
        ("list", "--file", "none.json"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments: tuple[str, ...]) -> None:
    run("add", "taken")
    before = Path("vauban-keys.json").read_bytes()
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert Path("vauban-keys.json").read_bytes() == before


NOW = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("never", None),
        ("12h", NOW + timedelta(hours=12)),
        ("30d", NOW + timedelta(days=30)),
        ("99999w", NOW + timedelta(weeks=99999)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
    ],
)
def test_expiry_forms(text: str, expected: datetime | None) -> None:
    assert parse_expires(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "0d", "-1d", "1", "d", "1m", "1.5d", "100000d", "1d ", "2027-02-30", "31.1.2027"]
)
def test_other_forms_of_expiry(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires"):
        parse_expires(text, NOW)
