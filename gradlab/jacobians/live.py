"""Live slices: the Jacobian on the training step's own graph, with its dropout, its batch statistics and its data."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.hooks.call_hooks import has_compiled_call
from gradlab.jacobians.audit import prepare_audit, tolerance
from gradlab.jacobians.block import Solved, to_block
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.live_graph import LiveGraph
from gradlab.jacobians.problem_setup import set_up_problem
from gradlab.jacobians.request import Request
from gradlab.jacobians.subgraph import Subgraph, independent
from gradlab.sites.names import all_modules, unwrapped

_ENGINES = ["vmap", "is_grads_batched", "loop"]
"""Engines that need no other forward and leave the graph as it is."""


class LiveSlice:
    """Measures one slice on the graph of the first training forward and backward of each step that is due."""

    def __init__(self, model: nn.Module, request: Request, samples: int, seed: int) -> None:
        """Take the request; `samples` is how many of the batch at most.

        Raises:
            JacobianError: if the model has compiled parts, whose inside no hook sees.
        """
        self.core = unwrapped(model)
        _refuse_compiled(model)
        self.request, self.samples, self.seed = request, samples, seed
        self.fallback = Fallback()
        self.step = 0
        self.graph: LiveGraph | None = None

    def begin(self, step: int) -> None:
        """Watch the next forward."""
        self.drop()
        self.step = step
        self.graph = LiveGraph(self.core, self.request.slice, self._measure)
        self.graph.open()

    def end(self) -> JacobianBlock | None:
        """The block of the step that has ended; None where no backward went through the output.

        Raises:
            JacobianError: what went wrong inside the forward or the backward, which must not be disturbed there.
        """
        graph = self.graph
        had_both_ends = graph is not None and graph.has_both_ends
        self.drop()
        if graph is None:
            return None
        # The hook on the output may keep `graph` alive, and this the training step's graph.
        solved, graph.solved = graph.solved, None
        if graph.error is not None:
            raise graph.error
        if solved is None:
            if not graph.saw_output:
                raise JacobianError(
                    "no forward of the whole model that needs gradients was seen in this step, at most parts of it; "
                    "use mode='replay' with a probe batch."
                )
            if not had_both_ends:
                raise JacobianError(graph.explain_failure())
            return None
        error = solved.audit_error()
        block = to_block(self.request, self.fallback, solved, error)
        if error > tolerance(solved.blocks.dtype) and not self.fallback.is_last:
            self.fallback.give_up(f"its audit error is {error:.1e}")
        return block

    def drop(self) -> None:
        """Let go of hooks and graph."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None

    def _measure(self, subgraph: Subgraph, batch: int | None) -> Solved:
        """Inside the training backward: all that needs its graph."""
        request = self._with_samples(batch, subgraph.of, subgraph.wrt)
        problem = set_up_problem(request, subgraph, batch, self.fallback)
        if not self.fallback.engines:
            self.fallback.engines = _ENGINES[:] if len(problem.vectors) > 1 else ["loop"]
        audit = prepare_audit(problem, torch.Generator().manual_seed(self.seed + self.step))
        if audit is None:
            raise JacobianError(independent(request.slice.of, request.slice.wrt))
        while True:
            try:
                return Solved(problem, self.fallback.solve(problem), audit)
            except JacobianError:
                raise
            except Exception as error:
                self.fallback.give_up(error)

    def _with_samples(self, batch: int | None, of: Tensor, wrt: Tensor) -> Request:
        """The request, with as many samples as there are, where both ends have a sample axis."""
        ends = (of,) if isinstance(wrt, nn.Parameter) else (of, wrt)
        if batch is None or any(t.dim() == 0 or len(t) != batch for t in ends):
            return self.request
        return replace(self.request, samples=min(self.samples, batch))


def _refuse_compiled(model: nn.Module) -> None:
    for module in all_modules(model):
        if has_compiled_call(module):
            raise JacobianError(
                "mode='live' cannot see sites inside a compiled graph, and this model has one; "
                "use mode='replay', which runs the same model eagerly."
            )
