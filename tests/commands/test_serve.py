"""The command line and environment of `vauban serve`; no server is started here."""

from __future__ import annotations

import json
import sys

import pytest

from vauban.commands import serve
from vauban.commands.serve import server_command
from vauban.errors import ConfigError, PolicyError

CONFIG = "--additional-config"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("VLLM_PLUGINS", "VAUBAN_POLICY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text('{"version": 1, "keys": []}')
    return path


def arguments(*flags: str, **kwargs) -> list[str]:
    command, _ = server_command("MODEL", flags, **kwargs)
    return command[command.index("MODEL") + 1 :]


def test_runs_this_interpreter_and_hands_the_flags_on_in_order():
    command, _ = server_command("MODEL", ["--dtype", "float32", "--enforce-eager"])
    assert command[0] == sys.executable
    assert command[1] == "-m"
    assert arguments("--dtype", "float32", "--enforce-eager")[:3] == [
        "--dtype",
        "float32",
        "--enforce-eager",
    ]


@pytest.mark.parametrize(
    ("has_distribution", "tail"),
    [
        (True, ["-m", "vllm.entrypoints.cli.main", "serve", "MODEL"]),
        (False, ["-m", "vauban.hosts.vllm", "--model", "MODEL"]),
    ],
)
def test_both_builds_are_launched_their_way(monkeypatch, has_distribution, tail):
    def distribution(name):
        assert name == "vllm"
        if not has_distribution:
            raise serve.PackageNotFoundError(name)

    monkeypatch.setattr(serve, "distribution", distribution)
    command, _ = server_command("MODEL", [])
    assert command[1:5] == tail


# -- where it listens ------------------------------------------------------------------------


def test_listens_on_loopback_when_no_key_is_configured():
    assert arguments()[-2:] == ["--host", "127.0.0.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("form", ["two", "equals"])
def test_a_loopback_host_is_kept(host, form):
    flags = ["--host", host] if form == "two" else [f"--host={host}"]
    assert arguments(*flags) == flags


@pytest.mark.parametrize("flags", [["--host", "0.0.0.0"], ["--host=::"], ["--host="]])  # noqa: S104
def test_an_open_bind_without_keys_is_refused(flags):
    with pytest.raises(ConfigError, match="no key is configured"):
        server_command("MODEL", flags)


def test_the_last_of_two_hosts_counts_as_in_vllm():
    with pytest.raises(ConfigError, match="no key is configured"):
        server_command("MODEL", ["--host", "127.0.0.1", "--host", "0.0.0.0"])  # noqa: S104


def test_a_unix_socket_needs_no_host():
    assert "--host" not in arguments("--uds", "/run/vauban.sock")


def test_an_open_bind_with_keys_is_taken(keys_file):
    flags = ["--host", "0.0.0.0", f"{CONFIG}.vauban.identity.keys_file={keys_file}"]  # noqa: S104
    assert arguments(*flags) == flags


def test_with_keys_the_host_is_vllms_default(keys_file):
    assert "--host" not in arguments(f"{CONFIG}.vauban.identity.keys_file={keys_file}")


# -- policy fields among the flags ------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        [f"{CONFIG}.vauban.injection.block_at", "1.5"],
        [f"{CONFIG}.vauban.injection.block_at=1.5"],
        [f'{CONFIG}={{"vauban": {{"injection": {{"block_at": 1.5}}}}}}'],
        [CONFIG, json.dumps({"vauban": {"injection": {"block_at": 1.5}}})],
        [f'{CONFIG}.vauban.injection={{"block_at": 1.5}}'],
    ],
)
def test_a_wrong_policy_field_stops_the_start_in_every_form(flags):
    with pytest.raises(PolicyError, match=r"injection\.block_at.*1\.5"):
        server_command("MODEL", flags)


@pytest.mark.parametrize("value", ["0.9", "1", "null"])
def test_a_right_policy_field_is_handed_on_unchanged(value):
    flags = [f"{CONFIG}.vauban.injection.block_at", value]
    assert arguments(*flags)[:2] == flags


def test_dotted_flags_and_json_are_merged():
    whole = json.dumps({"vauban": {"injection": {"flag_at": 0.9}}})
    flags = [CONFIG, whole, f"{CONFIG}.vauban.injection.block_at=0.8"]
    with pytest.raises(PolicyError, match="flag_at must not be above block_at"):
        server_command("MODEL", flags)


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(PolicyError, match=r"injection\.blok_at"):
        server_command("MODEL", [f"{CONFIG}.vauban.injection.blok_at=0.5"])


def test_a_missing_value_and_broken_json_are_errors():
    with pytest.raises(PolicyError, match="a value is missing"):
        server_command("MODEL", [f"{CONFIG}.vauban.injection.block_at"])
    with pytest.raises(PolicyError, match="not valid JSON"):
        server_command("MODEL", [CONFIG, "{"])


def test_other_parts_of_additional_config_are_left_alone():
    flags = [f"{CONFIG}.another.thing", "7", f'{CONFIG}={{"other": 1}}']
    assert arguments(*flags)[:3] == flags


def test_a_policy_file_is_checked_and_named_in_the_environment(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("injection: {block_at: 0.9}")
    bad.write_text("injection: {block_at: 2}")
    _, environ = server_command("MODEL", [], good)
    assert environ["VAUBAN_POLICY"] == str(good)
    with pytest.raises(PolicyError, match=r"injection\.block_at.*bad\.yaml"):
        server_command("MODEL", [], bad)


# -- plugins ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("vauban", "vauban"),
        ("other", "other,vauban"),
        ("vauban,other", "vauban,other"),
        ("", "vauban"),
    ],
)
def test_vauban_joins_the_plugins_that_are_allowed(monkeypatch, given, expected):
    monkeypatch.setenv("VLLM_PLUGINS", given)
    _, environ = server_command("MODEL", [])
    assert environ["VLLM_PLUGINS"] == expected


def test_naming_vauban_loses_no_plugin_that_vllm_would_load(monkeypatch):
    class Point:
        def __init__(self, name):
            self.name = name

    installed = {"vllm.general_plugins": [Point("vauban"), Point("lora")]}
    installed["vllm.platform_plugins"] = [Point("npu")]
    installed["vllm.endpoint_plugins"] = [Point("stranger")]  # loaded only when it is named
    monkeypatch.setattr(serve, "entry_points", lambda group: installed.get(group, []))
    _, environ = server_command("MODEL", [])
    assert environ["VLLM_PLUGINS"] == "vauban,lora,npu"


@pytest.mark.parametrize(("given", "expected"), [(None, ""), ("10.0.0.1", "10.0.0.1")])
def test_uvicorn_believes_no_forwarded_address_unless_the_operator_says_so(
    monkeypatch, given, expected
):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if given is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", given)
    _, environ = server_command("m", [])
    assert environ["FORWARDED_ALLOW_IPS"] == expected


def test_the_environment_of_this_process_is_not_changed(monkeypatch):
    import os

    before = dict(os.environ)
    server_command("MODEL", [])
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--api-server-count", "2"), "2 API servers"),
        (("--api-server-count=3",), "3 API servers"),
        (("--data-parallel-size", "2"), "2 engines"),
    ],
)
def test_several_servers_with_state_in_one_process_are_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        server_command("MODEL", flags)
    shared = ("--additional-config.vauban.state.store", "redis://localhost")
    server_command("MODEL", (*flags, *shared))
    server_command("MODEL", (*flags, "--additional-config.vauban.response.mode", "off"))
    server_command("MODEL", ("--api-server-count", "nonsense"))  # vLLM will say so
