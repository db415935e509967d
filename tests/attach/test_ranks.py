"""`gradlab attach torchrun ...`: sharded and parallel models, profiles of all ranks, several nodes, ranks that fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scripts import Ended, Script, free_port
from torch import Tensor, nn

from gradlab.events.reader import read_events
from gradlab.runs.find import all_runs

pytestmark = pytest.mark.slow

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))

def whole_batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 8, generator=generator, dtype=torch.float64), torch.arange(8) % 3

def model():
    torch.manual_seed(0)
    return Net().double()
"""

SHARDED = """
import hashlib, os
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

dist.init_process_group("gloo")
rank = dist.get_rank()

def mine(tensor):
    return tensor.chunk(2)[rank]

def train(kind, net, optimizer, split_x=True, split_y=True):
    for step in range(3):
        x, y = whole_batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(mine(x) if split_x else x), mine(y) if split_y else y).backward()
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    if rank == 0:
        print(kind, hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in whole)).hexdigest())

def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.1)

net = model()
for part in (net.up, net.down, net):
    fully_shard(part)
train("fsdp", net, sgd(net))

mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
net = model()
fully_shard(net.up, mesh=mesh)
fully_shard(net, mesh=mesh)
train("hsdp", net, sgd(net))

net = model()
optimizer = sgd(net)
fully_shard(net)
optimizer.param_groups[0]["params"] = list(net.parameters())
train("optimizer first", net, optimizer)

net, mesh = model(), init_device_mesh("cpu", (2,))
parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
train("tensor parallel", net, sgd(net), split_x=False, split_y=False)

net = model()
split = Shard(0)
parallelize_module(net, mesh, {
    "norm": SequenceParallel(sequence_dim=0, use_local_output=True),
    "up": ColwiseParallel(input_layouts=split),
    "down": RowwiseParallel(output_layouts=split),
    "head": ColwiseParallel(input_layouts=split, output_layouts=Replicate()),
})
train("sequence parallel", net, sgd(net), split_y=False)

net = model()
optimizer = sgd(net)
fully_shard(net)
train("optimizer of what was there before", net, optimizer)
dist.destroy_process_group()
"""
KINDS = ["Net", "2-Net", "3-Net", "4-Net", "5-Net"]

DDP = """
import os, signal, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()

def train(net, steps):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(steps):
        if sys.argv[1] == "slow" and rank == 1:
            time.sleep(0.05)
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(4, 8).double()), torch.arange(4) % 3).backward()
        optimizer.step()
        if sys.argv[1] == "killed" and rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "raises" and rank == 1 and step == 3:
            raise ArithmeticError("rank one")

if sys.argv[1] == "raises":
    other = nn.Linear(8, 3).double()
    train(nn.Sequential(other) if rank else other, 2)
train(nn.parallel.DistributedDataParallel(model()), 12)
print("rank", rank)
dist.destroy_process_group()
"""


def torchrun(script: Script, *arguments: str, flags: tuple[str, ...] = (), attached: bool = True) -> Ended:
    """Two ranks by one torchrun."""
    attach = ("-m", "gradlab", "attach", *flags) if attached else ()
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    return script.call(sys.executable, *attach, *launcher, "train.py", *arguments)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ended]:
    """The script of all kinds of sharding: bare, attached, and attached across ranks; each is run once."""
    done: dict[str, Ended] = {}

    def run(how: str) -> Ended:
        if how not in done:
            script = Script(tmp_path_factory.mktemp("sharded")).write(SHARDED, model=MODEL)
            taps = ("--taps", "*=weight_grad,weight,update", "--taps", "*=output_grad")
            flags = {"bare": (), "alone": (), "across": ("--across-ranks", *taps)}[how]
            done[how] = torchrun(script, flags=flags, attached=how != "bare")
            if how == "bare" and done[how].code and "terminate called without" in done[how].stderr:
                done[how] = torchrun(script, attached=False)  # a thread of gloo's, now and then, as the process ends
            assert done[how].code == 0, done[how].stderr
        return done[how]

    return run


@pytest.fixture(scope="module")
def truth() -> list[dict[str, Any]]:
    """Of each step: the norms of all gradients by plain autograd on the whole batch, and of weights and updates."""
    names: dict[str, Any] = {}
    exec(MODEL, names)
    net: nn.Module = names["model"]()
    steps = []
    for step in range(3):
        x, y = names["whole_batch"](step)
        gradients = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        found: dict[str, Any] = {}
        with torch.no_grad():
            for (name, p), g in zip(net.named_parameters(), gradients, strict=True):
                found[name] = (norm(g), 0.1 * norm(g) / max(norm(p), 1e-12))
                p -= 0.1 * g
        steps.append(found)
    return steps


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach()))


def global_norms(file: Path) -> list[float]:
    """The norm of the gradient of all parameters at every step."""
    return [float(v.value) for v in read_events(file) if v.tag == "gradlab/global/weight_grad.norm"]


def test_sharded_models_have_the_numbers_of_one_process(
    sharded: Callable[[str], Ended], truth: list[dict[str, Any]]
) -> None:
    ended = sharded("across")
    layers = json.loads(ended.run.summary.read_text())["layers"]
    expected = [sum(gradient**2 for gradient, _ in step.values()) ** 0.5 for step in truth]
    for label in KINDS:
        (file,) = (ended.run.events if label == "Net" else ended.run.events / label).glob("events.out.*")
        assert global_norms(file) == pytest.approx(expected, rel=1e-6), label
        found = {
            layer["site"].partition(": ")[2]: (layer["gradient_norm"], layer["update_ratio"])
            for layer in layers
            if layer["site"].startswith(f"{label}: ")
        }
        assert found.keys() == truth[-1].keys(), label
        for site, numbers in truth[-1].items():
            assert found[site] == pytest.approx(numbers, rel=1e-5), (label, site)


def test_sharded_training_is_the_same_to_the_bit_and_what_is_left_out_is_said(
    sharded: Callable[[str], Ended],
) -> None:
    bare, alone, across = sharded("bare"), sharded("alone"), sharded("across")
    assert alone.stdout == across.stdout == bare.stdout
    assert len(across.event_files) == len(KINDS)
    stale = "gradlab: the model of SGD (made in train.py, line #) is not watched: its parameters are in no module."
    assert [re.sub(r"line \d+", "line #", line) for line in across.said] == [
        "gradlab: outputs of Net and their gradients are not measured: the model is tensor parallel, and nothing tells "
        "whether a rank has all of an output or a piece of it.",
        stale,
    ]
    sharded_parameters = (
        "it is sharded over ranks (DTensor); watch with across_ranks=True (gradlab attach --across-ranks)"
    )
    assert [re.sub(r"line \d+", "line #", line) for line in alone.said] == [
        f"gradlab: 8 parameters are not measured, the first of them 'norm.weight': {sharded_parameters}.",
        f"gradlab: 4 parameters are not measured, the first of them 'up.weight': {sharded_parameters}.",
        stale,
    ]


def test_each_rank_of_torchrun_has_its_profile_and_rank_zero_writes_the_events(script: Script) -> None:
    ended = torchrun(script.write(DDP, model=MODEL), "slow", flags=("--profile",))
    assert ended.code == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == ["rank 0", "rank 1"]
    (file,) = ended.event_files
    assert len(global_norms(file)) == 12
    assert ended.stderr.count("open it in TensorBoard") == 1 and ended.said == []
    check_window(ended.run.events / "profile")
    assert "straggling rank" in ended.stderr and "for rank 1" in ended.stderr


def test_spawned_ranks_have_one_event_file_and_one_summary(script: Script) -> None:
    code = """
import sys
import torch.distributed as dist
import torch.multiprocessing as mp

def work(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(5):
        optimizer.zero_grad()
        net(whole_batch(step)[0]).mean().backward()
        optimizer.step()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""
    ended = script.write(code, model=MODEL).attached(str(script.folder / "store"))
    assert (ended.code, ended.said) == (0, []), ended.stderr
    (file,) = ended.event_files
    assert len(global_norms(file)) == 5
    assert ended.stderr.count("open it in TensorBoard") == 1 and ended.run.status() == "done"


def check_window(folder: Path) -> None:
    """There is one window, with the files of both ranks and a verdict on both."""
    (window,) = folder.iterdir()
    assert {path.name.partition(".")[0] for path in window.glob("*.pt.trace.json.gz")} == {"rank0", "rank1"}
    summary = json.loads((window / "summary.json").read_text())
    assert [row["rank"] for row in summary["ranks"]] == [0, 1]


def test_two_nodes_have_one_run_and_the_other_says_where(script: Script) -> None:
    script.write(DDP, model=MODEL)
    address = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1")
    address = (*address, "--master-port", str(free_port()))
    nodes = []
    for rank in ("0", "1"):
        attach = ("-m", "gradlab", "attach", "--profile", "--across-ranks", "--runs", f"runs{rank}")
        launcher = ("-m", "torch.distributed.run", *address, "--node-rank", rank, "train.py", "whole")
        nodes.append(script.start(sys.executable, *attach, *launcher))
    (first, second) = [communicate(node) for node in nodes]
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert (first[1], second[1]) == ("rank 0\n", "rank 1\n")
    (run,) = all_runs(script.folder / "runs0")
    assert run.status() == "done"
    (file,) = run.events.glob("events.out.*")
    assert len(global_norms(file)) == 12
    check_window(run.events / "profile")
    assert not (script.folder / "runs1").exists()
    (line,) = [line for line in second[2].splitlines() if line.startswith("gradlab: ")]
    assert re.fullmatch(rf"gradlab: the results are with those of rank zero, [^:]*:{run.path.resolve()}", line)


def communicate(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code and what was written."""
    try:
        stdout, stderr = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raises", "rank 1 failed, ArithmeticError: rank one"),
        ("killed", "rank 1 failed, killed by signal 9"),
    ],
)
def test_a_rank_that_dies_ends_the_script_as_without_us_and_is_named_in_the_record(
    script: Script, how: str, reason: str
) -> None:
    ended = torchrun(script.write(DDP, model=MODEL), how, flags=("--across-ranks",))
    assert ended.code == 1
    assert "ChildFailedError" in ended.stderr
    left = ended.run.read_exit()
    assert left is not None and left["code"] == 1 and left["reason"] == reason
    if how == "raises":  # its first model was another one
        (line,) = ended.said
        assert "which rank 1 watches: all ranks have to watch the same model" in line
