"""Two processes that watch together log what one process logs of the whole batch: DDP, FSDP2, HSDP, uneven passes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import gradlab
from gradlab import Tap
from gradlab.frame import is_absent

SIZE, STEPS = 2, 4
STATS = ["norm", "rms", "mean", "std", "max_abs", "zeros", "nonfinite", "hist"]
FULL = [
    Tap(["*", "input*"], of=["output", "output_grad"], stats=STATS),
    Tap("*", of=["weight_grad", "weight", "update"], stats=STATS),
]
NORMS = [Tap("*", of=["output", "output_grad"]), Tap("*", of=["weight_grad", "weight", "update"])]
NOISE = [Tap("*", of="weight_grad", stage=["final", "micro"])]


class Net(nn.Module):
    """A residual network whose last part only some batches reach."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.rare = nn.Tanh()

    def forward(self, x: Tensor, is_rare: bool = False) -> Tensor:
        out = self.c(torch.relu(self.b(torch.tanh(self.a(x)))))
        return out + self.rare(out) if is_rare else out


def model() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batch(step: int, piece: int) -> Tensor:
    """[4, 4] float64: one piece of the step's batch."""
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + piece))


def logged(monitor: gradlab.Monitor) -> dict[str, dict[str, Any]]:
    """The newest numbers that there are."""
    return {
        metric: {
            site: np.asarray(v).tolist() for site, v in series.items() if not is_absent(np.float32(np.ravel(v)[:1]))[0]
        }
        for metric, series in monitor.latest().items()
    }


def train(network: Any, pieces: list[int], taps: list[Tap], *, rare: int = -1, num_pieces: int = 2) -> list[Any]:
    """What is logged at each step; the loss is the mean over all pieces of the step."""
    found = []
    local = len(pieces)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    share = 1.0 / (num_pieces if not dist.is_initialized() else local)
    with gradlab.watch(network, optimizer, taps=taps, across_ranks=True, strict=True) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            for number, piece in enumerate(pieces):
                last = number == local - 1
                syncing = network.no_sync() if hasattr(network, "no_sync") and not last else nullcontext()
                with syncing:
                    (share * network(batch(step, piece), piece == rare).square().mean()).backward()
            optimizer.step()
            found.append(logged(monitor))
    return found


def late_sharding(rank: int) -> list[Any]:
    """FSDP2 applied after watching."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found = []
    with gradlab.watch(network, optimizer, taps=NORMS, across_ranks=True, strict=True) as monitor:
        fully_shard(network, mesh=init_device_mesh("cpu", (SIZE,)))
        optimizer.param_groups[0]["params"] = list(network.parameters())
        for step in range(STEPS):
            optimizer.zero_grad()
            network(batch(step, rank)).square().mean().backward()
            optimizer.step()
            found.append(logged(monitor))
    return found


def collectives(rank: int) -> list[int]:
    """How many collectives a logged step adds."""
    counts = []
    for watched in (False, True):
        network = DistributedDataParallel(model())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        monitor = gradlab.watch(network, optimizer, taps=NORMS, across_ranks=True) if watched else None
        for step in range(3):
            with CommDebugMode() as mode:
                optimizer.zero_grad()
                network(batch(step, rank)).square().mean().backward()
                optimizer.step()
        counts.append(sum(mode.get_comm_counts().values()))
        if monitor is not None:
            monitor.close()
    return counts


def other_model(rank: int) -> str:
    """Rank 1 watches another model."""
    network = model()
    if rank:
        network.extra = nn.Linear(2, 2).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradlab.watch(network, optimizer, taps=NORMS, across_ranks=True):
            for step in range(2):
                network(batch(step, 0)).square().mean().backward()
                optimizer.step()
    return " ".join(str(one.message) for one in caught)


def sharded(mesh: tuple[int, ...]) -> Net:
    network = model()
    names = ("replicate", "shard") if len(mesh) == 2 else ("shard",)
    device_mesh = init_device_mesh("cpu", mesh, mesh_dim_names=names)
    for layer in (network.a, network.b):
        fully_shard(layer, mesh=device_mesh)
    return fully_shard(network, mesh=device_mesh)


def work(rank: int, folder: str) -> None:
    """One rank: all kinds, one after another in one process group, and their numbers into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    ddp = DistributedDataParallel
    pieces = [2 * rank, 2 * rank + 1]
    found = {
        "ddp": train(ddp(model()), [rank], FULL),
        "ddp accumulated": train(ddp(model()), pieces, FULL, num_pieces=4),
        "ddp uneven sites": train(ddp(model()), [rank], FULL, rare=1),
        "fsdp2": train(sharded((2,)), [rank], FULL),
        "hsdp 2x1": train(sharded((2, 1)), [rank], FULL),
        "hsdp 1x2": train(sharded((1, 2)), [rank], FULL),
        "fsdp2 late": late_sharding(rank),
        "noise": train(ddp(model()), [rank], NOISE),
        "noise accumulated": train(ddp(model()), pieces, NOISE, num_pieces=4),
        "collectives": collectives(rank),
        "other model": other_model(rank),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has logged."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(SIZE)]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


CASES = {
    "ddp": ([0, 1], FULL, {}),
    "ddp accumulated": ([0, 1, 2, 3], FULL, {"num_pieces": 4}),
    "ddp uneven sites": ([0, 1], FULL, {"rare": 1}),
    "fsdp2": ([0, 1], FULL, {}),
    "hsdp 2x1": ([0, 1], FULL, {}),
    "hsdp 1x2": ([0, 1], FULL, {}),
    "fsdp2 late": ([0, 1], NORMS, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_all_ranks_log_what_one_process_logs_of_the_whole_batch(kind: str, found: list[dict[str, Any]]) -> None:
    pieces, taps, options = CASES[kind]
    single = train(model(), pieces, taps, **options)
    first = 2 if kind == "ddp uneven sites" else 0  # a site that one rank alone has met is agreed upon one step later
    for step in range(first, STEPS):
        for rank in range(SIZE):
            got = found[rank][kind][step]
            assert got.keys() == single[step].keys()
            for metric, numbers in single[step].items():
                assert got[metric].keys() == numbers.keys(), (metric, step)
                for site, value in numbers.items():
                    close = pytest.approx(value, rel=2e-5, abs=1e-7)
                    assert got[metric][site] == close, (rank, step, metric, site)


@pytest.mark.slow
@pytest.mark.parametrize("kind, pieces", [("noise", [0, 1]), ("noise accumulated", [0, 1, 2, 3])])
def test_the_noise_scale_counts_every_backward_of_every_rank(
    kind: str, pieces: list[int], found: list[dict[str, Any]]
) -> None:
    single = train(model(), pieces, NOISE, num_pieces=len(pieces))
    for rank in range(SIZE):
        for step in range(STEPS):
            got, want = (one[step]["noise_scale"] for one in (found[rank][kind], single))
            assert got == pytest.approx(want, rel=1e-3) and got


@pytest.mark.slow
def test_a_logged_step_adds_one_collective(found: list[dict[str, Any]]) -> None:
    for rank in range(SIZE):
        bare, watched = found[rank]["collectives"]
        assert watched == bare + 1


@pytest.mark.slow
def test_ranks_with_different_models_are_told_so(found: list[dict[str, Any]]) -> None:
    assert "rank 0 has no" in found[0]["other model"] and "'extra.weight'" in found[0]["other model"]


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1])
