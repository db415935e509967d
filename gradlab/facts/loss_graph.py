"""The graph of a loss, read just before its backward: by which functions it comes from the parameters.

Belongs here: walking the nodes of autograd, their names, and what they have saved. Does not: what is wrong with them
(`diagnose.rules`), or which backwards are read (`collection`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

MOST_NODES = 50_000
"""A graph with more nodes is read as far as these, nearest the loss first."""
PASSES_ON = frozenset(
    "View UnsafeView ReshapeAlias AsStrided Squeeze Unsqueeze Transpose T Permute Expand Select Slice Index Narrow "
    "Unbind Split Cat Stack Clone ToCopy Contiguous Alias Flatten".split()
)
"""Nodes that give the same numbers in another shape, dtype or choice."""
_ZERO_GRADIENT = frozenset("Round Sign Floor Ceil Trunc Sgn".split())
"""Functions whose gradient is zero wherever it exists."""
_LEAF = "torch::autograd::AccumulateGrad"
_DOUBLE = frozenset("LogSoftmax NllLoss NllLoss2D BinaryCrossEntropyWithLogits BinaryCrossEntropy Softmax".split())
"""Functions whose input must not have gone through a softmax or a sigmoid, or not through two."""
_TWICE = {"BinaryCrossEntropy": "Sigmoid"}
"""Of a function that takes probabilities: the activation that must not be applied twice before it."""
_BOUNDS = frozenset("Clamp ClampMin ClampMax Add".split())
"""What is put between a softmax and its logarithm: bounds, and a small number that is added."""
LOSSES = frozenset(
    "NllLoss NllLoss2D MseLoss BinaryCrossEntropy BinaryCrossEntropyWithLogits SmoothL1Loss HuberLoss KlDiv L1Loss "
    "SoftMarginLoss MultiMarginLoss CtcLoss".split()
)
"""Loss functions that autograd knows as one node."""
REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}
_WEIGHT_PLACES = {
    "Addmm": 2,
    "Mm": 1,
    "Convolution": 1,
    "Embedding": 0,
    "EmbeddingBag": 0,
    "NativeBatchNorm": 1,
    "CudnnBatchNorm": 1,
}
"""Functions of layers, and which of their inputs is the weight."""
_INPUT_PLACES = {"Addmm": 1}
_MOST_BELOW = 2000
_INPUT_NAMES = {"Addmm": "mat1", "Mm": "self", "Convolution": "input", "Embedding": "indices"}
_SEQUENCE_MOST = 8
_MOST_MASKS = 512
_NEAR, _WIDE = 12, 8
"""A layer is looked for so many nodes before another, along so many ways."""


@dataclass
class ReadGraph:
    """A graph as it was read: names, counts and, until the backward has begun, the nodes to ask for what they saved."""

    root: str
    chain: tuple[str, ...] = ()
    factor: float = 1.0
    reduction: str = ""
    loss_activations: tuple[tuple[str, str], ...] = ()
    softmax_of_one: str = ""
    """`Softmax` or `LogSoftmax` where that is what the loss comes from, over a dimension that has one number."""
    leaves: dict[int, nn.Parameter | Tensor] = field(default_factory=dict)
    """The leaves that it reaches, by id."""
    cut: set[int] = field(default_factory=set)
    """Those that it reaches only by functions without a gradient."""
    cut_by: tuple[str, ...] = ()
    before_cut: list[int] = field(default_factory=list)
    """Those of the layers that such a function follows directly."""
    before_activation: list[int] = field(default_factory=list)
    """The leaves of the layers that the activations of `loss_activations` follow directly."""
    masks: list[Any] = field(default_factory=list)
    """The nodes of products with a tensor without gradient, as dropout is one."""
    functions: Counter[str] = field(default_factory=Counter)
    num_nodes: int = 0
    is_whole: bool = True
    is_opaque: bool = False
    losses: list[tuple[str, Any]] = field(default_factory=list)
    """The nodes of loss functions, by name."""
    layers: list[tuple[int, str, Any]] = field(default_factory=list)
    """(id of the weight, function, node) of each call of a layer, in the order of the forward."""
    parts: dict[str, list[Any]] = field(default_factory=dict)
    """Nodes by what they are (`graph_parts`): `attention`, `length`, `norm`."""


def roots_of(loss: Any) -> list[Any]:
    """The nodes that a backward starts from, given what it was called with: a tensor or several."""
    tensors = [loss] if isinstance(loss, Tensor) else list(loss) if isinstance(loss, Sequence) else []
    return [tensor.grad_fn for tensor in tensors if isinstance(tensor, Tensor) and tensor.grad_fn is not None]


def signature_of(root: Any) -> str:
    """The first functions of a graph in one line, by which losses of one kind are known. Cost: 1 microsecond."""
    names: list[str] = []
    node = root
    while node is not None and len(names) < 3:
        names.append(plain_name(node.name()))
        node = node.next_functions[0][0] if node.next_functions else None
    return " ".join(names)


def reaches_any(root: Any, wanted: Container[int], most: int = 64) -> bool | None:
    """Whether a graph reaches one of some leaves; None where the first nodes, nearest the loss, do not tell.

    Cost: a few microseconds, since the last layer of a model is near its loss.
    """
    seen, waiting = {root}, [root]
    while waiting:
        if len(seen) > most:
            return None
        for inner, _ in waiting.pop().next_functions:
            if inner is not None and inner not in seen:
                if inner.name() != _LEAF:
                    seen.add(inner)
                    waiting.append(inner)
                elif id(inner.variable) in wanted:
                    return True
    return False


def read_graph(roots: Sequence[Any]) -> ReadGraph:
    """What a graph says. No node is kept once the result is dropped.

    Cost: about 2 microseconds a node.
    """
    graph = ReadGraph(root=plain_name(roots[0].name()))
    pairs: set[tuple[str, str]] = set()
    seen: set[Any] = set(roots)
    level: list[Any] = list(roots)
    zero: list[Any] = []
    layers: list[tuple[int, int, str, Any]] = []
    while level:
        following: list[Any] = []
        for node in level:
            name = plain_name(node.name())
            if name == _LEAF:
                graph.leaves[id(node.variable)] = node.variable
                continue
            graph.functions[name] += 1
            if name in _DOUBLE and (activation := _activation_below(node, name)) is not None:
                pairs.add((name, plain_name(activation.name())))
                graph.before_activation += leaves_before(activation)
            if name in LOSSES:
                graph.losses.append((name, node))
            elif name in _ZERO_GRADIENT or (name == "Div" and getattr(node, "_saved_rounding_mode", None)):
                zero.append(node)
            elif name in _WEIGHT_PLACES:
                weight = _weight_of(node, _WEIGHT_PLACES[name])
                if weight is not None:
                    layers.append((node._sequence_nr(), id(weight), name, node))
            elif name in ("Mul", "NativeDropout") and len(graph.masks) < _MOST_MASKS and _is_by_constant(node):
                graph.masks.append(node)
            elif "CompiledFunction" in name:
                graph.is_opaque = True
            if name in PARTS:
                PARTS[name](graph, name, node)
            for inner, _ in node.next_functions:
                if inner is not None and inner not in seen:
                    seen.add(inner)
                    following.append(inner)
        if len(seen) > MOST_NODES:
            graph.is_whole = False
            break
        level = following
    graph.num_nodes = len(seen)
    graph.loss_activations = tuple(sorted(pairs))
    graph.chain, graph.factor, graph.reduction = _chain(roots[0])
    graph.softmax_of_one = next(filter(None, map(_softmax_of_one, [roots[0], *(node for _, node in graph.losses)])), "")
    graph.layers = [(weight, name, node) for _, weight, name, node in sorted(layers, key=lambda one: one[0])]
    if zero:
        graph.cut = set(graph.leaves) - set(_reached_without(roots, zero))
        if graph.cut:
            graph.cut_by = tuple(sorted({plain_name(node.name()) for node in zero}))
            graph.before_cut = [key for node in zero for key in leaves_before(node) if key in graph.cut]
    return graph


def saved(node: Any, name: str) -> Tensor | None:
    """A tensor that a node has saved for its backward; None where it has none, or where reading it would not be free.

    Under hooks for saved tensors (checkpointing, offloading) asking would run the forward again, or bring it back.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:  # it was written to in place since: the backward itself is going to say so
        return None
    return value if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter) else None


def input_of_layer(name: str, node: Any) -> Tensor | None:
    """What went into a call of a layer, where its node has kept it."""
    return saved(node, _INPUT_NAMES[name]) if name in _INPUT_NAMES else None


def leaf_of_view(tensor: Tensor) -> Tensor | None:
    """The leaf that requires grad and whose numbers a tensor shows: itself, or what it is a view of."""
    if not tensor.requires_grad:
        return None
    node: Any = tensor.grad_fn
    if node is None:
        return tensor
    while node is not None and plain_name(node.name()) in PASSES_ON and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node.variable if node is not None and node.name() == _LEAF else None


def _weight_of(node: Any, place: int) -> Tensor | None:
    """The leaf that is the weight of a layer's node."""
    if place >= len(node.next_functions):
        return None
    inner = node.next_functions[place][0]
    while inner is not None and plain_name(inner.name()) in ("T", "Transpose", "ToCopy", "View"):
        inner = inner.next_functions[0][0]
    return inner.variable if inner is not None and inner.name() == _LEAF else None


def _chain(root: Any) -> tuple[tuple[str, ...], float, str]:
    """The functions from the root on while there is one input, the plain factors among them, and the reduction."""
    names: list[str] = []
    factor, reduction, node = 1.0, "", root
    while node is not None and len(names) < _SEQUENCE_MOST:
        name = plain_name(node.name())
        names.append(name)
        if not reduction:
            factor *= _factor_of(name, node)
            if name in ("Mean", "Sum"):
                reduction = name.lower()
            elif name in LOSSES:
                reduction = REDUCTIONS.get(getattr(node, "_saved_reduction", None), "")  # type: ignore[arg-type]
        inner = [one for one, _ in node.next_functions if one is not None]
        node = inner[0] if len(inner) == 1 or (inner and name in LOSSES) else None
    return tuple(names), factor, reduction


def _factor_of(name: str, node: Any) -> float:
    """What a node multiplies by, where that is a plain number."""
    if name == "Neg":
        return -1.0
    number = number_of(name, node) if name in ("Mul", "Div") else None
    return 1.0 if number is None else number


def plain_factor(node: Any) -> float | None:
    """The number of Python's that a product or quotient is by; None where it is a tensor, which is left alone."""
    if hasattr(node, "_raw_saved_other"):
        return None
    plain = getattr(node, "_saved_other", None)
    return float(plain) if isinstance(plain, int | float) and not isinstance(plain, bool) else None


def number_of(name: str, node: Any) -> float | None:
    """The plain number by which a product or a quotient changes its input; None where it is none."""
    if name == "Div" and node.next_functions[0][0] is None:
        return None
    plain = plain_factor(node)
    if plain is not None:
        return plain if name == "Mul" else 1.0 / plain if plain else None
    for key in ("other", "self"):
        other = saved(node, key)
        if other is not None and other.dim() == 0 and other.device.type == "cpu":
            number = float(other)
            if name == "Mul":
                return number
            return 1.0 / number if number and key == "other" else None
    return None


def _reached_without(roots: Sequence[Any], without: Sequence[Any]) -> Iterator[int]:
    """The ids of the leaves that are reached on some way around some nodes."""
    seen: set[Any] = {*roots, *without}
    waiting = [root for root in roots if root not in without]
    while waiting:
        node = waiting.pop()
        if node.name() == _LEAF:
            yield id(node.variable)
        for inner, _ in node.next_functions:
            if inner is not None and inner not in seen:
                seen.add(inner)
                waiting.append(inner)


def _note_residual(graph: ReadGraph, name: str, node: Any) -> None:
    """A power or absolute value of a prediction minus a target is a loss written by hand."""
    inner = node.next_functions[0][0]
    is_difference = inner is not None and plain_name(inner.name()) == "Sub" and len(inner.next_functions) == 2
    if is_difference and any(one is None for one, _ in inner.next_functions):
        graph.losses.append((name, node))


def _note_attention(graph: ReadGraph, name: str, node: Any) -> None:
    """A softmax that goes, dropout apart, into a product of matrices."""
    inner = node.next_functions[0][0]
    while inner is not None and plain_name(inner.name()) in (*PASSES_ON, "Mul", "NativeDropout"):
        inner = inner.next_functions[0][0]
    if inner is not None and plain_name(inner.name()) in ("Softmax", "SafeSoftmax"):
        graph.parts.setdefault("attention", []).append(inner)


def _note(part: str) -> Callable[[ReadGraph, str, Any], None]:
    return lambda graph, name, node: graph.parts.setdefault(part, []).append(node)


PARTS: dict[str, Callable[[ReadGraph, str, Any], None]] = {
    "Pow": _note_residual,
    "Abs": _note_residual,
    "Bmm": _note_attention,
    "Mm": _note_attention,
    "ScaledDotProductFlashAttentionForCpu": _note("attention"),
    "ScaledDotProductFlashAttention": _note("attention"),
    "ScaledDotProductEfficientAttention": _note("attention"),
    "LinalgVectorNorm": _note("length"),
    "NativeBatchNorm": _note("norm"),
    "CudnnBatchNorm": _note("norm"),
    "NativeLayerNorm": _note("norm"),
    "NativeGroupNorm": _note("norm"),
}
"""By name of a function: how to note what it is a part of."""


def input_edge(name: str, node: Any) -> Any:
    """The node that gave a layer its input; None where the input is data."""
    place = _INPUT_PLACES.get(name, 0)
    return node.next_functions[place][0] if place < len(node.next_functions) else None


def layers_below(node: Any, layers: Collection[Any]) -> list[Any]:
    """The nearest nodes of some that a node comes from, itself included; as far as 2000 nodes."""
    found, seen, waiting = [], {node}, [node]
    while waiting and len(seen) < _MOST_BELOW:
        one = waiting.pop()
        if one in layers:
            found.append(one)
            continue
        for inner, _ in one.next_functions:
            if inner is not None and inner not in seen:
                seen.add(inner)
                waiting.append(inner)
    return found


def source_of(node: Any) -> Any:
    """The node whose numbers a node passes on in another shape; itself, mostly."""
    while node is not None and plain_name(node.name()) in PASSES_ON and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node


def _activation_below(node: Any, function: str) -> Any:
    """The node of the softmax or sigmoid that makes the input of a function; None without one.

    Between the two are other shapes only, bounds, or a small number that is added.
    """
    activation = _activation_of(node.next_functions[0][0] if node.next_functions else None)
    if function == "Softmax" and activation is not None and plain_name(activation.name()) != "Softmax":
        return None
    if function in _TWICE and activation is not None:
        twice = _activation_of(activation.next_functions[0][0])
        is_twice = twice is not None and plain_name(twice.name()) == plain_name(activation.name()) == _TWICE[function]
        return activation if is_twice else None
    return activation


def _activation_of(inner: Any) -> Any:
    """The softmax or sigmoid at a node, or at the end of what passes it on; None without one."""
    while inner is not None:
        name = plain_name(inner.name())
        if name in ("Softmax", "Sigmoid"):
            return inner
        following = [one for one, _ in inner.next_functions if one is not None]
        if not following or not (name in PASSES_ON or (name in _BOUNDS and len(following) == 1)):
            return None
        inner = following[0]
    return None


def leaves_before(node: Any) -> list[int]:
    """The ids of the leaves that are nearest before a node: the parameters of the layer whose output it takes."""
    level, seen = [node], {node}
    for _ in range(_NEAR):
        following = []
        found: list[int] = []
        for one in level:
            for inner, _ in one.next_functions:
                if inner is not None and inner not in seen:
                    seen.add(inner)
                    following.append(inner)
                    if inner.name() == _LEAF and isinstance(inner.variable, nn.Parameter):
                        found.append(id(inner.variable))
        if found or not following:
            return found
        level = following[:_WIDE]
    return []


def _is_by_constant(node: Any) -> bool:
    """Whether one factor of a product has no gradient, or the node is a dropout's own."""
    return sum(inner is not None for inner, _ in node.next_functions) == 1


def _softmax_of_one(node: Any) -> str:
    """The softmax over a single number that a node comes from on the way of its first input; "" without one."""
    for _ in range(_SEQUENCE_MOST):
        name = plain_name(node.name())
        if name in ("Softmax", "LogSoftmax"):
            result = saved(node, "result")
            dim = getattr(node, "_saved_dim", 0)
            dim -= 1 << 64 if dim >= 1 << 63 else 0
            return name if result is not None and result.dim() and result.shape[dim] == 1 else ""
        inner = [one for one, _ in node.next_functions if one is not None]
        if not inner or (len(inner) > 1 and name not in LOSSES):
            return ""
        node = inner[0]
    return ""


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """The name of a node without what torch adds to it: `NllLoss` of `NllLossBackward0`."""
    return re.sub(r"Backward\d*(?:_copy)?$", "", name)


def is_scalar(value: Any) -> bool:
    """Whether a backward from it starts from one real number."""
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
