"""The hook around a `step` that runs none of torch's: it tells before and after, and leaves the object as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gradlab.hooks.step_hooks import StepHook


class Own:
    """Not torch's optimizer."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def step(self, scale: float = 1.0) -> float:
        self.calls.append(scale)
        if scale < 0:
            raise ValueError("negative")
        return scale * 2


class Closed:
    """Takes no attributes."""

    __slots__ = ()

    def step(self) -> None:
        pass


class Told:
    """What the hook tells."""

    def __init__(self, other_scale: float | None = None) -> None:
        self.told: list[Any] = []
        self.other_scale = other_scale

    def step_begins(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self.told.append((optimizer, args[1:], kwargs))
        return None if self.other_scale is None else ((args[0], self.other_scale), {})

    def step_ends(self, optimizer: Any, *, has_stepped: bool) -> None:
        self.told.append(has_stepped)


def test_each_step_is_told_of_with_its_arguments_and_its_end() -> None:
    optimizer, listener = Own(), Told()
    assert StepHook("known", optimizer, listener).install()
    assert optimizer.step(3.0) == 6.0
    with pytest.raises(ValueError, match="negative"):
        optimizer.step(scale=-1.0)
    assert listener.told == [("known", (3.0,), {}), True, ("known", (), {"scale": -1.0}), False]
    assert optimizer.calls == [3.0, -1.0]


def test_the_listener_may_give_other_arguments() -> None:
    optimizer = Own()
    StepHook(optimizer, optimizer, Told(other_scale=5.0)).install()
    assert optimizer.step(3.0) == 10.0


def test_a_copy_steps_by_itself_and_is_not_told_of() -> None:
    optimizer, listener = Own(), Told()
    StepHook(optimizer, optimizer, listener).install()
    twin = copy.deepcopy(optimizer)
    assert twin.step(3.0) == 6.0
    assert twin.calls == [3.0] and optimizer.calls == [] and listener.told == []


@pytest.mark.parametrize("has_own", [False, True])
def test_removed_it_leaves_the_step_that_was_there(has_own: bool) -> None:
    optimizer, listener = Own(), Told()
    if has_own:
        optimizer.step = lambda scale=1.0: -scale  # type: ignore[method-assign]
    before = optimizer.step(1.0)
    hook = StepHook(optimizer, optimizer, listener)
    hook.install()
    hook.remove()
    assert optimizer.step(1.0) == before and listener.told == []
    assert ("step" in vars(optimizer)) == has_own


def test_under_another_replacement_it_stays_and_where_none_is_taken_it_says_so() -> None:
    optimizer = Own()
    hook = StepHook(optimizer, optimizer, Told())
    hook.install()
    optimizer.step = other = lambda scale=1.0: 0.0  # type: ignore[method-assign]
    hook.remove()
    assert vars(optimizer)["step"] is other
    assert not StepHook("known", Closed(), Told()).install()
