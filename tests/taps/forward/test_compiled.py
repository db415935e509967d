"""Taps in compiled models: the numbers of the eager model on due steps, and no graph more than without watching."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab import Tap
from gradlab.errors import GradlabWarning
from gradlab.taps.forward.compiled import entrances, why_unseen

# Dynamo asks each input of a compiled block for its .grad, of a non-leaf tensor too.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

TENSORS = Tap("*", of=["output", "output_grad"], stats=["norm", "mean"])
GRADIENTS = Tap("*", of=["weight_grad", "update"])
CASES = ["Functional", "InPlace", "DictOutput", "CalledThrice", "TiedWeights", "NoGradTrunk", "Attention", "Views"]


class Block(nn.Module):
    """A residual block with a functional activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


class Net(nn.Module):
    """Blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Checkpointed(Net):
    """The same, with each block under activation checkpointing."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


class Compiled:
    """A model in training, compiled in one of the ways that there are."""

    def __init__(self, model: nn.Module, how: str, backend: Any = None) -> None:
        self.backend = CompileCounter() if backend is None else backend
        options: dict[str, Any] = {"backend": self.backend, "fullgraph": True}
        self.inner, self.model = model, model
        self.called: Callable[[Tensor], Any] = model
        if how in ("whole", "outside"):
            self.called = torch.compile(model, **options)
            self.model = self.called if how == "whole" else model
        elif how == "in place":
            model.compile(**options)
        elif how in ("blocks", "some blocks"):
            for block in list(model.blocks)[how == "some blocks" :]:
                block.compile(**options)
        elif how == "wrapped blocks":
            for number, block in enumerate(model.blocks):
                model.blocks[number] = torch.compile(block, **options)
        elif how == "methods":  # what Lightning makes of a compiled LightningModule
            model.forward = torch.compile(model.forward, **options)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(self, x: Tensor, loss: Callable[[Any], Tensor] = lambda out: out.square().mean()) -> float:
        """One training step; its loss."""
        self.optimizer.zero_grad()
        value = loss(self.called(x))
        value.backward()
        self.optimizer.step()
        return value.item()


WAYS = ["whole", "outside", "in place", "blocks", "some blocks", "wrapped blocks", "methods"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Forget all graphs, and check that nobody leaves the process in another stance."""
    torch._dynamo.reset()
    yield
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


def batch(seed: int = 0) -> Tensor:
    """[5, 4] float64."""
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(kind: type[Net] = Net) -> Net:
    """The same float64 network each time."""
    torch.manual_seed(0)
    return kind().double()


def numbers(monitor: gradlab.Monitor) -> dict[tuple[str, str, int], float]:
    """Every logged number by metric, site and step."""
    return {
        (metric, site, int(step)): float(value)
        for metric, series in monitor.latest().items()
        for site in series.schema.sites
        for step, value in zip(*monitor.history(metric, site), strict=True)
    }


def watched(
    model: Compiled, taps: Sequence[Tap], *, before: int = 0, steps: int = 4
) -> tuple[dict[tuple[str, str, int], float], list[float]]:
    """The numbers and losses of a short training with an evaluation after each step, watched from step `before` on."""
    losses = [model.step(batch(step)) for step in range(before)]
    with gradlab.watch(model.model, model.optimizer, taps=taps, strict=True) as monitor:
        for step in range(before, steps + before):
            losses.append(model.step(batch(step)))
            with torch.no_grad():
                model.called(batch(step))
        return numbers(monitor), losses


@pytest.mark.parametrize("before", [0, 2], ids=["early", "late"])
@pytest.mark.parametrize("how", WAYS)
def test_due_steps_have_the_numbers_of_the_eager_model(how: str, before: int) -> None:
    taps = [Tap("*", of=["output", "output_grad"], stats=["norm", "mean"], every=2), GRADIENTS]
    want, want_losses = watched(Compiled(net(), "eager"), taps, before=before)
    got, losses = watched(Compiled(net(), how), taps, before=before)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-9)
    assert losses == pytest.approx(want_losses, rel=1e-12)
    assert {step for metric, _, step in got if metric == "output.norm"} == {0, 2}
    assert not any("_orig_mod" in site for _, site, _ in got)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["whole", "in place"])
def test_awkward_models_have_the_numbers_of_the_eager_model(name: str, how: str) -> None:
    case = zoo.ZOO[name]
    torch.manual_seed(1)
    eager = case.make().double()
    runs = []
    for way, model in (("eager", copy.deepcopy(eager)), (how, eager)):
        one = Compiled(model, way)
        with gradlab.watch(one.model, one.optimizer, taps=[TENSORS, GRADIENTS], strict=True) as monitor:
            for seed in range(2):
                one.step(case.batch(seed).double(), case.loss)
            runs.append(numbers(monitor))
    assert runs[1] == pytest.approx(runs[0], rel=1e-6, abs=1e-9, nan_ok=True)


def graphs(how: str, taps: Sequence[Tap] | None, before: int) -> int:
    """How many graphs a training with evaluation compiles."""
    model = Compiled(net(), how)
    if taps is None:
        for step in range(8):
            model.step(batch(step))
            with torch.no_grad():
                model.called(batch(step))
    else:
        watched(model, taps, before=before, steps=8 - before)
        with torch.no_grad():
            model.called(batch())
    return model.backend.frame_count


@pytest.mark.parametrize("before", [0, 2], ids=["early", "late"])
@pytest.mark.parametrize("how", WAYS)
def test_watching_compiles_no_graph_more(how: str, before: int) -> None:
    unwatched = graphs(how, None, 0)
    torch._dynamo.reset()
    assert graphs(how, [Tap("*", of=["output", "output_grad"], every=3), GRADIENTS], before) == unwatched


@pytest.mark.parametrize("how", WAYS)
def test_taps_on_parameters_leave_the_graph_running(how: str) -> None:
    """Every step is due and none runs eagerly: the graph's backend sees each call."""
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.append(graph)
            return graph.forward(*args)

        return run

    model = Compiled(net(), how, backend)
    taps = [Tap("*", of=["weight", "weight_grad", "update"])]
    with gradlab.watch(model.model, model.optimizer, taps=taps, strict=True) as monitor:
        per_step = []
        for step in range(3):
            calls.clear()
            model.step(batch(step))
            per_step.append(len(calls))
        assert len(monitor.history("weight_grad.norm", "head.weight")[0]) == 3
    graphs_a_forward = {"blocks": 3, "wrapped blocks": 3, "some blocks": 2}.get(how, 1)
    assert per_step == [graphs_a_forward] * 3


@pytest.mark.parametrize("how", WAYS)
def test_steps_on_which_nothing_is_due_are_bit_identical(how: str) -> None:
    bare = Compiled(net().float(), how)
    want = [bare.step(batch(step).float()) for step in range(4)]
    weights = copy.deepcopy(bare.inner.state_dict())
    torch._dynamo.reset()
    seen = Compiled(net().float(), how)
    with gradlab.watch(seen.model, seen.optimizer, taps=[Tap("*", of="output", every=1000)], first_step=1):
        assert [seen.step(batch(step).float()) for step in range(4)] == want
    assert all(torch.equal(weights[key], value) for key, value in seen.inner.state_dict().items())


@pytest.mark.parametrize("how", ["whole", "in place", "blocks"])
def test_an_exception_in_the_forward_gives_the_stance_back(how: str) -> None:
    model = Compiled(net(), how)
    with gradlab.watch(model.model, model.optimizer, taps=[TENSORS], strict=True) as monitor:
        with pytest.raises(RuntimeError):
            model.called(torch.zeros(5, 3, dtype=torch.float64))
        assert torch._dynamo.eval_frame._stance.stance == "default"
        model.step(batch())
        assert monitor.latest()["output.norm"]["blocks.2"] > 0


@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_a_checkpointed_segment_is_recomputed_as_it_was_computed(how: str) -> None:
    want, _ = watched(Compiled(net(Checkpointed), "eager"), [TENSORS])
    got, _ = watched(Compiled(net(Checkpointed), how), [TENSORS])
    assert got == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_compiled_parts_called_by_themselves_are_seen() -> None:
    model = Compiled(net(), "blocks")
    with gradlab.watch(model.model, model.optimizer, taps=[TENSORS], strict=True) as monitor:
        model.inner.head(model.inner.blocks[0](batch())).sum().backward()
        model.optimizer.step()
        assert {"blocks.0", "blocks.0/relu", "head"} <= set(monitor.latest()["output_grad.norm"].schema.sites)


def test_a_model_compiled_after_it_was_watched_in_place_is_seen() -> None:
    model = Compiled(net(), "eager")
    with gradlab.watch(model.model, model.optimizer, taps=[TENSORS], strict=True) as monitor:
        model.step(batch())
        model.inner.compile(backend="eager", fullgraph=True)
        model.step(batch())
        model.step(batch())
        assert list(monitor.history("output.norm", "blocks.1")[0]) == [0, 1, 2]


def test_a_wrapper_made_after_watching_is_found_at_the_next_due_step() -> None:
    model = Compiled(net(), "eager")
    with gradlab.watch(model.model, model.optimizer, taps=[Tap("blocks.1", of="output")]) as monitor:
        model.called = torch.compile(model.inner, backend="eager", fullgraph=True)
        with pytest.warns(GradlabWarning, match="saw nothing in its first step"):
            model.step(batch())
        assert "compiled after" in why_unseen(model.inner)
        model.step(batch())
        assert list(monitor.history("output.norm", "blocks.1")[0]) == [1]


def test_tensors_named_by_hand_pass_through_a_graph() -> None:
    model = Compiled(zoo.ZOO["NamedByHand"].make().double(), "whole")
    with gradlab.watch(model.model, model.optimizer, taps=[Tap("hidden*", of="output", every=2)], strict=True) as m:
        for step in range(4):
            model.step(batch(step))
        assert [list(m.history("output.norm", site)[0]) for site in ("hidden", "hidden#2")] == [[0, 2]] * 2
    assert model.backend.frame_count == 1


@pytest.mark.parametrize("how", WAYS)
def test_closing_puts_the_entrances_back(how: str) -> None:
    model = Compiled(net(), how)
    modules = [*model.model.modules(), *([model.called] if how == "outside" else [])]
    before = [vars(module)[name] for module, name in entrances(modules)]
    with gradlab.watch(model.model, model.optimizer, taps=[TENSORS]):
        armed = [vars(module)[name] for module, name in entrances(modules)]
        assert all(one is not other for one, other in zip(before, armed, strict=True))
    assert before and [vars(module)[name] for module, name in entrances(modules)] == before


def test_a_copy_and_a_pickle_of_a_watched_compiled_model_are_not_watched() -> None:
    model = Compiled(net(), "in place")
    with gradlab.watch(model.model, model.optimizer, taps=[TENSORS]) as monitor:
        for twin in (copy.deepcopy(model.inner), pickle.loads(pickle.dumps(model.inner))):
            twin(batch()).sum().backward()
        assert not monitor._training_step.engine.recorder.passes


def test_the_reason_for_an_unseen_tensor_is_compilation_only_where_it_can_be() -> None:
    model = net()
    assert why_unseen(model) == ""
    torch.compile(lambda x: model(x), backend="eager")(batch())
    assert "torch.compile(model)" in why_unseen(model)
    model.compile(backend="eager")
    assert why_unseen(model) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, from inductor
def test_inductor_graphs_are_untouched() -> None:
    torch._dynamo.utils.counters.clear()
    model = Compiled(net(), "whole", "inductor")
    got, _ = watched(model, [Tap("*", of=["output", "output_grad"], stats=["norm", "mean"], every=2)], before=2)
    want, _ = watched(
        Compiled(net(), "eager"), [Tap("*", of=["output", "output_grad"], stats=["norm", "mean"], every=2)], before=2
    )
    assert got == pytest.approx(want, rel=1e-5, abs=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
