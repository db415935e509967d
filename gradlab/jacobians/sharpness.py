"""Sharpness: the largest eigenvalues of the loss Hessian by the parameters, by Lanczos on Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.arguments import FUNCTION, TEXT, check_arguments, named_options, number, one_of, whole
from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.engines.fallback import plain_kernels
from gradlab.jacobians.isolation.isolated import isolated
from gradlab.jacobians.isolation.modules import ModuleMode
from gradlab.torch_arguments import MODEL

Loss = Callable[[nn.Module], Tensor]
"""From the model to a scalar loss on some fixed batch."""


@named_options
def loss_sharpness(
    model: nn.Module,
    loss: Loss,
    *,
    top: int = 1,
    products: int = 30,
    tolerance: float = 1e-3,
    mode: ModuleMode = "eval",
    seed: int = 0,
    label: str = "",
) -> JacobianBlock:
    """The `top` largest (algebraic) eigenvalues of the Hessian of a loss by all parameters that require grad.

        block = gradlab.loss_sharpness(model, lambda model: F.cross_entropy(model(x), y))
        block.summaries["lambda_1"]

    By Lanczos with full reorthogonalisation on Hessian-vector products: the gradient's graph is made once and
    differentiated again for each. Gradient descent with rate lr is unstable where lambda_1 exceeds 2 / lr.

    Args:
        model: any module, wrapped or not; its loss is computed once, without a trace.
        loss: from the model to a scalar.
        top: how many eigenvalues.
        products: Hessian-vector products at most.
        tolerance: stop where the residual of each wanted eigenvalue is below this share of the largest.
        mode: as in `gradlab.jacobian`.
        seed: of the first vector.
        label: put behind the block's name.
    Returns:
        A block of kind `sharpness`: [1, top], with `lambda_1` (and so on) in its summaries. `audit_error` is the
        relative residual ‖Hv − λv‖ of the largest one.
    Raises:
        JacobianError: if the loss is no finite scalar that depends on a parameter, or its gradient has no derivative.
    Cost: two backwards' arithmetic for the graph, and about two a product; `products` vectors the size of the model.
    """
    given = {"model": model, "loss": loss, "top": top, "products": products, "tolerance": tolerance}
    check_arguments("loss_sharpness()", _ARGUMENTS, given | {"mode": mode, "seed": seed, "label": label}, JacobianError)
    with isolated(model, mode=mode, requires_grad=_trained) as core, plain_kernels(), torch.enable_grad():
        values, residual = _lanczos(_hessian(core, loss), top, products, tolerance, seed)
    return _block(values, residual, label)


def sharpness_of_value(
    value: Tensor, parameters: Sequence[Tensor], *, top: int, products: int, label: str
) -> JacobianBlock | None:
    """The same of a loss whose graph is there, which is kept; None where it depends on none of the parameters.

    Raises:
        JacobianError: as `loss_sharpness` does.
    """
    hessian = _hessian_of(value, parameters)
    if hessian is None:
        return None
    values, residual = _lanczos(hessian, top, products, tolerance=1e-3, seed=0)
    return _block(values, residual, label)


def _block(values: np.ndarray, residual: float, label: str) -> JacobianBlock:
    return JacobianBlock(
        of="loss",
        wrt="parameters",
        values=values[None].astype(np.float32),
        row_names=("lambda",),
        col_names=tuple(str(number + 1) for number in range(len(values))),
        engine="lanczos",
        audit_error=residual,
        summaries={f"lambda_{number + 1}": float(value) for number, value in enumerate(values)},
        kind="sharpness",
        label=label,
    )


_ARGUMENTS = {
    "model": MODEL,
    "loss": FUNCTION,
    **dict.fromkeys(("top", "products"), whole(1)),
    "tolerance": number("a number above 0", lambda share: share > 0),
    "mode": one_of("eval", "as_is"),
    "seed": whole(0),
    "label": TEXT,
}


def _trained(core: nn.Module) -> list[nn.Parameter]:
    return [p for p in core.parameters() if p.requires_grad]


def _hessian(core: nn.Module, loss: Loss) -> _Hessian:
    """The Hessian of a loss by those trained parameters that it does not depend on linearly."""
    parameters = _trained(core)
    if not parameters:
        raise JacobianError("sharpness: no parameter of the model requires grad.")
    value = loss(core)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise JacobianError("sharpness: the loss must be a scalar tensor that depends on the model's parameters.")
    hessian = _hessian_of(value, parameters)
    if hessian is None:
        raise JacobianError("sharpness: the loss must be a scalar tensor that depends on the model's parameters.")
    return hessian


def _hessian_of(value: Tensor, parameters: Sequence[Tensor]) -> _Hessian | None:
    """The Hessian of a scalar with a graph; None where it depends on none of the parameters."""
    if not torch.isfinite(value):
        raise JacobianError(f"sharpness: the loss is {float(value.detach())}, so there is no curvature to measure.")
    try:
        grads = torch.autograd.grad(value.reshape(()), parameters, create_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise JacobianError(f"sharpness: the gradient of this loss has no derivative: {error}") from error
    if all(g is None for g in grads):
        return None
    used = [(g, p) for g, p in zip(grads, parameters, strict=True) if g is not None and g.requires_grad]
    if not used:
        raise JacobianError("sharpness: the loss is linear in the parameters, or its gradient has no derivative.")
    return _Hessian(*zip(*used, strict=True))


class _Hessian:
    """v ↦ Hv on flat vectors."""

    def __init__(self, grads: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.grads, self.parameters = grads, parameters
        self.size = sum(p.numel() for p in parameters)

    def __call__(self, flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in self.parameters])
        vectors = [part.view_as(p).to(p.dtype) for part, p in zip(parts, self.parameters, strict=True)]
        products = torch.autograd.grad(
            self.grads, self.parameters, vectors, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([product.detach().reshape(-1) for product in products]).to(flat.dtype)


def _lanczos(hessian: _Hessian, top: int, products: int, tolerance: float, seed: int) -> tuple[np.ndarray, float]:
    """The `top` largest Ritz values, and the relative residual of the first."""
    like = hessian.parameters[0]
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    start = torch.randn(hessian.size, generator=torch.Generator().manual_seed(seed), device="cpu")
    start = start.to(like.device, dtype)
    basis = [start / torch.linalg.vector_norm(start)]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    ritz, residual = np.zeros(1), float("nan")
    for _ in range(min(products, hessian.size)):
        product = hessian(basis[-1])
        diagonal.append(float(product @ basis[-1]))
        for _ in range(2):  # Once more, since the first subtraction leaves its own rounding behind.
            for vector in basis:
                product = product - (vector @ product) * vector
        norm = float(torch.linalg.vector_norm(product))
        tridiagonal = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        kept = min(top, len(values))
        ritz = values[::-1][:kept]
        scale = max(abs(values).max(), np.finfo(np.float32).tiny)
        residuals = norm * np.abs(vectors[-1, ::-1][:kept]) / scale
        residual = float(residuals[0])
        if norm <= 1e-6 * scale or (len(values) > top and residuals.max() < tolerance):
            break
        off_diagonal.append(norm)
        basis.append(product / norm)
    return ritz, residual
