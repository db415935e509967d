"""A Jacobian slice that is measured again and again while a model trains, always on the same samples."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import nn

from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.engines.fallback import Ladder
from gradlab.jacobians.measure import measure
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.problem_setup import count_samples
from gradlab.jacobians.request import Question
from gradlab.sites.leaves import leaves, replace_leaves
from gradlab.sites.names import unwrapped


class JacobianProbe:
    """Measures one slice on a probe batch of its own."""

    def __init__(self, spec: JacobianSlice, model: nn.Module, x: Any, *, label: str = "") -> None:
        """Keep copies of the first `spec.samples` samples of `x`.

        Args:
            spec: what to measure and how often.
            model: the model that trains; measured in eval mode, without a trace.
            x: a batch as the model takes it: a tensor, a tuple of arguments or a mapping of keyword arguments.
            label: put behind the block's name, to tell apart two slices of the same sites.
        Raises:
            JacobianError: if `x` has fewer samples than asked for.
        """
        self.spec = spec
        self.model = model
        self.label = label
        self.ladder = Ladder()
        self.inputs = first_samples(x, spec.samples, who=f"JacobianSlice({spec.of!r}, {spec.wrt!r})")
        self.question = question_of(spec, label)

    def due(self, step: int) -> bool:
        """Whether to measure after this optimizer step, counted from 0."""
        return step % self.spec.every == 0

    def measure(self, step: int) -> JacobianBlock:
        """Measure now. The same model, step and probe batch give the same numbers.

        Raises:
            JacobianError: as `gradlab.jacobian` does; for a wrong name or index, on the first call already.
        Cost: that of `gradlab.jacobian`; the engine is chosen on the first call.
        """
        self._follow_model()
        seed = zlib.crc32(f"{self.spec.of} {self.spec.wrt} {self.label}".encode()) + step
        return measure(self.model, self.inputs, self.question, self.ladder, torch.Generator().manual_seed(seed))

    def _follow_model(self) -> None:
        """Move the probe batch to where the model is, once."""
        parameter = next(unwrapped(self.model).parameters(), None)
        if parameter is not None and any(t.device != parameter.device for _, t in leaves(self.inputs)):
            moved = {suffix: tensor.to(parameter.device) for suffix, tensor in leaves(self.inputs)}
            self.inputs = replace_leaves(self.inputs, moved)


def question_of(spec: JacobianSlice, label: str) -> Question:
    """What a slice asks for."""
    return Question(
        of=spec.of,
        wrt=spec.wrt,
        rows=spec.rows,
        cols=spec.cols,
        groups=spec.groups,
        weights=None if spec.weights is None else torch.as_tensor(spec.weights, dtype=torch.float64),
        reduce=spec.reduce,
        of_map=spec.of_map,
        mode="as_is" if spec.train else "eval",
        block=spec.block,
        label=label,
    )


def first_samples(x: Any, samples: int, *, exact: bool = True, who: str = "the probe batch") -> Any:
    """Copies of the first samples of a batch; all of it where it has no sample axis.

    Raises:
        JacobianError: if it has fewer and `exact`.
    """
    have = count_samples(x, None)
    if have is None:
        return replace_leaves(x, {suffix: tensor.detach().clone() for suffix, tensor in leaves(x)})
    if have < samples and exact:
        raise JacobianError(
            f"{who}: samples={samples}, but the probe batch has {have}; give samples: {have} or a larger batch."
        )
    kept = {
        suffix: (tensor[:samples] if tensor.dim() > 0 and len(tensor) == have else tensor).detach().clone()
        for suffix, tensor in leaves(x)
    }
    return replace_leaves(x, kept)
