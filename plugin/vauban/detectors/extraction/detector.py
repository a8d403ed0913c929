"""Who is extracting the model: a streaming judgement of each caller, and of callers together.

Fed with the embeddings that the injection screen has paid for, all new requests of a step at
once. Per caller it keeps a bounded window (`profile.py`) and asks how unlike honest people that
is (`features.py`, `reference.py`), also over all windows so far (`accumulated.py`); declared
services are compared with themselves (`service.py`); accounts that are linked are judged together
(`campaign.py`).

A caller's own score depends on that caller's queries alone, not on how requests were batched.
Several processes that share a store judge a caller by what has accumulated in all of them.
No text comes in here, and none can be had back: a query is 64 small numbers and a few measures.

Sources: the study in arXiv 2606.05725 (MMD windows), PRADA (arXiv 1805.02628) and the article's
metric are measured beside it (`vauban evaluate extraction`).
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from vauban.detectors.extraction.accumulated import SEGMENT, Accumulated
from vauban.detectors.extraction.article import ARTICLE_BAN, article_score
from vauban.detectors.extraction.campaign import MAX_RAISE, Campaign, Campaigns
from vauban.detectors.extraction.index import SharedIndex
from vauban.detectors.extraction.learning import Learner
from vauban.detectors.extraction.plane import Plane
from vauban.detectors.extraction.profile import Profile
from vauban.detectors.extraction.projection import FINE, Floats, Small
from vauban.detectors.extraction.reference import NONE, Reference, Suspicion, tail_of
from vauban.detectors.extraction.service import STEADY_QUERIES, ServiceBaseline, might_be_service
from vauban.policy_extraction import ExtractionPolicy
from vauban.types import SERVICE, Caller, Evidence, Level

logger = logging.getLogger(__name__)

NOTHING: Final = Evidence(0.0, Level.CLEAR, 0)
DRIFT_TOLD: Final = 1.0
"""Honest spreads by which the median of a statistic is off before that is logged."""
POPULAR: Final = 6
"""A query that more callers than this have asked links nobody: everyone says hello."""
_ARTICLE_WINDOW: Final = 100


@dataclass(frozen=True, slots=True)
class Query:
    """One request as the detector sees it. `embedding`: float32 [d], unit length."""

    caller: Caller
    embedding: Floats


class Exchange(Protocol):
    """Sums per caller that several processes add to; `state/exchange.py`. Nothing here waits."""

    def add(self, key: str, counts: Mapping[str, float]) -> None: ...
    def sums(self, key: str) -> dict[str, float]: ...
    def leave(self, key: str) -> None: ...


@dataclass(slots=True)
class _Known:
    number: int
    profile: Profile
    service: ServiceBaseline | None
    evidence: Evidence = NOTHING
    rung: Level = Level.CLEAR
    rung_since: int = 0
    nbytes: int = 0
    began_at: float = 0.0
    asked_at: float = 0.0
    tags: tuple[str, ...] = field(default=())


class ExtractionDetector:
    """Not thread-safe. Memory: at most `policy.max_memory_bytes` for callers (each at
    most `profile.PROFILE_BYTES`) and `policy.shared_queries` times `index.BYTES_PER_QUERY`, beside
    a register of suspect accounts and verdicts on campaigns, which are bounded by number; over that
    the callers that were silent longest are forgotten.

    :param reference: default: the one that ships, or the policy's.
    :param clock: seconds since the epoch.
    :param exchange: where what accumulates is kept together with other processes; default: it is
        kept here alone.
    :param retention_s: seconds of silence after which a caller is forgotten.
    :raises WeightsError: the reference can't be loaded.
    """

    def __init__(
        self,
        policy: ExtractionPolicy,
        reference: Reference | None = None,
        clock: Callable[[], float] = time.time,
        exchange: Exchange | None = None,
        retention_s: float = math.inf,
    ) -> None:
        self.policy = policy
        self._retention_s = retention_s
        self._exchange = exchange
        self._clock = clock
        self.reference = reference or Reference.load(policy.reference)
        learns = policy.learn != "off" and policy.metric == "sessions"
        self._learner = Learner(self.reference) if learns else None
        self.drift: dict[str, float] = {}
        self._cells = len(self.reference.projection.centres)
        self._plane = Plane.of(self.reference.projection)
        self._index = SharedIndex(
            self.reference.projection.centres,
            policy.shared_queries,
            policy.twin_at,
            policy.device,
        )
        self._campaigns = Campaigns(self._cells)
        self._callers: OrderedDict[str, _Known] = OrderedDict()
        self._names: dict[int, str] = {}
        self._blas = ThreadpoolController().select(user_api="blas")
        self._next_number = 0
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._callers)

    @property
    def nbytes(self) -> int:
        """What the callers' windows take now."""
        return self._nbytes

    def observe(self, queries: Sequence[Query]) -> list[Evidence]:
        """Take the queries of one step; what is known of each caller after its query.

        :raises ValueError: an embedding has another size than the reference is for, or is not
            finite.
        """
        if not queries:
            return []
        embeddings = np.array([query.embedding for query in queries], np.float32)
        matrix = self.reference.projection.matrix
        if embeddings.shape[1] != len(matrix):
            raise ValueError(
                f"embeddings of {embeddings.shape[1]} numbers; the reference is for {len(matrix)}"
            )
        if not np.isfinite(embeddings).all():
            raise ValueError("an embedding is not finite")
        with self._blas.limit(limits=1):  # for so little, threads cost far more than they save
            return self._observe(queries, embeddings)

    def _observe(self, queries: Sequence[Query], embeddings: Floats) -> list[Evidence]:
        small = self.reference.projection(embeddings)
        now = self._clock()
        callers = [self._known(query.caller, now) for query in queries]
        numbers = np.array([caller.number for caller in callers], np.int64)
        found = self._index.add(small, numbers)
        fine = self.reference.projection.fine_cells(small, found.cells).tolist()
        places = self._plane(small).round(3).tolist()
        evidence = []
        for row, (query, caller) in enumerate(zip(queries, callers, strict=True)):
            if twins := found.twins[row]:
                self._link(query.caller.id, twins)
            if caller.service is not None:
                caller.service.add(int(found.cells[row]))
            if caller.profile.add(small[row], fine[row]):
                self._judge(query.caller.id, caller)
            x, y = places[row]
            evidence.append(caller.evidence.lying_at(x, y))
        for query, caller in zip(queries, callers, strict=True):
            self._account(query.caller.id, caller)
        self._evict()
        return evidence

    def evidence(self, caller: str) -> Evidence:
        """What is known of a caller; nothing of one that is not remembered."""
        found = self._callers.get(caller)
        return found.evidence if found is not None else NOTHING

    def settle(self, caller: str) -> Evidence:
        """Judge a caller now, with the last queries too that no judgement was due for."""
        found = self._callers.get(caller)
        if found is None:
            return NOTHING
        self._judge(caller, found)
        return found.evidence

    def forget(self, caller: str) -> bool:
        """Erase what is kept of a caller. Its rows in the shared index, which name it by a number
        only, go with their generation."""
        found = self._callers.pop(caller, None)
        self._campaigns.forget(caller)
        if self._learner is not None:
            self._learner.withdraw(caller)
        if self._exchange is not None:
            self._exchange.leave(caller)
        if found is None:
            return False
        self._names.pop(found.number, None)
        self._nbytes -= found.nbytes
        return True

    def vectors(self, caller: str) -> Small:
        """int8 [n, 64]: a caller's kept queries, oldest first."""
        found = self._callers.get(caller)
        return found.profile.vectors() if found is not None else np.empty((0, 64), np.int8)

    # -- judging -------------------------------------------------------------------------------

    def _judge(self, name: str, caller: _Known) -> None:
        profile = caller.profile
        suspicion = self._suspect(name, profile)
        score = self.reference.score(suspicion)
        signals = [(f"arm:{suspicion.arm}", round(suspicion.tail, 2))] if suspicion.arm else []
        signals += [
            ("accumulated", round(profile.over_all.tail, 2)),
            ("accumulated_queries", float(round(profile.accumulated.segments * SEGMENT))),
        ]
        if self.drift:
            signals.append(("drift", round(max(map(abs, self.drift.values())), 2)))
        campaign: Campaign | None = None
        if suspicion is not NONE:
            tail = tail_of(suspicion.tail, self.reference.ever)
            cells = profile.coarse_cells(FINE)
            campaign = self._campaigns.judge(name, tail, cells, caller.tags, self.vectors)
        if caller.service is not None:
            score = caller.service.score
            signals = [("changed", round(score, 3))]
        elif self.policy.metric == "article":
            score, signals = self._article(profile)
        if campaign is not None:
            signals += campaign.signals
        in_campaign = campaign is not None and campaign.score >= self.policy.flag_at
        worst = score
        if campaign is not None and in_campaign:
            worst = max(score, min(campaign.score, score + MAX_RAISE))
        level = self._climb(caller, self.policy.level(worst))
        proposed = self._might_be_service(caller, level, suspicion.arm)
        caller.evidence = Evidence(
            score=worst,
            level=level,
            queries=profile.count,
            signals=tuple(signals),
            campaign=campaign.name if campaign is not None and in_campaign else "",
            began_at=caller.began_at,
            proposed=SERVICE if proposed else "",
        )
        if self._learner is not None and caller.service is None:
            self._learn(self._learner, name, caller)

    def _might_be_service(self, caller: _Known, level: Level, arm: str) -> bool:
        """Has no say in the level: a thief is as steady, and only an operator knows."""
        if level is Level.CLEAR or caller.service is not None or self.policy.metric == "article":
            return False
        if caller.evidence.proposed and caller.profile.count % (STEADY_QUERIES // 2):
            return True
        return might_be_service(arm, caller.profile.vectors())

    def _learn(self, learner: Learner, name: str, caller: _Known) -> None:
        if caller.rung > Level.CLEAR:
            learner.withdraw(name)
        elif learner.wants(caller.profile.count):
            learner.take(name, caller.tags, *caller.profile.windows()[-1])
        if (found := learner.learned()) is not None:
            moved, self.drift = found
            most = max(self.drift, key=lambda statistic: abs(self.drift[statistic]))
            if abs(self.drift[most]) > DRIFT_TOLD:
                logger.warning(
                    "what %d callers ask differs from the reference: %s by %+.1f honest spreads",
                    len(learner), most, self.drift[most],
                )  # fmt: skip
            if self.policy.learn == "use":
                self.reference = moved

    def _suspect(self, name: str, profile: Profile) -> Suspicion:
        if self._exchange is None:
            return profile.judge(self.reference)
        profile.accumulated = before = Accumulated.of(self._exchange.sums(name))
        suspicion = profile.judge(self.reference)
        self._exchange.add(name, (profile.accumulated - before).counts())
        return suspicion

    def _article(self, profile: Profile) -> tuple[float, list[tuple[str, float]]]:
        spread = article_score(profile.vectors()[-_ARTICLE_WINDOW:])
        # Its threshold is where a score of `ban_at` stands.
        score = min(1.0, spread / ARTICLE_BAN * self.policy.ban_at)
        return score, [("article", round(spread, 3))]

    def _climb(self, caller: _Known, supported: Level) -> Level:
        """One level at a time, each after some more queries, so that whoever looks like a thief
        but is a service nobody declared is flagged, and seen, before anything stronger."""
        count = caller.profile.count
        if supported <= caller.rung:
            caller.rung = supported
        elif caller.rung is Level.CLEAR or count - caller.rung_since >= self.policy.step_queries:
            caller.rung = min(level for level, _ in self.policy.levels if level > caller.rung)
            caller.rung_since = count
        return caller.rung

    def _link(self, name: str, twins: Sequence[int]) -> None:
        """Who asked nearly the same as others."""
        for twin in twins if len(twins) <= POPULAR else ():
            if (other := self._names.get(twin)) is not None:
                self._campaigns.twin(name, other)

    # -- keeping -------------------------------------------------------------------------------

    def _known(self, caller: Caller, now: float) -> _Known:
        found = self._callers.get(caller.id)
        if found is not None and found.began_at < caller.forgiven_at:
            self.forget(caller.id)
            found = None
        if found is None:
            # Not before it was forgiven by a clock that is ahead, or it would begin anew each time.
            began_at = max(now, caller.forgiven_at)
            found = _Known(self._next_number, Profile(), None, began_at=began_at)
            self._callers[caller.id] = found
            self._names[self._next_number] = caller.id
            self._next_number += 1
        if caller.service and found.service is None:
            found.service = ServiceBaseline(self._cells)
        elif not caller.service:
            found.service = None
        found.tags = caller.tags if all(caller.tags) else tuple(filter(None, caller.tags))
        found.asked_at = now
        self._callers.move_to_end(caller.id)
        return found

    def _account(self, name: str, caller: _Known) -> None:
        now = caller.profile.nbytes
        if caller.service is not None:
            now += self._cells * 8
        begun_anew = self._callers.get(name) is not caller  # within this batch
        if begun_anew or now == caller.nbytes:
            return
        self._nbytes += now - caller.nbytes
        caller.nbytes = now

    def _evict(self) -> None:
        silent_since = self._clock() - self._retention_s
        while len(self._callers) > 1:
            name, oldest = next(iter(self._callers.items()))
            full = self._nbytes > self.policy.max_memory_bytes
            if not full and oldest.asked_at >= silent_since:
                return
            self.forget(name)
