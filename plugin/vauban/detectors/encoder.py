"""The encoder that reads every request: token windows in, score and embedding out.

Long input is many windows; the score is the worst window's, the embedding their mean. Windows that
look suspicious are scored again in excerpts, and the more windows the less the worst one counts,
as the checkpoint says. Pure: no global torch setting is read or
changed, because it lives in the inference server's own process.

Covers: batches of any size (micro-batches bounded in padded tokens), NaN, infinity, ids outside
the vocabulary; all end in `ScreeningFailed`.
Does not cover: deciding what a score or a failure means; that is `guard.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vauban.detectors import checkpoint
from vauban.detectors.bert import EncoderModel
from vauban.detectors.checkpoint import LEXICAL_NAME, Calibration
from vauban.detectors.excerpts import Table, excerpts
from vauban.detectors.windows import Ids, Windows, WindowTokenizer, windows_worth
from vauban.errors import ScreeningFailed
from vauban.policy import EncoderPolicy

CUDA_PAD_TO = 32
"""On CUDA lengths are rounded up to multiples of this: kernels and memory for few shapes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the encoder says about one request.

    `score`: calibrated probability in [0, 1], the worst over windows and models.
    `embedding`: float32 [hidden], unit length; None when there was no text. `parts`: float32
    [windows, hidden], what it is the mean of.
    """

    score: float
    embedding: NDArray[np.float32] | None
    windows: int
    parts: NDArray[np.float32] | None = None


class Scorer(Protocol):
    """[windows, tokens] int64 and a mask (None: no padding) -> scores [windows], embeddings."""

    pad_id: int
    vocab_size: int
    max_tokens: int

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


class _Calibrated:
    """The shipped model with its calibration."""

    pad_id = 0

    def __init__(self, model: EncoderModel, calibration: Calibration, max_tokens: int) -> None:
        self._model = model
        self._calibration = calibration
        self.vocab_size = len(model.words.weight)
        self.max_tokens = max_tokens

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
        logits, embeddings = self._model(ids, real)
        c = self._calibration
        return torch.sigmoid(logits / c.temperature + c.bias), embeddings


@dataclass(frozen=True, slots=True)
class _Pending:
    """One model's outputs, on their way to the host, and which rows belong to which request."""

    rows: list[list[int]]
    scores: list[Tensor]
    embeddings: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Pass:
    """The same on the host: scores [rows], embeddings [rows, hidden] or None."""

    rows: list[list[int]]
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None

    def worst(self, request: int) -> float:
        worst = max(map(float, self.scores[self.rows[request]]), default=0.0)
        return min(max(worst, 0.0), 1.0)


class Encoder:
    """Thread-safe; deterministic: equal batches give equal bits, in any order."""

    def __init__(
        self,
        scorers: Sequence[Scorer],
        tokenizer: WindowTokenizer,
        *,
        flag_at: float,
        block_at: float,
        batch_tokens: int,
        device: torch.device,
        excerpts_from: float = math.inf,
        long_discount: float = 0.0,
        lexical: Table | None = None,
    ) -> None:
        """Of the first scorer only:

        :param excerpts_from: a window with at least this score is scored in excerpts, too.
        :param long_discount: the odds of the worst window of n are divided by n to this power.
        :param lexical: weights of its lexical head, which choose an excerpt.
        """
        self._scorers = tuple(scorers)
        self.tokenizer = tokenizer
        self.flag_at = flag_at
        self.block_at = block_at
        self._batch_tokens = batch_tokens
        self._device = device
        self._excerpts_from = excerpts_from
        self._long_discount = long_discount
        self._lexical = lexical
        self._pad_to = CUDA_PAD_TO if device.type == "cuda" else 1

    @classmethod
    def load(
        cls, policy: EncoderPolicy, device: torch.device | str, main: Scorer | None = None
    ) -> Encoder:
        """
        :param main: stands in the place of the checkpoint's own model.
        :raises WeightsError: any file of the encoder or of a classifier is not right.
        """
        device = torch.device(device)
        directory = policy.weights or checkpoint.shipped()
        config = checkpoint.read_config(directory)
        tensors = checkpoint.read_tensors(directory, config)
        if main is None:
            model = EncoderModel.build(config.architecture, tensors)
            dtype = torch.float32 if device.type == "cpu" else torch.float16
            model = model.to(device=device, dtype=dtype).requires_grad_(requires_grad=False)
            main = _Calibrated(model, config.calibration, config.window.max_tokens)
        scorers: list[Scorer] = [main]
        if policy.classifiers:
            from vauban.detectors.hf_classifier import HfClassifier  # transformers is heavy

            scorers += [HfClassifier.load(path, device) for path in policy.classifiers]
        return cls(
            scorers,
            WindowTokenizer.load(policy),
            flag_at=config.flag_at,
            block_at=config.block_at,
            batch_tokens=policy.batch_tokens,
            device=device,
            excerpts_from=_score_of(config.window.excerpts_from_logit, config.calibration),
            long_discount=config.window.long_discount / config.calibration.temperature,
            lexical=tensors.get(LEXICAL_NAME),
        )

    def encode(self, batch: Sequence[Windows]) -> list[Encoded]:
        """One answer per request, in order. A request without windows has score 0.

        :raises ScreeningFailed: a value is not finite, or ids or shapes are wrong.
        """
        for windows in batch:
            if len(windows.per_model) != len(self._scorers):
                raise ScreeningFailed("token windows are for another set of models")
        with torch.inference_mode():
            passes = self._wait(
                [
                    self._forward(scorer, [windows.per_model[i] for windows in batch])
                    for i, scorer in enumerate(self._scorers)
                ]
            )
            suspects = [
                [
                    part
                    for ids, row in zip(windows.per_model[0], rows, strict=True)
                    if passes[0].scores[row] >= self._excerpts_from
                    for part in excerpts(ids, self._lexical)
                ]
                for windows, rows in zip(batch, passes[0].rows, strict=True)
            ]
            again = self._wait([self._forward(self._scorers[0], suspects)])
        return [
            self._encoded(request, windows, passes, again[0])
            for request, windows in enumerate(batch)
        ]

    def _encoded(
        self, request: int, windows: Windows, passes: Sequence[_Pass], again: _Pass
    ) -> Encoded:
        main, *others = passes
        score = max(main.worst(request), again.worst(request))
        chances = windows_worth(windows.per_model[0], self._scorers[0].max_tokens)
        score /= score + chances**self._long_discount * (1 - score)
        score = max([score, *(other.worst(request) for other in others)])
        rows, embedding, parts = main.rows[request], None, None
        if rows and main.embeddings is not None:
            parts = main.embeddings[rows]
            embedding = parts.mean(axis=0)
            length = float(np.linalg.norm(embedding))
            if length < 1e-6:
                raise ScreeningFailed("the encoder gave an embedding without a direction")
            embedding = (embedding / length).astype(np.float32)
        return Encoded(score, embedding, len(rows), parts)

    def _forward(self, scorer: Scorer, requests: Sequence[Sequence[Ids]]) -> _Pending:
        """On CUDA the work is queued on the current stream and nothing is waited for."""
        unique: dict[bytes, Ids] = {}  # repeated text is computed once
        names = [[ids.tobytes() for ids in windows] for windows in requests]
        for keys, windows in zip(names, requests, strict=True):
            unique.update(zip(keys, windows, strict=True))
        order = sorted(unique, key=lambda name: (len(name), name))
        row = {name: i for i, name in enumerate(order)}
        pending = _Pending([[row[name] for name in keys] for keys in names], [], [])
        windows = [unique[name] for name in order]
        trim = self._device.type == "cpu"
        lengths = [_padded(len(ids), self._pad_to, scorer.max_tokens) for ids in windows]
        for start, end in _micro_batches(lengths, self._batch_tokens, trim=trim):
            group = windows[start:end]
            ids, real = _pad(group, scorer, lengths[end - 1])
            scores, embeddings = scorer(
                self._to_device(ids), None if real is None else self._to_device(real)
            )
            if scores.shape != (len(group),):
                raise ScreeningFailed("the encoder gave scores of the wrong shape")
            pending.scores.append(scores.to("cpu", non_blocking=True))
            if embeddings is not None:
                if embeddings.ndim != 2 or len(embeddings) != len(group):
                    raise ScreeningFailed("the encoder gave embeddings of the wrong shape")
                pending.embeddings.append(embeddings.to("cpu", non_blocking=True))
        return pending

    def _wait(self, pending: Sequence[_Pending]) -> list[_Pass]:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return [
            _Pass(one.rows, _stack(one.scores), _stack(one.embeddings) if one.embeddings else None)
            for one in pending
        ]

    def _to_device(self, value: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return value
        return value.pin_memory().to(self._device, non_blocking=True)


def _padded(length: int, pad_to: int, max_tokens: int) -> int:
    """`length`, rounded up to a multiple of `pad_to` or to `max_tokens`."""
    return max(length, min(-(-length // pad_to) * pad_to, max_tokens))


def _micro_batches(
    lengths: Sequence[int], batch_tokens: int, *, trim: bool
) -> Iterator[tuple[int, int]]:
    """Cut windows, sorted by padded length, into runs of at most `batch_tokens` padded tokens.

    :param trim: end a run also where its shortest window would be over a quarter padding; pays on
        the CPU, where padding costs more than another pass.
    """
    start = 0
    for end, length in enumerate(lengths):
        count = end - start
        padded = trim and 4 * lengths[start] < 3 * length - 16
        if count and (padded or length * (count + 1) > batch_tokens):
            yield start, end
            start = end
    if lengths:
        yield start, len(lengths)


def _pad(windows: Sequence[Ids], scorer: Scorer, longest: int) -> tuple[Tensor, Tensor | None]:
    """int64 [windows, longest] and its bool mask; no mask when all are that long."""
    lengths = np.array([len(ids) for ids in windows])
    ids = np.full((len(windows), longest), scorer.pad_id, np.int64)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window)] = window
    if (
        lengths.min() < 1
        or longest > scorer.max_tokens
        or ids.min() < 0
        or ids.max() >= scorer.vocab_size
    ):
        raise ScreeningFailed("token windows do not fit the encoder")
    real = None
    if int(lengths.min()) < longest:
        real = torch.from_numpy(np.arange(longest) < lengths[:, None])
    return torch.from_numpy(ids), real


def _score_of(logit: float | None, calibration: Calibration) -> float:
    if logit is None:
        return math.inf
    calibrated = logit / calibration.temperature + calibration.bias
    return 0.5 * (1 + math.tanh(calibrated / 2))  # a sigmoid that can't overflow


def _stack(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    if not parts:
        return np.empty(0, np.float32)
    values: NDArray[np.float32] = torch.cat(list(parts)).float().numpy()
    if not np.isfinite(values).all():
        raise ScreeningFailed("the encoder gave a value that is not finite")
    return values
