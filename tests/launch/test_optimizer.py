"""An experiment's optimizer takes the place of the model's own."""

import copy
import pickle
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from gradlab.launch.optimizer import use_optimizer


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.frozen, self.free = nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def given():
    model = Model()
    use_optimizer(model, partial(torch.optim.SGD, lr=0.5))
    return model


def parameters_of(optimizer):
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def test_it_gets_the_parameters_that_learn():
    model = given()
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["lr"] == 0.5
    assert parameters_of(optimizer) == {id(parameter) for parameter in model.free.parameters()}


def test_lightning_sees_it_as_the_models_own():
    assert not is_overridden("configure_optimizers", Model())
    assert is_overridden("configure_optimizers", given())


def test_copies_configure_themselves():
    for model in (copy.deepcopy(given()), pickle.loads(pickle.dumps(given()))):
        assert parameters_of(model.configure_optimizers()) == {id(parameter) for parameter in model.free.parameters()}
