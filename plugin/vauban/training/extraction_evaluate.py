"""How well extraction is found: simulated callers of a world the reference has never seen.

Thresholds of the rates are set on the people of that same world, as the study in
arXiv 2606.05725 and the peers do it; what the shipped thresholds do is reported beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

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
_MMD_ROWS: Final = 1000
_SLOW_KINDS: Final = ("k_centre", "sorted", "shuffled_sorted")
_GROUPS: Final[Mapping[str, str]] = {
    **dict.fromkeys(BROAD, "broad"), **dict.fromkeys(NARROW, "narrow"),
}  # fmt: skip

Track = Callable[[str, int, int], object]
Scores = dict[str, dict[int, float]]
"""Method -> queries -> how suspect, higher is more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One caller's stream. `first`: after which query the score was first enough for a level, by
    the shipped thresholds."""

    scores: Scores
    first: Mapping[Level, int]


@dataclass
class Evaluation:
    """`found`: (group or kind, method, queries, rate) -> share of thieves above the threshold
    that this share of people exceeds. By the shipped thresholds: `flagged` and `ban_score`: share
    of callers whose score is ever enough to flag and to ban, in as many queries as the longest of
    `LENGTHS`, people also in `PERSON_QUERIES`; `first_flag`: median query of the first flag;
    `services`: share of declared services ever degraded; `campaigns` and `false_campaigns`: share
    of populations with and without a thief in which one was named."""

    people: int
    thieves: int
    found: dict[tuple[str, str, int, float], float] = field(default_factory=dict)
    flagged: dict[str, float] = field(default_factory=dict)
    ban_score: dict[str, float] = field(default_factory=dict)
    first_flag: dict[str, float] = field(default_factory=dict)
    services: dict[str, float] = field(default_factory=dict)
    campaigns: float = 0.0
    false_campaigns: float = 0.0


def evaluate(
    world: World,
    reference: Reference,
    policy: ExtractionPolicy,
    *,
    people: int,
    thieves: int,
    seed: int,
    track: Track,
) -> Evaluation:
    """:param thieves: of each kind; a third of that for kinds that are slow to simulate."""
    rng = np.random.default_rng(seed)
    watch = _Watch(reference, policy, world, rng)
    longest = max(LENGTHS)
    honest = []
    for number in range(people):
        honest.append(watch(world.person(PERSON_QUERIES, rng)))
        track("people", number + 1, people)
    groups: dict[str, list[Seen]] = defaultdict(list)
    kinds = [*world.kinds([*BROAD, *NARROW]), *IN_SESSIONS, "small_pool"]
    for number, kind in enumerate(kinds):
        count = thieves // 3 if kind in _SLOW_KINDS else thieves
        for _ in range(count):
            length = min(longest, len(world.thefts["instructions"]))
            seen = watch(world.theft(kind, length if kind in _SLOW_KINDS else longest, rng))
            groups[kind].append(seen)
            if kind in _GROUPS:
                groups[_GROUPS[kind]].append(seen)
        track("thieves", number + 1, len(kinds))
    for share in HIDDEN_SHARES:
        groups[f"hidden_{share:.0%}"] += [
            watch(world.hidden(share, longest, rng)) for _ in range(3 * thieves)
        ]
    result = Evaluation(people, thieves)
    result.found = _shares(honest, groups)
    people_too = {"person": honest} | groups
    for level, shares in ((Level.FLAGGED, result.flagged), (Level.BANNED, result.ban_score)):
        shares |= {kind: _ever(seen, level, longest) for kind, seen in people_too.items()}
        shares[f"person, {PERSON_QUERIES} queries"] = _ever(honest, level, PERSON_QUERIES)
    result.first_flag = {kind: _median_first(seen) for kind, seen in groups.items()}
    result.services = _services(world, reference, policy, max(4, thieves), rng, track)
    result.campaigns, result.false_campaigns = _campaigns(world, reference, policy, rng, track)
    return result


class _Watch:
    """One caller's stream, scored by every method at each of `LENGTHS`."""

    def __init__(
        self, reference: Reference, policy: ExtractionPolicy, world: World, rng: Generator
    ) -> None:
        self._reference = reference
        self._policy = policy
        pool = world.people[0].embeddings
        self._honest = unit(reference.projection(pool[rng.permutation(len(pool))[:_MMD_ROWS]]))

    def __call__(self, stream: Floats) -> Seen:
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


def _services(
    world: World, reference: Reference, policy: ExtractionPolicy, each: int, rng: Generator,
    track: Track,
) -> dict[str, float]:  # fmt: skip
    """Share of declared services that are degraded at any time."""
    degraded = {}
    for number, kind in enumerate(SERVICES):
        wrong = 0
        for _ in range(each):
            detector = ExtractionDetector(policy, reference)
            caller = Caller("service", service=True)
            worst = Level.CLEAR
            stream = world.service(kind, SERVICE_QUERIES, rng)
            for start in range(0, len(stream), BLOCK):
                queries = [Query(caller, row) for row in stream[start : start + BLOCK]]
                worst = max(worst, *(e.level for e in detector.observe(queries)))
            wrong += worst >= Level.DEGRADED
        degraded[kind] = wrong / each
        track("services", number + 1, len(SERVICES))
    return degraded


def _campaigns(
    world: World, reference: Reference, policy: ExtractionPolicy, rng: Generator, track: Track
) -> tuple[float, float]:
    """Share of populations in which a campaign is named: with a thief's accounts, and without."""
    kinds = world.kinds([*BROAD[:4], *NARROW[:1]])
    found = false = 0
    for number, kind in enumerate(kinds):
        each = CAMPAIGN_QUERIES // CAMPAIGN_ACCOUNTS
        people = {f"person-{n}": world.person(each, rng) for n in range(BYSTANDERS)}
        theft = world.theft(kind, CAMPAIGN_QUERIES, rng)
        accounts = {f"account-{n}": theft[n::CAMPAIGN_ACCOUNTS] for n in range(CAMPAIGN_ACCOUNTS)}
        false += bool(_named(people, reference, policy))
        named = _named(people | accounts, reference, policy)
        found += sum(name.startswith("account") for name in named) >= CAMPAIGN_ACCOUNTS // 2
        track("campaigns", number + 1, len(kinds))
    return found / len(kinds), false / len(kinds)


def _named(
    streams: Mapping[str, Floats], reference: Reference, policy: ExtractionPolicy
) -> set[str]:
    """Callers that were ever part of a campaign; their queries come in turns."""
    detector, named = ExtractionDetector(policy, reference), set()
    for turn in range(max(len(stream) for stream in streams.values())):
        queries = [Query(Caller(n), s[turn]) for n, s in streams.items() if turn < len(s)]
        for query, evidence in zip(queries, detector.observe(queries), strict=True):
            if evidence.campaign:
                named.add(query.caller.id)
    return named
