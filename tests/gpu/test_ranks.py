"""Two ranks on one CUDA device, over gloo: their numbers are those of one process on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradlab
from gradlab import Tap

pytestmark = pytest.mark.gpu
SIZE, STEPS = 2, 6
TAPS = [
    Tap("*", of=["output", "output_grad"], stats=["norm", "mean", "max_abs"], per_rank=True),
    Tap("*", of="weight_grad", stage=["final", "micro"], per_rank=True),
    Tap("*", of=["weight", "update"], every=2),
]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def batch(step: int, rank: int) -> Tensor:
    """[4, 8] float64, on the host."""
    return torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + rank))


def train(network: nn.Module, device: str, ranks: list[int]) -> dict[str, dict[str, float]]:
    """What is logged in the last step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with gradlab.watch(network, optimizer, taps=TAPS, across_ranks=True, strict=True) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            x = torch.cat([batch(step, rank) for rank in ranks]).to(device)
            network(x).square().mean().backward()
            optimizer.step()
    return {metric: dict(series.items()) for metric, series in monitor.latest().items()}


def work(folder: str, rank: int, device: str) -> None:
    """One rank."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    torch.save(train(DistributedDataParallel(model().to(device)), device, [rank]), Path(folder) / f"{rank}.pt")
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)


def numbers(folder: Path, device: str) -> list[dict[str, Any]]:
    """What each rank has logged."""
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank), device]) for rank in range(SIZE)]
    assert [process.wait(timeout=180) for process in ranks] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


def test_two_ranks_on_a_device_log_what_one_process_logs(tmp_path: Path) -> None:
    found = numbers(tmp_path, os.environ.get("GRADLAB_TEST_DEVICE", "cuda"))
    single = train(model(), "cpu", [0, 1])
    assert found[0] == found[1]
    assert {metric for metric in found[0] if metric not in single} == {
        "output.norm@ranks",
        "output_grad.norm@ranks",
        "weight_grad.norm@ranks",
        "noise_scale",
    }
    for metric, values in single.items():
        if metric != "weight_grad.norm@micro":  # that of one backward, and there are two where there are two ranks
            assert found[0][metric] == pytest.approx(values, rel=1e-5, abs=1e-9), metric
    own = found[0]["output.norm@ranks"]
    for site, norm in single["output.norm"].items():
        squares = [own[f"{site}@rank{rank}"] ** 2 for rank in range(SIZE)]
        assert sum(squares) ** 0.5 == pytest.approx(norm, rel=1e-5)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
