"""Two processes that watch together log what one process logs of the whole batch: DDP, FSDP2, HSDP, uneven passes."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning
from gradlab.frame import is_absent
from gradlab.taps.across_ranks import bucket, group
from gradlab.taps.across_ranks.reduce import ReducedCopy

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
            # Not by CommDebugMode: gradlab's own ops are shown to no mode of others.
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                optimizer.zero_grad()
                network(batch(step, rank)).square().mean().backward()
                optimizer.step()
        counts.append(sum(event.name().startswith("c10d::") for event in recorded.profiler.kineto_results.events()))
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


def told(action: Any) -> tuple[str, Any]:
    """The warnings of gradlab's while something runs, and what it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    return " ".join(str(one.message) for one in caught if issubclass(one.category, GradlabWarning)), result


def alone(network: nn.Module, steps: int, *, on_step: Any = None, **options: Any) -> list[Tensor]:
    """Train without anything that makes ranks wait for each other; gives the weights at the end."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = gradlab.watch(network, optimizer, taps=NORMS, **options)
    for step in range(steps):
        optimizer.zero_grad()
        network(batch(step, 0)).square().mean().backward()
        optimizer.step()
        if on_step is not None:
            on_step(step, monitor, optimizer)
    monitor.close()
    return [p.detach().clone() for p in network.parameters()]


def a_rank_goes(rank: int, how: str, **options: Any) -> dict[str, Any]:
    """Rank 1 stops watching after its second step, in one way or another, and both go on training."""

    def on_step(step: int, monitor: gradlab.Monitor, optimizer: Any) -> None:
        if rank and step == 1:
            if how == "closes":
                monitor.close()
            elif how == "fails":
                monitor._training_step.engine.recorder.rows = None  # type: ignore[method-assign, assignment]
            elif how == "steps more":
                optimizer.step()

    said, weights = told(lambda: alone(model(), 6, on_step=on_step, across_ranks=True, **options))
    _, bare = told(lambda: alone(model(), 6, on_step=on_step if how == "steps more" else None))
    return {"said": said, "same": all(map(torch.equal, weights, bare))}


def not_on_all(rank: int) -> dict[str, Any]:
    """Rank 0 alone watches over ranks."""
    patience, group._JOIN_TIMEOUT = group._JOIN_TIMEOUT, timedelta(seconds=1)
    said, weights = told(lambda: alone(model(), 3, across_ranks=rank == 0))
    group._JOIN_TIMEOUT = patience
    group._num_made += rank  # in a real run, that rank would go on being one behind
    _, bare = told(lambda: alone(model(), 3))
    return {"said": said, "same": all(map(torch.equal, weights, bare))}


def joined(rank: int) -> dict[str, Any]:
    """DDP's `join`, where rank 1 has more batches."""

    def train_joined() -> list[Tensor]:
        network = DistributedDataParallel(model())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with gradlab.watch(network, optimizer, taps=NORMS, across_ranks=True), network.join():
            for step in range(3 + 2 * rank):
                optimizer.zero_grad()
                network(batch(step, rank)).square().mean().backward()
                optimizer.step()
        return []

    return {"said": told(train_joined)[0], "same": True}


def files(rank: int, folder: str) -> dict[str, Any]:
    """What ranks write that were given the same folder and were not told to watch together."""
    found = {}
    for across_ranks in (None, False):
        place = Path(folder) / f"logdir-{across_ranks}"
        said, _ = told(lambda p=place, a=across_ranks: alone(model(), 2, logdir=p, across_ranks=a, performance=False))
        dist.barrier()
        found[str(across_ranks)] = (len([*place.glob("events.out.*")]), said)
        dist.barrier()
    return found


def forked(rank: int) -> dict[str, Any]:
    """A child process is made by fork while numbers are under way; all that is registered to run at its end does."""

    def on_step(step: int, monitor: gradlab.Monitor, optimizer: Any) -> None:
        if step == 2:
            child = os.fork()
            if not child:
                monitor.abandon()
                atexit._run_exitfuncs()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    said, weights = told(lambda: alone(model(), 6, on_step=on_step, across_ranks=True))
    _, bare = told(lambda: alone(model(), 6))
    return {"said": said, "same": all(map(torch.equal, weights, bare))}


def met_late(rank: int) -> list[Any]:
    """The numbers of a site that rank 1 alone meets, from its third step on."""
    network = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found = []
    with gradlab.watch(network, optimizer, taps=NORMS, across_ranks=True, strict=True) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            network(batch(step, rank), rank == 1 and step >= 2).square().mean().backward()
            optimizer.step()
            found.append(logged(monitor)["output.norm"].get("rare"))
    return found


def by_rank(rank: int) -> list[Any]:
    """Each rank's own norms, of two backwards a step, and what autograd says of this rank's."""
    taps = [
        Tap(["a", "c"], of=["output", "output_grad"], per_rank=True),
        Tap("*", of="weight_grad", stage=["final", "micro"], per_rank=True),
    ]
    network = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found = []
    with gradlab.watch(network, optimizer, taps=taps, across_ranks=True, strict=True) as monitor:
        for step in range(3):
            optimizer.zero_grad()
            for piece in (2 * rank, 2 * rank + 1):
                with network.no_sync() if piece == 2 * rank else nullcontext():
                    (0.5 * network(batch(step, piece)).square().mean()).backward()
            want = own_norms(network.module, [batch(step, piece) for piece in (2 * rank, 2 * rank + 1)])
            optimizer.step()
            found.append((logged(monitor), want))
    return found


def own_norms(network: Net, batches: list[Tensor]) -> dict[str, float]:
    """By plain autograd: the norms of one rank's own tensors."""
    outputs, squares = {"a": 0.0, "c": 0.0}, {"a": 0.0, "c": 0.0}
    for x in batches:
        a = network.a(x)
        c = network.c(torch.relu(network.b(torch.tanh(a))))
        loss = 0.5 * c.square().mean()
        grads = torch.autograd.grad(loss, [a, c, *network.parameters()])
        for name, value, grad in zip("ac", (a, c), grads, strict=False):
            outputs[name] += float(value.detach().square().sum())
            squares[name] += float(grad.square().sum())
    names = [name for name, _ in network.named_parameters()]
    micro = {f"weight_grad {name}": float(grad.norm()) for name, grad in zip(names, grads[2:], strict=True)}
    micro["weight_grad all parameters"] = sum(norm**2 for norm in micro.values()) ** 0.5
    tensors = {f"output {name}": value**0.5 for name, value in outputs.items()}
    return micro | tensors | {f"output_grad {name}": value**0.5 for name, value in squares.items()}


def in_the_background(rank: int) -> list[Any]:
    """As on a GPU, where the values of a step come to the host only later."""
    at_once = ReducedCopy.is_on_host
    ReducedCopy.is_on_host = lambda self: False  # type: ignore[method-assign]
    try:
        return train(DistributedDataParallel(model()), [rank], FULL, rare=1)
    finally:
        ReducedCopy.is_on_host = at_once  # type: ignore[method-assign]


def large_table(rank: int) -> list[Any]:
    """As with many ranks, where extremes take a collective of their own."""
    most, bucket._MOST_GATHERED = bucket._MOST_GATHERED, 0
    try:
        return train(DistributedDataParallel(model()), [rank], FULL)
    finally:
        bucket._MOST_GATHERED = most


def other_shape(rank: int) -> str:
    """The ranks have models of other widths."""

    def train_alone() -> None:
        network = nn.Sequential(nn.Linear(4, 3 + rank)).double()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with gradlab.watch(network, optimizer, across_ranks=True):
            for step in range(2):
                network(batch(step, 0)).square().mean().backward()
                optimizer.step()

    return told(train_alone)[0]


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
        "other shape": other_shape(rank),
        "in the background": in_the_background(rank),
        "large table": large_table(rank),
        "met late": met_late(rank),
        "by rank": by_rank(rank),
        "closes": a_rank_goes(rank, "closes"),
        "fails": a_rank_goes(rank, "fails"),
        "steps more": a_rank_goes(rank, "steps more"),
        "resumed apart": a_rank_goes(rank, "", first_step=rank),
        "not on all": not_on_all(rank),
        "joined": joined(rank),
        "forked": forked(rank),
        "files": files(rank, folder),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has logged."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(SIZE)]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=240)
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
    "in the background": ([0, 1], FULL, {"rare": 1}),
    "large table": ([0, 1], FULL, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_all_ranks_log_what_one_process_logs_of_the_whole_batch(kind: str, found: list[dict[str, Any]]) -> None:
    pieces, taps, options = CASES[kind]
    single = train(model(), pieces, taps, **options)
    for step in range(STEPS):
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
def test_a_site_that_one_rank_meets_late_is_agreed_upon_two_steps_later(found: list[dict[str, Any]]) -> None:
    for rank in range(SIZE):
        seen = [number is not None for number in found[rank]["met late"]]
        assert seen == [False] * 4 + [True] * 4
    assert found[0]["met late"] == found[1]["met late"]


@pytest.mark.slow
def test_each_rank_has_its_own_norms(found: list[dict[str, Any]]) -> None:
    for rank in range(SIZE):
        for step, (got, _) in enumerate(found[rank]["by rank"]):
            for other in range(SIZE):
                _, want = found[other]["by rank"][step]
                for name, value in want.items():
                    quantity, site = name.split(" ", 1)
                    assert got[f"{quantity}.norm@ranks"][f"{site}@rank{other}"] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, says",
    [
        ("closes", ["another rank has ended, or has switched its watching off", ""]),
        ("fails", ["another rank has ended, or has switched its watching off", "'NoneType' object is not callable"]),
        ("steps more", ["", "another rank has ended, or has switched its watching off"]),
        ("resumed apart", ["the ranks count steps differently: by rank, this is step 0, 1"] * 2),
        ("not on all", ["rank 1 does not watch: across_ranks=True is for all ranks", ""]),
        ("forked", ["", ""]),
        ("joined", ["within join() ranks take different numbers of steps"] * 2),
    ],
)
def test_where_ranks_no_longer_watch_together_training_goes_on(
    how: str, says: list[str], found: list[dict[str, Any]]
) -> None:
    for rank in range(SIZE):
        assert found[rank][how]["same"]
        assert says[rank] in found[rank][how]["said"]
        assert found[rank][how]["said"].count("gradlab:") == bool(says[rank]), found[rank][how]["said"]


@pytest.mark.slow
def test_rank_zero_alone_writes_unless_told_otherwise(found: list[dict[str, Any]]) -> None:
    for rank in range(SIZE):
        assert [count for count, _ in found[rank]["files"].values()] == [1, SIZE]
    said = [found[rank]["files"]["None"][1] for rank in range(SIZE)]
    assert said[0] == "" and "rank 0 alone writes into" in said[1] and "across_ranks=True makes" in said[1]


@pytest.mark.slow
def test_ranks_with_different_models_are_told_so(found: list[dict[str, Any]]) -> None:
    assert "rank 0 has no" in found[0]["other model"] and "'extra.weight'" in found[0]["other model"]
    assert "'0.weight' is [3, 4] on rank 0 and [4, 4] on rank 1" in found[0]["other shape"]
    assert "'0.weight' is [4, 4] on rank 1 and [3, 4] on rank 0" in found[1]["other shape"]


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1])
