"""Names of modules, parameters and sites: how they are made, and what is read off them."""

from __future__ import annotations

import pytest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from gradlab.sites.names import (
    CallNumbers,
    input_site,
    is_input,
    is_op,
    module_at,
    module_names,
    numbered,
    op_site,
    output_site,
    owner,
    parameter_names,
    unwrapped,
    without_call_number,
)


class Block(nn.Module):
    """A layer under two names, and one with a parameter in common with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.again = self.a
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.a.weight


def test_a_module_or_parameter_with_two_names_has_the_first() -> None:
    model = nn.Sequential(Block(), nn.ReLU())
    assert list(module_names(model).values()) == ["", "0", "0.a", "0.tied", "1"]
    assert list(parameter_names(model)) == ["0.a.weight", "0.a.bias"]


def test_wrappers_have_no_names() -> None:
    inner = nn.Sequential(checkpoint_wrapper(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3)))
    model = nn.DataParallel(nn.DataParallel(inner))
    assert unwrapped(model) is inner
    assert list(module_names(model).values()) == ["", "0", "1", "1.0"]
    assert list(parameter_names(model)) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert {name: module_at(model, name) for name in module_names(model).values()} == {
        name: module for module, name in module_names(model).items()
    }
    assert module_at(model, "1.1") is None


def test_each_name_is_numbered_for_itself_from_its_second_call_on() -> None:
    numbers = CallNumbers()
    assert [numbers.next(name) for name in "a b a a b".split()] == ["a", "b", "a#2", "a#3", "b#2"]
    numbers.clear()
    assert numbers.next("a") == "a" == numbered("a", 1)
    assert numbered("a", 2) == "a#2" and numbered("", 2) == "#2"
    assert [op_site("a#2", "relu", number) for number in range(3)] == ["a#2/relu", "a#2/relu_1", "a#2/relu_2"]


@pytest.mark.parametrize(
    "call, is_root, given, returned",
    [
        ("", True, "input", "output"),
        ("#2", True, "input#2", "output#2"),
        ("a.0", False, "a.0:in", "a.0"),
        ("a.0#2", False, "a.0#2:in", "a.0#2"),
    ],
)
def test_what_a_module_is_given_and_returns(call: str, is_root: bool, given: str, returned: str) -> None:
    assert input_site(call, is_root=is_root) == given and is_input(given)
    assert output_site(call, is_root=is_root) == returned and not is_input(returned)
    for site in (given, returned, f"{given}[x][0]", f"{returned}[x][0]"):
        assert owner(site) == without_call_number(call) and not is_op(site)
    assert is_op(op_site(call, "relu", 0))
