"""The modules of a model, read from the calls that make it: names, classes, order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

MATRICES = {"Linear", "Bilinear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "Embedding"}
RECURRENT = {"RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"}
ATTENTION = {"MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder", "TransformerDecoderLayer"}
NORMS = {"BatchNorm1d", "BatchNorm2d", "LayerNorm", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "RMSNorm"}
DROPOUTS = {"Dropout", "Dropout1d", "Dropout2d"}
PARAMETRIC = MATRICES | RECURRENT | ATTENTION | NORMS | {"PReLU", "Parameter"}


@dataclass(eq=False)
class Layer:
    """A module, or a parameter of its own, of a model."""

    kind: str
    """The name of its class."""
    call: ast.Call
    """The call that makes it."""
    path: str = ""
    """Its name as `named_modules()` gives it."""
    children: list[Layer] = field(default_factory=list)
    tied: bool = False
    """Whether its weight is that of another layer too."""
    whole: bool = True
    """Whether all its children are known."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def walk(self) -> Iterator[Layer]:
        yield self
        for child in self.children:
            yield from child.walk()

    def leaves(self) -> Iterator[Layer]:
        """The layers without children, in the order in which they are registered."""
        return (layer for layer in self.walk() if not layer.children)

    @property
    def has_parameters(self) -> bool:
        return any(layer.kind in PARAMETRIC for layer in self.walk())

    @property
    def trained(self) -> list[Layer]:
        """The children with parameters."""
        return [child for child in self.children if child.has_parameters]

    def child(self, name: str) -> Layer | None:
        return next((child for child in self.children if child.name == name), None)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of attributes, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def last(node: ast.expr) -> str:
    """`c` of `a.b.c` or of `f(x).c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_module_class(node: ast.ClassDef) -> bool:
    return any(last(base) == "Module" for base in node.bases)


def read_model(value: ast.expr, classes: dict[str, ast.ClassDef], path: str = "") -> Layer | None:
    """The layer that an expression makes, or None where it makes no module."""
    if not isinstance(value, ast.Call):
        return None
    kind, name = last(value.func), dotted(value.func)
    if kind in ("to", "train", "double", "float", "requires_grad_") and isinstance(value.func.value, ast.Call):
        return read_model(value.func.value, classes, path)
    if kind == "compile" and value.args:
        return read_model(value.args[0], classes, path)
    if kind in classes and is_module_class(classes[kind]):
        layer = Layer(kind, value, path)
        _read_class(layer, classes[kind], classes)
        return layer
    if not name.startswith(("nn.", "torch.nn.")) or ".init." in name or ".utils." in name or ".functional." in name:
        return None
    layer = Layer(kind, value, path)
    if kind in ("Sequential", "ModuleList"):
        _read_sequence(layer, classes)
    return layer


def _read_sequence(layer: Layer, classes: dict[str, ast.ClassDef]) -> None:
    values = layer.call.args
    if layer.kind == "ModuleList" and values:
        values = values[0].elts if isinstance(values[0], ast.List | ast.Tuple) else [ast.Starred(values[0])]
    for value in values:
        inner = value.value if isinstance(value, ast.Starred) else value
        if isinstance(inner, ast.GeneratorExp | ast.ListComp):  # how often is not read: the first stands for all
            inner, layer.whole = inner.elt, False
        child = read_model(inner, classes, f"{layer.path}.{len(layer.children)}".lstrip("."))
        if child is None:
            layer.whole = False
            return
        layer.children.append(child)


def _read_class(layer: Layer, made: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> None:
    init = next((f for f in made.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    for statement in init.body if init else []:
        if isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, its in zip(target.elts, value.elts, strict=True):
                    _read_attribute(layer, dotted(one), its, init, classes)
            else:
                _read_attribute(layer, dotted(target), value, init, classes)
        elif isinstance(statement, ast.For | ast.If) and any(isinstance(n, ast.Assign) for n in ast.walk(statement)):
            layer.whole = False


def _read_attribute(
    layer: Layer, name: str, value: ast.expr, init: ast.FunctionDef, classes: dict[str, ast.ClassDef]
) -> None:
    _, *names = name.split(".")
    if len(names) == 2 and names[1] == "weight":  # self.head.weight = self.embedding.weight
        for tied in (layer.child(names[0]), layer.child("".join(dotted(value).split(".")[1:2]))):
            if tied is not None:
                tied.tied = True
    elif len(names) == 1:
        maker = getattr(value, "func", value)
        if last(maker) == "deepcopy" and (original := layer.child(last(value.args[0]))):
            value = original.call
        child = read_model(value, classes, f"{layer.path}.{names[0]}".lstrip("."))
        if child is not None:
            layer.children.append(child)
        elif {n.id for n in ast.walk(maker) if isinstance(n, ast.Name)} & {a.arg for a in init.args.args[1:]}:
            layer.whole = False  # it may be a module that was given
