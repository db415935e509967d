"""How many module types each way of taking a Jacobian fails on, or gets wrong without a word.

    python benchmarks/jacobian_matrix.py

The types are those of gradlab's own tests (`tests/jacobians/awkward.py` and `matrix.py`), each against plain backwards
one by one (central differences in float64 where there is no backward). Peers get the model as it is, in the mode in
which it is tested; samples are told apart by a loop, so that none is blamed for a batch.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import write_result
from torch import Tensor, nn

import gradlab

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from jacobians.awkward import CASES, reference
from jacobians.matrix import ROWS, by_differences

try:
    from torchjd.autojac import jac
except ImportError:
    jac = None

Way = Callable[[nn.Module, Tensor], Tensor]
"""From a model and its input to [samples, rows, cols]."""


def _each(model: nn.Module, x: Tensor, take: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The blocks of all samples, by a function from a sample's output and the whole input to [rows, *x.shape]."""
    x = x.clone().requires_grad_()
    y = model(x)
    return torch.stack([take(y[s].reshape(-1), x)[:, s].flatten(1) for s in range(len(y))]).detach()


def grad_loop(model: nn.Module, x: Tensor) -> Tensor:
    return _each(model, x, lambda y, x: torch.stack([torch.autograd.grad(e, x, retain_graph=True)[0] for e in y]))


def is_grads_batched(model: nn.Module, x: Tensor) -> Tensor:
    def take(y: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, torch.eye(len(y)).to(y), retain_graph=True, is_grads_batched=True)[0]

    return _each(model, x, take)


def vmap_of_grad(model: nn.Module, x: Tensor) -> Tensor:
    def take(y: Tensor, x: Tensor) -> Tensor:
        return torch.vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0])(torch.eye(len(y)).to(y))

    return _each(model, x, take)


def torchjd_jac(model: nn.Module, x: Tensor) -> Tensor:
    return _each(model, x, lambda y, x: jac(y, x, retain_graph=True)[0])


def _diagonal(found: Tensor, x: Tensor) -> Tensor:
    """[samples, *out, samples, *in] -> [samples, rows, cols]."""
    found = found.reshape(len(x), -1, *x.shape)
    return torch.stack([found[s, :, s].flatten(1) for s in range(len(x))]).detach()


def jacrev(model: nn.Module, x: Tensor) -> Tensor:
    return _diagonal(torch.func.jacrev(model)(x), x)


def jacfwd(model: nn.Module, x: Tensor) -> Tensor:
    return _diagonal(torch.func.jacfwd(model, randomness="same")(x), x)


def functional_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    return _diagonal(torch.autograd.functional.jacobian(model, x, vectorize=True), x)  # type: ignore[arg-type]


def gradlab_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    return torch.tensor(gradlab.jacobian(model, x, reduce="none", mode="as_is").values)


WAYS: dict[str, Way] = {
    "autograd.grad loop": grad_loop,
    "is_grads_batched": is_grads_batched,
    "vmap(autograd.grad)": vmap_of_grad,
    **({"torchjd": torchjd_jac} if jac is not None else {}),
    "func.jacrev": jacrev,
    "func.jacfwd": jacfwd,
    "functional.jacobian(vectorize)": functional_jacobian,
    "gradlab": gradlab_jacobian,
}


def types() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype, bool, float, bool]]:
    """Name -> make, shape, dtype, training mode, tolerance, whether there is no backward."""
    found: dict[str, Any] = {
        name: (case.make, case.shape, torch.float64, case.train, 1e-9, False) for name, case in CASES.items()
    }
    for name, row in ROWS.items():
        found[name] = (row.make, row.shape, row.dtype, name.endswith("_train"), row.tolerance, row.differences)
    return found


def verdict(way: Way, model: nn.Module, x: Tensor, expected: Tensor, tolerance: float) -> str:
    """`right`, `wrong`, or the name of an exception."""
    torch.manual_seed(5)
    try:
        with contextlib.redirect_stdout(None):  # one of the models prints
            found = way(copy.deepcopy(model), x.clone()).to(expected)
    except Exception as error:
        return type(error).__name__
    off = float((found.reshape(expected.shape) - expected).abs().max())
    return "right" if off <= tolerance * float(expected.abs().max()) + 1e-12 else "wrong"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    verdicts: dict[str, dict[str, str]] = {name: {} for name in WAYS}
    for name, (make, shape, dtype, train, tolerance, no_backward) in types().items():
        torch.manual_seed(1)
        model, x = make().to(dtype).train(train), torch.randn(shape, dtype=dtype)
        torch.manual_seed(5)
        with contextlib.redirect_stdout(None):
            expected = by_differences(copy.deepcopy(model), x) if no_backward else reference(model, x)
        for way, take in WAYS.items():
            verdicts[way][name] = verdict(take, model, x, expected, tolerance)
    rows = []
    for way, found in verdicts.items():
        failed = [name for name, what in found.items() if what not in ("right", "wrong")]
        wrong = [name for name, what in found.items() if what == "wrong"]
        rows.append(
            {
                "way": way,
                "types": len(found),
                "failures": len(failed),
                "wrong without a word": len(wrong),
                "note": ", ".join([*failed, *(f"{name} (wrong)" for name in wrong)]),
            }
        )
    write_result("jacobian_matrix", rows, "torchjd")


if __name__ == "__main__":
    main()
