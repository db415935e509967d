"""Every number equals plain autograd in float64, in every model, whichever engine computed it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from jacobians.awkward import CASES, reference
from zoo import ZOO

import gradlab
from gradlab.errors import JacobianError
from gradlab.sites.leaves import leaves

CUT_OFF = {"NoGradTrunk", "GradientInsideForward", "Bag", "TiedByFunctional"}
"""Models whose output does not depend on their input in the eyes of autograd."""

NOT_BY_SAMPLE = {"EmptyBatch", "LossInsideOutput", "NonContiguous", "ScalarOutput"}
"""Models without samples, or whose output is not one value a sample."""
CHANGES_GRADIENTS = {"HookedByUser"}
"""Models whose own hooks make of the gradient something other than the derivative."""


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("name", CASES)
def test_equals_plain_backwards_one_by_one(name: str, engine: str) -> None:
    case = CASES[name]
    model = case.make().double().train(case.train)
    x = torch.randn(case.shape, dtype=torch.float64)
    torch.manual_seed(5)
    expected = reference(model, x)
    torch.manual_seed(5)
    block = gradlab.jacobian(model, x, reduce="none", mode="as_is", engine=engine)
    close(block.values, expected)
    assert block.audit_error < 1e-12


@pytest.mark.parametrize("name", sorted(ZOO.keys() - CUT_OFF - NOT_BY_SAMPLE - CHANGES_GRADIENTS))
def test_equals_plain_backwards_in_the_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ZOO[name]
    model, x = case.make().double().eval(), case.batch().double()
    suffix = next(suffix for suffix, tensor in leaves(model(x)) if tensor.requires_grad)
    block = gradlab.jacobian(model, x, of=f"output{suffix}", reduce="none")
    # Selective checkpointing allows one backward, which the reference is many of.
    monkeypatch.setattr(zoo, "checkpoint", lambda function, *args, **kwargs: function(*args))
    expected = reference(model, x, lambda out: dict(leaves(out))[suffix])
    close(block.values, expected)
    assert block.engine != "differences"


@pytest.mark.parametrize("name", sorted(CUT_OFF))
def test_an_output_cut_off_from_the_input_is_an_error(name: str) -> None:
    with pytest.raises(JacobianError, match=r"of='output' does not depend on wrt='input' in this forward"):
        gradlab.jacobian(ZOO[name].make(), ZOO[name].batch())


@pytest.mark.parametrize(
    ("name", "engine", "reason"),
    [
        ("functional_mlp", "vmap", None),
        ("conv_and_pool", "vmap", None),
        ("lstm", "vmap", None),
        ("batch_norm_train", "vmap", "samples influence one another"),
        ("numpy_function", "loop", "vmap refused: RuntimeError"),
        ("branching_function", "loop", "vmap refused: RuntimeError"),
        ("hooked", "vmap", None),
        ("checkpointed_reentrant", "loop", "vmap refused: RuntimeError"),
    ],
)
def test_the_engine_is_the_fastest_that_works_and_the_block_says_so(name: str, engine: str, reason: str | None) -> None:
    case = CASES[name]
    model = case.make().double().train(case.train)
    x = torch.randn(case.shape, dtype=torch.float64)
    block = gradlab.jacobian(model, x, reduce="none", mode="as_is")
    assert block.engine == engine
    assert (reason is None and block.notes == ()) or any(reason in note for note in block.notes)
