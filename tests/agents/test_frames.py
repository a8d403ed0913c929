"""What a guest answers is believed only as far as it is of the right kind, size and length."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vauban.agents.frames import Job, Reason, job_frame, max_answer_bytes, read_result, receive
from vauban.errors import BadJob, GuestFailed
from vauban.policy_sandbox import SandboxPolicy

POLICY = SandboxPolicy(max_output_bytes=1024, max_result_bytes=100)
JOB = Job(b"print()", results=("a", "b"))
RIGHT: dict[str, Any] = {
    "out": base64.b64encode(b"hello").decode(),
    "err": "",
    "reason": "exited",
    "status": 3 << 8,
    "wall_s": 0.5,
    "cpu_s": 0,
    "files": {"a": "eA=="},
    "missing": {"b": "No such file"},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, guests = socket.socketpair()
    yield ours, guests
    ours.close()
    guests.close()


def got(ends: tuple[socket.socket, socket.socket], data: bytes, within_s: float = 5.0) -> Any:
    ends[1].sendall(data)
    return receive(ends[0], 10_000, time.monotonic() + within_s)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_a_right_answer_is_read() -> None:
    result = read_result(RIGHT, JOB, POLICY, "vm-tcg", 1.0)
    assert (result.out, result.status, result.files["a"]) == (b"hello", 3, b"x")
    assert result.tier == "vm-tcg"
    assert result.summary() == "tier vm-tcg, exited 3, ran 0.50 s (cpu 0.00 s), 1.00 s in all"


@pytest.mark.parametrize(
    "change",
    [
        {"out": None}, {"out": "not base64!"}, {"out": base64.b64encode(bytes(1025)).decode()},
        {"err": 5}, {"reason": "escaped"}, {"reason": "guest_lost"}, {"reason": []},
        {"status": True}, {"status": -1}, {"status": 1 << 40}, {"status": "0"},
        {"wall_s": "1"}, {"wall_s": float("nan")}, {"cpu_s": -1}, {"cpu_s": float("inf")},
        {"files": []}, {"files": {}}, {"files": {"../x": "eA==", "a": "eA=="}},
        {"files": {"a": base64.b64encode(bytes(101)).decode()}},
        {"missing": {}}, {"missing": {"a": "", "b": ""}}, {"missing": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_answer_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(GuestFailed):
        read_result(RIGHT | change, JOB, POLICY, "vm-tcg", 1.0)


@given(st.dictionaries(st.sampled_from(sorted(RIGHT)), JSON))
def test_no_answer_does_anything_else_than_fail(change: dict[str, Any]) -> None:
    try:
        result = read_result(RIGHT | change, JOB, POLICY, "vm-tcg", 1.0)
    except GuestFailed:
        return
    assert 0 <= result.status <= 255
    assert set(result.files) | set(result.missing) == {"a", "b"}


def test_a_frame_is_read(ends: tuple[socket.socket, socket.socket]) -> None:
    assert got(ends, framed(b'{"ready": true}')) == {"ready": True}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 10_001),
        struct.pack(">I", 0xFFFFFFFF),
        framed(b""),
        framed(b"\xff\xfe"),
        framed(b"[1]"),
        framed(b'{"a":'),
        framed(b"[" * 9_000),
        framed(b'{"a":' * 1_900),
    ],
    ids=["long", "longest", "empty", "no text", "list", "half", "deep list", "deep object"],
)
def test_a_hostile_frame_fails(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    with pytest.raises(GuestFailed):
        got(ends, data)


def test_a_guest_that_leaves_or_is_silent(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        got(ends, b"\0\0", within_s=0.05)
    ends[1].close()
    with pytest.raises(GuestFailed):
        receive(ends[0], 10_000, time.monotonic() + 5)


def test_each_job_brings_other_entropy() -> None:
    frames = [json.loads(job_frame(JOB, POLICY)[4:]) for _ in range(2)]
    assert frames[0]["entropy"] != frames[1]["entropy"]
    assert len(base64.b64decode(frames[0]["entropy"])) == 64


@pytest.mark.parametrize(
    "job",
    [
        Job(bytes(70_000)),
        Job(b"", {"a": bytes(5_000_000)}),
        Job(b"", {"../a": b""}),
        Job(b"", {".hidden": b""}),
        Job(b"", {"a/b": b""}),
        Job(b"", {"": b""}),
        Job(b"", {"main.py": b""}),
        Job(b"", results=("/etc/passwd",)),
        Job(b"", results=("a\n",)),
        Job(b"", program="-c"),
        Job(b"", results=tuple(f"f{n}" for n in range(65))),
    ],
    ids=str,
)
def test_a_job_over_a_limit_is_refused(job: Job) -> None:
    with pytest.raises(BadJob):
        job.check(SandboxPolicy())


def test_files_that_the_disk_does_not_hold_are_refused() -> None:
    job = Job(b"", {"a": bytes(1 << 20)})
    job.check(SandboxPolicy(disk_mb=1))
    with pytest.raises(BadJob, match="over 1 MiB"):
        Job(b"x", job.files).check(SandboxPolicy(disk_mb=1))


def test_what_a_guest_says_of_a_missing_file_is_nothing_that_a_terminal_obeys() -> None:
    answer = RIGHT | {"missing": {"b": "\x1b]0;owned\x07\ud800\u202e"}}
    missing = read_result(answer, JOB, POLICY, "vm-tcg", 0).missing
    assert missing == {"b": "\ufffd]0;owned\ufffd\ufffd\ufffd"}


def test_the_longest_answer_has_room_for_what_is_allowed() -> None:
    answer = RIGHT | {
        "out": base64.b64encode(bytes(POLICY.max_output_bytes)).decode(),
        "files": {"a": base64.b64encode(bytes(POLICY.max_result_bytes)).decode()},
    }
    assert len(json.dumps(answer)) < max_answer_bytes(POLICY)
    assert read_result(answer, JOB, POLICY, "vm-tcg", 0).reason is Reason.EXITED
