"""The notebook models' answers are the known ones, exactly, and working them out changes nothing."""

import copy
import pickle

import pytest
import torch

from gradlab.data import Digits
from gradlab.errors import UsageError
from gradlab.models import ModuleVsFunctional, ScalarLine, TwoByTwo
from gradlab.sites.forward import sites_of
from gradlab.sites.patterns import select


def answer(model, start: str):
    """The one answer whose name starts so; a tensor as numbers."""
    (value,) = [value for name, value in model.answers().items() if name.startswith(start)]
    return value if value is None else value.tolist()


@pytest.mark.parametrize(
    ("start", "value"),
    [
        ("z =", 7.0),
        ("dz/dw", 2.0),
        ("dz/db", 1.0),
        ("y.grad without retain_grad", None),
        ("y.grad with retain_grad", 1.0),
        ("w.grad after a second backward", 4.0),
        ("b.grad after a second backward", 2.0),
    ],
)
def test_scalar_line_answers(start, value):
    assert answer(ScalarLine(), start) == value


def test_scalar_line_answers_follow_its_values():
    model = ScalarLine(w=-1, b=0, x=5)
    assert [answer(model, start) for start in ("z =", "dz/dw", "w.grad after")] == [-5.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("start", "value"),
    [
        ("x", [1.0, 2.0]),
        ("y =", [7.0, 6.0]),
        ("vjp with gradient=[1, 0]", [2.0, 3.0]),
        ("vjp with gradient=[0, 1]", [2.0, 4.0]),
        ("vjp with gradient=[1, 1]", [4.0, 7.0]),
        ("Jacobian", [[2.0, 3.0], [2.0, 4.0]]),
    ],
)
def test_two_by_two_answers(start, value):
    assert answer(TwoByTwo(), start) == value


def test_two_by_two_answers_follow_its_values():
    assert answer(TwoByTwo(x=[3, -1], a=5, b=7), "Jacobian") == [[6.0, 5.0], [7.0, -2.0]]


@pytest.mark.parametrize("cls", [ScalarLine, TwoByTwo])
def test_answers_come_out_without_gradients_being_on_and_leave_none(cls):
    model = cls()
    with torch.no_grad():
        assert model.answers().keys() == cls().answers().keys()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("cls", [ScalarLine, TwoByTwo])
def test_answers_keep_the_dtype_of_the_model(cls):
    assert {value.dtype for value in cls().double().answers().values() if value is not None} == {torch.float64}


@pytest.mark.parametrize(("cls", "grads"), [(ScalarLine, {"w": 2.0, "b": 1.0}), (TwoByTwo, {"a": 2.0, "b": 1.0})])
def test_a_fit_on_the_models_own_batch_leaves_gradients_and_the_same_numbers(cls, grads, fit):
    model = cls()
    before = copy.deepcopy(model.state_dict())
    trainer = fit(model)
    assert trainer.global_step == 1
    assert {name: parameter.grad.item() for name, parameter in model.named_parameters()} == grads
    assert model.state_dict() == before


def test_the_loss_of_scalar_line_is_z(fit):
    assert fit(ScalarLine()).callback_metrics["train/loss"] == 7.0


@pytest.mark.parametrize("cls", [ScalarLine, TwoByTwo])
def test_the_models_own_batch_draws_no_random_number(cls):
    before = torch.get_rng_state()
    assert len(list(cls().train_dataloader())) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_non_leaf_tensors_are_sites():
    names = [site.name for site in sites_of(ScalarLine(), torch.ones(1))]
    assert {"y", "z", "w", "b"} <= set(names)


@pytest.mark.parametrize("model", [ScalarLine(), TwoByTwo(), ModuleVsFunctional()], ids=lambda m: type(m).__name__)
def test_notebook_models_copy_and_declare_taps_that_match(model):
    x = torch.randn(2, 64) if isinstance(model, ModuleVsFunctional) else next(iter(model.train_dataloader()))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    names = [site.name for site in sites_of(model, x)]
    assert all(select(tap.patterns, names) for tap in model.taps())


def test_a_point_that_is_not_in_the_plane_is_refused():
    with pytest.raises(UsageError, match=r"TwoByTwo: x must be two numbers, as \[1\.0, 2\.0\], got \[1\.0\]"):
        TwoByTwo(x=[1.0])


def test_module_and_function_stay_equal_bit_for_bit(fit):
    model = ModuleVsFunctional([32, 16])
    start = copy.deepcopy(model.state_dict())
    trainer = fit(model, Digits(), max_epochs=2)
    weights = [[p.detach() for p in net.parameters()] for net in (model.module_net, model.functional_net)]
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
    assert not torch.equal(start["module_net.head.weight"], model.module_net.head.weight)
    assert [value.item() for value in model.answers().values()] == [0.0, 0.0]
    metrics = trainer.callback_metrics
    assert metrics["train/loss_difference"] == 0.0
    assert metrics["train/loss_module"] == metrics["train/loss_functional"]


def test_a_difference_between_module_and_function_would_show(train):
    model = ModuleVsFunctional([8])
    with torch.no_grad():
        model.functional_net.head.bias[0] += 5.0
    train(model, [next(iter(Digits().train_dataloader()))])
    assert all(value > 0.1 for value in model.answers().values())
