"""The check before the sandbox is offered: can a program in it reach the host?

The host listens on its loopback, and has a file that everybody may read and a variable in its
environment. A program in the sandbox tries for all of them, and says what it found.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vauban.agents.frames import Job, Reason
from vauban.errors import GuestFailed, NoIsolation

if TYPE_CHECKING:
    from vauban.agents.sandbox import Sandbox

VARIABLE: Final = "VAUBAN_CANARY"
PROBES: Final = '''
import json, os, socket
port, path, name, word = json.load(open("canary.json"))
open_ways = []
def try_way(way, work):
    try:
        work()
    except OSError:
        return
    open_ways.append(way)
def internet(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        s.connect(address)
        s.send(b"x")
def vsock():
    with socket.socket(40, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect((2, port))
try_way("tcp", lambda: internet(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port)))
try_way("unix", lambda: internet(socket.AF_UNIX, socket.SOCK_STREAM, "\\0" + name))
try_way("vsock", vsock)
try_way("host file", lambda: open(path).read())
if word in str(dict(os.environ)):
    open_ways.append("environment")
def first_environment():
    if word in open("/proc/1/environ").read():
        raise LookupError
try:
    try_way("environment of the first process", first_environment)
except LookupError:
    open_ways.append("environment of the host")
if [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]] != ["lo"]:
    open_ways.append("network device")
try_way("root", lambda: open("/usr/canary", "w"))
print(json.dumps(open_ways))
'''


def check(sandbox: Sandbox) -> None:
    """Try the ways out, in a machine like those that programs get.

    :raises NoIsolation: one is open, or the check could not be made.
    """
    word = secrets.token_hex(16)
    name = f"vauban-{word}"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local,
        tempfile.NamedTemporaryFile("w", prefix="vauban-canary-") as sentinel,
    ):
        local.bind(f"\0{name}")
        local.listen()
        sentinel.write(word)
        sentinel.flush()
        Path(sentinel.name).chmod(0o444)
        port = listener.getsockname()[1]
        told = json.dumps([port, sentinel.name, name, word]).encode()
        job = Job(PROBES.encode(), {"canary.json": told})
        os.environ[VARIABLE] = word
        try:
            vm = sandbox.clone()
        except GuestFailed as error:
            raise NoIsolation(f"the sandbox can't be checked: {error}") from None
        finally:
            del os.environ[VARIABLE]
        result = vm.run(job)
        vm.kill()
        for each in (listener, local):
            each.setblocking(False)
            try:
                each.accept()[0].close()
            except BlockingIOError:
                continue
            raise NoIsolation("a program in the sandbox reached a listener of the host")
    if result.reason is not Reason.EXITED or result.out != b"[]\n":
        raise NoIsolation(
            f"the sandbox was checked and is not tight: {result.out[:200]!r} ({result.summary()})"
        )
