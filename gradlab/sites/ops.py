"""Which functional ops are sites, what they are called, and a function mode that sees them.

A site is the output of an op that computes (relu, add, softmax, scaled_dot_product_attention, in-place variants), never
of one that only looks (views, shapes, item access). The mode sees one call for each call in user code: what an op does
inside is hidden from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradlab.sites.leaves import has_floating

# Ops that return a view, data put together or apart, metadata, or values with no gradient: they compute nothing.
_NOT_SITES = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ transpose transpose_ t t_
    permute swapaxes swapdims movedim moveaxis expand expand_as broadcast_to narrow select slice getitem
    chunk split tensor_split unbind unsafe_chunk unsafe_split hsplit vsplit dsplit diagonal real imag view_as_real
    view_as_complex contiguous detach detach_ clone to type type_as float double half bfloat16 int long bool cpu cuda
    requires_grad_ retain_grad register_hook backward size dim numel stride storage_offset is_contiguous
    is_floating_point is_complex item tolist numpy shape ndim dtype device grad grad_fn requires_grad data is_leaf
    layout T mT H mH is_sparse is_cuda setitem new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like
    empty_like full_like rand_like randn_like argmax argmin argsort eq ne lt le gt ge isnan isinf isfinite any all
    as_strided unfold atleast_1d atleast_2d atleast_3d ravel unsafe_split_with_sizes split_with_sizes names has_names
    repeat tile repeat_interleave roll flip rot90 pad gather index_select cat stack concat concatenate hstack vstack
    record_stream element_size data_ptr untyped_storage len iter bool_ format repr str hash contains nbytes
    empty empty_strided zeros ones full rand randn randint randperm arange linspace logspace eye tensor as_tensor
    scalar_tensor from_numpy resize_ set_ split_with_sizes_copy
    """.split()
)
_ALIASES = {"iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_", "truediv": "div", "rsub": "sub"}
_REFLECTED = {"radd": "add", "rmul": "mul", "rtruediv": "div", "rdiv": "div", "rpow": "pow", "rmatmul": "matmul"}


@lru_cache(maxsize=4096)
def op_name(function: Callable[..., Any]) -> str | None:
    """The name of a torch function as a site has it (`relu`, `add`, `add_`), or None where it is no site."""
    name = getattr(function, "__name__", "")
    if name == "__get__" or name == "__set__" or not name:
        return None
    name = name.removeprefix("__").removesuffix("__") if name.startswith("__") else name
    name = _ALIASES.get(name) or _REFLECTED.get(name) or name
    if name in _NOT_SITES or name.startswith(("is_", "_is_", "_")):
        return None
    return name


def op_of_site(function: Callable[..., Any], result: Any) -> str | None:
    """The name of an op that has just run as a site has it, or None where its result is no site."""
    name = op_name(function)
    return None if name is None or not has_floating(result) or _moves_parameters() else name


def hides_its_ops(module: nn.Module) -> bool:
    """Whether the ops inside are the module's own business: a forward of torch.nn's, without children, or a script."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    # A forward that was generated, as that of torch.fx's GraphModule, is in no file: its `__module__` is None.
    place = getattr(type(module).forward, "__module__", None) or ""
    return place.startswith("torch.nn.") and not any(child is not None for child in module._modules.values())


class OpWatcher(TorchFunctionMode):
    """Calls `seen(op, result)` after each op whose result is a site; the returned value takes the result's place.

    Taps have a mode of their own, which finds an op by its place in the sequence and builds no names
    (`taps.forward.modules`).
    """

    def __init__(self, seen: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = op_of_site(func, result)
        return result if name is None else self.seen(name, result)


def _moves_parameters() -> bool:
    """Whether the op under way is called by torch.distributed, which shards parameters and brings them together."""
    frame = sys._getframe(1)
    for _ in range(8):
        if frame is None:
            return False
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch._ops", "torch.overrides", "gradlab.")):
            return bool(name.startswith("torch.distributed."))
        frame = frame.f_back  # type: ignore[assignment]
    return False
