"""Two processes: what a rank logs as the gradient of a parameter is that of the whole batch, under all kinds of DDP."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradlab
from gradlab import Tap

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "find_unused": {"find_unused_parameters": True},
    "no_sync": {},
}
STEPS = 3


def model() -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(step: int, piece: int) -> Tensor:
    """[4, 4] float64: one piece of the step's batch."""
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + piece))


def train(network: Any, kind: str, pieces: list[int], share: float) -> dict[str, list[float]]:
    """The logged norms of each parameter; `share` is what a piece's loss counts."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found: dict[str, list[float]] = {}
    with gradlab.watch(network, optimizer, taps=[Tap("*", of="weight_grad"), Tap("*", of="output_grad")]) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            for piece in pieces[:-1]:
                with network.no_sync() if kind == "no_sync" else warnings.catch_warnings():
                    (share * network(batch(step, piece)).square().mean()).backward()
            (share * network(batch(step, pieces[-1])).square().mean()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
            optimizer.step()
            for site, value in monitor.latest()["weight_grad.norm"].items():
                found.setdefault(site, []).append(value)
    return found


def sharded_model() -> nn.Module:
    """With FSDP2."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))


def shard() -> tuple[list[str], list[str]]:
    """FSDP2: the warnings, and which metrics there are."""
    network = sharded_model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taps = [Tap("*", of="weight_grad"), Tap("*", of="output_grad")]
        with gradlab.watch(network, optimizer, taps=taps) as monitor:
            for step in range(2):
                optimizer.zero_grad()
                network(batch(step, 0)).square().mean().backward()
                optimizer.step()
            return [str(one.message) for one in caught], sorted(monitor.latest())


def single_backwards() -> list[str]:
    """FSDP2 with a tap at the stage `micro`: the warnings."""
    network = sharded_model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradlab.watch(network, optimizer, taps=[Tap("*", of="weight_grad", stage="micro")], across_ranks=True):
            network(batch(0, 0)).square().mean().backward()
            optimizer.step()
    return [str(one.message) for one in caught]


def flat(use_orig_params: bool) -> tuple[list[str], list[str]]:
    """FSDP1: the warnings, and which metrics there are."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    network = FullyShardedDataParallel(model(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taps = [Tap("*", of="weight_grad"), Tap("*", of="output_grad")]
        with gradlab.watch(network, optimizer, taps=taps, across_ranks=True) as monitor:
            for step in range(2):
                optimizer.zero_grad()
                network(batch(step, 0)).square().mean().backward()
                optimizer.step()
            return [str(one.message) for one in caught], sorted(monitor.latest())


def guarded(network: nn.Module, rank: int, folder: Path) -> tuple[list[str], bool]:
    """Rank 1 meets infinity in the first micro-batch of step 1: the findings, and whether weights stay finite."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    wire = gradlab.NonFinite(skip=True, save=folder)
    taps = [Tap("*", of="weight_grad")]
    with gradlab.watch(network, optimizer, taps=taps, across_ranks=True, nonfinite=wire) as monitor:
        for step in range(3):
            optimizer.zero_grad()
            for piece in (0, 1):
                is_bad = (step, piece, rank) == (1, 0, 1)
                network(batch(step, piece) * (float("inf") if is_bad else 1.0)).square().mean().backward()
            optimizer.step()
        found = [one.message for one in monitor.findings if one.kind == "nonfinite_origin"]
    return found, all(p.detach().isfinite().all() for p in network.parameters())


def work(rank: int, folder: str) -> None:
    """One rank: all kinds, one after another in one process group, and their numbers into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for kind, options in KINDS.items():
        pieces = [2 * rank, 2 * rank + 1] if kind == "no_sync" else [rank]
        found[kind] = train(DistributedDataParallel(model(), **options), kind, pieces, 1.0 / len(pieces))
    found["fully_shard"] = shard()
    found["flat"] = [flat(use_orig_params) for use_orig_params in (False, True)]
    found["micro"] = single_backwards()
    found["guarded"] = guarded(DistributedDataParallel(model()), rank, Path(folder) / "ddp")
    found["guarded sharded"] = guarded(sharded_model(), rank, Path(folder) / "fsdp2")
    torch.save(found, Path(folder) / f"{rank}.pt")
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks write."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each rank has logged."""
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_sharded_parameters_are_left_out_with_a_warning_and_tensors_are_measured(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        warned, metrics = found[rank]["fully_shard"]
        assert any("across_ranks=True" in message for message in warned)
        assert metrics == ["output_grad.norm"]


@pytest.mark.slow
def test_single_backwards_of_sharded_parameters_are_said_not_to_be_measured(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        (said,) = [message for message in found[rank]["micro"] if "gradlab" in message]
        assert "stage 'micro' and the noise scale are not measured" in said


@pytest.mark.slow
def test_flat_parameters_are_left_out_with_a_warning_that_says_what_to_use(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        for warned, metrics in found[rank]["flat"]:
            (said,) = [message for message in warned if "gradlab" in message]
            assert "a part of a flat parameter" in said and "fully_shard (FSDP2)" in said
            assert metrics == ["output_grad.norm"]


@pytest.mark.slow
@pytest.mark.parametrize("kind, place", [("guarded", "ddp"), ("guarded sharded", "fsdp2")])
def test_all_ranks_leave_out_an_update_that_one_of_them_spoils(
    kind: str, place: str, found: list[dict[str, Any]], folder: Path
) -> None:
    for rank in range(2):
        (message,), is_finite = found[rank][kind]
        assert "The update was left out." in message and is_finite
        assert (folder / place / f"nonfinite-step1-rank{rank}.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_ranks_are_those_of_one_large_batch(kind: str, found: list[dict[str, Any]]) -> None:
    pieces = [0, 1, 2, 3] if kind == "no_sync" else [0, 1]
    single = train(model(), "", pieces, 1.0 / len(pieces))
    for rank in range(2):
        assert found[rank][kind].keys() == single.keys()
        for site, values in single.items():
            assert found[rank][kind][site] == pytest.approx(values, rel=1e-5), (rank, site)


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1])
