"""The sharpness of the loss of a training step, on the graph of its own backward: no function for the loss is needed.

Belongs here: the graph, from just before a backward uses it up. Does not: the eigenvalues (`sharpness`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlab.autograd_engine import is_in_backward
from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.hooks import backward_calls
from gradlab.hooks.interpreter import must_not_record, outside_modes
from gradlab.hooks.mute import muting
from gradlab.jacobians.options import Sharpness
from gradlab.jacobians.sharpness import sharpness_of_value
from gradlab.sites.names import unwrapped

_HOPELESS = 50
"""Backwards of other models that are waited through."""


class LiveSharpness:
    """Measures once, at the next backward of a scalar loss that depends on the model's trained parameters.

    The loss is that of the batch as it goes into the backward: divided where gradients are accumulated, scaled where a
    GradScaler scales it. Gradients, `.grad` and hooks of the parameters are left as they are.
    """

    def __init__(self, model: nn.Module, spec: Sharpness) -> None:
        self._core = unwrapped(model)
        self._spec = spec
        self._block: JacobianBlock | None = None
        self._error: JacobianError | None = None
        self._num_missed = 0

    def begin(self) -> None:
        """Wait for a backward."""
        backward_calls.listen(self)

    def end(self) -> JacobianBlock | None:
        """The block, once there is one.

        Raises:
            JacobianError: it could not be measured.
        """
        if self._error is not None:
            raise self._error
        return self._block

    def drop(self) -> None:
        """Wait no longer."""
        backward_calls.ignore(self)

    def after_backward(self) -> None:
        """A backward has ended: nothing to do."""

    def before_backward(self, tensors: Any) -> None:
        """A backward begins: measure, where it is one of the model's loss."""
        if must_not_record() or is_in_backward():
            return
        loss = tensors[0] if isinstance(tensors, list | tuple) and len(tensors) == 1 else tensors
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.grad_fn is None:
            return
        try:
            with outside_modes(), muting(), torch.enable_grad():
                self._measure(loss)
        except JacobianError as error:
            self._error = error
        except Exception as error:
            self._error = JacobianError(f"{type(error).__name__}: {error}")
        if self._error is not None or self._block is not None:
            self.drop()

    def _measure(self, loss: Tensor) -> None:
        parameters = [p for p in self._core.parameters() if p.requires_grad]
        hooks = [(p, p._backward_hooks) for p in parameters]
        try:
            for p in parameters:
                p._backward_hooks = None  # a hook that clips would clip the products
            self._block = sharpness_of_value(
                loss, parameters, top=self._spec.top, products=self._spec.products, label=self._spec.label
            )
        finally:
            for p, its in hooks:
                p._backward_hooks = its
        if self._block is None:
            self._num_missed += 1
            if self._num_missed >= _HOPELESS:
                raise JacobianError("sharpness: no backward of a loss of this model was seen.")
