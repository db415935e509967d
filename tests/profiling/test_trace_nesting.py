"""The ranges of a written trace nest, as the PyTorch Profiler tab and Perfetto need it."""

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from profiling.example import Run, crossings, read_trace
from torch import nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

import gradlab
from gradlab.lightning.callback import GradlabCallback
from gradlab.profiling.trace_nesting import nest_ranges

BASE = 4_972_185_139_000_000  # nanoseconds, as kineto counts


def lightning_warns(test):
    """What Lightning says of small loops is no matter here."""
    for message in (".*does not have many workers", ".*isinstance.treespec, LeafSpec"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


def trace(*ranges):
    """Events as kineto writes them, from (category, name, start, end)."""
    return ",".join(
        f"""
  {{
    "ph": "X",
    "cat": "{category}",
    "name": "{name}",
    "pid": 7,
    "tid": 7,
    "ts": {(BASE + start) // 1000}.{(BASE + start) % 1000:03d},
    "dur": {(end - start) // 1000}.{(end - start) % 1000:03d}
    ,
    "args": {{ "External id": 1 }}
  }}"""
        for category, name, start, end in ranges
    ).encode()


def times(events):
    """By name, where each range begins and ends."""
    found = {}
    for event in json.loads(b"[" + events + b"]"):
        start = round(event["ts"] * 1000) - BASE
        found[event["name"]] = (start, start + round(event["dur"] * 1000))
    return found


def test_ranges_that_nest_are_left_alone():
    events = trace(("cpu_op", "ProfilerStep#1", 0, 900), ("cpu_op", "aten::mm", 100, 200), ("cpu_op", "b", 200, 300))
    assert nest_ranges(events) == events


def test_a_step_that_ends_in_its_optimizer_holds_it():
    events = trace(
        ("cpu_op", "ProfilerStep#1", 0, 9_000),
        ("cpu_op", "[pl][profile]train_step", 10, 8_990),
        ("user_annotation", "Optimizer.step#SGD.step", 5_000, 9_500),
        ("cpu_op", "ProfilerStep#2", 9_100, 19_000),
        ("cpu_op", "[pl][profile]train_step", 9_110, 18_990),
        ("cpu_op", "aten::mm", 10_000, 11_000),
    )
    moved = nest_ranges(events)
    assert times(moved) == {
        "ProfilerStep#1": (0, 9_508),
        "Optimizer.step#SGD.step": (5_000, 9_500),
        "ProfilerStep#2": (9_512, 19_000),
        "[pl][profile]train_step": (9_516, 18_990),
        "aten::mm": (10_000, 11_000),
    }
    assert crossings(json.loads(b"[" + moved + b"]")) == []


def test_a_step_that_ends_in_a_range_of_many_steps_begins_with_it():
    events = trace(
        ("cpu_op", "ProfilerStep#1", 0, 9_000),
        ("user_annotation", "epoch", 1_000, 40_000),
        ("cpu_op", "ProfilerStep#2", 9_100, 19_000),
    )
    assert times(nest_ranges(events)) == {
        "ProfilerStep#1": (1_004, 9_000),
        "epoch": (1_000, 40_000),
        "ProfilerStep#2": (9_100, 19_000),
    }


def test_a_wait_for_data_that_is_longer_than_the_rest_of_its_step_stays_in_it():
    events = trace(
        ("cpu_op", "ProfilerStep#1", 5, 9_000),
        ("cpu_op", "[pl][profile]train_step", 10, 8_990),
        ("cpu_op", "enumerate(DataLoader)#gradlab.__next__", 20, 8_000),
        ("python_function", "loop.py(1): advance", 4_000, 9_400),
        ("python_function", "train.py(1): <module>", 0, 90_000),
    )
    assert crossings(json.loads(b"[" + nest_ranges(events) + b"]")) == []


def test_a_range_of_a_module_leaves_the_frames_of_its_own_hooks():
    events = trace(
        ("python_function", "train.py(1): <module>", 0, 90_000),
        ("python_function", "ranges.py(1): __call__", 1_000, 2_000),
        ("cpu_op", "[pl][module]Linear: 0", 1_500, 7_500),
        ("cpu_op", "aten::linear", 3_000, 4_000),
        ("python_function", "ranges.py(2): __call__", 7_000, 8_000),
    )
    assert times(nest_ranges(events))["[pl][module]Linear: 0"] == (2_004, 8_008)


def test_what_was_open_when_recording_stopped_ends_from_the_inside_out():
    events = trace(
        ("python_function", "train.py(1): <module>", 0, 10_000),
        ("user_annotation", "epoch", 100, 12_000),
        ("cpu_op", "ProfilerStep#1", 200, 9_000),
        ("user_annotation", "Optimizer.step#SGD.step", 5_000, 12_000),
        ("python_function", "monitor/steps.py(1): after", 8_000, 10_000),
    )
    found = times(nest_ranges(events))
    assert [name for name, _ in sorted(found.items(), key=lambda item: item[1][1])] == [
        "monitor/steps.py(1): after",
        "Optimizer.step#SGD.step",
        "ProfilerStep#1",
        "epoch",
        "train.py(1): <module>",
    ]
    assert crossings(json.loads(b"[" + nest_ranges(events) + b"]")) == []


def test_threads_do_not_disturb_each_other():
    step = trace(("cpu_op", "ProfilerStep#1", 0, 9_000))
    backward = trace(("cpu_op", "backward", 5_000, 9_500)).replace(b'"tid": 7', b'"tid": 8')
    assert nest_ranges(step + b"," + backward) == step + b"," + backward


def plain(run):
    run.step()


def with_closure(run):
    def closure():
        run.optimizer.zero_grad()
        loss = run.model(run.x).square().mean()
        loss.backward()
        return loss

    run.optimizer.step(closure)


def in_a_generator(run):
    def batches():
        yield run.x
        yield run.x + 1

    for batch in batches():
        run.model(batch).sum().backward()
    run.optimizer.step()


def in_a_coroutine(run):
    async def train():
        await asyncio.sleep(0)
        run.model(run.x).sum().backward()
        await asyncio.sleep(0)
        run.optimizer.step()

    asyncio.run(train())


class InEpochs:
    """Steps in ranges of their own that are opened and closed in the middle of a step."""

    def __init__(self):
        self.count, self.epoch = 0, None

    def __call__(self, run):
        if self.count % 3 == 0:
            if self.epoch is not None:
                self.epoch.__exit__(None, None, None)
            self.epoch = record_function(f"epoch {self.count}")
            self.epoch.__enter__()
        self.count += 1
        run.step()


LOOPS = {
    "plain": (plain, torch.optim.AdamW),
    "closure": (with_closure, torch.optim.SGD),
    "generator": (in_a_generator, torch.optim.SGD),
    "coroutine": (in_a_coroutine, torch.optim.SGD),
    "epochs": (InEpochs(), torch.optim.SGD),
}


def with_monitor(folder, name, *, stack):
    step, optimizer = LOOPS[name]
    run = Run()
    run.optimizer = optimizer(run.model.parameters(), lr=1e-3)
    options = gradlab.Profile(wait=1, warmup=1, active=2, stack=stack)
    with gradlab.watch(run.model, run.optimizer, logdir=folder, profile=options, strict=True):
        for _ in range(5):
            step(run)


def with_several_optimizers(folder, *, stack):
    run = Run()
    optimizers = [torch.optim.SGD(run.model[0].parameters(), 0.1), torch.optim.Adam(run.model[2].parameters(), 0.1)]
    options = gradlab.Profile(wait=1, warmup=1, active=2, stack=stack)
    with gradlab.watch(run.model, optimizers, logdir=folder, profile=options, strict=True):
        for _ in range(5):
            run.model(run.x).sum().backward()
            for optimizer in optimizers:
                optimizer.step()


def with_marks_of_the_loop(folder, *, stack):
    run = Run()
    with gradlab.profile(folder, run.model, wait=1, warmup=1, active=2, stack=stack, strict=True) as profiler:
        for batch in DataLoader(run.x.repeat(6, 1), batch_size=8):
            run.x = batch
            run.step()
            profiler.step()


def with_lightning(folder, *, stack):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

        def training_step(self, batch):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    options = gradlab.Profile(wait=1, warmup=1, active=2, stack=stack)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradlabCallback(profile=options, logdir=folder, strict=True)],
    )
    trainer.fit(Module(), DataLoader(torch.randn(40, 16), batch_size=8))


KINDS = {
    **{name: partial(with_monitor, name=name) for name in LOOPS},
    "several optimizers": with_several_optimizers,
    "marks of the loop": with_marks_of_the_loop,
    "lightning": with_lightning,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Windows of every kind of loop, without stacks and with them: the folder that holds them all."""
    folder = tmp_path_factory.mktemp("written")
    for kind, write in KINDS.items():
        for stack in (False, True):
            write(folder / kind / ("stacks" if stack else "plain"), stack=stack)
    return folder


@lightning_warns
@pytest.mark.parametrize("kind", KINDS)
def test_the_ranges_of_a_written_trace_nest(written, kind):
    windows = list((written / kind).glob("*/profile/step_*"))
    assert len(windows) == 2
    for window in windows:
        assert crossings(read_trace(window)["traceEvents"]) == []


@lightning_warns
def test_the_tab_has_nothing_to_complain_of_and_finds_the_optimizers_in_their_steps(written):
    program = Path(__file__).with_name("check_tab.py")
    done = subprocess.run([sys.executable, program, written], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2 * len(KINDS)
    for path, read in found.items():
        assert read["complaints"] == [], path
        count = 2 if path.startswith("several") else 1
        assert read["optimizers"] == {"ProfilerStep#2": count, "ProfilerStep#3": count}, path
