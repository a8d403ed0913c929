"""Screening without a server: the guard and the encoder in one process, by the code that serves.

What scores files (`vauban screen`, `vauban evaluate`) uses this, so that its numbers are those of
the server.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vauban.detectors.encoder import Encoder
from vauban.errors import RequestTooLarge
from vauban.guard import Guard, encode_each
from vauban.policy import Policy
from vauban.types import Origin, Reason, Segment, Verdict

Request = Sequence[Segment]


class OfflineScreen:
    """Screens batches of requests.

    :raises WeightsError: the encoder can't be loaded.
    """

    def __init__(self, policy: Policy) -> None:
        self._guard = Guard(policy)
        wanted = policy.encoder.device
        device = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder = Encoder.load(policy.encoder, device)

    @property
    def block_at(self) -> float:
        return self._guard.block_at

    @property
    def flag_at(self) -> float:
        return self._guard.flag_at

    def __call__(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order. The caller bounds the batch."""
        verdicts: dict[int, Verdict] = {}
        waiting = []
        for index, request in enumerate(requests):
            try:
                reading = self._guard.read(request)
            except RequestTooLarge:
                verdicts[index] = self._guard.judge(Reason.UNREAD_TEXT)
                continue
            if reading.complete:
                waiting.append((index, reading.windows))
            else:
                verdicts[index] = self._guard.judge(Reason.UNREAD_TEXT)
        outcomes = encode_each(self._encoder.encode, [windows for _, windows in waiting])
        for (index, _), outcome in zip(waiting, outcomes, strict=True):
            verdicts[index] = self._guard.judge(
                outcome if isinstance(outcome, Reason) else outcome.score
            )
        return [verdicts[index] for index in range(len(requests))]

    def read_one(self, segment: Segment) -> tuple[str, Verdict]:
        """What a model may get of one text, if the verdict lets it."""
        try:
            reading = self._guard.read([segment])
        except RequestTooLarge:
            return "", self._guard.judge(Reason.UNREAD_TEXT)
        if not reading.complete:
            return reading.texts[0], self._guard.judge(Reason.UNREAD_TEXT)
        (outcome,) = encode_each(self._encoder.encode, [reading.windows])
        score = outcome if isinstance(outcome, Reason) else outcome.score
        return reading.texts[0], self._guard.judge(score)

    def embed(self, requests: Sequence[Request]) -> list[NDArray[np.float32] | None]:
        """The unit embedding of each request, float32 [hidden]; None for one that can't be read,
        or has nothing to read."""
        embeddings: list[NDArray[np.float32] | None] = [None] * len(requests)
        waiting = []
        for index, request in enumerate(requests):
            try:
                waiting.append((index, self._guard.read(request).windows))
            except RequestTooLarge:
                continue
        outcomes = encode_each(self._encoder.encode, [windows for _, windows in waiting])
        for (index, _), outcome in zip(waiting, outcomes, strict=True):
            if not isinstance(outcome, Reason):
                embeddings[index] = outcome.embedding
        return embeddings


def as_user(text: str) -> Request:
    """The request of a user who says only this."""
    return (Segment(text, Origin.USER),)
