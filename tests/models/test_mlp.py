"""The MLP's sites, and that activation functions and activation modules train alike, bit for bit."""

import pytest
import torch

from gradlab.data import Digits
from gradlab.errors import UsageError
from gradlab.models import MLP
from gradlab.sites.forward import sites_of


def names_of(model: MLP) -> list[str]:
    found = [site.name for site in sites_of(model, torch.zeros(2, 64)) if site.kind != "parameter"]
    return [name for name in found if not name.endswith(":in")]


def test_sites_of_functional_activations():
    assert names_of(MLP([5])) == [
        "input", "layers.0.linear", "layers.0/relu", "layers.0", "features", "head", "output",
    ]  # fmt: skip


def test_sites_of_activation_modules():
    assert names_of(MLP([5], functional=False)) == [
        "input", "layers.0.linear", "layers.0.activation", "layers.0", "features", "head", "output",
    ]  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_functions_and_modules_train_alike_bit_for_bit(activation, dropout, train):
    batches = list(Digits().train_dataloader())
    trained, losses = [], []
    for functional in (True, False):
        torch.manual_seed(3)
        model = MLP([32, 16], activation=activation, functional=functional, dropout=dropout)
        losses.append(train(model, batches))
        trained.append(model.state_dict())
    assert losses[0] == losses[1]
    assert list(trained[0]) == list(trained[1])
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_dropout_acts_in_training_only():
    model, x = MLP([32], dropout=0.5), torch.randn(4, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"activation": "rely"},
            "MLP: activation has no 'rely'. Did you mean 'relu'? It may be relu, tanh, gelu.",
        ),
        ({"widths": []}, "MLP: widths must be a list of whole numbers, as [128, 64], got []."),
        ({"widths": 64}, "MLP: widths must be a list of whole numbers, as [128, 64], got 64."),
        ({"widths": [8, 0]}, "MLP: widths[1] must be a whole number from 1, got 0."),
        ({"num_classes": 2.5}, "MLP: num_classes must be a whole number from 1, got 2.5."),
        ({"dropout": 1.0}, "MLP: dropout must be from 0 up to, not including, 1, got 1.0."),
    ],
)
def test_wrong_arguments_are_named_with_what_was_seen(arguments, message):
    with pytest.raises(UsageError) as error:
        MLP(**arguments)
    assert str(error.value) == message
