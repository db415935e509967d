"""The autograd engine: which backward is running, which node, and what is called when it ends.

Belongs here: all that gradlab reads of torch's engine by names that torch does not document. Does not: the modes of the
interpreter (`hooks.interpreter`), or what is done with the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Variable

task_id: Callable[[], int] = torch._C._current_graph_task_id
"""Which run of the engine the calling code belongs to; `NO_TASK` outside of any. Cost: 0.03 microseconds."""
NO_TASK = -1
current_node: Callable[[], Any] = torch._C._current_autograd_node
"""The node of the graph that the engine is running on this thread, None outside of a backward."""
next_node_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""The sequence number that the next node of a graph on this thread will have."""
functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""The innermost transform of functorch (vmap, grad, jvp) that is at work, None without one."""


def is_in_backward() -> bool:
    """Whether a backward is running on this thread. A forward is then a recomputation: activation checkpointing."""
    return task_id() != NO_TASK


def when_backward_ends(call: Callable[[], None]) -> None:
    """Have `call` called when the backward that runs now has computed all of its gradients.

    Raises:
        RuntimeError: outside of a backward.
    """
    Variable._execution_engine.queue_callback(call)  # type: ignore[attr-defined]
