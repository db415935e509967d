"""The scalars `perf/*` of a plain training loop."""

import time

import pytest
import torch
from perf.test_clock import Time
from profiling.example import Run, num_hooks
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, dataloader

import gradlab
from gradlab.errors import GradlabWarning
from gradlab.perf import clock, performance
from gradlab.perf.clock import PhaseClock
from gradlab.perf.performance import Performance
from gradlab.sinks import MemorySink

MS = 0.001


@pytest.fixture
def host_time(monkeypatch):
    """Time passes for the phases of steps only where the test says so."""
    monkeypatch.setattr(clock, "perf_counter_ns", time := Time())
    return time


class Sleeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(8 * MS)
        return grad


class Slow(nn.Module):
    """Four milliseconds forward, eight backward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x):
        time.sleep(4 * MS)
        return Sleeps.apply(self.linear(x))


class SlowData(Dataset):
    """Two milliseconds a batch of eight."""

    def __len__(self):
        return 8 * 16

    def __getitem__(self, index):
        if index % 8 == 0:
            time.sleep(2 * MS)
        return torch.ones(16), index % 4


class SlowSGD(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        time.sleep(6 * MS)
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(self.param_groups[0]["lr"] * parameter.grad)


def logged(sink):
    """All scalars `perf/*` by tag: the value of the last time."""
    values = {}
    for _, scalars in sink.logged:
        values.update({tag.removeprefix("perf/"): value for tag, value in scalars.items() if tag.startswith("perf/")})
    return values


def watched(model, optimizer, **options):
    sink = MemorySink()
    return gradlab.watch(model, optimizer, sinks=[sink], strict=True, **options), sink


def test_each_phase_of_a_step_is_seen_and_all_add_up():
    model = Slow()
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    monitor, sink = watched(model, optimizer)
    for x, y in DataLoader(SlowData(), batch_size=8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        time.sleep(3 * MS)
        loss.backward()
        optimizer.step()
        time.sleep(5 * MS)
    monitor.close()
    values = logged(sink)
    asked_for = {"data": 2, "forward": 4, "loss": 3, "backward": 8, "optimizer": 6, "other": 5}
    for phase, milliseconds in asked_for.items():
        assert values[f"{phase}_ms"] >= milliseconds, (phase, values)
    assert sum(values[f"{phase}_ms"] for phase in asked_for) == pytest.approx(values["step_ms"], rel=1e-6)
    assert values["data_share"] == pytest.approx(values["data_ms"] / values["step_ms"])
    assert values["samples_per_second"] == pytest.approx(8 / (values["step_ms"] * MS), rel=1e-6)
    assert values["host_memory_bytes"] > 1e7
    assert not {"h2d_ms", "callbacks_ms", "mfu", "memory_peak_bytes", "gpu_utilization"} & values.keys()


def test_a_phase_can_be_marked_by_hand(run):
    monitor, sink = watched(run.model, run.optimizer)
    for _ in range(4):
        with monitor.phase("h2d"):
            time.sleep(3 * MS)
        run.step()
    monitor.close()
    assert logged(sink)["h2d_ms"] >= 3


def test_nothing_is_left_behind_and_training_is_bit_identical():
    plain, seen = Run(), Run()
    original = dataloader._BaseDataLoaderIter.__next__
    monitor, _ = watched(seen.model, seen.optimizer)
    assert dataloader._BaseDataLoaderIter.__next__ is not original
    for _ in range(12):
        plain.step()
        seen.step()
    monitor.close()
    assert plain.losses == seen.losses
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), seen.model.parameters(), strict=True))
    assert num_hooks(seen.model) == 0
    assert dataloader._BaseDataLoaderIter.__next__ is original


def test_a_loader_replaced_by_somebody_else_meanwhile_stays_theirs(run, monkeypatch):
    monkeypatch.setattr(dataloader._BaseDataLoaderIter, "__next__", dataloader._BaseDataLoaderIter.__next__)
    monitor, _ = watched(run.model, run.optimizer)
    ours = dataloader._BaseDataLoaderIter.__next__
    theirs = lambda iterator: ours(iterator)  # noqa: E731
    dataloader._BaseDataLoaderIter.__next__ = theirs
    monitor.close()
    assert dataloader._BaseDataLoaderIter.__next__ is theirs
    assert len(list(DataLoader(torch.ones(4)))) == 4


def test_a_step_with_an_evaluation_in_it_is_left_out(run, host_time):
    monitor, sink = watched(run.model, run.optimizer)
    for number in range(12):
        host_time.now += 2_000_000
        run.step()
        if number % 3 == 2:
            run.model.eval()
            with torch.no_grad():
                run.model(run.x)
                host_time.now += 200_000_000
            run.model.train()
    monitor.close()
    assert logged(sink)["step_ms"] == 2


def test_training_in_evaluation_mode_is_training(run):
    monitor, sink = watched(run.model.eval(), run.optimizer)
    for _ in range(5):
        run.step()
    monitor.close()
    assert logged(sink)["forward_ms"] > 0


def test_a_failed_backward_does_not_spoil_the_steps_after_it(run, host_time):
    class Lasts(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            host_time.now += 8_000_000
            return grad

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("on purpose")

    run.model[1].register_forward_hook(lambda module, args, output: Lasts.apply(output))
    monitor, sink = watched(run.model, run.optimizer)
    for number in range(14):
        if number == 1:
            with pytest.raises(RuntimeError, match="on purpose"):
                Fails.apply(run.model[0](run.x)).sum().backward()
            with pytest.raises(RuntimeError, match="on purpose"):  # the engine begins with what was computed last
                failing = Fails.apply(run.model[0](run.x))
                F.cross_entropy(run.model(run.x) + failing[:, :4], run.y).backward()
        run.step()
        host_time.now += 2_000_000
    monitor.close()
    values = logged(sink)
    assert (values["backward_ms"], values["other_ms"], values["step_ms"]) == (8, 2, 10)


def test_tokens_are_counted_where_the_model_takes_them():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(0, 1), nn.Linear(4, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor, sink = watched(model, optimizer)
    tokens = torch.randint(10, (3, 7))
    for _ in range(4):
        for _ in range(2):  # two micro-batches
            F.cross_entropy(model(tokens), tokens.flatten()).backward()
        optimizer.step()
    monitor.close()
    values = logged(sink)
    assert values["tokens_per_second"] == pytest.approx(7 * values["samples_per_second"])
    assert values["samples_per_second"] == pytest.approx(6 / (values["step_ms"] * MS), rel=1e-6)


def test_nothing_is_measured_where_nobody_listens(run, monkeypatch):
    monkeypatch.setattr(Performance, "attach", lambda self: pytest.fail("attached"))
    monitor = gradlab.watch(run.model, run.optimizer)
    run.step()
    monitor.close()
    with gradlab.watch(run.model, run.optimizer, sinks=[MemorySink()], performance=False):
        run.step()


def test_what_fails_is_switched_off_with_one_warning(run, monkeypatch):
    def fail(device):
        raise OSError("no such file")

    sink = MemorySink()
    monkeypatch.setattr(performance, "memory_scalars", fail)
    with gradlab.watch(run.model, run.optimizer, sinks=[sink]):
        with pytest.warns(GradlabWarning, match=r"the perf/\* scalars were switched off: OSError: no such") as caught:
            for _ in range(25):
                run.step()
        assert len(caught) == 1
    assert len(run.losses) == 25 and num_hooks(run.model) == 0


@pytest.mark.parametrize("method", ["enter", "leave", "set_default"])
def test_a_failing_clock_never_reaches_the_training(run, monkeypatch, method):
    def fail(self, *args):
        raise RuntimeError("no such event")

    monitor = gradlab.watch(run.model, run.optimizer, sinks=[MemorySink()])
    monkeypatch.setattr(PhaseClock, method, fail)
    with pytest.warns(GradlabWarning, match="switched off: RuntimeError: no such event") as caught:
        for _ in range(3):
            run.step()
    assert len(caught) == 1 and len(run.losses) == 3
    monitor.close()
    assert num_hooks(run.model) == 0


def test_flops_are_logged_and_their_absence_explained(run):
    monitor, sink = watched(run.model, run.optimizer)
    for _ in range(12):
        run.step()
    monitor.close()
    values = logged(sink)
    forward = 2 * 8 * (16 * 32 + 32 * 4)
    assert values["flops_per_step"] == 2 * forward + 2 * 8 * 32 * 4
    assert values["tflops_per_second"] == pytest.approx(values["flops_per_step"] / values["step_ms"] / 1e9)

    class NeedsValues(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 4)

        def forward(self, x):
            return self.linear(x) * (2 if x.sum().item() > 0 else 1)

    other = Run(NeedsValues())
    always_on = Performance(other.model, lambda *_: None, strict=True)
    always_on.attach()
    for number in range(4):
        other.step()
        always_on.step_ended(number)
    always_on.close()
    assert always_on.flops is None and "does not run without values" in always_on.flops_missing
