"""What people hold compares by value, hashes with it, prints on one line, travels, and stays as it is."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.errors import CopyError

SCHEMA = gradlab.Schema("weight_grad.norm", ("a", "b", "c"), "", ())


def series(last: float = np.nan) -> gradlab.Series:
    return gradlab.Series(SCHEMA, np.array([1.0, gradlab.ABSENT, last], np.float32))


def block(value: float = 1.0) -> gradlab.JacobianBlock:
    return gradlab.JacobianBlock(
        of="output",
        wrt="input",
        values=np.array([[value, np.nan, 3.0, 4.0]]),
        row_names=["0"],
        col_names=["0", "1", "2", "3"],
        summaries={"fro": 5.0},
        singular_values=np.array([5.0]),
    )


def finding(value: float = np.nan) -> gradlab.Finding:
    return gradlab.Finding(first_step=3, name="nonfinite", sites=("a",), message="bad\nnews", evidence={"norm": value})


def double(tensor: torch.Tensor) -> torch.Tensor:
    return 2 * tensor.sum()


MAKERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Schema": (lambda: gradlab.Schema("m", ("a", "b")), lambda: gradlab.Schema("m", ("a", "c"))),
    "Series": (series, lambda: series(2.0)),
    "Frame": (lambda: gradlab.Frame(3, 1.0, {"m": series()}), lambda: gradlab.Frame(3, 1.0, {"m": series(2.0)})),
    "Finding": (finding, lambda: finding(2.0)),
    "JacobianBlock": (block, lambda: block(2.0)),
    "Site": (lambda: gradlab.Site("a", "op", (2,), "float32"), lambda: gradlab.Site("b", "op", (2,), "float32")),
    "Tap": (lambda: gradlab.Tap(["*"], of=["output"], stats=["norm", double]), lambda: gradlab.Tap("*", of="output")),
    "JacobianSlice": (
        lambda: gradlab.JacobianSlice(of="a", wrt="b", groups={"x": [0, 1]}),
        lambda: gradlab.JacobianSlice(of="a", wrt="b", groups={"x": [0, 2]}),
    ),
    "JacobianSlice with weights": (
        lambda: gradlab.JacobianSlice(of="a", wrt="b", weights=torch.ones(1, 2)),
        lambda: gradlab.JacobianSlice(of="a", wrt="b", weights=[[1.0, 2.0]]),
    ),
    "DepthGrowth": (lambda: gradlab.DepthGrowth(at=["*"]), lambda: gradlab.DepthGrowth(at="a")),
    "Sharpness": (lambda: gradlab.Sharpness(loss=double), lambda: gradlab.Sharpness(top=2)),
    "Profile": (lambda: gradlab.Profile(trigger=gradlab.Trigger(slow_step=2.0)), lambda: gradlab.Profile()),
    "Trigger": (lambda: gradlab.Trigger(data_wait=0.5), lambda: gradlab.Trigger(data_wait=0.25)),
    "NonFinite": (lambda: gradlab.NonFinite(skip=True), lambda: gradlab.NonFinite()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_a_value(name: str) -> None:
    make, make_other = MAKERS[name]
    value, again, other = make(), make(), make_other()
    assert value == again
    assert hash(value) == hash(again)
    assert value != other
    assert value != object()
    assert len({value, again, other}) == 2
    travelled = [copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value)), copy.deepcopy([value])[0]]
    for one in travelled:
        assert one == value
        assert hash(one) == hash(value)
        assert repr(one) == repr(value)
        refuses_to_change(one)
    assert "\n" not in repr(value)
    assert len(repr(value)) < 250
    assert repr(value).startswith(f"{type(value).__name__}(")


def refuses_to_change(value: Any) -> None:
    names = [one.name for one in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else ["schema", "array"]
    for name in names:
        content = getattr(value, name)
        with pytest.raises(AttributeError):
            setattr(value, name, content)
        assert not isinstance(content, list | set)
        if isinstance(content, np.ndarray):
            assert not content.flags.writeable
        if isinstance(content, dict):
            for change in (lambda d: d.update(x=1), lambda d: d.clear(), lambda d: d.__setitem__("x", 1)):
                with pytest.raises(TypeError, match="cannot be written to"):
                    change(content)


def test_what_a_caller_goes_on_to_change_does_not_change_what_was_made() -> None:
    patterns, rows, groups = ["a", "b"], [0, 1], {"x": [0]}
    tap = gradlab.Tap(patterns, of="output")
    picked = gradlab.JacobianSlice(of="a", wrt="b", rows=rows)
    grouped = gradlab.JacobianSlice(of="a", wrt="b", groups=groups)
    patterns.append("c")
    rows.append(2)
    groups["x"].append(1)
    assert tap.patterns == ("a", "b")
    assert picked.rows == (0, 1)
    assert grouped.groups == {"x": (0,)}


def test_two_spellings_of_a_tap_are_one() -> None:
    assert gradlab.Tap(["*"], of=["output"], stats=["norm"], stage=["final"]) == gradlab.Tap("*", of="output")
    assert gradlab.Tap(("a", "b"), of="output") == gradlab.Tap(["a", "b"], of="output")
    assert repr(gradlab.Tap("*", of="output", every=10)) == "Tap(at='*', of='output', every=10)"


def test_lines_for_people() -> None:
    assert repr(finding()) == "Finding(step 3, warning, nonfinite at a: bad news)"
    assert repr(block()) == "JacobianBlock(output__wrt__input, <1 x 4 float64: 1, nan, 3, ...>, fro=5)"


def test_evidence_is_still_json_and_a_finding_still_a_dataclass() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(finding(2.0))))["evidence"] == {"norm": 2.0}
    assert dataclasses.replace(finding(), first_step=4).step == 4


def test_one_holder_cannot_change_what_another_sees() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlab.watch(model, optimizer) as monitor:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        latest = monitor.latest()
        with pytest.raises(ValueError, match="read-only"):
            latest["weight_grad.norm"].array[:] = 0.0
        latest.clear()
        monitor.findings.append(finding())
        assert "weight_grad.norm" in monitor.latest()
        assert monitor.findings == []
        with pytest.raises(KeyError, match=r"nothing is logged as 'weight_grad\.nrom'\. Did you mean"):
            monitor.latest()["weight_grad.nrom"]


class Holder(nn.Module):
    """A model that holds its own monitor, as people write it in notebooks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)


@pytest.mark.parametrize("closed", [False, True])
def test_a_monitor_says_what_it_is_and_refuses_to_be_copied(closed: bool, tmp_path) -> None:
    model = Holder()
    monitor = gradlab.watch(model, taps=gradlab.Tap("*", of="weight_grad"), sinks=gradlab.MemorySink())
    if closed:
        monitor.close()
    assert repr(monitor) == (
        f"Monitor(Holder, step 0{', closed' if closed else ''}; taps: Tap(at='*', of='weight_grad'); "
        "results go to: memory)"
    )
    model.monitor = monitor
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(CopyError, match="a Monitor cannot be copied, pickled or saved"):
            copied(monitor)
    with pytest.raises(TypeError, match="keep it out of what is"):
        copy.deepcopy(model)
    with pytest.raises(CopyError, match="a Monitor cannot be copied"):
        torch.save(model, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monitor.close()


def test_every_error_is_public_and_travels_between_processes() -> None:
    from gradlab import errors

    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, gradlab.GradlabError | gradlab.GradlabWarning):
            assert getattr(gradlab, name) is cls
            back = pickle.loads(pickle.dumps(cls("what is wrong")))
            assert type(back) is cls
            assert str(back) == "what is wrong"
