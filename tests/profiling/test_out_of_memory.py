"""Running out of memory: who asked, what held it, and what is left behind."""

import json

import pytest
import torch
from profiling.example import Run
from torch import nn

import gradlab
from gradlab.profiling import out_of_memory
from gradlab.profiling.out_of_memory import explain, size_text
from gradlab.sinks import MemorySink

MESSAGE = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.25 GiB of which ..."


def run_out(*_):
    raise torch.OutOfMemoryError(MESSAGE)


class OutInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        run_out()


class OutInStep(torch.optim.SGD):
    def step(self, closure=None):
        run_out()


def explained(run, tmp_path, work):
    with pytest.raises(torch.OutOfMemoryError) as caught:
        work()
    return explain(caught.value, run.model, [run.optimizer], folder=tmp_path / "profile", step=12)


def test_the_innermost_module_under_way_is_named(tmp_path):
    run = Run(nn.Sequential(nn.Linear(16, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 4))))
    run.step()
    run.model[1][1].register_forward_pre_hook(run_out)
    found = explained(run, tmp_path, run.step)
    assert (found.module, found.where) == ("1.1", "the forward of 1.1 (Linear)")
    assert found.asked_bytes == int(1.5 * 2**30) and found.device == "cpu"
    assert found.categories == {"parameters": 2704, "gradients": 0, "optimizer_state": 0}  # zero_grad has been


def test_the_backward_and_the_optimizer_are_told_apart(run, tmp_path):
    assert (
        explained(run, tmp_path, lambda: OutInBackward.apply(run.model(run.x)).sum().backward()).where == "the backward"
    )
    run.optimizer = OutInStep(run.model.parameters(), lr=0.1)
    found = explained(run, tmp_path, run.step)
    assert found.where == "the step of OutInStep" and found.module is None
    assert explained(run, tmp_path, run_out).where == "code outside every module"


def test_a_closure_inside_the_optimizer_is_not_the_optimizers(run, tmp_path):
    handle = run.model[0].register_forward_pre_hook(run_out)
    assert explained(run, tmp_path, lambda: run.optimizer.step(lambda: run.model(run.x))).module == "0"
    handle.remove()


def test_the_sentence_names_the_three_largest(run, tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_allocator", lambda device: (60 * 2**30, 70 * 2**30))
    found = explained(run, tmp_path, run_out)
    assert found.sentence == (
        "out of memory on cpu: code outside every module asked for 1.5 GiB; held by activations and temporaries "
        f"60 GiB, parameters 2.64 KiB. The memory table and snapshot are in {tmp_path}/oom_000012."
    )
    assert found.reserved_unused_bytes == 10 * 2**30 and "expandable_segments" in found.advice


def test_the_table_lists_modules_by_what_they_hold(run, tmp_path):
    run.step()
    explained(run, tmp_path, run_out)
    table = json.loads((tmp_path / "oom_000012" / "oom.json").read_text())
    assert table["modules"] == {"0": 2 * 4 * (16 * 32 + 32), "2": 2 * 4 * (32 * 4 + 4)}
    assert table["message"] == MESSAGE and table["schema"] == 1 and table["step"] == 12


def test_a_full_disk_does_not_hide_the_sentence(run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    found = explained(run, tmp_path / "taken", run_out)
    assert found.folder == "" and found.sentence.endswith("parameters 2.64 KiB.")


def test_in_a_plain_loop_the_error_gets_a_note_or_the_sinks_a_finding(run, tmp_path):
    run.model[2].register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError) as caught, gradlab.profile(tmp_path, run.model, run.optimizer):
        run.step()
    (note,) = caught.value.__notes__
    assert note.startswith("out of memory on cpu: the forward of 2 (Linear) asked for 1.5 GiB")
    sink = MemorySink()
    with (
        pytest.raises(torch.OutOfMemoryError),
        gradlab.watch(run.model, run.optimizer, sinks=[sink], logdir=tmp_path / "logs"),
    ):
        run.step()
    (finding,) = sink.findings
    assert finding.kind == "out_of_memory" and finding.site == "2" and finding.severity == "error"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(12, "12 bytes"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB"), (85 * 10**9, "79.2 GiB")],
)
def test_sizes_are_for_people(num_bytes, text):
    assert size_text(num_bytes) == text


@pytest.mark.parametrize("message", ["no more", "DefaultCPUAllocator: can't allocate memory"])
def test_a_message_that_says_no_size_is_no_problem(run, tmp_path, message):
    found = explain(torch.OutOfMemoryError(message), run.model, [], folder=tmp_path / "profile", step=0)
    assert found.asked_bytes is None and "asked; held by" in found.sentence
