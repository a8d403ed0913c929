"""Where policy values come from, and what a wrong one is answered with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vauban.errors import PolicyError
from vauban.policy import Policy
from vauban.policy_sources import explain, load_policy


def fields() -> list[tuple[str, str]]:
    return [
        (section, name)
        for section, info in Policy.model_fields.items()
        for name in info.annotation.model_fields  # type: ignore[union-attr]
    ]


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_sources_win_in_order(file) -> None:
    path = file("injection: {block_at: 0.7, flag_at: 0.1}\nlimits: {max_segments: 7}\n")
    environ = {
        "VAUBAN_POLICY": str(path),
        "VAUBAN_INJECTION__BLOCK_AT": "0.8",
        "VAUBAN_LIMITS__MAX_SEGMENTS": "8",
    }
    loaded = load_policy({"injection": {"block_at": 0.9}}, environ=environ)
    assert loaded.policy.injection.block_at == 0.9
    assert loaded.policy.limits.max_segments == 8
    assert loaded.policy.injection.flag_at == 0.1
    assert loaded.policy.limits.max_in_flight == Policy().limits.max_in_flight
    assert loaded.sources == {
        "injection.block_at": "server flag",
        "limits.max_segments": "environment",
        "injection.flag_at": f"file {path}",
    }


def test_a_named_file_wins_over_the_variable(file, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("limits: {max_segments: 5}")
    environ = {"VAUBAN_POLICY": str(file("limits: {max_segments: 6}"))}
    assert load_policy(environ=environ, file=other).policy.limits.max_segments == 5


def test_no_source_gives_the_defaults() -> None:
    loaded = load_policy({}, environ={})
    assert loaded.policy == Policy()
    assert loaded.sources == {}


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("VAUBAN_ROUTES__DOCS", "true", lambda p: p.routes.docs is True),
        ("VAUBAN_SANDWICH__MODE", "'off'", lambda p: p.sandwich.mode == "off"),
        ("VAUBAN_ENCODER__CLASSIFIERS", "[a, b]", lambda p: len(p.encoder.classifiers) == 2),
        ("VAUBAN_ANSWER__REFUSAL", "'no: thanks'", lambda p: p.answer.refusal == "no: thanks"),
        ("VAUBAN_INJECTION__BLOCK_AT", "0.25", lambda p: p.injection.block_at == 0.25),
        ("VAUBAN_IDENTITY__KEYS_FILE", "/k.json", lambda p: str(p.identity.keys_file) == "/k.json"),
    ],
)
def test_environment_values_are_yaml(variable: str, value: str, read: Any) -> None:
    assert read(load_policy(environ={variable: value}).policy)


def test_text_that_is_yaml_of_another_kind_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"answer\.refusal"):
        load_policy(environ={"VAUBAN_ANSWER__REFUSAL": "no: thanks"})


def test_vaubans_other_variables_are_no_policy() -> None:
    environ = {"VAUBAN_SECRET": "00", "VAUBAN_RUNTIME_DIR": "/x", "VAUBANX__Y": "1", "A__B": ""}
    assert load_policy(environ=environ).policy == Policy()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"injection": {"block_at": 1.5}}, ["injection.block_at", "server flag", "1.5", "<= 1.0"]),
        ({"injection": {"block_at": math.nan}}, ["injection.block_at", "nan", ">= 0.0"]),
        ({"injection": {"block_at": "high"}}, ["injection.block_at", "'high'", "number"]),
        ({"injection": {"mode": "on"}}, ["injection.mode", "enforce | monitor | off"]),
        ({"injection": {"blok_at": 0.5}}, ["injection.blok_at", "no such field", "--explain"]),
        ({"injektion": {"block_at": 0.5}}, ["injektion", "no such field"]),
        ({"limits": {"max_segments": 0}}, ["limits.max_segments", ">= 1"]),
        ({"limits": 5}, ["limits", "given: 5"]),
        ({"encoder": {"device": "tpu"}}, ["encoder.device", "matching"]),
        ({"answer": {"refusal": ""}}, ["answer.refusal"]),
        ({"injection": {"flag_at": 0.9, "block_at": 0.5}}, ["flag_at must not be above block_at"]),
        ({"sandwich": {"origins": ["nobody"]}}, ["sandwich.origins", "operator"]),
    ],
)
def test_a_wrong_value_names_path_source_and_what_is_allowed(
    flags: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(flags, environ={})
    for word in words:
        assert word in str(caught.value)


def test_all_wrong_values_are_named_at_once(file) -> None:
    environ = {"VAUBAN_LIMITS__MAX_SEGMENTS": "none of them"}
    path = file("injection: {mode: maybe}")
    with pytest.raises(PolicyError) as caught:
        load_policy({"nonsense": {"x": 1}}, environ=environ, file=path)
    message = str(caught.value)
    assert f"injection.mode (from file {path})" in message
    assert "limits.max_segments (from environment)" in message
    assert "nonsense" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n- 2", "expected a mapping"),
        ("injection:\n  mode: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("injection: {mode: enforce", "line"),
    ],
)
def test_a_broken_file_is_refused(file, text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load_policy(environ={}, file=file(text))


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="can't be read"):
        load_policy(environ={}, file=tmp_path / "no.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PolicyError):
        load_policy(environ={}, file=binary)


def test_an_empty_file_is_the_defaults(file) -> None:
    assert load_policy(environ={}, file=file("")).policy == Policy()


def test_a_variable_can_not_be_both_value_and_section() -> None:
    environ = {"VAUBAN_LIMITS__A": "1", "VAUBAN_LIMITS__A__B": "2"}
    with pytest.raises(PolicyError, match="not a section"):
        load_policy(environ=environ)


@given(name=st.text(min_size=1, max_size=12), value=st.none() | st.integers() | st.text())
def test_an_unknown_section_never_passes(name: str, value: Any) -> None:
    if name in Policy.model_fields:
        return
    with pytest.raises(PolicyError):
        load_policy({name: value}, environ={})


@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8))
@pytest.mark.parametrize(("section", "name"), fields())
def test_any_value_is_taken_or_refused_by_name(section: str, name: str, value: Any) -> None:
    try:
        load_policy({section: {name: value}}, environ={})
    except PolicyError as error:
        assert section in str(error)  # noqa: PT017 - both outcomes are fine, a crash is not


def test_every_field_is_described_and_explained() -> None:
    rows = {row.path: row for row in explain(load_policy({}, environ={}))}
    assert set(rows) == {f"{section}.{name}" for section, name in fields()}
    for path, row in rows.items():
        assert row.description, path
        assert row.allowed, path
        assert row.source == "default"
        assert row.variable == "VAUBAN_" + path.upper().replace(".", "__")
        section, name = path.split(".")
        assert row.value == getattr(getattr(Policy(), section), name)


def test_explain_names_the_source() -> None:
    loaded = load_policy({"injection": {"mode": "monitor"}}, environ={"VAUBAN_ROUTES__DOCS": "1"})
    rows = {row.path: row for row in explain(loaded)}
    assert rows["injection.mode"].source == "server flag"
    assert rows["routes.docs"].source == "environment"
    assert rows["routes.docs"].default is False


def test_every_number_is_bounded() -> None:
    for section, name in fields():
        info = Policy.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
        if info.annotation in (int, float, int | None, float | None):
            limits = {type(item).__name__ for item in info.metadata}
            assert {"Ge", "Le"} <= limits, f"{section}.{name}"


def test_a_policy_can_not_be_changed() -> None:
    policy = Policy()
    with pytest.raises(ValidationError):
        policy.injection.block_at = 0.1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        policy.injection = policy.injection  # type: ignore[misc]


def test_the_digest_names_the_values() -> None:
    assert Policy().digest == load_policy({}, environ={}).policy.digest
    changed = {
        Policy.model_validate(sections).digest
        for sections in (
            {"injection": {"block_at": 0.5}},
            {"injection": {"block_at": 0.25}},
            {"injection": {"flag_at": 0.25}},
            {"sandwich": {"instruction": "a"}},
            {"sandwich": {"instruction": "b"}},
            {"audit": {"log": "off"}},
            {"encoder": {"classifiers": ["a"]}},
            {},
        )
    }
    assert len(changed) == 8
    assert all(len(digest) == 12 for digest in changed)


def test_sections_are_models_that_forbid_extra_fields() -> None:
    for info in Policy.model_fields.values():
        section = info.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"] is True


@pytest.mark.parametrize(
    "url",
    ["memory", "sqlite:///var/lib/vauban/state.db", "redis://localhost", "redis://me@h:6379/2",
     "rediss://h", "valkey://[::1]:6379", "valkeys://h", "unix:///run/valkey.sock?db=1"],
)  # fmt: skip
def test_stores(url: str) -> None:
    assert load_policy({"state": {"store": url}}, environ={}).policy.state.store == url


@pytest.mark.parametrize(
    "url",
    ["", "disk", "sqlite://", "sqlite:///", "http://h", "redis://", "redis://h:x", "redis://h:0",
     "redis://me:horse1@h", "redis://:horse1@h", "unix://u:horse1@/s", "redis://h?password=horse1"],
)  # fmt: skip
def test_a_store_that_is_none_and_a_password_that_is_not_repeated(url: str) -> None:
    for flags, environ in (({"state": {"store": url}}, {}), ({}, {"VAUBAN_STATE__STORE": url})):
        with pytest.raises(PolicyError, match=r"state\.store") as caught:
            load_policy(flags, environ=environ)
        assert "horse1" not in str(caught.value)
    with pytest.raises(PolicyError) as caught:
        load_policy({"state": "redis://:horse1@h"}, environ={})
    assert "horse1" not in str(caught.value)


def test_a_password_is_no_field_of_the_policy() -> None:
    environ = {"VAUBAN_STATE_PASSWORD": "horse1"}
    loaded = load_policy({"state": {"store": "redis://h"}}, environ=environ)
    assert "horse1" not in repr(loaded) + repr(explain(loaded))


def test_going_on_without_a_store_must_be_written_out() -> None:
    assert load_policy({}, environ={}).policy.state.on_failure == "block"
    assert load_policy({"state": {"on_failure": "allow"}}, environ={}).policy.state
