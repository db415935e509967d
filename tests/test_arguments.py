"""A wrong argument of anything public is one sentence of gradlab's own, with the argument, what it was and the fix."""

# ruff: noqa: E501 - sentences are compared whole

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.errors import ArgumentError
from gradlab.events import EventWriter

WRONG = [
    None,
    3,
    -1,
    1.5,
    True,
    "x",
    "",
    b"x",
    [],
    [None],
    (3, "x"),
    {},
    {"a": 1},
    {3},
    object(),
    nn.Linear,
    print,
    np.ones(2),
]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def watching(method: str) -> Callable[..., Any]:
    """A method of a monitor, as a function that watches a model of its own meanwhile."""

    def call(**given: Any) -> Any:
        with gradlab.watch(net()) as monitor:
            return getattr(monitor, method)(**given)

    return call


def watched(**given: Any) -> None:
    """`watch`, let go of at once."""
    gradlab.watch(**given).close()


SCHEMA = gradlab.Schema("output.norm", ("a", "b"))
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "watch": (watched, {"model": None, **{name: None for name in inspect.signature(gradlab.watch).parameters}}),
    "Tap": (gradlab.Tap, {"at": "*", "of": "output"}),
    "JacobianSlice": (gradlab.JacobianSlice, {"of": "output", "wrt": "input"}),
    "DepthGrowth": (gradlab.DepthGrowth, {"at": "*"}),
    "Sharpness": (gradlab.Sharpness, {}),
    "Profile": (gradlab.Profile, {}),
    "Trigger": (gradlab.Trigger, {}),
    "NonFinite": (gradlab.NonFinite, {}),
    "jacobian": (gradlab.jacobian, {"model": net(), "x": torch.ones(2, 3)}),
    "depth_growth": (gradlab.depth_growth, {"model": net(), "x": torch.ones(2, 3), "at": "?"}),
    "loss_sharpness": (
        gradlab.loss_sharpness,
        {"model": net(), "loss": lambda model: model(torch.ones(2, 3)).square().sum()},
    ),
    "profile": (gradlab.profile, {"logdir": "runs/x"}),
    "tap": (gradlab.tap, {"name": "h", "value": torch.ones(1)}),
    "sites_of": (gradlab.sites_of, {"model": None}),
    "Series": (gradlab.Series, {"schema": SCHEMA, "array": np.ones(2, np.float32)}),
    "Schema": (gradlab.Schema, {"metric": "output.norm", "sites": ("a", "b")}),
    "Frame": (gradlab.Frame, {"step": 1, "wall_time": 1.0, "series": {}}),
    "Finding": (gradlab.Finding, {"first_step": 1, "name": "k", "message": "m"}),
    "MemorySink": (gradlab.MemorySink, {}),
    "CallbackSink": (gradlab.CallbackSink, {"function": print}),
    "JsonlSink": (gradlab.JsonlSink, {"path": "x.jsonl"}),
    "CsvSink": (gradlab.CsvSink, {"path": "x.csv"}),
    "TensorBoardSink": (gradlab.TensorBoardSink, {"writer": None}),
    "sinks_of_trackers": (gradlab.sinks_of_trackers, {}),
    "monitor.history": (watching("history"), {"metric": "weight_grad.norm", "site": "0.weight"}),
    "monitor.tensor": (watching("tensor"), {"site": "0"}),
    "monitor.grad": (watching("grad"), {"site": "0.weight"}),
    "monitor.keep": (watching("keep"), {"site": "0"}),
    "monitor.add_optimizer": (watching("add_optimizer"), {"optimizer": None}),
    "monitor.phase": (watching("phase"), {"name": "data"}),
}
THEIRS = {("jacobian", "x"), ("depth_growth", "x"), ("loss_sharpness", "loss")}
"""What reaches the model, or is called, as it is: an error about it is the user's own."""


def arguments() -> Iterator[Any]:
    for name, (function, right) in CALLS.items():
        parameters = inspect.signature(function).parameters
        kinds = {p.kind for p in parameters.values()}
        names = right if inspect.Parameter.VAR_KEYWORD in kinds else parameters
        for argument in names:
            if argument not in ("args", "kwargs"):
                yield pytest.param(name, argument, id=f"{name}({argument})")


@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_a_wrong_type_is_refused_by_gradlab_or_means_something(
    name: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, right = CALLS[name]
    for wrong in WRONG:
        given = {key: value for key, value in right.items() if value is not None}
        if name == "watch":
            given["model"] = net()
        if (name, argument) in THEIRS and not isinstance(wrong, str | bytes | int | float | None | np.ndarray):
            continue
        try:
            function(**{**given, argument: wrong})
        except gradlab.GradlabError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
        except OSError:
            assert argument in ("path", "logdir", "profile_dir")  # the path cannot be written to: the system says so


SENTENCES: list[tuple[Callable[[nn.Module, Any], Any], str]] = [
    (
        lambda m, o: gradlab.watch(o, m),
        "watch(): model must be a torch.nn.Module, got a SGD. Are model and optimizer swapped? The model comes first.",
    ),
    (
        lambda m, o: gradlab.watch(m, m),
        "watch(): optimizer must be an optimizer or a list of them, or None, got a Linear. Are model and optimizer swapped? The model comes first.",
    ),
    (
        lambda m, o: gradlab.watch(nn.Linear),
        "watch(): model must be a torch.nn.Module, got the class Linear. Make one of it first: Linear(...).",
    ),
    (
        lambda m, o: gradlab.watch(m, torch.optim.SGD),
        "watch(): optimizer must be an optimizer or a list of them, or None, got the class SGD. Make one of it first: SGD(model.parameters(), ...).",
    ),
    (
        lambda m, o: gradlab.watch(m, torch.optim.lr_scheduler.StepLR(o, 1)),
        "watch(): optimizer must be an optimizer or a list of them, or None, got a StepLR. Give its optimizer.",
    ),
    (
        lambda m, o: gradlab.watch(m, m.parameters()),
        "watch(): optimizer must be an optimizer or a list of them, or None, got a generator. Give the optimizers that were made from them.",
    ),
    (lambda m, o: gradlab.watch(m, o, log_dir="x"), "watch() has no option 'log_dir'. Did you mean 'logdir'?"),
    (lambda m, o: gradlab.watch(), "watch(): missing a required argument: 'model'."),
    (
        lambda m, o: gradlab.watch(m, o, taps="*"),
        "watch(): taps must be a list of gradlab.Tap, or None, got '*'. Give taps=[gradlab.Tap('*', of='output_grad')].",
    ),
    (
        lambda m, o: gradlab.watch(m, o, taps=[gradlab.Tap("*", of="output"), {"at": "*"}]),
        "watch(): taps[1] must be a gradlab.Tap, got {'at': '*'}. Give taps=[gradlab.Tap('*', of='output_grad')].",
    ),
    (
        lambda m, o: gradlab.watch(m, o, logdir=3),
        "watch(): logdir must be a path, as text or pathlib.Path, or None, got 3.",
    ),
    (lambda m, o: gradlab.watch(m, o, history=-1), "watch(): history must be a whole number from 0, got -1."),
    (lambda m, o: gradlab.watch(m, o, first_step=1.5), "watch(): first_step must be a whole number from 0, got 1.5."),
    (
        lambda m, o: gradlab.watch(m, o, profile=True),
        "watch(): profile must be a gradlab.Profile, or None, got True. Give gradlab.Profile(wait=5, active=3).",
    ),
    (
        lambda m, o: gradlab.watch(m, o, nonfinite=True),
        "watch(): nonfinite must be a gradlab.NonFinite, or None, got True. Give gradlab.NonFinite(skip=True).",
    ),
    (
        lambda m, o: gradlab.watch(m, o, sinks=[HalfASink()]),
        "watch(): sinks[0] must be a sink, got a HalfASink. It lacks scalars, finding, jacobian, text, flush, close.",
    ),
    (
        lambda m, o: gradlab.watch(m, o, sinks="runs/x"),
        "watch(): sinks must be a list of sinks, got 'runs/x'. A folder for an event file is logdir=.",
    ),
    (
        lambda m, o: gradlab.watch(m, o, sinks=[print]),
        "watch(): sinks[0] must be a sink, got the function print. Wrap a function: gradlab.sinks.CallbackSink(function).",
    ),
    (
        lambda m, o: gradlab.Tap("*", of="output", every="10"),
        "Tap('*'): every must be a whole number from 1, got '10'.",
    ),
    (
        lambda m, o: gradlab.Tap("*", of="output", stats=[1]),
        "Tap('*'): stats[0] must be a name, as text or a function, got 1.",
    ),
    (lambda m, o: gradlab.Tap("*", of="output", keep="yes"), "Tap('*'): keep must be True or False, got 'yes'."),
    (lambda m, o: gradlab.Tap(["a", 3], of="output"), "Tap: at[1] must be a pattern, as text, got 3."),
    (lambda m, o: gradlab.Tap("*"), "Tap(): missing a required argument: 'of'."),
    (lambda m, o: gradlab.Tap("*", off="output"), "Tap() has no option 'off'. Did you mean 'of'?"),
    (
        lambda m, o: gradlab.JacobianSlice(of="a", wrt="b", rows=[1, "x"]),
        "JacobianSlice('a', 'b'): rows[1] must be a whole number, got 'x'.",
    ),
    (lambda m, o: gradlab.jacobian(torch.ones(2), m), "jacobian(): model must be a torch.nn.Module, got a Tensor."),
    (
        lambda m, o: gradlab.jacobian(m, np.ones((2, 3))),
        "jacobian(): x must be a tensor, a tuple of arguments or a mapping of keyword arguments, got a ndarray. torch.tensor(...) makes a tensor of it.",
    ),
    (lambda m, o: gradlab.tap(3, torch.ones(1)), "tap(): name must be a name, as text, got 3."),
    (lambda m, o: gradlab.tap("name", 3), "tap(): value must be a tensor, got 3."),
]


class HalfASink:
    name = "half"

    def frame(self, frame: Any) -> None: ...


@pytest.mark.parametrize(("call", "text"), SENTENCES)
def test_the_sentence_names_argument_value_and_fix(call: Callable[..., Any], text: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(gradlab.GradlabError) as caught:
        call(model, optimizer)
    assert str(caught.value) == text
    gradlab.watch(model, optimizer).close()  # which nothing has been left behind for


def test_a_wrong_argument_is_a_type_error_too() -> None:
    assert issubclass(ArgumentError, TypeError)
    with pytest.raises(TypeError):
        gradlab.watch(nn.Linear(2, 2), log_dir="x")


def test_watch_and_monitor_have_the_same_options() -> None:
    def options(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.annotation, p.default) for p in inspect.signature(function).parameters.values()]

    assert options(gradlab.watch) == options(gradlab.Monitor)
    assert all(p.annotation is not p.empty for p in inspect.signature(gradlab.watch).parameters.values())
    documented = inspect.getdoc(gradlab.Monitor) or ""
    for name, *_ in options(gradlab.Monitor):
        assert f"    {name}: " in documented


def test_one_thing_may_stand_for_a_list_of_one() -> None:
    sink, tap = gradlab.MemorySink(), gradlab.Tap("*", of="weight")
    with gradlab.watch(
        net(), taps=tap, sinks=sink, jacobians=gradlab.JacobianSlice(of="output", wrt="input")
    ) as monitor:
        assert monitor.taps == (tap,)
        assert monitor.sinks == (sink,)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    tap = gradlab.Tap("*", of="output", every=np.int64(3), keep=np.bool_(True))
    assert tap == gradlab.Tap("*", of="output", every=3, keep=True)
    rows = gradlab.JacobianSlice(of="a", wrt="b", rows=[0, 1])
    for spelt in ((0, 1), range(2), np.arange(2), torch.arange(2)):
        assert gradlab.JacobianSlice(of="a", wrt="b", rows=spelt) == rows


def test_a_sink_over_a_path_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(gradlab.GradlabError, match=r"writer must be a gradlab\.events\.EventWriter, got 'x'"):
        gradlab.TensorBoardSink("x")
    gradlab.TensorBoardSink(EventWriter(tmp_path)).close()
