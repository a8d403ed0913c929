"""Approvals: every rule of who may do what, on each store, and against whoever cheats."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from vauban.access.answer_records import MAX_ANSWER_BYTES
from vauban.access.approval import ID, Approval, Approvals, Call, State, Step
from vauban.access.approval_place import deployment_of, open_place
from vauban.errors import (
    ApprovalRefused,
    ConfigError,
    NotFound,
    StateUnavailable,
    TooManyApprovals,
    VaubanError,
)
from vauban.policy import IdentityPolicy
from vauban.policy_standing import StatePolicy
from vauban.policy_tools import ToolsPolicy
from vauban.state.store import open_store

SECRET = b"s" * 32
AGENT, APPROVER, OTHER = "key:agent0000000", "key:approver0000", "key:other0000000"
SCHEMA = "5c" * 32
MAIL = Call("call_1", "send_email", '{"to":"a@example.org"}', SCHEMA, "destructive")
TOOLS = {"send_email": SCHEMA}


@dataclass
class Bench:
    """Approvals on one store, with a clock to set and the steps that were audited."""

    state: StatePolicy
    now: float = 1_000_000.0
    steps: list[Step] = field(default_factory=list)

    def open(self, secret: bytes = SECRET, **fields: Any) -> Approvals:
        made = Approvals(
            open_store(self.state), secret, ToolsPolicy.model_validate(fields),
            on_step=self.steps.append, clock=lambda: self.now,
        )  # fmt: skip
        made.open()
        return made

    @property
    def actions(self) -> list[str]:
        return [step.action for step in self.steps]


@pytest.fixture
def bench(state_policy: Callable[..., StatePolicy]) -> Bench:
    return Bench(state_policy())


@pytest.fixture
def shared(shared_policy: Callable[..., StatePolicy]) -> Bench:
    return Bench(shared_policy())


@pytest.fixture
def approvals(bench: Bench) -> Iterator[Approvals]:
    made = bench.open()
    yield made
    made.close()


def test_held_approved_released_once(bench: Bench, approvals: Approvals) -> None:
    held = approvals.hold(AGENT, [MAIL])
    assert ID.fullmatch(held.id)
    assert held.expires == bench.now + 600
    assert approvals.release(held.id, AGENT, TOOLS).state is State.PENDING
    decided = approvals.decide(held.id, approve=True, by=APPROVER, reason="asked them")
    assert (decided.state, decided.by, decided.reason) == (State.APPROVED, APPROVER, "asked them")
    released = approvals.release(held.id, AGENT, TOOLS)
    assert released.state is State.RELEASED
    assert released.calls == (MAIL,)
    for _ in range(2):
        with pytest.raises(ApprovalRefused, match="used"):
            approvals.release(held.id, AGENT, TOOLS)
    assert bench.actions == ["held", "approved", "released", "refused", "refused"]


def test_ids_are_drawn(approvals: Approvals) -> None:
    ids = {approvals.hold(AGENT, [MAIL]).id for _ in range(20)}
    assert len(ids) == 20


def test_the_callers_own_credential_never_approves(bench: Bench, approvals: Approvals) -> None:
    held = approvals.hold(AGENT, [MAIL])
    with pytest.raises(ApprovalRefused, match="another credential"):
        approvals.decide(held.id, approve=True, by=AGENT, reason="")
    assert approvals.release(held.id, AGENT, TOOLS).state is State.PENDING
    assert bench.actions == ["held", "refused"]


def test_an_approval_is_its_callers_alone(approvals: Approvals) -> None:
    held = approvals.hold(AGENT, [MAIL])
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    for wrong in (held.id[:-1] + ("A" if held.id[-1] != "A" else "B"), "", "approvals", "apr_x"):
        with pytest.raises(NotFound):
            approvals.release(wrong, AGENT, TOOLS)
    with pytest.raises(NotFound):
        approvals.release(held.id, OTHER, TOOLS)
    with pytest.raises(NotFound):
        approvals.withdraw(held.id, OTHER)
    assert approvals.release(held.id, AGENT, TOOLS).state is State.RELEASED


def test_nobody_decides_is_no(bench: Bench, approvals: Approvals) -> None:
    waiting, granted = approvals.hold(AGENT, [MAIL]), approvals.hold(AGENT, [MAIL])
    approvals.decide(granted.id, approve=True, by=APPROVER, reason="")
    bench.now += 600
    for held in (waiting, granted):
        assert approvals.release(held.id, AGENT, TOOLS).state is State.EXPIRED
        with pytest.raises(ApprovalRefused, match="expired"):
            approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    bench.now += 600
    assert approvals.all() == []
    assert bench.actions[-2:] == ["expired", "expired"]
    with pytest.raises(NotFound):
        approvals.release(granted.id, AGENT, TOOLS)


def test_no_is_no(approvals: Approvals) -> None:
    held = approvals.hold(AGENT, [MAIL])
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    assert approvals.decide(held.id, approve=False, by=APPROVER, reason="no").state is State.DENIED
    for by in (APPROVER, OTHER):
        with pytest.raises(ApprovalRefused, match="denied already"):
            approvals.decide(held.id, approve=True, by=by, reason="")
    ended = approvals.release(held.id, AGENT, TOOLS)
    assert (ended.state, ended.reason) == (State.DENIED, "no")


def test_a_caller_may_say_no_to_its_own_call(approvals: Approvals) -> None:
    held = approvals.hold(AGENT, [MAIL])
    assert approvals.withdraw(held.id, AGENT).state is State.DENIED
    with pytest.raises(ApprovalRefused):
        approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    used = approvals.hold(AGENT, [MAIL])
    approvals.decide(used.id, approve=True, by=APPROVER, reason="")
    approvals.release(used.id, AGENT, TOOLS)
    assert approvals.withdraw(used.id, AGENT).state is State.RELEASED


@pytest.mark.parametrize("tools", [{}, {"send_email": "0" * 64}, {"other": SCHEMA}])
def test_other_tools_than_it_was_given_for(approvals: Approvals, tools: dict[str, str]) -> None:
    held = approvals.hold(AGENT, [MAIL])
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    with pytest.raises(ApprovalRefused, match="tools"):
        approvals.release(held.id, AGENT, tools)


def test_another_policy_than_it_was_given_under(shared: Bench) -> None:
    first = shared.open()
    pending, granted = first.hold(AGENT, [MAIL]), first.hold(AGENT, [MAIL])
    first.decide(granted.id, approve=True, by=APPROVER, reason="")
    first.close()
    stricter = shared.open(rules={"send_email": {"action": "deny"}})
    with pytest.raises(ApprovalRefused, match="policy"):
        stricter.release(granted.id, AGENT, TOOLS)
    with pytest.raises(ApprovalRefused, match="policy"):
        stricter.decide(pending.id, approve=True, by=APPROVER, reason="")


def test_what_waits_survives_a_restart(shared: Bench) -> None:
    first = shared.open()
    held = first.hold(AGENT, [MAIL])
    first.close()
    second = shared.open()
    second.decide(held.id, approve=True, by=APPROVER, reason="")
    second.close()
    assert shared.open().release(held.id, AGENT, TOOLS).state is State.RELEASED


def test_many_at_once_and_one_gets_it(shared: Bench) -> None:
    servers = [shared.open() for _ in range(4)]
    held = servers[0].hold(AGENT, [MAIL])
    servers[1].decide(held.id, approve=True, by=APPROVER, reason="")

    def take(number: int) -> State | str:
        try:
            return servers[number % 4].release(held.id, AGENT, TOOLS).state
        except (ApprovalRefused, StateUnavailable) as error:
            return type(error).__name__

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(take, range(20)))
    assert outcomes.count(State.RELEASED) == 1
    assert shared.actions.count("released") == 1


def test_two_approvers_race_and_one_decides(shared: Bench) -> None:
    servers = [shared.open() for _ in range(2)]
    held = servers[0].hold(AGENT, [MAIL])

    def decide(number: int) -> str:
        try:
            servers[number].decide(held.id, approve=True, by=f"key:approver000{number}", reason="")
        except ApprovalRefused:
            return "refused"
        return "approved"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(decide, range(2))) == ["approved", "refused"]


def tampered(bench: Bench, held: Approval, change: Callable[[list[Any]], None]) -> None:
    def rewrite(old: bytes | None) -> bytes:
        record = json.loads(old or b"null")
        change(record)
        return json.dumps(record).encode()

    store = open_store(bench.state)
    store.open()
    store.update(f"approval:{held.id}", rewrite)
    store.close()


def put(place: int, value: Any) -> Callable[[list[Any]], None]:
    return lambda record: record[1].__setitem__(place, value)


@pytest.mark.parametrize(
    "change",
    [
        put(0, "apr_" + "x" * 24), put(1, OTHER),
        put(2, [["call_1", "send_email", '{"to":"b@evil.test"}', SCHEMA, "", "", "function"]]),
        put(3, "0" * 12), put(4, 0.0), put(5, 9e9), put(6, "approved"), put(7, "key:x"),
        lambda record: record.__setitem__(0, 2), lambda record: record.__setitem__(2, "0" * 64),
        lambda record: record.__setitem__(2, None), lambda record: record.clear(),
    ],
)  # fmt: skip
def test_a_record_that_was_written_by_others(
    shared: Bench, change: Callable[[list[Any]], None]
) -> None:
    approvals = shared.open()
    held = approvals.hold(AGENT, [MAIL])
    tampered(shared, held, change)
    for act in (
        lambda: approvals.release(held.id, AGENT, TOOLS),
        lambda: approvals.release(held.id, OTHER, TOOLS),
        lambda: approvals.decide(held.id, approve=True, by=APPROVER, reason=""),
        lambda: approvals.get(held.id),
    ):
        with pytest.raises(NotFound):
            act()


def test_a_record_under_another_secret_or_another_name(shared: Bench) -> None:
    approvals = shared.open()
    held, own = approvals.hold(AGENT, [MAIL]), approvals.hold(OTHER, [MAIL])
    with pytest.raises(NotFound):
        shared.open(secret=b"t" * 32).decide(held.id, approve=True, by=APPROVER, reason="")
    approvals.decide(own.id, approve=True, by=APPROVER, reason="")
    store = open_store(shared.state)
    store.open()
    copied: list[bytes | None] = []
    store.update(f"approval:{own.id}", lambda old: copied.append(old) or old)  # type: ignore[func-returns-value]
    store.update(f"approval:{held.id}", lambda _: copied[0])
    with pytest.raises(NotFound):
        approvals.release(held.id, OTHER, TOOLS)


def test_who_asks_too_often_is_not_heard(bench: Bench, approvals: Approvals) -> None:
    approvals.close()
    few = bench.open(max_calls_per_caller=3)
    for _ in range(3):
        few.hold(AGENT, [MAIL])
    with pytest.raises(TooManyApprovals):
        few.hold(AGENT, [MAIL])
    few.hold(OTHER, [MAIL])
    bench.now += 600
    few.hold(AGENT, [MAIL])


def test_a_full_store_takes_no_more(bench: Bench, approvals: Approvals) -> None:
    approvals.close()
    full = bench.open(max_calls_per_caller=500)
    for number in range(500):
        full.hold(f"jwt:{number:032d}", [MAIL])
    with pytest.raises(TooManyApprovals):
        full.hold(AGENT, [MAIL])
    bench.now += 1_200
    assert full.hold(AGENT, [MAIL])
    assert len(full.all()) == 1


def test_what_has_ended_shuts_nobody_out(bench: Bench, approvals: Approvals) -> None:
    approvals.close()
    full = bench.open(max_calls_per_caller=500)
    for _ in range(500):
        full.hold(AGENT, [MAIL])
    bench.now += 601
    assert full.hold(OTHER, [MAIL])


def test_calls_that_are_too_large_together(approvals: Approvals) -> None:
    large = Call("c", "send", json.dumps({"a": "\\" * 15_000}), "", "destructive")
    with pytest.raises(TooManyApprovals, match="large"):
        approvals.hold(AGENT, [large, large, large])
    assert approvals.all() == []


def test_a_dead_store_releases_nothing(tmp_path: Path) -> None:
    bench = Bench(StatePolicy(store=f"sqlite://{tmp_path}/a.db", timeout_ms=20))
    approvals = bench.open()
    held = approvals.hold(AGENT, [MAIL])
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for act in (
        lambda: approvals.hold(AGENT, [MAIL]),
        lambda: approvals.release(held.id, AGENT, TOOLS),
        lambda: approvals.decide(held.id, approve=True, by=APPROVER, reason=""),
        approvals.all,
    ):
        with pytest.raises(StateUnavailable):
            act()
    other.execute("ROLLBACK")
    assert approvals.release(held.id, AGENT, TOOLS).state is State.RELEASED


def test_a_valkey_server_that_dies_in_between(own_redis_server: Any) -> None:
    bench = Bench(StatePolicy(store=own_redis_server.url, timeout_ms=300))
    approvals = bench.open()
    held = approvals.hold(AGENT, [MAIL])
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    own_redis_server.kill()
    with pytest.raises(StateUnavailable):
        approvals.release(held.id, AGENT, TOOLS)
    own_redis_server.start()
    assert approvals.release(held.id, AGENT, TOOLS).state is State.RELEASED


# -- where they are kept -------------------------------------------------------------------------


def place(
    state: StatePolicy, tools: ToolsPolicy, *, given: bool = False, processes: int = 1
) -> tuple[Any, bytes]:
    return open_place(state, tools, own=SECRET, given=given, processes=processes)


def test_by_default_in_a_file_with_a_secret_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    numbers = count()
    found = []
    for _ in range(2):
        store, secret = place(StatePolicy(), ToolsPolicy(), processes=2)
        store.open()
        store.update("x", lambda old: old or str(next(numbers)).encode())
        store.close()
        found.append(secret)
    assert found[0] == found[1] != SECRET
    kept = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "vauban").iterdir()}
    assert kept["approvals.db"] == kept["approvals.db.key"] == 0o600
    assert place(StatePolicy(), ToolsPolicy(), given=True)[1] == SECRET


def test_many_servers_make_one_secret(tmp_path: Path) -> None:
    tools = ToolsPolicy(store=f"sqlite://{tmp_path}/a.db")
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: place(StatePolicy(), tools)[1], range(16)))
    assert len(secrets) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.db.key"]


def test_beside_the_users_state(tmp_path: Path) -> None:
    store, _ = place(StatePolicy(store=f"sqlite://{tmp_path}/state.db"), ToolsPolicy())
    store.open()
    store.close()
    assert (tmp_path / "state.db.approvals").exists()


def test_without_a_place_one_server_keeps_them_in_memory_and_several_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    store, secret = place(StatePolicy(), ToolsPolicy())
    assert not store.shared
    assert secret == SECRET
    assert "lost with this process" in caplog.text
    with pytest.raises(ConfigError, match="can't be kept"):
        place(StatePolicy(), ToolsPolicy(), processes=2)
    with pytest.raises(ConfigError, match="2 API servers"):
        place(StatePolicy(), ToolsPolicy(store="memory"), processes=2)


@pytest.mark.parametrize("text", ["", "xyz", "5a" * 8])
def test_a_secret_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.db.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(VaubanError, match="key"):
        place(StatePolicy(), ToolsPolicy(store=f"sqlite://{tmp_path}/a.db"))
    path.write_text("5a" * 32)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        place(StatePolicy(), ToolsPolicy(store=f"sqlite://{tmp_path}/a.db"))


def test_an_answer_is_kept_in_parts_and_given_out_once(bench: Bench) -> None:
    answer = bytes(n % 251 for n in range(200_000))
    told = Call("", "answer", "{}", "", "secrets", kind="answer")
    approvals = bench.open()
    held = approvals.hold(AGENT, [told], form="/v1/chat/completions", answer=answer)
    assert approvals.answer_of(approvals.get(held.id)) == answer
    approvals.decide(held.id, approve=True, by=APPROVER, reason="")
    for forms in ([""], ["/v1/messages"], ["/v1/chat/completions stream"]):
        with pytest.raises(ApprovalRefused, match="another kind"):
            approvals.release(held.id, AGENT, TOOLS, forms)
    with pytest.raises(NotFound):
        approvals.release(held.id, OTHER, {}, ["/v1/chat/completions"])
    released = approvals.release(held.id, AGENT, {}, ["", "/v1/chat/completions"])
    assert released.state is State.RELEASED
    assert approvals.take_answer(released) == answer
    with pytest.raises(NotFound):
        approvals.take_answer(released)
    with pytest.raises(ApprovalRefused, match="has been used"):
        approvals.release(held.id, AGENT, {}, ["/v1/chat/completions"])


def test_an_answer_that_was_changed_in_the_store_is_none(bench: Bench) -> None:
    approvals = bench.open()
    held = approvals.hold(AGENT, [MAIL], form="f", answer=b"as it was")
    approvals._store.update(f"answer:{held.id}:0", lambda _: b"as it is not")
    with pytest.raises(NotFound):
        approvals.answer_of(held)


def test_an_answer_too_large_is_not_kept_and_one_that_ended_is_dropped(bench: Bench) -> None:
    approvals = bench.open()
    with pytest.raises(TooManyApprovals, match="too large"):
        approvals.hold(AGENT, [MAIL], form="f", answer=bytes(MAX_ANSWER_BYTES + 1))
    held = approvals.hold(AGENT, [MAIL], form="f", answer=b"x")
    bench.now += 10_000
    assert approvals.all() == []
    with pytest.raises(NotFound):
        approvals.answer_of(held)


def test_an_answer_is_void_when_the_policy_of_answers_has_changed(bench: Bench) -> None:
    store = open_store(bench.state)
    before, after = (
        Approvals(store, SECRET, ToolsPolicy(), output_digest=digest, clock=lambda: bench.now)
        for digest in ("a", "b")
    )
    before.open()
    call, kept = before.hold(AGENT, [MAIL]), before.hold(AGENT, [MAIL], form="f", answer=b"x")
    for one in (call, kept):
        before.decide(one.id, approve=True, by=APPROVER, reason="")
    after._is_open = True
    assert after.release(call.id, AGENT, TOOLS).state is State.RELEASED
    with pytest.raises(ApprovalRefused, match="policy has changed"):
        after.release(kept.id, AGENT, {}, ["f"])


def test_deployments_do_not_share_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Approvers of one see and decide what is kept there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names = [
        deployment_of(IdentityPolicy.model_validate(fields))
        for fields in ({}, {"keys_file": tmp_path / "a.json"}, {"keys_file": tmp_path / "b.json"},
                       {"jwks_file": tmp_path / "a.json"})
    ]  # fmt: skip
    assert names[0] == ""
    kept = []
    for name in [*names[:3], names[1]]:
        store, secret = open_place(
            StatePolicy(), ToolsPolicy(), own=b"o" * 32, given=False, processes=1, deployment=name
        )
        approvals = Approvals(store, secret, ToolsPolicy())
        approvals.open()
        kept.append(len(approvals.all()))
        approvals.hold(AGENT, [MAIL])
        approvals.close()
    assert kept == [0, 0, 0, 1]
