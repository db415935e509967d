"""What rows of a Jacobian cost, by gradlab and by every public way that torch has.

    python benchmarks/jacobian.py

All ways are measured in one process, interleaved, as CPU time with one torch thread; the median over the rounds is
reported as a ratio to a loop of one-hot `backward` calls. Every way includes its forward. `gradlab.jacobian` includes
all that it does besides: the quiet model, the audit, the summaries with all singular values, and the names.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from environment import write_result
from torch import Tensor, nn

import gradlab
from gradlab.jacobians.ladder import Ladder
from gradlab.jacobians.measure import Question, pose
from gradlab.jacobians.quiet import quiet
from gradlab.jacobians.replay import replay

ROUNDS = 5
CHUNK = 32


@dataclass(frozen=True)
class Case:
    """A model, one sample, and how many of the first outputs are differentiated."""

    model: nn.Module
    x: Tensor
    rows: int


def cases() -> dict[str, Case]:
    """The sizes are those of small everyday models; `decoder` has few inputs and many outputs."""
    mlp = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    logits = nn.Sequential(*conv, nn.Linear(2048, 10))
    block = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    decoder = nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 2048))
    image = torch.randn(1, 3, 32, 32)
    return {
        "MLP logits": Case(mlp, torch.randn(1, 784), 10),
        "MLP hidden": Case(mlp[:3], torch.randn(1, 784), 256),
        "convnet logits": Case(logits, image, 10),
        "convnet hidden": Case(conv, image, 256),
        "block, one token": Case(block, torch.randn(1, 32, 128), 128),
        "decoder": Case(decoder, torch.randn(1, 16), 1024),
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


def gradlab_engine(case: Case) -> Tensor:
    """gradlab's quiet forward and its engine, without audit and summaries."""
    question, ladder = Question(rows=case.rows), Ladder()
    with quiet(case.model) as core:
        problem = pose(question, replay(core, case.x, of="output", wrt="input"), 1, ladder)
        ladder.settle(problem)
        return ladder.solve(problem)[0]


def gradlab_jacobian(case: Case) -> Tensor:
    return torch.from_numpy(gradlab.jacobian(case.model, case.x, rows=case.rows).values)


WAYS: tuple[Callable[[Case], Tensor], ...] = (
    one_hot_backward,
    grad_loop,
    is_grads_batched,
    jacrev,
    jacrev_chunked,
    functional_vectorized,
    gradlab_engine,
    gradlab_jacobian,
)


def cpu_ms(way: Callable[[Case], Tensor], case: Case) -> float:
    """CPU time of the whole process: backwards of a CPU graph run on the calling thread."""
    start = time.process_time()
    way(case)
    return 1000 * (time.process_time() - start)


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


def measure(name: str, case: Case) -> list[dict[str, str | float]]:
    """One row a way."""
    expected = one_hot_backward(case)
    times: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    for round_ in range(ROUNDS + 1):
        for way in WAYS:
            took = cpu_ms(way, case)
            if round_ > 0:  # the first round pays for imports and caches
                times[way.__name__].append(took)
    base = statistics.median(times["one_hot_backward"])
    rows = []
    for way in WAYS:
        took = statistics.median(times[way.__name__])
        off = torch.linalg.vector_norm(way(case) - expected) / torch.linalg.vector_norm(expected)
        rows.append(
            {
                "way": way.__name__,
                "jacobian": f"{name} {case.rows}x{case.x.numel()}",
                "CPU ms": round(took, 2),
                "times faster": round(base / took, 2),
                "peak MiB": round(peak_mib(way, case), 2),
                "relative error": float(off),
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for name, case in cases().items() for row in measure(name, case)]
    write_result("jacobian", rows, rounds=ROUNDS, chunk_of_jacrev_chunked=CHUNK)


if __name__ == "__main__":
    main()
