"""Two processes on gloo that train one small model, and what float64 autograd says about all of their data together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradlab import Tap
from gradlab.frame import Frame, is_absent

SIZE, STEPS = 2, 4
TAPS = [
    Tap("*", of=["output", "output_grad", "weight", "update"]),
    Tap("*", of="weight_grad", stage=["final", "clipped"]),
]
Numbers = list[dict[str, dict[str, float]]]
"""Of each step: metric, site, number."""


class Net(nn.Module):
    """The last layer is used by a few batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.rare = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, is_rare: bool = False) -> Tensor:
        out = self.c(torch.relu(self.b(torch.tanh(self.a(x)))))
        return self.rare(out) if is_rare else out


def network() -> Net:
    """The same on every rank."""
    torch.manual_seed(0)
    return Net().double()


def batch(step: int, rank: int, micro: int = 0) -> Tensor:
    """[4, 4] float64: what a rank sees in one backward of a step."""
    return torch.randn(
        4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    )


def is_rare(step: int, rank: int, micro: int = 0) -> bool:
    """Whether a batch takes the way that few take: in the middle of the run, on one rank alone."""
    return step in (1, 2) and rank == 1


def reference(
    *, micro: int = 1, clip: float | None = None, rare: bool = False, ranks: int = SIZE, left_out: int | None = None
) -> Numbers:
    """All that is logged, by plain autograd in one process: the loss is the mean over the ranks and their batches.

    The step that is left out changes nothing, and nothing is logged of it.
    """
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    found: Numbers = []
    for step in range(STEPS):
        if step == left_out:
            continue
        optimizer.zero_grad()
        seen: dict[str, list[Tensor]] = {}
        for number in range(micro):
            for rank in range(ranks):
                handles = [m.register_forward_hook(_keep(seen, name)) for name, m in net.named_children()]
                out = net(batch(step, rank, number), rare and is_rare(step, rank, number))
                for handle in handles:
                    handle.remove()
                (out.square().mean() / (ranks * micro)).backward()
        has_grad = {n: p for n, p in net.named_parameters() if p.grad is not None}
        numbers = {"weight_grad.norm": {n: p.grad.norm().item() for n, p in has_grad.items()}}
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        numbers["weight_grad.norm@clipped"] = {n: p.grad.norm().item() for n, p in has_grad.items()}
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        numbers["weight.norm"] = {n: p.norm().item() for n, p in before.items()}
        numbers["output.norm"] = {n: torch.cat(outs).norm().item() for n, outs in seen.items()}
        numbers["output_grad.norm"] = {n: torch.cat([o.grad for o in outs]).norm().item() for n, outs in seen.items()}
        optimizer.step()
        numbers["update.norm"] = {n: (p.detach() - before[n]).norm().item() for n, p in net.named_parameters()}
        found.append(numbers)
    return found


def _keep(seen: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.setdefault(name, []).append(output)

    return hook


def numbers(frames: Iterable[Frame], prefix: str = "") -> Numbers:
    """What was logged, without what is absent; names without a prefix."""
    return [
        {
            metric: {
                site.removeprefix(prefix): float(value)
                for site, value in series.items()
                if not is_absent(np.float32([value]))[0]
            }
            for metric, series in frame.items()
        }
        for frame in frames
    ]


def check(
    found: Numbers, truth: Numbers, case: str, *, sites_from: int = 0, metrics: Iterable[str] | None = None
) -> None:
    """What was logged is what autograd says. A site that one rank alone meets may be missing before `sites_from`."""
    assert len(found) == len(truth), case
    for step, (got, want) in enumerate(zip(found, truth, strict=True)):
        for metric in metrics or want:
            for site, value in want[metric].items():
                if site in got[metric] or step >= sites_from:
                    assert got[metric].get(site) == pytest.approx(value, rel=2e-5, abs=1e-7), (case, step, metric, site)


def local(tensor: Any) -> Tensor:
    """What this rank has of a parameter."""
    return getattr(tensor, "_local_tensor", tensor).detach()


def are_equal(some: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether parameters are the same bit for bit, as far as this rank has them."""
    return all(torch.equal(local(a), local(b)) for a, b in zip(some, others, strict=True))


def launch(file: str, folder: Path, *, seconds: float = 600, **environment: str) -> list[Any]:
    """Run a file twice as torchrun would, with a folder as its argument; what each rank has saved with `save`.

    The ranks call `meet` before anybody needs an address: a port that is free now may be somebody else's then.
    """
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests"))),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "WORLD_SIZE": str(SIZE),
        "LOCAL_WORLD_SIZE": str(SIZE),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        **environment,
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=seconds)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def meet() -> None:
    """Make the process group, which Lightning, Fabric and Accelerate then take as they find it."""
    store = f"file://{sys.argv[1]}/store"
    dist.init_process_group("gloo", init_method=store, rank=int(os.environ["RANK"]), world_size=SIZE)


def save(found: Any) -> None:
    """Hand over what this rank has found, and end its process."""
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
    sys.stdout.flush()
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)


def event_files(folder: Path) -> int:
    """How many event files there are."""
    return len(list(folder.rglob("events.out.*")))
