"""What a Jacobian costs, by gradlab and by every public way that torch and torchjd have.

    python benchmarks/jacobian.py

All ways are measured in one process, interleaved, as CPU time with one torch thread; the median over the rounds is
reported as a ratio to a loop of one-hot `backward` calls, and to the best of the public ways. Every way includes its
forward. `gradlab_engine` is gradlab's engine on a forward that is made as the others make theirs; `gradlab_bare` is
`gradlab.jacobian` on an isolated model, without audit and spectrum; `gradlab_full` is all that it does by default: the
isolated model, the audit, all singular values up to a shorter side of 1,024, and the names. The last table is what a
slice that is logged every 100 steps adds to training.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # nothing on the terminal at every profile

import torch
from environment import write_result
from torch import Tensor, nn

import gradlab
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.options import Slice
from gradlab.jacobians.problem_setup import set_up_problem
from gradlab.jacobians.replayed import ReplayedSlice
from gradlab.jacobians.request import Request
from gradlab.jacobians.subgraph import Subgraph

try:
    from torchjd.autojac import jac
except ImportError:
    jac = None

ROUNDS = 5
CHUNK = 32
EVERY = 100


@dataclass(frozen=True, eq=False)
class Case:
    """A model, one sample, and how many of the first outputs are differentiated."""

    model: nn.Module
    x: Tensor
    rows: int
    repeats: int = 1
    """Calls in a row, where one is too short to be timed."""


def cases() -> dict[str, Case]:
    """Small everyday models; the block's rows are one token, the decoder has few inputs and many outputs."""
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    block = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    decoder = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 2048))
    return {
        "MLP logits": Case(mlp, torch.randn(1, 784), 10, repeats=20),
        "MLP hidden": Case(mlp[:3], torch.randn(1, 784), 512, repeats=2),
        "convnet": Case(conv, torch.randn(1, 3, 32, 32), 2048),
        "block": Case(block, torch.randn(1, 32, 256), 256),
        "decoder": Case(decoder, torch.randn(1, 16), 2048),
    }


def outputs(case: Case, x: Tensor) -> Tensor:
    """[rows]: the entries that are differentiated."""
    out: Tensor = case.model(x)
    return out.flatten()[: case.rows]


def with_graph(case: Case) -> tuple[Tensor, Tensor]:
    x = case.x.clone().requires_grad_()
    return outputs(case, x), x


def one_hot_backward(case: Case) -> Tensor:
    """The loop that everybody writes first. It computes every parameter's gradient too."""
    y, x = with_graph(case)
    found = torch.empty(case.rows, x.numel())
    for row, one_hot in enumerate(torch.eye(case.rows)):
        x.grad = None
        y.backward(one_hot, retain_graph=True)
        assert x.grad is not None
        found[row] = x.grad.flatten()
    case.model.zero_grad()
    return found


def grad_loop(case: Case) -> Tensor:
    y, x = with_graph(case)
    rows = [torch.autograd.grad(y, x, one_hot, retain_graph=True)[0].flatten() for one_hot in torch.eye(case.rows)]
    return torch.stack(rows)


def is_grads_batched(case: Case) -> Tensor:
    y, x = with_graph(case)
    return torch.autograd.grad(y, x, torch.eye(case.rows), is_grads_batched=True)[0].flatten(1)


def jacrev(case: Case) -> Tensor:
    return torch.func.jacrev(lambda x: outputs(case, x))(case.x).flatten(1)


def jacrev_chunked(case: Case) -> Tensor:
    return torch.func.jacrev(lambda x: outputs(case, x), chunk_size=CHUNK)(case.x).flatten(1)


def functional_vectorized(case: Case) -> Tensor:
    found = torch.autograd.functional.jacobian(lambda x: outputs(case, x), case.x, vectorize=True)
    return found.flatten(1)  # type: ignore[union-attr]


def torchjd_jac(case: Case) -> Tensor:
    y, x = with_graph(case)
    return jac(y, x)[0].flatten(1)


def torchjd_chunked(case: Case) -> Tensor:
    y, x = with_graph(case)
    return jac(y, x, parallel_chunk_size=CHUNK)[0].flatten(1)


_fallbacks: dict[int, Fallback] = {}


def gradlab_engine(case: Case) -> Tensor:
    """gradlab's choice of engine and chunk on an ordinary forward."""
    x = case.x.clone().requires_grad_()
    y = case.model(x)
    fallback = _fallbacks.setdefault(id(case), Fallback())
    subgraph = Subgraph(y, x, _widest(case), None)
    problem = set_up_problem(Request(slice=Slice(of="output", wrt="input", rows=case.rows)), subgraph, 1, fallback)
    fallback.choose_engines(problem)
    return fallback.solve(problem)[0]


def _nbytes(out: Any) -> int:
    return out.nbytes if isinstance(out, Tensor) else max((t.nbytes for t in out if isinstance(t, Tensor)), default=0)


@lru_cache
def _widest(case: Case) -> int:
    """Size of the largest output of a module, which chunks are sized by."""
    sizes: list[int] = []
    handles = [m.register_forward_hook(lambda m, args, out: sizes.append(_nbytes(out))) for m in case.model.modules()]
    outputs(case, case.x)
    for handle in handles:
        handle.remove()
    return max(sizes)


def gradlab_bare(case: Case) -> Tensor:
    block = gradlab.jacobian(case.model, case.x, rows=case.rows, audit=False, spectrum=False)
    return torch.tensor(block.values)


def gradlab_full(case: Case) -> Tensor:
    return torch.tensor(gradlab.jacobian(case.model, case.x, rows=case.rows).values)


PEERS: tuple[Callable[[Case], Tensor], ...] = (
    one_hot_backward,
    grad_loop,
    is_grads_batched,
    jacrev,
    jacrev_chunked,
    functional_vectorized,
    *((torchjd_jac, torchjd_chunked) if jac is not None else ()),
)
OURS: tuple[Callable[[Case], Tensor], ...] = (gradlab_engine, gradlab_bare, gradlab_full)
WAYS = PEERS + OURS


def cpu_ms(way: Callable[[Case], Tensor], case: Case, repeats: int) -> float:
    """CPU time of the whole process, a call: backwards of a CPU graph run on the calling thread."""
    start = time.process_time()
    for _ in range(repeats):
        way(case)
    return 1000 * (time.process_time() - start) / repeats


def peak_mib(way: Callable[[Case], Tensor], case: Case) -> float:
    """Most memory above the start, from the allocator's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        way(case)
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    now = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def measure(name: str, case: Case) -> list[dict[str, Any]]:
    """One row a way."""
    expected = one_hot_backward(case)
    times: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    for round_ in range(ROUNDS + 1):
        for way in WAYS:
            took = cpu_ms(way, case, case.repeats)
            if round_ > 0:  # the first round pays for imports and caches
                times[way.__name__].append(took)
    medians = {way: statistics.median(took) for way, took in times.items()}
    base, best = medians["one_hot_backward"], min(medians[way.__name__] for way in PEERS)
    rows = []
    for way in WAYS:
        off = torch.linalg.vector_norm(way(case).detach() - expected) / torch.linalg.vector_norm(expected)
        rows.append(
            {
                "way": way.__name__,
                "jacobian": f"{name} {case.rows}x{case.x.numel()}",
                "CPU ms": round(medians[way.__name__], 2),
                "times faster": round(base / medians[way.__name__], 2),
                "of the best peer": round(medians[way.__name__] / best, 2),
                "peak MiB": round(peak_mib(way, case), 2),
                "relative error": float(off),
            }
        )
    return rows


def trainings() -> dict[str, tuple[nn.Module, Tensor, gradlab.JacobianSlice]]:
    """A model, a batch, and a slice to log."""
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    block = nn.Sequential(
        *[nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4)], nn.Linear(128, 10)
    )
    ten = {"of": "output", "wrt": "input", "rows": 10}
    return {
        "MLP, batch 128": (mlp, torch.randn(128, 784), gradlab.JacobianSlice(**ten, samples=4)),
        "convnet, batch 64": (conv, torch.randn(64, 3, 32, 32), gradlab.JacobianSlice(**ten)),
        "4 blocks, batch 8": (block, torch.randn(8, 32, 128), gradlab.JacobianSlice(**ten)),
    }


def in_training() -> list[dict[str, Any]]:
    """The share of training that a slice takes: one measurement against `EVERY` steps, interleaved."""
    rows = []
    for name, (model, x, spec) in trainings().items():
        optimizer = torch.optim.AdamW(model.parameters())
        probe = ReplayedSlice(spec, model, x)
        steps, measured = [], []
        for round_ in range(2 * ROUNDS):
            start = time.process_time()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            middle = time.process_time()
            probe.measure(round_)
            steps.append(middle - start)
            measured.append(time.process_time() - middle)
        step, slice_ = statistics.median(steps[1:]), statistics.median(measured[1:])
        rows.append(
            {
                "training": name,
                "step ms": round(1000 * step, 2),
                "slice ms": round(1000 * slice_, 2),
                f"% of {EVERY} steps": round(100 * slice_ / (EVERY * step), 3),
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "There is a performance drop")  # of a peer's per-row fallback; it is measured
    rows = [row for name, case in cases().items() for row in measure(name, case)]
    write_result("jacobian", rows, "torchjd", rounds=ROUNDS, chunk_of_chunked_peers=CHUNK)
    write_result("jacobian_in_training", in_training(), rounds=2 * ROUNDS, every=EVERY)


if __name__ == "__main__":
    main()
