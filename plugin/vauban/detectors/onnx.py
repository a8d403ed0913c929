"""The encoder as an ONNX graph, and the encoder with its graph run somewhere else.

The graph takes `ids`, int64 [windows, tokens], padded at the end with 0, and gives `scores`,
float32 [windows], calibrated as the checkpoint says, and `embeddings`, float32 [windows, hidden].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vauban.detectors import checkpoint
from vauban.detectors.bert import EncoderModel
from vauban.errors import ConfigError
from vauban.policy import EncoderPolicy

OPSET = 17
INPUT = "ids"
OUTPUTS = ("scores", "embeddings")

Run = Callable[[NDArray[np.int64]], "tuple[NDArray[np.float32], NDArray[np.float32]]"]


class _Graph(nn.Module):
    def __init__(self, model: EncoderModel, temperature: float, bias: float) -> None:
        super().__init__()
        self.model = model
        self._temperature, self._bias = temperature, bias

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits, embeddings = self.model(ids, ids != 0)
        return torch.sigmoid(logits / self._temperature + self._bias), embeddings


def export(policy: EncoderPolicy, path: Path) -> int:
    """Write the graph; returns the width of an embedding.

    :raises WeightsError: the checkpoint is not right.
    :raises ConfigError: the packages that write graphs are missing.
    """
    directory = policy.weights or checkpoint.shipped()
    config = checkpoint.read_config(directory)
    model = EncoderModel.build(config.architecture, checkpoint.read_tensors(directory, config))
    graph = _Graph(model, config.calibration.temperature, config.calibration.bias).eval()
    example = torch.tensor([[101, 7592, 102, 0], [101, 7592, 2088, 102]])
    axes: dict[str, Any] = {INPUT: {0: "windows", 1: "tokens"}}
    axes |= {name: {0: "windows"} for name in OUTPUTS}
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the older exporter, which needs only `onnx`
            torch.onnx.export(
                graph, (example,), str(path), input_names=[INPUT], output_names=list(OUTPUTS),
                dynamic_axes=axes, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except ImportError as error:
        raise ConfigError(f"exporting needs the package {error.name}: pip install onnx") from None
    return config.architecture.hidden_size


class GraphElsewhere:
    """Stands where the encoder's own model does; `run` evaluates the graph."""

    pad_id = 0

    def __init__(self, policy: EncoderPolicy, run: Run) -> None:
        config = checkpoint.read_config(policy.weights or checkpoint.shipped())
        self.vocab_size = config.architecture.vocab_size
        self.max_tokens = config.window.max_tokens
        self._run = run

    def __call__(self, ids: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:  # noqa: ARG002
        """`real` is in the ids: no token but padding is 0."""
        scores, embeddings = self._run(ids.numpy())
        return torch.from_numpy(scores.copy()), torch.from_numpy(embeddings.copy())
