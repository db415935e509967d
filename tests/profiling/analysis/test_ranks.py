"""Several ranks in one window: two processes with gloo, one of which is slow."""

import json
import sys
import textwrap
from pathlib import Path
from subprocess import PIPE, Popen, run

import pytest
from profiling.example import Run
from profiling.test_trace_file import record, write

from gradlab.profiling import writer

PROGRAM = """
    import os, sys, time
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    import gradlab

    torch.set_num_threads(1)
    rank, slow, logdir = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{logdir}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    profile = gradlab.Profile(wait=2, warmup=1, active=3)
    monitor = gradlab.watch(model, optimizer, logdir=logdir, profile=profile)
    for _ in range(8):
        optimizer.zero_grad()
        if rank == slow:
            time.sleep(0.3)
        model(torch.ones(4, 64)).sum().backward()
        optimizer.step()
    monitor.close()
    for finding in monitor.findings:
        print(finding.message)
    sys.stdout.flush()
    # Not in the ordinary way: gloo's threads now and then abort a process that ends so (torch 2.13).
    os._exit(0)
"""


def tab_reads(folder):
    """What the PyTorch Profiler tab says of each rank's trace."""
    program = Path(__file__).parents[1] / "check_tab.py"
    done = run([sys.executable, program, folder], capture_output=True, text=True, timeout=240, check=True)
    return {int(path.partition("rank")[2].partition(".")[0]): said for path, said in json.loads(done.stdout).items()}


def run_two(tmp_path, slow):
    program = tmp_path / "train.py"
    program.write_text(textwrap.dedent(PROGRAM))
    arguments = [[sys.executable, str(program), str(rank), str(slow), str(tmp_path)] for rank in range(2)]
    processes = [Popen(argument, stdout=PIPE, stderr=PIPE, text=True) for argument in arguments]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_the_slow_rank_is_found_and_both_are_in_one_directory(tmp_path, slow):
    outputs = run_two(tmp_path, slow)
    (window,) = (tmp_path / "profile").glob("[!.]*")
    assert window.name == "step_000003"
    names = {path.name.split(".")[0] if "trace" in path.name else path.name for path in window.iterdir()}
    assert names == {"rank0", "rank1", "summary.json", "summary.rank1.json"}
    summary = json.loads((window / "summary.json").read_text())
    assert summary["world_size"] == 2 and [row["rank"] for row in summary["ranks"]] == [0, 1]
    waited, late = (summary["ranks"][rank]["collectives_ms"] for rank in (1 - slow, slow))
    assert waited > max(150, 2 * late)
    assert summary["verdict"]["bound"] == "straggler"
    assert f"%) for rank {slow}" in summary["verdict"]["sentence"]
    assert "the profile of steps 3 to 5 is straggling rank: " in outputs[0][0] and outputs[1][0] == ""
    assert not list((tmp_path / "profile").glob(".*"))
    read = tab_reads(tmp_path)
    assert set(read) == {0, 1} and not [said for said in read.values() if "intersect" in str(said["complaints"])]


def test_a_rank_that_never_comes_is_named_and_the_window_written_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "RANKS_TIMEOUT_SECONDS", 0.1)
    window = write(record(Run()), tmp_path, rank=0, world_size=3)
    summary = json.loads((window / "summary.json").read_text())
    assert summary["notes"][-1] == "rank 1, 2 came too late for this window."
    assert [row["rank"] for row in summary["ranks"]] == [0]


def test_until_all_ranks_have_come_nothing_can_be_seen(tmp_path):
    write(record(Run()), tmp_path, rank=1, world_size=2)
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".") and not list(tmp_path.rglob("*.pt.trace.json.gz"))
    window = write(record(Run()), tmp_path, rank=0, world_size=2)
    assert sorted(path.name.split(".")[0] for path in window.glob("*.gz")) == ["rank0", "rank1"]
    assert [path.name for path in tmp_path.iterdir()] == [window.name]
