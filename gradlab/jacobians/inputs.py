"""The inputs of a forward: a tensor, a tuple of arguments or a mapping of keyword arguments.

Belongs here: the call, copies, and samples of a batch. Does not: which samples a request is about (`problem_setup`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.sites.leaves import leaves, replace_leaves
from gradlab.sites.names import unwrapped


def inputs_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a forward was called with, as inputs."""
    if kwargs and not args:
        return dict(kwargs)
    if len(args) == 1 and isinstance(args[0], Tensor):
        return args[0]
    return tuple(args)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run the forward of a model on inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def copied(inputs: Any) -> Any:
    """The same with copies of the tensors, which a forward may change in place."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    return replace_leaves(inputs, {suffix: tensor.detach().clone() for suffix, tensor in leaves(inputs)})


def count_samples(inputs: Any, batched: bool | None = None) -> int | None:
    """The length of the inputs' sample axis, or None without one.

    Args:
        inputs: the inputs; the first tensor among them counts.
        batched: whether there is a sample axis; where left out, there is one if that tensor has more than one axis.
    """
    first = inputs if isinstance(inputs, Tensor) else next(leaves(inputs), ("", None))[1]
    if first is None or batched is False or first.dim() == 0:
        return None
    return len(first) if batched or first.dim() > 1 else None


def first_samples(inputs: Any, samples: int, *, exact: bool = True, who: str = "the probe batch") -> Any:
    """Copies of the first samples of a batch; of all of it where it has no sample axis.

    Raises:
        JacobianError: if it has fewer and `exact`.
    """
    batch = count_samples(inputs)
    if batch is None:
        return copied(inputs)
    if batch < samples and exact:
        raise JacobianError(
            f"{who}: samples={samples}, but the probe batch has {batch}; give samples: {batch} or a larger batch."
        )
    kept = {
        suffix: (tensor[:samples] if _has_samples(tensor, batch) else tensor).detach().clone()
        for suffix, tensor in leaves(inputs)
    }
    return replace_leaves(inputs, kept)


def replicas(inputs: Any, batch: int, sample: int, count: int) -> Any:
    """One sample of a batch, `count` times in its place."""
    new = {
        suffix: tensor[sample : sample + 1].detach().expand(count, *tensor.shape[1:]).clone()
        if _has_samples(tensor, batch)
        else tensor.detach().clone()
        for suffix, tensor in leaves(inputs)
    }
    return replace_leaves(inputs, new)


def on_device_of(model: nn.Module, inputs: Any) -> Any:
    """The inputs where the model's first parameter is; themselves where they are there already."""
    parameter = next(unwrapped(model).parameters(), None)
    if parameter is None or all(tensor.device == parameter.device for _, tensor in leaves(inputs)):
        return inputs
    return replace_leaves(inputs, {suffix: tensor.to(parameter.device) for suffix, tensor in leaves(inputs)})


def _has_samples(tensor: Tensor, batch: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == batch
