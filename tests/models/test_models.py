"""What holds of every model: shapes, learning, copying, dtypes, declared taps, and no hidden random numbers."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gradlab.models import MLP, RNN, ConvNet, ModuleVsFunctional, Transformer
from gradlab.sites.forward import sites_of
from gradlab.sites.patterns import select


@dataclass
class Case:
    cls: type
    arguments: dict
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    lr: float = 1e-2

    def make(self):
        return self.cls(**self.arguments, lr=self.lr)

    def batch(self, dtype=torch.float32) -> tuple[Tensor, Tensor]:
        """Six samples: for the transformer the next of a run of numbers, for the others any classes."""
        if self.cls is Transformer:
            tokens = (torch.arange(6)[:, None] + torch.arange(self.input_shape[0] + 1)) % 11
            return tokens[:, :-1], tokens[:, 1:]
        return torch.randn(6, *self.input_shape, dtype=dtype), torch.arange(6) % 3


CASES = {
    "mlp": Case(MLP, {"widths": [16, 8], "in_features": 12, "num_classes": 3}, (12,), (3,)),
    "mlp of modules": Case(
        MLP, {"widths": [16], "in_features": 12, "num_classes": 3, "functional": False}, (12,), (3,)
    ),
    "mlp of images": Case(MLP, {"widths": [8], "in_features": 12, "num_classes": 3}, (1, 3, 4), (3,)),
    "convnet": Case(ConvNet, {"channels": [4, 8], "num_classes": 3}, (1, 8, 8), (3,)),
    "convnet of colours": Case(ConvNet, {"channels": [4], "in_channels": 3, "num_classes": 3}, (3, 6, 5), (3,)),
    "lstm": Case(RNN, {"row_size": 4, "hidden_size": 8, "num_classes": 3}, (1, 5, 4), (3,)),
    "gru": Case(RNN, {"cell": "gru", "row_size": 4, "hidden_size": 8, "num_layers": 2, "num_classes": 3}, (20,), (3,)),
    "transformer": Case(Transformer, {"vocab_size": 11, "context": 7, "width": 8, "num_heads": 2}, (7,), (7, 11)),
    "tied transformer": Case(
        Transformer, {"vocab_size": 11, "context": 9, "width": 8, "num_layers": 1, "tied_head": True}, (5,), (5, 11)
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


def test_forward_gives_logits_of_the_expected_shape(case):
    assert case.make()(case.batch()[0]).shape == (6, *case.output_shape)


def test_loss_falls_on_one_batch(case, train):
    losses = train(case.make(), [case.batch()] * 40)
    assert losses[-1] < 0.7 * losses[0]


def test_every_parameter_gets_a_gradient(case, train):
    model = case.make()
    train(model, [case.batch()])
    assert all(
        p.grad is not None and p.grad.norm() > 0 for name, p in model.named_parameters() if "bias_hh" not in name
    )


def test_runs_in_float64(case, train):
    model = case.make().double()
    batch = case.batch(torch.float64)
    train(model, [batch])
    assert model(batch[0]).dtype == torch.float64
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_a_copy_computes_the_same_and_trains_apart(case, copied, train):
    model = case.make()
    twin = copied(model)
    batch = case.batch()
    assert torch.equal(model.eval()(batch[0]), twin.eval()(batch[0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(twin.train(), [batch])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_dict_goes_round(case):
    model, other = case.make(), case.make()
    x = case.batch()[0]
    assert not torch.equal(model.eval()(x), other.eval()(x))
    assert not any(other.load_state_dict(model.state_dict()))
    assert torch.equal(model(x), other(x))


def test_saved_arguments_build_the_model_again(case):
    model = case.make()
    again = type(model)(**model.hparams)
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert again.lr == case.lr


def test_a_training_step_draws_no_random_number_without_dropout(case, train):
    model, batch = case.make(), case.batch()
    before = torch.get_rng_state()
    train(model, [batch])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_step_prints_nothing(case, train, capsys):
    train(case.make(), [case.batch()])
    assert capsys.readouterr() == ("", "")


def test_declared_taps_match_the_model(case):
    model = case.make()
    sites = sites_of(model, case.batch()[0])
    parameters = [site.name for site in sites if site.kind == "parameter"]
    tensors = [site.name for site in sites if site.kind != "parameter"]
    for tap in model.taps():
        for quantity in tap.quantities:
            assert select(tap.patterns, parameters if quantity.startswith("weight") else tensors)


def test_validation_logs_its_metrics(case):
    model = case.make().eval()
    logged = {}
    model.log = lambda name, value, batch_size, sync_dist: logged.update({name: (value, batch_size)})
    with torch.no_grad():
        model.validation_step(case.batch(), 0)
    metric = "val/bits_per_byte" if case.cls is Transformer else "val/accuracy"
    assert list(logged) == ["val/loss", metric]
    assert all(isinstance(value, Tensor) and value.dim() == 0 and size == 6 for value, size in logged.values())


@pytest.mark.parametrize("cls", [MLP, ConvNet, RNN, Transformer, ModuleVsFunctional])
def test_the_default_optimizer_has_the_learning_rate_asked_for(cls):
    assert cls(lr=0.25).configure_optimizers().defaults["lr"] == 0.25
