"""Two processes: training is bit-identical with probes on under DDP with a static graph and under FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradlab
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Sharpness
from gradlab.sinks import MemorySink

REPLAY = [
    JacobianSlice(of="output", wrt="input", every=1),
    JacobianSlice(of="1", wrt="0.weight", every=1, rows=2),
    DepthGrowth(at=["0", "3"], every=2, directions=3),
    Sharpness(every=5, loss=lambda model: model(torch.ones(2, 4)).square().mean()),
]
LIVE = [
    JacobianSlice(of="output", wrt="input", every=1, mode="live", samples=2),
    JacobianSlice(of="output", wrt="1", every=1, mode="live"),
    JacobianSlice(of="3", wrt="0", every=2, mode="live", rows=3),
]
KINDS = ["ddp", "static", "fsdp"]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))


def wrapped(kind: str) -> nn.Module:
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        network = model()
        for layer in (network[0], network[3]):
            fully_shard(layer)
        return fully_shard(network)
    return DistributedDataParallel(model(), static_graph=kind == "static")


def whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (full() if full is not None else tensor).detach().clone()


def train(kind: str, specs: list[Any]) -> tuple[list[Tensor], MemorySink]:
    """The weights after five steps, and the blocks."""
    network, sink = wrapped(kind), MemorySink(last=100)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    with gradlab.watch(network, optimizer, taps=[], jacobians=specs, sinks=[sink], strict=True):
        for step in range(5):
            generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
            optimizer.zero_grad()
            F.mse_loss(network(torch.randn(4, 4, generator=generator)), torch.ones(4, 3)).backward()
            optimizer.step()
    return [whole(p) for p in network.parameters()], sink


def work(folder: str) -> None:
    """What each rank does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(os.environ["RANK"]), world_size=2)
    for kind in KINDS:
        plain, _ = train(kind, [])
        for name, specs in (("replay", REPLAY), ("live", LIVE)):
            found, sink = train(kind, specs)
            same = all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
            worst = max(block.audit_error for _, block in sink.blocks)
            print(f"{kind} {name} same={same} blocks={len(sink.blocks)} right={worst < 2e-3}", flush=True)
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    here = Path(__file__)
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(gradlab.__file__).parent.parent), str(here.parent)]),
    }
    command = [sys.executable, "-W", "ignore", "-c", "import sys, test_distributed; test_distributed.work(sys.argv[1])"]
    command.append(str(tmp_path_factory.mktemp("ranks")))
    ranks = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], out[0][1][-3000:] + out[1][1][-3000:]
    return [text.splitlines() for text, _ in out]


@pytest.mark.parametrize("mode", ["replay", "live"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical_with_probes_on(kind: str, mode: str, reports: list[list[str]]) -> None:
    blocks = {"replay": 14, "live": 13}[mode]
    for lines in reports:
        assert f"{kind} {mode} same=True blocks={blocks} right=True" in lines
