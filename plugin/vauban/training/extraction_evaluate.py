"""How well extraction is found: simulated callers of a world the reference has never seen.

Thresholds of the rates are set on the people of that same world, as the study in
arXiv 2606.05725 and the peers do it; what the shipped thresholds do is reported beside it.
"""

from __future__ import annotations

import gc
import multiprocessing
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vauban.detectors.extraction.article import article_score
from vauban.detectors.extraction.detector import ExtractionDetector, Query
from vauban.detectors.extraction.profile import BLOCK, Profile
from vauban.detectors.extraction.projection import Floats, Small, unit
from vauban.detectors.extraction.reference import Reference
from vauban.policy_extraction import ExtractionPolicy
from vauban.training import peers
from vauban.training.traffic import SERVICES, Generator
from vauban.training.traffic_world import BROAD, IN_SESSIONS, NARROW, World
from vauban.types import Caller, Level

LENGTHS: Final = (100, 500, 1500)
RATES: Final = (0.01, 0.001)
OURS: Final = "vauban"
HIDDEN_SHARES: Final = (0.25, 0.5)
SERVICE_QUERIES: Final = 5000
PERSON_QUERIES: Final = 5000
"""So long are people watched for false alarms."""
CAMPAIGN_ACCOUNTS: Final = 20
CAMPAIGN_QUERIES: Final = 3000
BYSTANDERS: Final = 60
UNLINKED, GROUPED = "unlinked", "of one group"
_MMD_ROWS: Final = 1000
_PERSON: Final = "person"
_HIDDEN: Final = "hidden_"
_SLOW_KINDS: Final = ("k_centre", "sorted", "shuffled_sorted")
_GROUPS: Final[Mapping[str, str]] = {
    **dict.fromkeys(BROAD, "broad"), **dict.fromkeys(NARROW, "narrow"),
}  # fmt: skip

T = TypeVar("T")
Track = Callable[[str, int, int], object]
Results = dict[str, list[T]]
"""By kind."""
_Task = tuple[str, int]
"""Kind and number, which its random numbers hang on."""
Population = tuple[float, float, bool]
"""What became of a campaign; see `CampaignsFound`."""
Scores = dict[str, dict[int, float]]
"""Method -> queries -> how suspect, higher is more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One caller's stream. `first`: after which query the score was first enough for a level, by
    the shipped thresholds."""

    scores: Scores
    first: Mapping[Level, int]


@dataclass(frozen=True)
class CampaignsFound:
    """`found`, `false`: share of populations with and without a thief in which a campaign was
    named. `queries`: median of all the thief's accounts' queries until half of them were, infinite
    where they never are. `bystanders`: share of the other people who were named with them."""

    found: float
    queries: float
    bystanders: float
    false: float

    @classmethod
    def of(cls, populations: Sequence[Population]) -> CampaignsFound:
        at, bystanders, false = np.array(populations).T
        found, queries = float(np.isfinite(at).mean()), float(np.median(at))
        return cls(found, queries, float(bystanders.mean()), float(false.mean()))


@dataclass
class Evaluation:
    """`found`: (group or kind, method, queries, rate) -> share of thieves above the threshold
    that this share of people exceeds. By the shipped thresholds: `flagged` and `ban_score`: share
    of callers whose score is ever enough to flag and to ban, in as many queries as the longest of
    `LENGTHS`, people also in `PERSON_QUERIES`; `first_flag`: median query of the first flag;
    `services`: share of declared services ever degraded; `undeclared`: of services that nobody
    declared, the shares that were flagged, and that were proposed before they were slowed;
    `campaigns`: whose accounts are linked by what they ask alone (`UNLINKED`), or in one group, as
    the other people are (`GROUPED`)."""

    people: int
    thieves: int
    found: dict[tuple[str, str, int, float], float] = field(default_factory=dict)
    flagged: dict[str, float] = field(default_factory=dict)
    ban_score: dict[str, float] = field(default_factory=dict)
    first_flag: dict[str, float] = field(default_factory=dict)
    services: dict[str, float] = field(default_factory=dict)
    undeclared: dict[str, tuple[float, float]] = field(default_factory=dict)
    campaigns: dict[str, CampaignsFound] = field(default_factory=dict)


def evaluate(
    world: World,
    reference: Reference,
    policy: ExtractionPolicy,
    *,
    people: int,
    thieves: int,
    seed: int,
    track: Track,
    workers: int = 1,
) -> Evaluation:
    """:param thieves: of each kind; a third of that for kinds that are slow to simulate, and three
        times that for theft that is hidden.
    :param workers: processes that simulate; the result is the same for any number.
    """
    kinds = [*world.kinds([*BROAD, *NARROW]), *IN_SESSIONS, "small_pool"]
    numbers = {kind: thieves // 3 if kind in _SLOW_KINDS else thieves for kind in kinds}
    numbers |= {f"{_HIDDEN}{share:.0%}": 3 * thieves for share in HIDDEN_SHARES}
    services = dict.fromkeys(SERVICES, max(4, thieves))
    campaigns = dict.fromkeys(world.kinds([*BROAD[:4], *NARROW[:1]]), max(1, thieves // 4))
    _shared[:] = [_Simulation(world, reference, policy, seed)]
    gc.freeze()  # forked processes share these pages until a collection touches them
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:

        def each(what: str, work: Callable[[_Task], T], plan: Mapping[str, int]) -> Results[T]:
            tasks = [(kind, number) for kind, count in plan.items() for number in range(count)]
            found: Results[T] = defaultdict(list)
            done = pool.map(work, tasks)
            for place, ((kind, _), result) in enumerate(zip(tasks, done, strict=True), 1):
                found[kind].append(result)
                track(what, place, len(tasks))
            return found

        honest = each("people", _caller, {_PERSON: people})[_PERSON]
        groups = each("thieves", _caller, numbers)
        degraded = each("services", _service, services)
        proposed = each("undeclared services", _undeclared, services)
        named = {how: [*chain(*each(f"campaigns, {how}", work, campaigns).values())]
                 for how, work in ((UNLINKED, _campaign), (GROUPED, _grouped))}  # fmt: skip
    for kind, group in _GROUPS.items():
        groups[group] += groups.get(kind, [])
    result = Evaluation(people, thieves)
    result.services = {kind: float(np.mean(wrong)) for kind, wrong in degraded.items()}
    for kind, pairs in proposed.items():
        flagged, in_time = np.mean(pairs, axis=0).tolist()
        result.undeclared[kind] = flagged, in_time
    result.campaigns = {how: CampaignsFound.of(found) for how, found in named.items()}
    _summarise(result, honest, groups)
    return result


def _summarise(result: Evaluation, honest: Sequence[Seen], groups: Results[Seen]) -> None:
    longest = max(LENGTHS)
    result.found = _shares(honest, groups)
    people_too = {_PERSON: honest} | groups
    for level, shares in ((Level.FLAGGED, result.flagged), (Level.BANNED, result.ban_score)):
        shares |= {kind: _ever(seen, level, longest) for kind, seen in people_too.items()}
        shares[f"{_PERSON}, {PERSON_QUERIES} queries"] = _ever(honest, level, PERSON_QUERIES)
    result.first_flag = {kind: _median_first(seen) for kind, seen in groups.items()}


_shared: list[_Simulation] = []


def _caller(task: _Task) -> Seen:
    return _shared[0].caller(*task)


def _service(task: _Task) -> bool:
    return _shared[0].is_degraded(*task)


def _undeclared(task: _Task) -> tuple[bool, bool]:
    return _shared[0].undeclared(*task)


def _campaign(task: _Task) -> Population:
    return _shared[0].campaign(*task)


def _grouped(task: _Task) -> Population:
    return _shared[0].campaign(*task, grouped=True)


class _Simulation:
    """One caller's stream at a time, scored by every method at each of `LENGTHS`."""

    def __init__(
        self, world: World, reference: Reference, policy: ExtractionPolicy, seed: int
    ) -> None:
        self._world = world
        self._reference = reference
        self._policy = policy
        self._seed = seed
        pool = world.people[0].embeddings
        rows = self._rng("honest", 0).permutation(len(pool))[:_MMD_ROWS]
        self._honest = unit(reference.projection(pool[rows]))

    def caller(self, kind: str, number: int) -> Seen:
        rng, world = self._rng(kind, number), self._world
        if kind == _PERSON:
            return self._seen(world.person(PERSON_QUERIES, rng))
        if kind.startswith(_HIDDEN):
            share = float(kind.removeprefix(_HIDDEN).rstrip("%")) / 100
            return self._seen(world.hidden(share, max(LENGTHS), rng))
        length = max(LENGTHS)
        if kind in _SLOW_KINDS:
            length = min(length, len(world.thefts["instructions"]))
        return self._seen(world.theft(kind, length, rng))

    def is_degraded(self, kind: str, number: int) -> bool:
        """Whether a declared service is degraded at any time."""
        detector = ExtractionDetector(self._policy, self._reference)
        caller, worst = Caller("service", service=True), Level.CLEAR
        stream = self._world.service(kind, SERVICE_QUERIES, self._rng(kind, number))
        for start in range(0, len(stream), BLOCK):
            queries = [Query(caller, row) for row in stream[start : start + BLOCK]]
            worst = max(worst, *(e.level for e in detector.observe(queries)))
        return worst >= Level.DEGRADED

    def undeclared(self, kind: str, number: int) -> tuple[bool, bool]:
        """Whether a service that nobody declared is flagged, and proposed before it is slowed."""
        detector = ExtractionDetector(self._policy, self._reference)
        stream = self._world.service(kind, max(LENGTHS), self._rng(kind, number))
        caller, flagged = Caller("undeclared"), False
        for start in range(0, len(stream), BLOCK):
            queries = [Query(caller, row) for row in stream[start : start + BLOCK]]
            for evidence in detector.observe(queries):
                flagged = flagged or evidence.level >= Level.FLAGGED
                if evidence.proposed or evidence.level > Level.FLAGGED:
                    return True, evidence.level is Level.FLAGGED
        return flagged, False

    def campaign(self, kind: str, number: int, grouped: bool = False) -> Population:
        """After how many queries of all a thief's accounts half of them were named in a population
        with other people, infinite where they were not; the share of those people that was; and
        whether anybody is without the thief."""
        rng = self._rng(f"campaign of {kind}", number)
        each = CAMPAIGN_QUERIES // CAMPAIGN_ACCOUNTS
        people = {f"person-{n}": self._world.person(each, rng) for n in range(BYSTANDERS)}
        theft = self._world.theft(kind, CAMPAIGN_QUERIES, rng)
        accounts = {f"account-{n}": theft[n::CAMPAIGN_ACCOUNTS] for n in range(CAMPAIGN_ACCOUNTS)}
        tags = {name: (f"group:{name.partition('-')[0]}",) for name in people | accounts}
        named = self._named(people | accounts, tags if grouped else {})
        turns = sorted(named.get(name, np.inf) for name in accounts)
        bystanders = sum(name in named for name in people) / len(people)
        found_at = turns[CAMPAIGN_ACCOUNTS // 2 - 1] * CAMPAIGN_ACCOUNTS
        return found_at, bystanders, bool(self._named(people, tags if grouped else {}))

    def _named(
        self, streams: Mapping[str, Floats], tags: Mapping[str, tuple[str, ...]]
    ) -> dict[str, int]:
        """After how many of its queries a caller was first part of a campaign; the queries come in
        turns."""
        detector = ExtractionDetector(self._policy, self._reference)
        named: dict[str, int] = {}
        for turn in range(max(len(stream) for stream in streams.values())):
            queries = [
                Query(Caller(name, tags=tags.get(name, ())), stream[turn])
                for name, stream in streams.items()
                if turn < len(stream)
            ]
            for query, evidence in zip(queries, detector.observe(queries), strict=True):
                if evidence.campaign:
                    named.setdefault(query.caller.id, turn + 1)
        return named

    def _rng(self, kind: str, number: int) -> Generator:
        return np.random.default_rng([self._seed, zlib.crc32(kind.encode()), number])

    def _seen(self, stream: Floats) -> Seen:
        projection = self._reference.projection
        small = projection(stream)
        cells = projection.cells(small)
        fine = projection.fine_cells(small, cells)
        profile, first = Profile(), dict[Level, int]()
        scores: Scores = defaultdict(dict)
        for count, (vector, cell) in enumerate(zip(small, fine, strict=True), start=1):
            due = profile.add(vector, int(cell))
            if due or count in LENGTHS:
                suspicion = profile.judge(self._reference)
                score = self._reference.score(suspicion)
                for level, bound in self._policy.levels:
                    if score >= bound:
                        first.setdefault(level, count)
                if count in LENGTHS:
                    scores[OURS][count] = suspicion.tail
                    for name, value in self._peers(small[:count], cells[:count]).items():
                        scores[name][count] = value
        return Seen(scores, first)

    def _peers(self, small: Small, cells: NDArray[np.integer]) -> dict[str, float]:
        return {
            "article": article_score(small),
            "PRADA": peers.prada(small),
            "coverage": peers.coverage(cells),
            "MMD": peers.mmd(small, self._honest),
        }


def _shares(
    honest: Sequence[Seen], groups: Mapping[str, Sequence[Seen]]
) -> dict[tuple[str, str, int, float], float]:
    found = {}
    for method in honest[0].scores:
        for length in LENGTHS:
            usual = [seen.scores[method][length] for seen in honest]
            for rate in RATES:
                bound = float(np.quantile(usual, 1.0 - rate))
                for group, thieves in groups.items():
                    values = [
                        t.scores[method][length] for t in thieves if length in t.scores[method]
                    ]
                    if values:
                        found[group, method, length, rate] = float(
                            np.mean(np.array(values) > bound)
                        )
    return found


def _ever(seen: Sequence[Seen], level: Level, queries: int) -> float:
    return float(np.mean([one.first.get(level, np.inf) <= queries for one in seen]))


def _median_first(seen: Sequence[Seen]) -> float:
    return float(np.median([one.first.get(Level.FLAGGED, np.inf) for one in seen]))
