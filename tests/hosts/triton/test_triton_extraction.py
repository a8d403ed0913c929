"""guard_extraction: who explores the model is treated by it, and nobody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from triton_fakes import MakeInput, completion

from vauban.detectors.extraction.accumulated import Accumulated
from vauban.errors import (
    Banned,
    ConfigError,
    HeldForReview,
    MalformedRequest,
    RequestError,
    StandingUnknown,
    StateUnavailable,
)
from vauban.hosts.triton.extraction import (
    ASKED,
    KNOWN,
    MAX_WAITING_BATCHES,
    GuardExtraction,
    Users,
    Watching,
    Who,
    at_start,
)
from vauban.hosts.triton.output import Jobs
from vauban.hosts.triton.seal import Bundle, Seal
from vauban.mark import Sealer
from vauban.policy import Policy
from vauban.state.store import open_store
from vauban.types import Evidence, Level, PrincipalKind, Reason

WIDTH = 384
THIEF, PERSON, SERVICE = "gateway:thief", "gateway:person", "gateway:service"
EAGER = {"step_queries": 16, "ban_at": 0.55}

Make = Callable[..., GuardExtraction]


def policy(**sections: Any) -> Policy:
    return Policy.model_validate({"audit": {"log": "off"}, **sections})


@pytest.fixture
def make(seal: Seal) -> Iterator[Make]:
    made: list[GuardExtraction] = []

    def new(instances: int = 1, seen: Any = None, **sections: Any) -> GuardExtraction:
        observe = seen.append if seen is not None else lambda _: None
        found = GuardExtraction(policy(**sections), seal, instances=instances, on_evidence=observe)
        made.append(found)
        return found

    yield new
    for one in made:
        one.close()


def users_of(model: GuardExtraction, seal: Seal) -> Users:
    """As `bls.UsersModel` calls it."""

    def ask(asked: bytes) -> bytes:
        try:
            return model(asked)
        except RequestError:
            raise StateUnavailable("error") from None

    return Users(ask, seal, 10)


def who(name: str, *, service: bool = False) -> Who:
    return Who(name, PrincipalKind.KEY.value, service)


def explore(users: Users, name: str, queries: int, *, service: bool = False) -> list[Level]:
    """Ask about everything in any order; the levels on the way."""
    random, levels = np.random.default_rng(7), [Level.CLEAR]
    for _ in range(queries):
        row = random.normal(size=(1, WIDTH)).astype(np.float32)
        users.watch([who(name, service=service)], row / np.linalg.norm(row))
        if (level := users.standing(name).level) is not levels[-1]:
            levels.append(level)
    return levels


def test_a_thief_climbs_to_the_ban_and_a_person_notices_nothing(make: Make, seal: Seal) -> None:
    seen: list[Any] = []
    users = users_of(make(extraction=EAGER, seen=seen), seal)
    levels = explore(users, THIEF, 400)
    assert levels == [Level.CLEAR, Level.FLAGGED, Level.SLOWED, Level.DEGRADED, Level.BANNED]
    assert users.standing(PERSON).level is Level.CLEAR
    banned = users.standing(THIEF)
    assert banned.until is not None
    assert banned.until > banned.since
    assert banned.by == "detector"
    assert len(seen) == 400
    assert all(isinstance(known, Evidence) for known in seen)


def test_a_service_is_not_judged_like_a_person(make: Make, seal: Seal) -> None:
    users = users_of(make(extraction=EAGER), seal)
    assert explore(users, SERVICE, 200, service=True) == [Level.CLEAR]


@pytest.mark.parametrize(
    "sections",
    [{"extraction": {"mode": "monitor"}}, {"extraction": {"mode": "off"}},
     {"response": {"mode": "off"}}],
)  # fmt: skip
def test_nobody_gets_a_level_where_that_is_off(make: Make, seal: Seal, sections: Any) -> None:
    sections = {"extraction": EAGER} | sections
    assert explore(users_of(make(**sections), seal), THIEF, 150) == [Level.CLEAR]


def test_a_failing_detector_degrades_everybody_until_it_works(make: Make, seal: Seal) -> None:
    seen: list[Any] = []
    users = users_of(make(seen=seen), seal)
    users.watch([who(PERSON)], np.ones((1, 3), np.float32))  # another encoder's
    assert users.standing(PERSON).level is Level.DEGRADED
    assert seen == [Reason.WATCH_FAILED]
    users.watch([who(PERSON)], np.ones((1, WIDTH), np.float32))
    assert users.standing(PERSON).level is Level.CLEAR


# -- loading again -------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_levels_outlive_it_in_a_shared_store(
    make: Make, seal: Seal, tmp_path: Path, shared: bool
) -> None:
    store = f"sqlite:///{tmp_path / 'state.db'}" if shared else "memory"
    sections = {"extraction": EAGER, "state": {"store": store}}
    first = make(**sections)
    assert explore(users_of(first, seal), THIEF, 400)[-1] is Level.BANNED
    first.close()
    again = users_of(make(**sections), seal)
    assert again.standing(THIEF).level is (Level.BANNED if shared else Level.CLEAR)
    said = at_start(policy(**sections))
    assert ("read from the store" in said) is shared
    assert ("are forgotten" in said) is not shared


def test_what_it_knows_of_callers_is_kept_when_it_is_unloaded(
    make: Make, seal: Seal, tmp_path: Path
) -> None:
    state = {"store": f"sqlite:///{tmp_path / 'state.db'}", "refresh_ms": 60_000}
    first = make(state=state)
    explore(users_of(first, seal), THIEF, 64)
    first.close()
    store = open_store(policy(state=state).state)
    store.open()
    (counts,) = store.add_counts([(THIEF, {})])
    store.close()
    assert Accumulated.of(counts).segments == 1.0


def test_several_instances_need_a_store_that_they_share(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 instances of the model"):
        make(instances=2)
    make(instances=2, state={"store": f"sqlite:///{tmp_path / 'state.db'}"})


# -- what is not from this server ----------------------------------------------------------------


def test_only_this_server_is_answered(make: Make, seal: Seal) -> None:
    model = make()
    answer = model(seal.close(ASKED, Bundle("", {"standing": THIEF})))
    for forged in (b"", b"forged", answer, Seal(b"x" * 32).close(ASKED, Bundle("", {}))):
        with pytest.raises(MalformedRequest):
            model(forged)
    assert THIEF.encode() not in answer


# -- guard_input -----------------------------------------------------------------------------------


class Levels:
    """Stands where `Users` does."""

    def __init__(self, level: Level = Level.CLEAR) -> None:
        self.level = level
        self.gone = False

    def standing(self, principal_id: str) -> Any:
        if self.gone:
            raise StateUnavailable("gone")
        return self.remembered(principal_id)

    def remembered(self, principal_id: str) -> Any:
        from vauban.access.standing import Standing

        return Standing(principal_id, self.level, 0.0, 4e9)


@pytest.mark.parametrize(("level", "error"), [(Level.BANNED, Banned), (Level.HELD, HeldForReview)])
def test_who_is_banned_is_refused_before_anything_is_read(
    make_input: MakeInput, level: Level, error: type[RequestError]
) -> None:
    with pytest.raises(error):
        make_input(users=Levels(level))(completion("hello"), "")
    make_input(users=Levels(level), response={"mode": "monitor"})(completion("hello"), "")
    make_input(users=Levels(level), response={"mode": "off"})(completion("hello"), "")


def test_who_is_degraded_samples_hot_and_gets_no_bias(make_input: MakeInput, seal: Seal) -> None:
    from triton_fakes import SECRET

    def sampling(level: Level, **asked: Any) -> Any:
        sealed = make_input(users=Levels(level))(completion("hello", **asked), "")[0]
        inputs = Jobs(seal, Sealer(SECRET)).open(sealed).inputs
        return json.loads(inputs["sampling_parameters"])

    assert sampling(Level.SLOWED, temperature=0)["temperature"] == 0
    degraded = sampling(Level.DEGRADED, temperature=0, top_k=1, seed=3)
    assert degraded["temperature"] >= 0.7
    assert not {"top_k", "seed"} & set(degraded)
    with pytest.raises(MalformedRequest, match="logit_bias"):
        sampling(Level.DEGRADED, logit_bias={"1": 100})
    sampling(Level.SLOWED, logit_bias={"1": 100})
    with pytest.raises(MalformedRequest, match="prompt_logprobs"):
        sampling(Level.CLEAR, prompt_logprobs=5)


def test_who_is_slowed_has_lower_limits(make_input: MakeInput) -> None:
    slow = make_input(users=Levels(Level.SLOWED), response={"slow_requests_per_min": 2})
    for _ in range(2):
        slow(completion("hello"), "")
    with pytest.raises(RequestError, match="minute"):
        slow(completion("hello"), "")


@pytest.mark.parametrize("on_failure", ["block", "degrade", "allow"])
def test_when_it_does_not_answer_the_policy_decides(
    make_input: MakeInput, seal: Seal, on_failure: str
) -> None:
    users = Levels()
    read = make_input(users=users, state={"on_failure": on_failure})
    users.gone = True
    if on_failure == "block":
        with pytest.raises(StandingUnknown):
            read(completion("hello"), "")
        return
    windows = read(completion("hello"), "")[1]
    standing = seal.open("windows", windows).fields["standing"]
    assert standing == ("degraded" if on_failure == "degrade" else "clear")


def test_who_does_not_answer_is_asked_again_after_a_while(seal: Seal) -> None:
    now, asked = [0.0], []

    def gone(sealed: bytes) -> bytes:
        asked.append(sealed)
        raise StateUnavailable("gone")

    users = Users(gone, seal, 10, clock=lambda: now[0])
    for now[0] in (0.0, 0.5, 1.0, 1.5):
        with pytest.raises(StateUnavailable):
            users.standing(THIEF)
    assert len(asked) == 2


def told(seal: Seal, level: list[Level], asked: list[bytes]) -> Callable[[bytes], bytes]:
    """Answers as `guard_extraction` does, with whatever level there is now."""

    def answer(sealed: bytes) -> bytes:
        asked.append(sealed)
        fields = {"level": int(level[0]), "since": 0.0, "until": None, "by": "detector"}
        return seal.close(KNOWN, Bundle("", fields))

    return answer


def test_a_standing_counts_for_a_while_before_it_is_asked_for_again(seal: Seal) -> None:
    now, level, asked = [0.0], [Level.CLEAR], list[bytes]()
    users = Users(told(seal, level, asked), seal, 2, fresh_s=1.0, clock=lambda: now[0])
    found = []
    for now[0] in (0.0, 0.5, 0.99, 1.0, 1.5):
        found.append(users.standing(THIEF).level)
        level[0] = Level.DEGRADED
    assert found == [Level.CLEAR] * 3 + [Level.DEGRADED] * 2
    assert len(asked) == 2


@pytest.mark.parametrize("level", [Level.HELD, Level.BANNED])
def test_who_is_held_or_banned_is_asked_for_each_time(seal: Seal, level: Level) -> None:
    """What an operator lifts is lifted at once."""
    levels, asked = [level], list[bytes]()
    users = Users(told(seal, levels, asked), seal, 2, fresh_s=1.0, clock=lambda: 0.0)
    assert users.standing(THIEF).level is level
    levels[0] = Level.CLEAR
    assert users.standing(THIEF).level is Level.CLEAR


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 2)), max_size=30))
def test_standings_that_are_remembered_are_bounded(steps: list[tuple[str, float]]) -> None:
    seal, now = Seal(b"x" * 32), [0.0]
    ask = told(seal, [Level.FLAGGED], [])
    users = Users(ask, seal, 2, fresh_s=1.0, clock=lambda: now[0])
    for name, seconds in steps:
        now[0] += seconds
        assert users.standing(name).level is Level.FLAGGED
        assert len(users._fresh) <= 2
        assert len(users._remembered) <= 2


def test_who_asked_is_told_behind_the_verdict() -> None:
    """Nobody waits, nothing is lost at the end, and one that fails is not the last."""
    seen, go = list[str](), threading.Event()

    class Slow:
        def watch(self, callers: list[Who], _: Any) -> None:
            go.wait(10)
            seen.extend(caller.id for caller in callers)
            if seen == [THIEF]:
                raise StateUnavailable("gone")

    watching = Watching(Slow())  # type: ignore[arg-type]
    rows = np.zeros((1, WIDTH), np.float32)
    for name in (THIEF, PERSON):
        watching.watch([who(name)], rows)
    assert not seen
    go.set()
    watching.close()
    assert seen == [THIEF, PERSON]


def test_what_waits_to_be_told_is_bounded() -> None:
    go = threading.Event()

    class Stuck:
        def watch(self, *_: Any) -> None:
            go.wait(10)

    watching = Watching(Stuck())  # type: ignore[arg-type]
    batch = [who(PERSON)], np.zeros((1, WIDTH), np.float32)
    for _ in range(MAX_WAITING_BATCHES):
        watching.watch(*batch)
    with suppress(StateUnavailable):
        watching.watch(*batch)  # one may be in the hands of the thread
    with pytest.raises(StateUnavailable):
        watching.watch(*batch)
    go.set()
    watching.close()


def test_a_ban_outlives_the_model_that_knew_of_it(make: Make, seal: Seal) -> None:
    """Where the policy goes on without it, what was last heard of it counts."""
    model = make(extraction=EAGER)
    users = users_of(model, seal)
    assert explore(users, THIEF, 400)[-1] is Level.BANNED
    assert users.remembered(THIEF).level is Level.BANNED
    assert users.remembered(PERSON).level is Level.CLEAR
