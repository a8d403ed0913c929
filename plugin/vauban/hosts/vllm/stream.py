"""Running the encoder beside the main model on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def on_own_stream(work: Callable[[T], R], device: torch.device) -> Callable[[T], R]:
    """`work`, run on a CUDA stream of its own; on a CPU just `work`.

    The main model's kernels and the encoder's then share the GPU instead of queueing behind each
    other. The stream is made on first use, on the thread that uses it.
    """
    if device.type != "cuda":
        return work
    # A new thread starts at GPU 0, and "cuda" alone means the caller's.
    index = torch.cuda.current_device() if device.index is None else device.index
    streams: list[torch.cuda.Stream] = []

    def run(argument: T) -> R:
        if not streams:
            torch.cuda.set_device(index)
            streams.append(torch.cuda.Stream(index))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(streams[0]):
            return work(argument)

    return run
