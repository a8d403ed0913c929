"""What goes into the guest and what comes out of it: a length, and so much JSON.

What comes out was written by a guest that may have been taken over, so it is read strictly.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import signal
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from vauban.errors import BadJob, GuestFailed
from vauban.policy_sandbox import SandboxPolicy

ENTROPY_BYTES: Final = 64
MAX_FILES: Final = 64
_SLACK_BYTES: Final = 65_536
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Port(Protocol):
    """The side of a guest that jobs go into; a socket is one."""

    def settimeout(self, seconds: float, /) -> None: ...
    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, most: int, /) -> bytes: ...
    def close(self) -> None: ...


class Reason(StrEnum):
    """How a program ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIME_LIMIT = "time_limit"
    CPU_LIMIT = "cpu_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    GUEST_LOST = "guest_lost"


@dataclass(frozen=True, slots=True)
class Job:
    """A Python program to run. `files`: put beside it; `results`: names of files to take out."""

    code: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    program: str = "main.py"

    def check(self, policy: SandboxPolicy) -> None:
        """:raises BadJob: over a limit, or a name that is no plain file name."""
        if len(self.code) > policy.max_code_bytes:
            raise BadJob(f"the program has over {policy.max_code_bytes} bytes")
        if sum(map(len, self.files.values())) > policy.max_input_bytes:
            raise BadJob(f"the files have over {policy.max_input_bytes} bytes")
        if len(self.code) + sum(map(len, self.files.values())) > policy.disk_mb << 20:
            raise BadJob(f"the program and its files have over {policy.disk_mb} MiB, the disk")
        if len(self.files) > MAX_FILES or len(self.results) > MAX_FILES:
            raise BadJob(f"more than {MAX_FILES} files")
        if self.program in self.files:
            raise BadJob("a file has the program's own name")
        if not all(map(_NAME.fullmatch, (*self.files, *self.results, self.program))):
            raise BadJob("a file's name may have letters, digits, '.', '_' and '-', and no folder")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a program. `tier` says what held it. `status`: as a shell gives it, 0 to 255.
    Times in seconds: `wall_s` and `cpu_s` in the guest, `total_s` with its start."""

    tier: str
    reason: Reason
    status: int
    out: bytes = b""
    err: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    total_s: float = 0.0

    def summary(self) -> str:
        """One line: tier, exit reason, times."""
        return (
            f"tier {self.tier}, {self.reason.value} {self.status}, ran {self.wall_s:.2f} s"
            f" (cpu {self.cpu_s:.2f} s), {self.total_s:.2f} s in all"
        )


READY: Final = {"ready": True}
"""What a guest says when it has been started or prepared."""


def job_frame(job: Job | None, policy: SandboxPolicy) -> bytes:
    """The frame of a job, with the entropy and the time that the guest starts from; without a job:
    prepare for one, with nothing left of those before."""
    files = {**job.files, job.program: job.code} if job else {}
    fields = {
        "entropy": base64.b64encode(secrets.token_bytes(ENTROPY_BYTES)).decode(),
        "time_ns": time.time_ns(),
        "prepare": job is None,
        "program": job.program if job else "",
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "results": list(job.results) if job else [],
        "limits": {
            "wall_s": policy.wall_s,
            "cpu_s": policy.cpu_s,
            "memory_bytes": policy.memory_mb << 20,
            "processes": policy.max_processes,
            "file_bytes": policy.max_file_mb << 20,
            "disk_bytes": policy.disk_mb << 20,
            "output_bytes": policy.max_output_bytes,
            "result_bytes": policy.max_result_bytes,
        },
    }
    body = json.dumps(fields).encode()
    return struct.pack(">I", len(body)) + body


def receive(port: Port, max_bytes: int, deadline: float) -> dict[str, Any]:
    """One frame.

    :param deadline: on `time.monotonic`'s clock.
    :raises TimeoutError: it has not come in time.
    :raises GuestFailed: it is too long, no JSON, or the guest is gone.
    """
    (length,) = struct.unpack(">I", _exactly(port, 4, deadline))
    if length > max_bytes:
        raise GuestFailed("the guest's answer is too long")
    try:
        fields = json.loads(_exactly(port, length, deadline))
    except (ValueError, RecursionError):
        raise GuestFailed("the guest's answer is no JSON") from None
    if not isinstance(fields, dict):
        raise GuestFailed("the guest's answer is of the wrong kind")
    return fields


def _exactly(port: Port, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        port.settimeout(left)
        try:
            part = port.recv(min(count - len(data), 1 << 20))
        except TimeoutError:
            raise
        except OSError:
            part = b""
        if not part:
            raise GuestFailed("the guest is gone")
        data += part
    return bytes(data)


def max_answer_bytes(policy: SandboxPolicy) -> int:
    """Longest answer that a guest may give."""
    return 2 * (policy.max_output_bytes + policy.max_result_bytes) + _SLACK_BYTES


def read_result(
    fields: Mapping[str, Any], job: Job, policy: SandboxPolicy, tier: str, total_s: float
) -> Result:
    """What a guest answered, believed only as far as it is of the right kind and size.

    :raises GuestFailed: it is not.
    """
    try:
        out, err = _bytes(fields["out"]), _bytes(fields["err"])
        files = {str(name): _bytes(data) for name, data in fields["files"].items()}
        missing = {str(name): _printable(why) for name, why in fields["missing"].items()}
        reason, status = Reason(fields["reason"]), fields["status"]
        wall_s, cpu_s = fields["wall_s"], fields["cpu_s"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GuestFailed("the guest's answer is not one") from None
    asked = set(job.results)
    right = (
        type(status) is int
        and type(wall_s) in (int, float)
        and type(cpu_s) in (int, float)
        and 0 <= wall_s < 1e6
        and 0 <= cpu_s < 1e6
        and reason is not Reason.GUEST_LOST
        and len(out) + len(err) <= policy.max_output_bytes
        and sum(map(len, files.values())) <= policy.max_result_bytes
        and files.keys() | missing.keys() == asked
        and not files.keys() & missing.keys()
        and 0 <= status <= 0xFFFF
    )
    if not right:
        raise GuestFailed("the guest's answer is not one")
    return Result(
        tier, reason, _shell_status(status), out, err, files, missing, wall_s, cpu_s, total_s
    )


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError from None


def _printable(text: Any) -> str:
    """It is shown on terminals, which obey what the guest wrote."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text)[:100])


def _shell_status(wait_status: int) -> int:
    if os.WIFEXITED(wait_status):
        return os.WEXITSTATUS(wait_status)
    number = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else signal.SIGKILL
    return (128 + number) & 0xFF
