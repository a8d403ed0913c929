"""The check before the sandbox is offered: can a program in it reach the host?

The host listens on its loopback, and has a file that everybody may read and a variable in its
environment. A program in the sandbox tries for all of them, and says what it found.
"""

from __future__ import annotations

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
PATIENT_S: Final = 60
PROBES: Final = """
import os
import _socket as socket  # the whole module takes the emulated processor a second to load

port, path, name, word, reach = WHAT
ways = []

def attempt(way, work):
    try:
        if work() is not False:
            ways.append(way)
    except OSError:
        pass

def connect(family, address):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(1)
    s.connect(address)
    s.send(b"x")

attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", port)))
attempt("unix socket", lambda: connect(socket.AF_UNIX, "\\0" + name))
attempt("vsock", lambda: connect(40, (2, port)))
attempt("host file", lambda: open(path).read())
attempt("environment", lambda: word in str(dict(os.environ)))
attempt("environment of the first process", lambda: word in open("/proc/1/environ").read())
if reach:
    family = socket.AF_INET6 if ":" in reach[0] else socket.AF_INET
    attempt("network", lambda: connect(family, reach))
else:
    attempt("network device", lambda: [
        line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]] != ["lo"])
attempt("root", lambda: open("/usr/canary", "w"))
print(ways)
"""


def check(sandbox: Sandbox) -> None:
    """Try the ways out, in a machine like those that programs get.

    :raises NoIsolation: one is open, or the check could not be made.
    """
    limits = {"wall_s": PATIENT_S, "cpu_s": PATIENT_S, "max_code_bytes": 65_536}
    patient = sandbox.policy.model_copy(update=limits)
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
        what = repr((port, sentinel.name, name, word, sandbox.tier.reach))
        job = Job(PROBES.replace("WHAT", what, 1).encode())
        os.environ[VARIABLE] = word
        try:
            vm = sandbox.clone(patient)
        except GuestFailed as error:
            raise NoIsolation(f"the sandbox can't be checked: {error}") from None
        finally:
            del os.environ[VARIABLE]
        try:
            result = vm.run(job)
        finally:
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
