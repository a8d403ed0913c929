"""A campaign's pooled window: whether its accounts can be told apart by what they ask."""

from __future__ import annotations

import numpy as np
import pytest
from extraction_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from vauban.detectors.extraction.campaign import Campaigns
from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.pooled import (
    ACCOUNTS,
    JUDGED_EVERY,
    LEAST_EACH,
    MOST_CAMPAIGNS,
    POOLED_QUERIES,
    PooledVerdicts,
    judge,
    measure,
    stands_apart,
)
from vauban.detectors.extraction.projection import DIMENSIONS, Floats, Small
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import Caller, Evidence

REFERENCE = Reference.load()
RARE = 2.0
"""Tenfolds that one honest group in a hundred comes to."""


def dealt_out(world: World, accounts: int, each: int) -> list[Small]:
    """One list, dealt out in turns."""
    small = REFERENCE.projection(world.script(accounts * each))
    return [small[n::accounts] for n in range(accounts)]


def people(world: World, accounts: int, each: int) -> list[Small]:
    return [REFERENCE.projection(world.person(each)) for _ in range(accounts)]


@pytest.mark.parametrize("accounts", [3, 5, 20, 64])
@pytest.mark.parametrize("each", [24, 150])
def test_a_list_that_is_dealt_out_is_everybodys(world: World, accounts: int, each: int) -> None:
    stolen, honest = judge(dealt_out(world, accounts, min(each, 2400 // accounts))), None
    honest = judge(people(world, accounts, each))
    assert stolen is not None
    assert honest is not None
    assert stolen.tail > RARE > honest.tail
    assert stolen.mingled == pytest.approx(1.0, abs=0.25)
    assert stolen.accounts == min(accounts, ACCOUNTS[-1])
    assert stolen.queries <= POOLED_QUERIES


def test_too_little_says_nothing(world: World) -> None:
    assert judge([]) is None
    assert judge(dealt_out(world, 2, 400)) is None
    assert judge(dealt_out(world, 20, LEAST_EACH - 1)) is None
    assert judge([*dealt_out(world, 2, 400), *dealt_out(world, 40, LEAST_EACH - 1)]) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 9))
def test_order_and_names_say_nothing(seed: int, accounts: int) -> None:
    world = World(seed=seed)
    windows = people(world, accounts, 50)
    rng = np.random.default_rng(seed)
    shuffled = [window[rng.permutation(len(window))] for window in windows]
    other = [shuffled[place] for place in rng.permutation(accounts)]
    one, two = judge(windows), judge(other)
    assert one is not None
    assert two is not None
    assert one.mingled == pytest.approx(two.mingled, abs=1e-9)
    assert one.repeats == pytest.approx(two.repeats, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_measured_as_it_is_told(seed: int) -> None:
    """Against the same written query by query, with many that are equally near."""
    rng = np.random.default_rng(seed)
    small = rng.integers(-3, 4, size=(40, DIMENSIONS)).astype(np.int8)
    small = small[rng.integers(12, size=40)]
    account = rng.integers(4, size=40)
    own, chance = [], []
    for n, row in enumerate(small.astype(int)):
        products = {m: int(row @ small[m].astype(int)) for m in range(40) if m != n}
        best = [m for m, product in products.items() if product == max(products.values())]
        own.append(np.mean([account[m] == account[n] for m in best]))
        chance.append(np.mean([account[m] == account[n] for m in products]))
    mingled, _ = measure(small, account)
    assert mingled == pytest.approx((1 - np.mean(own)) / (1 - np.mean(chance)))


def test_verdicts_are_bounded_and_made_now_and_then(world: World) -> None:
    windows = {f"a{n}": window for n, window in enumerate(dealt_out(world, 5, 40))}
    asked: list[str] = []

    def window(name: str) -> Small:
        asked.append(name)
        return windows[name]

    verdicts = PooledVerdicts()
    names = list(windows)
    for _ in range(JUDGED_EVERY):
        first = verdicts.on("one", names[:4], window)
    assert asked == names[:4]
    assert verdicts.on("one", names[:4], window) == first
    assert asked == names[:4] * 2
    larger = verdicts.on("one", names, window)  # more accounts are news
    assert larger is not None
    assert larger.accounts == 5
    for number in range(2 * MOST_CAMPAIGNS):
        verdicts.on(f"other-{number}", [], window)
    assert len(verdicts) == MOST_CAMPAIGNS
    asked.clear()
    verdicts.on("one", names, window)
    assert asked == names


def test_members_with_other_links_dont_share_a_verdict(world: World) -> None:
    """All of them are linked to `a`, by whom the campaign is named; `x` to `z` are colleagues, who
    don't stand apart from each other."""
    windows = dict(zip("abcde", dealt_out(world, 5, 60), strict=True))
    windows |= dict(zip("xyz", people(World(topics=4, seed=1), 3, 60), strict=True))
    campaigns = Campaigns(cells=8)
    found = {}
    for number, name in enumerate("abcdexyz"):
        tags = {"a": ("list", "office")}.get(name, ("list",) if name in "bcde" else ("office",))
        cells = np.array([number])
        found[name] = campaigns.judge(name, 1.1, cells, tags, windows.__getitem__)
    thief, person = found["e"], found["z"]
    assert thief is not None
    assert person is not None
    assert thief.name == person.name
    assert thief.pooled == judge([windows[name] for name in "abcde"])
    assert person.pooled == judge([windows[name] for name in "axyz"])
    assert thief.score > 1 / 3 > 2 * person.score


def test_verdicts_on_a_forgotten_account_go_with_it(world: World) -> None:
    windows = dict(zip("abcd", dealt_out(world, 4, 60), strict=True))
    verdicts = PooledVerdicts()
    verdicts.on("one", "abc", windows.__getitem__)
    verdicts.on("two", "bcd", windows.__getitem__)
    verdicts.forget("a")
    assert len(verdicts) == 1
    campaigns = Campaigns(cells=8)
    for name in "abcd":
        campaigns.judge(name, 1.1, np.array([0]), ("x",), windows.__getitem__)
    campaigns.forget("d")
    del windows["d"]
    left = campaigns.judge("b", 1.1, np.array([0]), ("x",), windows.__getitem__)
    assert left is not None
    assert left.pooled == judge([*windows.values()])


def test_the_register_pools_linked_members_alone(world: World) -> None:
    windows = dict(zip("abcdef", dealt_out(world, 6, 60), strict=True))
    campaigns = Campaigns(cells=8)
    found = None
    for number, name in enumerate("abcd"):
        found = campaigns.judge(name, 1.1, np.array([number]), ("group:x",), windows.__getitem__)
    campaigns.judge("e", 1.1, np.array([5]), ("group:y",), windows.__getitem__)  # linked to nobody
    campaigns.judge("f", 0.9, np.array([0]), ("group:x",), windows.__getitem__)  # hardly suspect
    assert found is not None
    assert found.accounts == ("a", "b", "c", "d")
    assert found.pooled is not None
    assert (found.pooled.accounts, found.pooled.queries) == (4, 240)
    assert found.score == found.pooled_score > 1 / 3


def observed(
    streams: dict[str, Floats], tags: tuple[str, ...]
) -> tuple[dict[str, Evidence], dict[str, int]]:
    """The last evidence of each caller, and after how many of its queries it was in a campaign."""
    detector = ExtractionDetector(ExtractionPolicy(device="cpu"), REFERENCE)
    last: dict[str, Evidence] = {}
    first: dict[str, int] = {}
    for turn in range(max(map(len, streams.values()))):
        queries = [Query(Caller(n, tags=tags), s[turn]) for n, s in streams.items()]
        for query, evidence in zip(queries, detector.observe(queries), strict=True):
            last[query.caller.id] = evidence
            if evidence.campaign:
                first.setdefault(query.caller.id, turn + 1)
    return last, first


def test_a_campaign_is_named_by_its_pooled_window(world: World) -> None:
    """Before Fisher's method has enough of each account: 20 accounts by 32 queries each."""
    texts = world.script(20 * 64)
    last, first = observed({f"a{n}": texts[n::20] for n in range(20)}, ("group:x",))
    assert sorted(first.values())[10] == 32
    shown = dict(last["a0"].signals)
    assert shown["campaign_accounts"] >= 15
    assert shown["campaign_queries"] > 450
    assert shown["campaign_pooled"] > 1 / 3
    assert shown["campaign_mingled"] > 0.9


def test_honest_people_of_one_office_are_no_campaign() -> None:
    world = World(topics=12)
    last, first = observed({f"p{n}": world.person(160) for n in range(20)}, ("group:office",))
    assert not first
    assert max(evidence.level for evidence in last.values()) == 0


def test_who_stands_apart_has_no_part_in_what_was_dealt_out(world: World) -> None:
    windows = dict(zip("abcdef", dealt_out(world, 6, 60), strict=True))
    windows["person"] = people(world, 1, 60)[0]
    campaigns = Campaigns(cells=8)
    found = {}
    for name in [*windows, "a"]:
        found[name] = campaigns.judge(name, 1.5, np.array([0]), ("group:x",), windows.__getitem__)
    assert found["person"] is None
    assert found["a"] is not None
    assert found["a"].score > 1 / 3
    others = [windows[name] for name in "bcdef"]
    assert stands_apart(windows["person"], others)
    assert not stands_apart(windows["a"], others)
    too_few = windows["person"][: LEAST_EACH - 1]
    assert not stands_apart(too_few, others)
    assert not stands_apart(windows["person"], [too_few])
