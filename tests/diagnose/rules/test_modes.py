"""Modes and settings of modules that spoil a training are named; deliberate ones are passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab.diagnose.context import Context, MaskFacts, ModuleFacts, ParameterFacts
from gradlab.diagnose.rules.modes import batchnorm_batch, batchnorm_eval, dropout

X, Y = torch.randn(64, 8), torch.randint(0, 3, (64,))
Act = Callable[[nn.Module, int], None]


class Mlp(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.norm1, self.drop, self.fc2 = (
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(p),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.norm1(self.fc1(x)).relu()))


class Conv(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm1, self.drop, self.head = (
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.Dropout(p),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        image = (x[:, :, None] * x[:, None, :])[:, None]
        return self.head(self.drop(self.norm1(self.conv(image)).relu().mean((2, 3))))


class Residual(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(8, 8), nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.drop(self.body(x)))


NETS = {Mlp: "norm1", Conv: "norm1", Residual: "body.0"}


def nothing(model: nn.Module, step: int) -> None:
    pass


def train(model: nn.Module, act: Act = nothing, *, steps: int = 26, size: int = 64):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for step in range(steps):
            act(model, step)
            optimizer.zero_grad()
            F.cross_entropy(model(X[:size]), Y[:size]).backward()
            optimizer.step()
    return {one.code: one for one in monitor.findings}


@pytest.mark.parametrize("net", NETS)
def test_a_model_in_evaluation_mode(net: type[nn.Module]) -> None:
    found = train(net().eval())["GL205"]
    assert (found.sites, found.severity, found.first_step) == ((NETS[net],), "warning", 0)
    assert "by statistics that were never measured: in evaluation mode in the last" in found.message


def test_train_forgotten_after_a_validation() -> None:
    found = train(Mlp(), lambda m, step: m.eval() if step == 12 else None, steps=42)["GL205"]
    assert (found.sites, found.severity, found.first_step) == (("norm1",), "warning", 12)
    assert "normalises by old statistics" in found.message


def test_evaluations_between_steps() -> None:
    def validate(model: nn.Module, step: int) -> None:
        model.eval()
        with torch.no_grad():
            model(X)
        model.train()

    assert "GL205" not in train(Mlp(), validate)


def test_norms_that_are_frozen_on_purpose() -> None:
    def freeze(model: nn.Module, step: int) -> None:
        if step == 5:
            model.norm1.eval()

    assert train(Mlp(), freeze, steps=31)["GL205"].severity == "info"
    pretrained = Mlp()
    train(pretrained, steps=3)
    assert "GL205" not in train(pretrained.eval())
    pretrained.requires_grad_(False)
    pretrained.fc2 = nn.Linear(16, 3)
    assert "GL205" not in train(pretrained)


@pytest.mark.parametrize("net", NETS)
def test_two_samples_in_a_batch(net: type[nn.Module]) -> None:
    found = train(net(), size=2, steps=11)["GL206"]
    assert (found.sites, found.severity) == ((NETS[net],), "warning")
    assert "by batches of 2 samples" in found.message


def test_batches_that_are_large_enough() -> None:
    assert "GL206" not in train(Mlp(), size=16, steps=11)
    assert "GL206" not in train(Mlp().eval(), size=2, steps=11)


def test_a_last_partial_batch() -> None:
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with gradlab.watch(model, optimizer, strict=True) as monitor:
        for step in range(30):
            size = 2 if step % 5 == 4 or step in (5, 10) else 64
            optimizer.zero_grad()
            F.cross_entropy(model(X[:size]), Y[:size]).backward()
            optimizer.step()
    assert "GL206" not in {one.code for one in monitor.findings}


def norm(**fields) -> ModuleFacts:
    return ModuleFacts(**({"name": "n", "kind": "BatchNorm2d", "is_training": True} | fields))


def test_how_few_samples_are_too_few() -> None:
    def is_named(batch: int | None, noise: float | None) -> bool:
        return bool(list(batchnorm_batch(Context(modules=[norm(batch=batch, mean_noise=noise)]))))

    assert is_named(1, 0.0) and is_named(2, 0.1) and is_named(4, 0.5)
    assert not is_named(2, 0.01)  # of positions that are independent
    assert not is_named(4, 0.1)
    assert not is_named(8, 0.9)
    assert not is_named(None, None)


def test_norms_without_statistics_or_training() -> None:
    p = ParameterFacts(
        name="n.weight", module="n", module_class="", shape=(2,), requires_grad=True, is_in_model=True, optimizers=(0,)
    )
    stuck = norm(is_training=False, num_evaluating=40)

    def is_named(one: ModuleFacts, p: ParameterFacts = p) -> bool:
        return bool(list(batchnorm_eval(Context(modules=[one], parameters=[p]))))

    assert is_named(stuck)
    assert not is_named(replace(stuck, settings={"track_running_stats": 0.0}))
    assert not is_named(replace(stuck, kind="InstanceNorm2d"))
    assert not is_named(replace(stuck, num_evaluating=5))
    assert not is_named(stuck, replace(p, optimizers=()))


class Sequences(nn.Module):
    """A layer of sequences that has a dropout of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(8, 16), layer, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[:, None].expand(-1, 3, -1)
        x = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


STRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (lambda: Mlp(0.9), "drop"),
    "conv": (lambda: Conv(0.9), "drop"),
    "residual": (lambda: Residual(0.85), "drop"),
    "gru": (lambda: Sequences(nn.GRU(16, 16, 2, dropout=0.9, batch_first=True)), "layer"),
    "lstm": (lambda: Sequences(nn.LSTM(16, 16, 2, dropout=0.9, batch_first=True)), "layer"),
    "transformer": (
        lambda: Sequences(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.9, batch_first=True)),
        "layer.dropout",
    ),
    "attention": (lambda: Sequences(nn.MultiheadAttention(16, 2, dropout=0.9, batch_first=True)), "layer"),
}


@pytest.mark.parametrize("name", STRONG)
def test_a_dropout_that_leaves_nothing(name: str) -> None:
    make, place = STRONG[name]
    found = train(make(), steps=6)["GL207"]
    assert (found.sites[0], found.severity) == (place, "warning")
    assert found.message.startswith(f"{90 if name != 'residual' else 85}% of the units")


class Functional(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(self.fc1(x).relu(), 0.9, self.training))


class Hidden(Mlp):
    """Hides most of its input, by a module that comes late."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.drop(x)).relu())


def test_a_function_is_placed_at_the_layer_before_it() -> None:
    assert train(Functional(), steps=6)["GL207"].sites == ("fc1",)


def test_dropouts_that_are_healthy() -> None:
    assert "GL207" not in train(Mlp(0.5), steps=6)
    assert "GL207" not in train(Hidden(0.9), steps=6)
    assert "GL207" not in train(Mlp(0.9).eval(), steps=6)


def test_a_dropout_that_changes_is_news() -> None:
    def fall(model: nn.Module, step: int) -> None:
        model.drop.p = 0.95 - 0.01 * step

    assert train(Mlp(0.95), fall, steps=12)["GL207"].severity == "info"


def test_without_a_graph_the_order_of_modules_decides() -> None:
    one = ModuleFacts(name="drop", kind="Dropout", is_training=True, settings={"p": 0.9}, first_p=0.9)
    assert len(list(dropout(Context(modules=[one])))) == 1
    assert list(dropout(Context(modules=[replace(one, is_first=True)]))) == []
    assert list(dropout(Context(modules=[one], masks=[MaskFacts(layer="fc", dropped=0.3)]))) == []
    assert list(dropout(Context())) == []
