"""A real Redis server of its own, on a unix socket, that tests may kill and start again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import valkey

_START_S = 20


class RedisServer:
    """
    :param options: more of `redis-server`'s own.
    :param save: keep every write on disk, as an operator would have it.
    """

    def __init__(self, *options: str, save: bool = False, password: str | None = None) -> None:
        # Its own short path: a unix socket's may have 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="vr-"))
        self.socket = self.directory / "s"
        self.url = f"unix://{self.socket}"
        self._password = password
        self._options = [*options]
        if save:
            self._options += ["--appendonly", "yes", "--appendfsync", "always"]
        if password is not None:
            self._options += ["--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def client(self) -> valkey.Valkey:
        return valkey.Valkey.from_url(self.url, password=self._password, socket_timeout=5)

    def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", "",
             "--dir", str(self.directory), *self._options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.client().ping()
                return
            except valkey.ValkeyError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as when the machine is lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """It still takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
