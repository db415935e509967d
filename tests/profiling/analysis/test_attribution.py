import json
from collections import defaultdict

import pytest
import torch
from profiling.example import Run, events_of
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradlab.profiling.analysis.attributed_times import Owner
from gradlab.profiling.analysis.attribution import attribute
from gradlab.profiling.analysis.events import ProfiledModule, WindowEvents
from gradlab.profiling.analysis.summary import summarize
from gradlab.profiling.kineto import read_events
from gradlab.profiling.options import Profile
from gradlab.profiling.recording import Recording

# Dynamo asks each input of a compiled block for its .grad, of a non-leaf tensor too.
asks_for_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def profiled(model, step, *, num_steps=3, warm=2, in_events=False):
    """The attribution of a few steps of training, and the rows of the module table by name.

    With `in_events` every beginning and end of an event is a nanosecond, so that what is compared are numbers of
    events, whatever else the machine does.
    """
    for _ in range(warm):
        step()
    recording = Recording(Profile(), model)
    recording.start()
    for number in range(num_steps):
        recording.begin_step(number, waits_for_data=False)
        step()
        recording.end_step()
    recorded = recording.stop()
    events = read_events(recorded.results)
    if in_events:
        times = sorted({time for event in events for time in (event.start, event.end)})
        count = {time: number for number, time in enumerate(times)}
        events = [event._replace(start=count[event.start], end=count[event.end]) for event in events]
    attribution = attribute(events, recorded.steps, recorded.modules)
    summary = summarize(WindowEvents(events=events, steps=recorded.steps, modules=recorded.modules))
    return attribution, summary, {row["name"]: row for row in summary["modules"]}


def check_sums(attribution, summary):
    """Nothing is lost and nothing counted twice."""
    total = sum(sum(phases.values()) for phases in attribution.steps.values())
    assert sum(attribution.host.values()) == total
    for phase in ("forward", "backward"):
        in_modules = sum(row[f"{phase}_self_ms"] for row in summary["modules"])
        outside = summary["unattributed"][f"{phase}_ms"]
        assert in_modules + outside == pytest.approx(summary["mean"][f"{phase}_ms"], rel=1e-9)
    phases = sum(value for key, value in summary["mean"].items() if key != "ms")
    assert phases == pytest.approx(summary["mean"]["ms"], rel=1e-9)


def test_modules_and_unattributed_time_add_up_to_the_step(run):
    attribution, summary, rows = profiled(run.model, run.step)
    check_sums(attribution, summary)
    assert list(rows) == ["", "0", "1", "2"]
    assert all(row["calls"] == 1 for row in rows.values())
    assert all(summary["mean"][f"{phase}_ms"] > 0 for phase in ("forward", "backward", "optimizer", "other"))


def test_a_step_is_as_long_as_its_mark(run):
    attribution, _, _ = profiled(run.model, run.step)
    start, end = attribution.span
    steps = sum(sum(phases.values()) for phases in attribution.steps.values())
    assert 0.5 * (end - start) < steps <= end - start


def test_a_parent_holds_its_children(run):
    _, _, rows = profiled(run.model, run.step)
    for phase in ("forward", "backward"):
        own = sum(row[f"{phase}_self_ms"] for row in rows.values())
        assert rows[""][f"{phase}_ms"] == pytest.approx(own, rel=1e-9)


def test_a_layer_ten_times_the_others_ranks_first_forward_and_backward():
    wide = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4096), nn.Linear(4096, 64), nn.Linear(64, 4))
    run = Run(nn.Sequential(wide[0], wide[1], nn.Sequential(wide[2], wide[3]), wide[4]), width=64)
    run.x, run.y = run.x.repeat(16, 1), run.y.repeat(16)
    windows = [profiled(run.model, run.step)[2] for _ in range(3)]  # the least: another process may take the core
    for phase in ("forward", "backward"):
        named = {name: min(rows[name][f"{phase}_ms"] for rows in windows) for name in ("0", "1", "2", "3")}
        assert max(named, key=named.__getitem__) == "2"


class CheapForward(torch.autograd.Function):
    """The identity, whose backward multiplies matrices for a while."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        work = torch.eye(128)
        for _ in range(200):
            work = work @ work
        return grad * work[0, 0]


class CostsInBackward(nn.Module):
    def forward(self, x):
        return CheapForward.apply(x)


def test_backward_time_goes_to_the_module_that_ran_the_forward():
    run = Run(nn.Sequential(nn.Linear(16, 16), CostsInBackward(), nn.Linear(16, 4)))
    attribution, summary, rows = profiled(run.model, run.step, in_events=True)
    check_sums(attribution, summary)
    assert rows["1"]["backward_self_ms"] > 3 * rows["1"]["forward_self_ms"]
    assert rows["1"]["backward_self_ms"] > 2 * (rows["0"]["backward_self_ms"] + rows["2"]["backward_self_ms"])


class Recomputed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 16))
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_counts_as_backward_of_the_recomputed_modules(reentrant):
    run = Run(nn.Sequential(nn.Linear(16, 16), Recomputed(reentrant), nn.Linear(16, 4)))
    attribution, summary, rows = profiled(run.model, run.step)
    check_sums(attribution, summary)
    assert rows["1.inner.0"]["calls"] == 1  # the second forward is inside the backward
    assert rows["1.inner.0"]["backward_self_ms"] > 0
    assert rows["1"]["backward_ms"] > rows["1.inner.0"]["backward_ms"] + rows["1.inner.2"]["backward_ms"] > 0


@asks_for_grad
def test_a_compiled_module_is_one_box_with_its_forward_and_backward():
    block = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 16))
    run = Run(nn.Sequential(nn.Linear(16, 16), torch.compile(block, backend="aot_eager"), nn.Linear(16, 4)))
    attribution, summary, rows = profiled(run.model, run.step, in_events=True)
    check_sums(attribution, summary)
    assert list(rows) == ["", "0", "1", "2"] and rows["1"]["kind"] == "Sequential (compiled)"
    assert rows["1"]["forward_self_ms"] > rows["0"]["forward_self_ms"]
    assert rows["1"]["backward_self_ms"] > rows["0"]["backward_self_ms"]
    torch._dynamo.reset()


def test_a_shared_module_is_one_row_with_all_its_calls():
    shared = nn.Linear(16, 16)
    run = Run(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(16, 4)))
    attribution, summary, rows = profiled(run.model, run.step)
    check_sums(attribution, summary)
    assert list(rows) == ["", "0", "1", "3"] and rows["0"]["calls"] == 2


def test_the_loss_is_forward_time_of_no_module(run):
    attribution, _, _ = profiled(run.model, run.step)
    assert attribution.host[Owner("forward")] > 0
    assert "aten::cross_entropy_loss" in attribution.operators


def test_a_closure_run_by_the_optimizer_is_not_the_optimizers_time():
    run = Run(nn.Sequential(nn.Linear(16, 768), nn.Linear(768, 768), nn.Linear(768, 4)))
    run.x, run.y = run.x.repeat(32, 1), run.y.repeat(32)

    def step():
        def closure():
            run.optimizer.zero_grad()
            loss = F.cross_entropy(run.model(run.x), run.y)
            loss.backward()
            return loss

        run.optimizer.step(closure)

    attribution, summary, rows = profiled(run.model, step)
    check_sums(attribution, summary)
    assert rows[""]["forward_ms"] > 0 and rows[""]["backward_ms"] > 0
    assert attribution.host[Owner("forward")] > 0
    assert summary["mean"]["optimizer_ms"] < summary["mean"]["ms"] / 2


def test_gradient_accumulation_and_a_second_backward_add_up(run):
    def step():
        for _ in range(2):
            F.cross_entropy(run.model(run.x), run.y).backward()
        run.optimizer.step()
        x = run.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(run.model(x).sum(), x, create_graph=True)
        grad.square().sum().backward()

    attribution, summary, rows = profiled(run.model, step)
    check_sums(attribution, summary)
    assert rows["0"]["calls"] == 3


def test_steps_without_a_model_are_split_into_phases_all_the_same(run):
    attribution, summary, rows = profiled(None, run.step)
    assert rows == {} and all(summary["mean"][f"{phase}_ms"] > 0 for phase in ("forward", "backward", "optimizer"))
    assert sum(attribution.host.values()) == sum(sum(phases.values()) for phases in attribution.steps.values())


def test_device_time_of_a_real_cuda_trace_is_credited_to_the_last_nanosecond(cuda_trace):
    events = events_of(json.loads(cuda_trace("nccl_parser_config.json.gz")))
    model = {"DistributedDataParallel.forward": ProfiledModule("", "DistributedDataParallel")}
    attribution = attribute(events, [4, 5, 6], model)
    kernels = sum(event.end - event.start for event in events if event.on_device)
    by_phase = defaultdict(int)
    for owner, time in attribution.device.items():
        by_phase[owner.phase] += time
    assert sum(attribution.device.values()) == kernels
    assert 0 < by_phase["optimizer"] < by_phase["forward"] < by_phase["backward"] < kernels
    collectives = attribution.operators["record_param_comms"].device
    in_model = attribution.device[Owner("backward", tuple(model))]
    assert in_model + collectives == pytest.approx(by_phase["backward"], rel=0.01)  # but for the loss
    assert sum(operator.device for operator in attribution.operators.values()) == pytest.approx(kernels, rel=0.02)
    assert 0.2 < attribution.device_busy / (attribution.span[1] - attribution.span[0]) < 0.3
    idle = sum(gap.end - gap.start for gap, _ in attribution.gaps)
    assert idle + attribution.device_busy == attribution.span[1] - attribution.span[0]
    assert sum(kernel.time for kernel in attribution.kernels.values()) == kernels


def test_a_real_cuda_trace_gives_kernels_idle_causes_and_a_verdict(cuda_trace):
    events = events_of(json.loads(cuda_trace("nccl_parser_config.json.gz")))
    model = {"DistributedDataParallel.forward": ProfiledModule("", "DistributedDataParallel")}
    summary = summarize(WindowEvents(events=events, steps=[4, 5, 6], modules=model), world_size=2)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["kernels"][0]["name"].startswith("ncclKernel_AllReduce")
    assert summary["kernels"][0]["operator"] == "record_param_comms" and not summary["kernels"][0]["tensor_cores"]
    assert (
        summary["collectives_ms"] == pytest.approx(summary["device"]["collectives_ms"])
        and 15 < summary["collectives_ms"] < 17
    )
    device = summary["device"]
    assert 0.3 < device["tensor_core_share"] < 0.4  # TF32 convolutions
    idle = device["idle"]
    causes = sum(idle[f"{cause}_ms"] for cause in ("data", "sync", "host", "queue"))
    assert causes == pytest.approx((1 - device["busy_share"]) * summary["mean"]["ms"], rel=0.01)
    assert idle["host_ms"] > 0.9 * causes  # the host launches late: a small batch on an A100
    assert idle["gaps"][0]["ms"] > 10 and idle["gaps"][0]["module"] == "" and idle["gaps"][0]["step"] in (4, 5, 6)
    assert summary["verdict"]["bound"] == "host"


def test_host_time_of_a_backward_on_its_own_thread_is_on_the_steps_timeline(cuda_trace):
    events = events_of(json.loads(cuda_trace("nccl_parser_config.json.gz")))
    attribution = attribute(events, [4, 5, 6], {})
    marks = {event.name: event.end - event.start for event in events if event.name.startswith("ProfilerStep#")}
    assert {f"ProfilerStep#{step}": sum(phases.values()) for step, phases in attribution.steps.items()} == marks
    assert all(phases["backward"] > sum(phases.values()) / 4 for phases in attribution.steps.values())
