"""`vauban console serve`: where it refuses to start, and what it says."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vauban.cli import app


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "192.0.2.1"], "--public-url"),
        (["--url", "ftp://x"], "--url takes"),
        (["--url", "http://a:b"], "--url takes"),
        (["--url", "localhost:8000"], "--url takes"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "can't be read"),
        (["--public-url", "http://console.example"], "https"),
        (["--policy", "none.yaml"], "can't be read"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(options: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["console", "serve", *options])
    assert done.exit_code == 1
    assert told in str(done.exception)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [Path(sys.executable).with_name("vauban"), "console", "serve", "--port",
             str(taken.getsockname()[1])],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode != 0
    assert "can't listen" in done.stderr or "address already in use" in done.stderr
