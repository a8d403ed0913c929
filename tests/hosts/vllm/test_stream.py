"""The encoder's own CUDA stream; on a CPU the work itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from vauban.hosts.vllm.stream import on_own_stream


def test_on_a_cpu_it_is_the_work() -> None:
    def double(x: int) -> int:
        return 2 * x

    assert on_own_stream(double, torch.device("cpu")) is double


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_on_a_gpu_it_runs_on_another_stream(name: str) -> None:
    streams: list[int] = []

    def double(x: Tensor) -> Tensor:
        streams.append(torch.cuda.current_stream().cuda_stream)
        return 2 * x

    work = on_own_stream(double, torch.device(name))
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(work, torch.ones(3, device=name)).result()
    torch.cuda.synchronize()
    assert found.tolist() == [2, 2, 2]
    assert streams != [torch.cuda.default_stream().cuda_stream]
