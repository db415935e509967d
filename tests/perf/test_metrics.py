"""The scalars `perf/*` of a plain training loop."""

import copy
import sys
import time
import types
from collections import Counter
from functools import partial

import pytest
import torch
from perf.test_clock import Time
from profiling.example import Run, num_hooks
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts
from torch.utils.data import DataLoader, Dataset, dataloader
from torch.utils.flop_counter import FlopCounterMode

import gradlab
from gradlab.errors import GradlabWarning
from gradlab.perf import clock, metrics
from gradlab.perf.clock import PhaseClock
from gradlab.perf.devices import Telemetry, read_nvml
from gradlab.perf.flops import CallRecorder, count_flops
from gradlab.perf.metrics import Performance
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


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.ones(5, 3), 5),
        ([torch.ones(4, 2), torch.ones(9)], 4),
        ({"input_ids": torch.ones(3, 7, dtype=torch.int64)}, 3),
        ((("text", {"x": torch.ones(6)}),), 6),
        (torch.tensor(1.0), 0),
        (None, 0),
        ([], 0),
        ("text", 0),
    ],
)
def test_a_batch_of_any_form_has_its_size_counted_or_none(run, batch, samples):
    always_on = Performance(run.model, lambda *_: None, strict=True)
    always_on.batch(batch)
    always_on.batch((batch,), {})
    assert always_on._samples == 2 * samples
    always_on.close()


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
    monkeypatch.setattr(metrics, "memory_scalars", fail)
    with gradlab.watch(run.model, run.optimizer, sinks=[sink]):
        with pytest.warns(GradlabWarning, match=r"the perf/\* scalars were switched off: OSError: no such") as caught:
            for _ in range(25):
                run.step()
        assert len(caught) == 1
    assert len(run.losses) == 25 and num_hooks(run.model) == 0


@pytest.mark.parametrize("method", ["enter", "leave", "rest"])
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


# FLOPs.


def flops_of(model, *args, **kwargs):
    before = num_hooks(model)
    recorder = CallRecorder(model)
    model(*args, **kwargs)
    recorder.close()
    assert num_hooks(model) == before
    return count_flops(recorder.calls)


def test_flops_of_a_perceptron_are_those_of_its_products():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.randn(32, 64)
    forward = 2 * 32 * (64 * 128 + 128 * 10)
    assert flops_of(model, x) == forward + forward + 2 * 32 * 128 * 10  # the input needs no gradient
    assert flops_of(model, x.requires_grad_()) == 3 * forward
    model[0].weight.requires_grad_(False)
    assert flops_of(model, x.detach()) == 3 * forward - 2 * 2 * 32 * 64 * 128
    with torch.no_grad():
        assert flops_of(model, x) == forward


def test_flops_of_attention_and_convolution_are_counted():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(3, 5, 16)
    linear = 2 * 3 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    attention = 2 * 2 * 3 * 5 * 5 * 16
    assert flops_of(layer, x.requires_grad_()) >= 3 * (linear + attention)
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    forward = 2 * 2 * 8 * 6 * 6 * 3 * 9
    assert flops_of(convolution, torch.randn(2, 3, 6, 6)) == 2 * forward


class Checkpointed(nn.Module):
    """Blocks that are kept or computed again, in one of the ways that there are."""

    def __init__(self, way=None):
        super().__init__()
        self.way = way
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(3)))
        if way == "wrapper":
            self.blocks = nn.Sequential(*map(checkpoint_wrapper, self.blocks))
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)

    def forward(self, x):
        if self.way == "sequential":
            return checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        if self.way == "nested":
            return checkpoint(self.nested, x, use_reentrant=False)
        if self.way == "nested reentrant":
            return checkpoint(self.nested, x, use_reentrant=True)
        for block in self.blocks:
            if self.way in ("reentrant", "not reentrant"):
                x = checkpoint(block, x, use_reentrant=self.way == "reentrant")
            elif self.way == "selective":
                x = checkpoint(block, x, use_reentrant=False, context_fn=selective)
            elif self.way == "as in transformers":
                x = self._gradient_checkpointing_func(block.__call__, x)
            elif self.way == "own function":
                x = ComputedAgain.apply(x, block)
            else:
                x = block(x)
        return x

    def nested(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.way == "nested reentrant")
        return x


def selective():
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])


class ComputedAgain(torch.autograd.Function):
    """Somebody's own checkpointing, as Megatron's and DeepSpeed's."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.block(x)
        torch.autograd.backward(output, grad)
        return x.grad, None


WAYS = [
    "reentrant", "not reentrant", "nested", "nested reentrant", "sequential", "selective", "wrapper",
    "as in transformers", "own function",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # inside a checkpoint, torch's own
@pytest.mark.parametrize("way", WAYS)
def test_what_checkpointing_computes_again_does_not_count(way):
    x = torch.randn(8, 16, requires_grad=True)
    model = Checkpointed()
    with FlopCounterMode(display=False) as truth:
        model(x).sum().backward()
    assert flops_of(Checkpointed(way), x) == truth.get_total_flops() == 3 * 3 * 2 * 8 * 2 * 16 * 32


class Forces(nn.Module):
    """Returns a gradient, which its forward takes."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_a_gradient_that_is_part_of_the_model_counts():
    model = Forces()
    first, _, second = model.energy
    x = torch.randn(8, 16, requires_grad=True)
    with FlopCounterMode(display=False) as truth:  # whose hooks on modules do not bear such a forward
        energy = F.linear(torch.tanh(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
        torch.autograd.grad(energy.sum(), x, create_graph=True)[0].sum().backward()
    assert flops_of(model, torch.randn(8, 16)) == truth.get_total_flops()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_modes_around_a_loop_see_what_they_see_without_gradlab():
    seen = []
    for is_watched in (False, True):
        run = Run()
        monitor = gradlab.watch(run.model, run.optimizer, sinks=[MemorySink()]) if is_watched else None
        with FlopCounterMode(display=False) as counter, Seen() as operations:
            for _ in range(12):
                run.step()
        seen.append((counter.get_total_flops(), operations.names))
        if monitor is not None:
            monitor.close()
    assert seen[0] == seen[1]


class Random(nn.Module):
    """Draws numbers, counts its calls and keeps a running mean in its forward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.num_calls = 0
        self.seen = []

    def forward(self, x):
        self.num_calls += 1
        self.seen.append(self.num_calls)
        return gradlab.tap("named", self.norm(F.dropout(self.linear(x)) + torch.rand(8, device=x.device)))


def test_counting_touches_neither_the_model_nor_the_random_numbers():
    model = Random()
    monitor, _ = watched(model, None)
    x = torch.randn(4, 8)
    recorder = CallRecorder(model)
    model(x).sum().backward()
    recorder.close()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grad = model.linear.weight.grad.clone()
    assert count_flops(recorder.calls) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(model.linear.weight.grad, grad)
    assert model.num_calls == 1 and model.seen == [1]
    monitor.close()


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


# What the driver says.


def fake_nvml(**refuses):
    def refusing(name, value):
        def answer(*args):
            if name in refuses:
                raise RuntimeError(refuses[name])
            return value

        return answer

    nvml = types.ModuleType("pynvml")
    nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM = 0, 1
    nvml.nvmlInit = refusing("init", None)
    nvml.nvmlDeviceGetHandleByUUID = refusing("handle", "handle")
    nvml.nvmlDeviceGetUtilizationRates = refusing("utilization", types.SimpleNamespace(gpu=87))
    nvml.nvmlDeviceGetMemoryInfo = refusing("memory", types.SimpleNamespace(used=2**30))
    nvml.nvmlDeviceGetPowerUsage = refusing("power", 412_000)
    nvml.nvmlDeviceGetTemperature = refusing("temperature", 61)
    nvml.nvmlDeviceGetClockInfo = refusing("clock", 1980)
    return nvml


def test_nvml_is_read_in_the_units_of_the_tags():
    assert read_nvml(fake_nvml(), "handle") == {
        "perf/gpu_utilization": 0.87,
        "perf/gpu_memory_used_bytes": 2.0**30,
        "perf/gpu_power_watts": 412.0,
        "perf/gpu_temperature_celsius": 61.0,
        "perf/gpu_clock_mhz": 1980.0,
    }
    assert "perf/gpu_power_watts" not in read_nvml(fake_nvml(power="not supported"), "handle")


def test_telemetry_samples_in_a_thread_and_stops(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234"))
    telemetry = Telemetry(torch.device("cuda:0"), interval_seconds=0.001)
    thread = telemetry._thread
    deadline = time.monotonic() + 60
    while not telemetry.scalars() and time.monotonic() < deadline:
        time.sleep(MS)
    assert telemetry.scalars()["perf/gpu_utilization"] == 0.87 and telemetry.missing == ""
    telemetry.close()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("nvml", "why"), [(None, "pynvml"), (fake_nvml(init="driver not loaded"), "driver not loaded")]
)
def test_without_nvml_there_is_no_telemetry_and_a_reason(nvml, why, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    telemetry = Telemetry(torch.device("cuda:0"))
    assert telemetry.scalars() == {} and why in telemetry.missing
    telemetry.close()
