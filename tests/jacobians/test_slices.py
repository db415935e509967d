"""Which slice is measured: sites, parameters, rows, columns, weights, samples, and what the axes are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.engines import problem as problem_module
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.measure import measure
from gradlab.jacobians.options import Slice
from gradlab.jacobians.request import Request


class Quadratic(nn.Module):
    """f(x, y) = (x² + 3y, 2x + y²)."""

    def forward(self, v: Tensor) -> Tensor:
        x, y = v.unbind(-1)
        return torch.stack((x**2 + 3 * y, 2 * x + y**2), -1)


class Residual(nn.Module):
    """Sites of every kind: modules, functional ops, a tensor named by hand, a tuple, a second call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.rnn = nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) if not ids.is_floating_point() else ids
        h = F.relu(self.a(h))
        h = gradlab.tap("residual", h + self.b(h))
        h = F.relu_(self.a(h))
        states, _ = self.rnn(h)
        return self.head(states[:, -1])


def values(model: nn.Module, x: Tensor, **options: Any) -> np.ndarray:
    return gradlab.jacobian(model, x, **options).values


def equal(found: np.ndarray, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(np.asarray(expected)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("point", [torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]])])
def test_a_two_by_two_jacobian_is_exact(point: Tensor) -> None:
    block = gradlab.jacobian(Quadratic(), point)
    assert block.values.tolist() == [[2.0, 3.0], [2.0, 4.0]]
    assert (block.row_names, block.col_names) == (("0", "1"), ("0", "1"))


def test_weights_give_vector_jacobian_products() -> None:
    point = torch.tensor([1.0, 2.0])
    block = gradlab.jacobian(Quadratic(), point, weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    assert block.values.tolist() == [[2.0, 3.0], [2.0, 4.0], [0.0, -1.0]]
    assert block.row_names == ("w0", "w1", "w2")
    assert values(Quadratic(), point, weights=torch.tensor([0.0, 1.0])).tolist() == [[2.0, 4.0]]


def test_of_a_linear_layer_it_is_the_weight() -> None:
    layer = nn.Linear(5, 3).double()
    equal(values(layer, torch.randn(4, 5).double()), layer.weight.detach(), 0)


def test_of_a_softmax_it_is_diag_p_minus_p_pt() -> None:
    x = torch.randn(1, 6, dtype=torch.float64)
    p = x.softmax(-1)[0]
    expected = p.diag() - p[:, None] * p
    equal(values(nn.Softmax(-1), x), expected)
    block = gradlab.jacobian(nn.Identity(), x, of_map="softmax")
    equal(block.values, expected)
    assert block.of == "softmax(output)"


def test_any_site_by_any_site() -> None:
    model = Residual().double()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        h0 = model.embed(ids)
        h1 = model.a(h0)
        h2 = h1.relu()
        h3 = h2 + model.b(h2)
        h4 = model.a(h3)
        h5 = h4.relu()
    pieces: dict[tuple[str, str], tuple[Callable[[Tensor], Tensor], Tensor]] = {
        ("a", "embed"): (model.a, h0),
        ("/relu", "a"): (torch.relu, h1),
        ("residual", "a:in"): (lambda h: (r := model.a(h).relu()) + model.b(r), h0),
        ("/add", "b:in"): (lambda h: h2 + model.b(h), h2),
        ("residual", "/relu"): (lambda h: h + model.b(h), h2),
        ("/relu_", "a#2"): (torch.relu, h4),
        ("/relu_", "residual"): (lambda h: model.a(h).relu(), h3),
        ("rnn[0]", "/relu_"): (lambda h: model.rnn(h)[0], h5),
        ("rnn[1]", "rnn:in"): (lambda h: model.rnn(h)[1], h5),
        ("output", "rnn[0]"): (lambda h: model.head(h[:, -1]), model.rnn(h5)[0].detach()),
    }
    for (of, wrt), (function, at) in pieces.items():
        expected = torch.autograd.functional.jacobian(function, at)
        block = gradlab.jacobian(model, ids, of=of, wrt=wrt)
        equal(block.values, expected.reshape(block.values.shape))


@pytest.mark.parametrize("name", ["embed.weight", "a.weight", "a.bias", "rnn.weight_hh_l0", "head.bias"])
@pytest.mark.parametrize("frozen", [False, True])
def test_by_a_parameter_frozen_or_not(name: str, frozen: bool) -> None:
    model = Residual().double()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    parameter = model.get_parameter(name)
    out = model(ids)
    expected = torch.stack(
        [
            torch.stack([torch.autograd.grad(entry, parameter, retain_graph=True)[0].flatten() for entry in sample])
            for sample in out
        ]
    )
    model.requires_grad_(not frozen)
    equal(values(model, ids, wrt=name), expected.mean(0))
    equal(values(model, ids, wrt=name, reduce="none"), expected)
    equal(values(model, ids, wrt=name, reduce="none", engine="columns"), expected)
    equal(values(model, ids, wrt=name, engine="columns", samples=[1]), expected[1])
    assert all(p.requires_grad is not frozen for p in model.parameters())


def test_a_shared_parameter_has_both_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    x = torch.randn(1, 4)
    assert np.array_equal(values(model, x, wrt="0.weight"), values(model, x, wrt="2.weight"))


def test_a_gradient_hook_of_the_user_does_not_clip_the_jacobian() -> None:
    layer = nn.Linear(3, 2)
    handle = layer.weight.register_hook(lambda grad: grad * 0)
    assert values(layer, torch.ones(1, 3), wrt="weight").sum() == 6
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    handle.remove()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad.sum() == 6


MLP = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 5)).double()
BATCH = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("engine", ["vmap", "is_grads_batched", "loop", "columns", "columns_math", "forward"])
@pytest.mark.parametrize("of_map", [None, "softmax"])
def test_rows_and_columns_and_all_engines_agree(engine: str, of_map: Any) -> None:
    options = {"reduce": "none", "of_map": of_map}
    block = gradlab.jacobian(MLP, BATCH, engine=engine, **options)
    assert block.engine == engine
    equal(block.values, values(MLP, BATCH, engine="loop", **options), 1e-13)


def test_columns_are_chosen_where_they_are_few() -> None:
    assert gradlab.jacobian(MLP, BATCH, of="0", wrt="input").engine == "columns"
    assert gradlab.jacobian(MLP, BATCH, of="0", wrt="input", rows=12).engine == "vmap"
    assert gradlab.jacobian(MLP, BATCH, of="0", wrt="input", rows=12, cols=5).engine == "columns"


def test_columns_through_fused_attention_use_the_plain_kernel() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    block = gradlab.jacobian(layer, x, cols=3, reduce="none")
    assert block.engine == "columns_math"
    assert block.notes[0].startswith("columns refused: RuntimeError: derivative for aten::_scaled_dot_product")
    equal(block.values, values(layer, x, cols=3, reduce="none", engine="loop"))


@pytest.mark.parametrize("engine", ["vmap", "loop", "columns"])
def test_a_slice_is_that_part_of_the_whole(engine: str) -> None:
    whole = values(MLP, BATCH, reduce="none")
    rows, cols, samples = [4, 0, -2], [5, -6, 1, 1], [2, 0]
    part = values(MLP, BATCH, rows=rows, cols=cols, samples=samples, reduce="none", engine=engine)
    equal(part, whole[np.ix_([2, 0], [4, 0, 3], [5, 0, 1, 1])])
    equal(values(MLP, BATCH, rows=2, cols=3, samples=1, engine=engine), whole[0, :2, :3])


def test_names_are_indices_without_the_sample_axis() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten())
    block = gradlab.jacobian(model, torch.randn(2, 2, 3, 3), of="0", rows=[0, -1], cols=[4, 17])
    assert block.row_names == ("0,0,0", "2,1,1")
    assert block.col_names == ("0,1,1", "1,2,2")
    assert gradlab.jacobian(model, torch.randn(2, 2, 3, 3), rows=[-1], cols=1).row_names == ("11",)
    assert block.name == "0__wrt__input"


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("engine", ["vmap", "columns"])
def test_the_chunk_does_not_matter(chunk: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = values(MLP, BATCH, reduce="none", engine="loop")
    monkeypatch.setattr("gradlab.jacobians.problem_setup.chunk_rows", lambda *sizes: chunk)
    equal(values(MLP, BATCH, reduce="none", engine=engine), expected, 1e-13)


def test_samples_are_reduced_to_their_mean_or_root_mean_square() -> None:
    each = values(MLP, BATCH, reduce="none")
    mean = gradlab.jacobian(MLP, BATCH)
    equal(mean.values, each.mean(0))
    assert mean.notes == ("mean over 4 samples",)
    equal(values(MLP, BATCH, reduce="rms"), np.sqrt((each**2).mean(0)))
    assert mean.summaries["fro_of_samples"] == pytest.approx(np.sqrt((each**2).sum((1, 2))).mean(), rel=1e-12)
    equal(np.stack([values(MLP, BATCH[i : i + 1]) for i in range(4)]), each)


def test_tensors_without_a_common_sample_axis_are_taken_whole() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum() / 2

    x = torch.arange(6.0).reshape(3, 2)
    block = gradlab.jacobian(Loss(), x)
    assert block.values.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert (block.row_names, block.col_names[2]) == (("0",), "1,0")


def test_several_arguments_and_keywords() -> None:
    bilinear = nn.Bilinear(2, 3, 4, bias=False)
    x, y = torch.randn(1, 2), torch.randn(1, 3)
    expected = torch.einsum("oij,i->oj", bilinear.weight, x[0]).detach()
    equal(values(bilinear, (x, y), wrt="input[1]"), expected, 1e-6)
    equal(values(bilinear, {"input1": x, "input2": y}, wrt="input[1]"), expected, 1e-6)


def test_groups_are_means_of_their_entries() -> None:
    model = nn.Linear(4, 6).double()
    block = gradlab.jacobian(model, torch.randn(1, 4).double(), groups={"even": [0, 2, 4], "last": [-1]})
    weight = model.weight.detach()
    expected = torch.stack([weight[::2].mean(0), weight[5]])
    torch.testing.assert_close(torch.tensor(block.values), expected)
    assert block.row_names == ("even", "last")
    with pytest.raises(JacobianError, match=r"groups\['far'\]: index 9 is out of range"):
        gradlab.jacobian(model, torch.randn(1, 4).double(), groups={"far": [9]})


def test_indices_may_come_from_any_iterable_even_one_that_can_be_gone_through_once() -> None:
    layer = nn.Linear(4, 6)
    block = gradlab.jacobian(layer, torch.randn(1, 4), rows=iter([0, -1]), cols=torch.tensor([3, 1]))
    equal(block.values, layer.weight.detach()[[0, 5]][:, [3, 1]])


def test_half_precision_comes_as_float32() -> None:
    layer = nn.Linear(5, 3).bfloat16()
    block = gradlab.jacobian(layer, torch.randn(2, 5).bfloat16())
    assert block.values.dtype == np.float32
    equal(block.values, layer.weight.detach().float())


def test_memory_beyond_the_result_is_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    at_samples = problem_module.End.at_samples

    def counting(self: Any, vectors: Tensor, samples: Any) -> Tensor:
        seen.append(len(vectors))
        return at_samples(self, vectors, samples)

    monkeypatch.setattr(problem_module.End, "at_samples", counting)
    monkeypatch.setattr("gradlab.jacobians.problem_setup.chunk_rows", lambda *sizes: 32)
    wide = nn.Linear(3, 100)
    request = Request(slice=Slice(of="output", wrt="input"))
    block: JacobianBlock = measure(wide, torch.randn(1, 3), request, Fallback("vmap"), torch.Generator())
    assert seen == [1, 32, 32, 32, 4]
    assert block.values.shape == (100, 3)
