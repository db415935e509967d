"""Reactions to findings: on which ones, once a code and three times a run, and what each of them does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlab
from gradlab import Diagnose, Finding, TrainingStopped
from gradlab.diagnose.reactions import Reactions, stop_sentence
from gradlab.errors import GradlabWarning, UsageError
from gradlab.sinks import MemorySink


def finding(code: str = "GL301", **others: Any) -> Finding:
    given = {"name": "some-name", "first_step": 1, "message": "steps are too large.", "severity": "warning", **others}
    return Finding(code=code, **given)


def acted_on(*findings: Finding) -> list[str]:
    reactions = Reactions("profile")
    for one in findings:
        reactions.note(one)
    return [one.code for one in reactions.take()]


def test_causes_above_info_are_acted_on_once_a_code_and_three_times() -> None:
    assert acted_on(finding(severity="info"), finding("GL402", explained_by="GL301")) == []
    assert acted_on(finding(), replace(finding(), severity="error", sites=("a",)), finding(key="2")) == ["GL301"]
    assert acted_on(*(finding(f"GL30{n}") for n in range(6))) == ["GL300", "GL301", "GL302"]


def test_a_finding_that_becomes_worse_or_a_cause_later_is_acted_on_then() -> None:
    assert acted_on(finding(severity="info"), finding()) == ["GL301"]
    assert acted_on(finding(explained_by="GL101"), finding()) == ["GL301"]


def test_what_was_taken_is_not_given_again_and_log_does_nothing() -> None:
    reactions, log = Reactions("stop"), Reactions("log")
    for one in (reactions, log):
        one.note(finding())
    assert len(reactions.take()) == 1 and reactions.take() == [] and log.take() == []


# In a loop of one's own.


class Training:
    """A few steps of a small net, with findings reported before some of them."""

    def __init__(self, on_finding: Any, *, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
        self.optimizer = optimizer(self.model.parameters(), 0.1)
        self.x, self.y = torch.randn(16, 5), torch.randint(0, 3, (16,))
        self.sink = MemorySink()
        diagnose = Diagnose(select="GL201", on_finding=on_finding)
        self.monitor = gradlab.watch(
            self.model, self.optimizer, sinks=self.sink, diagnose=diagnose, performance=False, **options
        )

    def run(self, steps: int = 8, **findings: Finding) -> list[torch.Tensor]:
        with self.monitor:
            for step in range(steps):
                if (one := findings.get(f"at{step}")) is not None:
                    self.monitor.report(one)
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.x), self.y).backward()
                self.optimizer.step()
        return [p.detach().clone() for p in self.model.parameters()]


def test_a_function_is_given_the_finding_after_the_step() -> None:
    seen = []
    training = Training(lambda one: seen.append((one.code, training.monitor.step)))
    training.run(at2=finding(), at3=finding(severity="error"), at4=finding("GL402", severity="info"))
    assert seen == [("GL301", 3)]


def test_a_function_may_end_the_training_by_an_error_and_hears_of_what_comes_at_the_end() -> None:
    def fail(one: Finding) -> None:
        raise ArithmeticError(one.code)

    with pytest.raises(ArithmeticError, match="GL301"):
        Training(fail).run(at2=finding())
    seen: list[Finding] = []
    training = Training(seen.append)
    with training.monitor:
        training.monitor.report(finding())
    assert [one.code for one in seen] == ["GL301"]


def test_stop_ends_the_training_by_an_exception_after_the_step() -> None:
    training = Training("stop")
    with (
        pytest.warns(GradlabWarning, match="stopped by GL301 at step 2: steps are too large"),
        pytest.raises(TrainingStopped) as caught,
    ):
        training.run(at3=finding(last_step=2))
    assert training.monitor.step == 4 and training.monitor.is_closed
    assert (caught.value.code, caught.value.finding.code) == (79, "GL301")
    assert str(caught.value) == stop_sentence(finding(last_step=2))


def test_a_script_that_was_stopped_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    script = """
        import gradlab, torch
        from torch import nn
        model = nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        gradlab.watch(model, optimizer, diagnose=gradlab.Diagnose(on_finding="stop", select="GL201"))
        for _ in range(10):
            nn.functional.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))).backward()
            optimizer.step()
        print("to the end")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 79 and ended.stdout == ""
    assert "stopped by GL201 at step 0: the outputs go through a softmax (module '1')" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_profile_records_three_steps(tmp_path: Path) -> None:
    Training("profile", logdir=tmp_path).run(12, at3=finding(), at4=finding(severity="error"))
    (window,) = (tmp_path / "profile").glob("step_*")
    assert window.name == "step_000007"  # the step after the one that is under way, and two of warm-up
    assert window.joinpath("summary.json").read_text().count('"step":') == 3


def test_what_cannot_be_had_is_refused_when_watching_begins() -> None:
    with pytest.raises(UsageError, match=r"on_finding='profile' needs logdir="):
        Training("profile")
    with pytest.raises(UsageError, match=r"on_finding='checkpoint' is for Trainers"):
        Training("checkpoint")


# Jacobians.


def test_large_steps_are_judged_by_the_sharpness_of_the_next_loss() -> None:
    plain, training = Training("log").run(), Training("jacobian", strict=True)
    for ours, theirs in zip(training.run(at3=finding()), plain, strict=True):
        assert torch.equal(ours, theirs)
    ((step, block),) = training.sink.blocks
    assert (step, block.kind, block.label) == (4, "sharpness", "GL301")
    before = Training("log")
    before.run(4)
    expected = gradlab.loss_sharpness(before.model, lambda model: F.cross_entropy(model(before.x), before.y))
    assert block.summaries["lambda_1"] == pytest.approx(expected.summaries["lambda_1"], rel=1e-3)


def test_a_sharpness_whose_loss_was_given_is_of_that_loss() -> None:
    given = gradlab.Sharpness(every=1000, loss=lambda model: model[0].weight.square().sum())
    training = Training("jacobian", jacobians=given, strict=True)
    training.run(at3=finding())
    (_, (step, block)) = training.sink.blocks
    assert step == 4 and block.summaries["lambda_1"] == pytest.approx(2.0)


def test_gradients_that_vanish_are_judged_by_growth_with_depth() -> None:
    training = Training("jacobian", strict=True)
    training.run(at3=finding("GL402"))
    ((step, block),) = training.sink.blocks
    assert (step, block.kind, block.label) == (4, "depth_growth", "GL402")
    assert block.row_names == ("input", "0", "2")


def test_what_no_jacobian_helps_to_judge_does_not_count() -> None:
    training = Training("jacobian", strict=True)
    training.run(12, at1=finding("GL801"), at2=finding("GL803"), at3=finding("GL804"), at4=finding())
    assert [block.label for _, block in training.sink.blocks] == ["GL301"]


def test_a_measurement_that_fails_is_said_and_training_goes_on() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if torch.is_grad_enabled():
                raise RuntimeError("one derivative is enough")
            return grad

    class OnceDifferentiable(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    plain, training = Training("log"), Training("jacobian")
    for one in (plain, training):
        one.model.append(OnceDifferentiable())
    expected = plain.run()
    with pytest.warns(GradlabWarning, match="the sharpness was switched off: .*one derivative is enough"):
        ours = training.run(at3=finding())
    assert all(map(torch.equal, ours, expected)) and not training.sink.blocks


def test_nothing_of_a_measurement_stays() -> None:
    training = Training("jacobian", strict=True)
    training.run(at3=finding("GL402"))
    assert not training.model._forward_pre_hooks and torch.autograd.backward.__module__ == "torch.autograd"
    with Training("jacobian").monitor as monitor:
        monitor.report(finding())
    assert torch.autograd.backward.__module__ == "torch.autograd"
