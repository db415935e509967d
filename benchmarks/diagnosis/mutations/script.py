"""A training script as a mutator sees it: where its optimizers, backwards, losses, loops and models are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from mutations.layers import Layer, dotted, last, read_model

OPTIMIZERS = {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "LBFGS"}
ADAM = {"Adam", "AdamW"}
LOSSES = {
    "cross_entropy": "CrossEntropyLoss",
    "mse_loss": "MSELoss",
    "nll_loss": "NLLLoss",
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    "smooth_l1_loss": "SmoothL1Loss",
    "l1_loss": "L1Loss",
    "huber_loss": "HuberLoss",
}


class NotHere(Exception):
    """The script has no place for the fault, or the fault would not be a clear one there."""


def need(condition: object) -> None:
    if not condition:
        raise NotHere


def statement_of(source: str) -> ast.stmt:
    return ast.parse(source).body[0]


def expression_of(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


@dataclass(frozen=True, eq=False)
class Optimizer:
    name: str
    kind: str
    """The name of its class."""
    call: ast.Call
    statement: ast.Assign
    is_local: bool
    """Whether the script has its class, such as SAM's."""

    @property
    def parameters(self) -> ast.expr:
        need(self.call.args)
        return self.call.args[0]

    def option(self, name: str) -> ast.keyword | None:
        return next((keyword for keyword in self.call.keywords if keyword.arg == name), None)


@dataclass(frozen=True, eq=False)
class Model:
    name: str
    layer: Layer
    statement: ast.Assign


class Script:
    """A tree with its parents, and what a mutator asks about it."""

    def __init__(self, tree: ast.Module):
        self.tree = tree
        self.parent: dict[ast.AST, ast.AST] = {}
        self._adopt(tree)
        body = tree.body
        self.docstring = body[0] if body and isinstance(body[0], ast.Expr) and ast.get_docstring(tree) else None
        self.classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.optimizers = list(self._find_optimizers())
        self.models = list(self._find_models())
        self.backwards = [c for c in self.calls("backward") if isinstance(self.parent[c], ast.Expr) and not c.args]

    def _adopt(self, top: ast.AST) -> None:
        for node in ast.walk(top):
            for child in ast.iter_child_nodes(node):
                self.parent[child] = node

    # What is where

    def calls(self, name: str, inside: ast.AST | None = None) -> list[ast.Call]:
        """The calls of `name(...)`, `a.name(...)`."""
        return [n for n in ast.walk(inside or self.tree) if isinstance(n, ast.Call) and last(n.func) == name]

    def assignments(self, inside: ast.AST | None = None) -> Iterator[tuple[str, ast.Assign]]:
        """`name = value`, in order, outside of classes."""
        for node in ast.walk(inside or self.tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and not self._in_class(node):
                yield node.targets[0].id, node

    def _in_class(self, node: ast.AST) -> bool:
        return any(isinstance(above, ast.ClassDef) for above in self.above(node))

    def _find_optimizers(self) -> Iterator[Optimizer]:
        local = {c.name for c in self.classes.values() if any(last(base) == "Optimizer" for base in c.bases)}
        for name, node in self.assignments():
            if isinstance(node.value, ast.Call) and (kind := last(node.value.func)) in OPTIMIZERS | local:
                yield Optimizer(name, kind, node.value, node, kind in local)

    def _find_models(self) -> Iterator[Model]:
        for name, node in self.assignments():
            layer = read_model(node.value, self.classes)
            if layer is not None and layer.has_parameters:
                yield Model(name, layer, node)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around a node, from the inside."""
        while node in self.parent:
            node = self.parent[node]
            yield node

    def statement(self, node: ast.AST) -> ast.stmt:
        return next(n for n in [node, *self.above(node)] if isinstance(n, ast.stmt))

    def function(self, node: ast.AST) -> ast.FunctionDef | ast.Module:
        return next(n for n in self.above(node) if isinstance(n, ast.FunctionDef | ast.Module))

    def loops(self, node: ast.AST) -> list[ast.For]:
        """The loops around a node in its function, from the inside."""
        found: list[ast.For] = []
        for above in self.above(node):
            if isinstance(above, ast.FunctionDef):
                break
            if isinstance(above, ast.For):
                found.append(above)
        return found

    def without_gradient(self, node: ast.AST) -> bool:
        """Whether a node lies in `with torch.no_grad()`."""
        withs = (above for above in self.above(node) if isinstance(above, ast.With))
        return any("no_grad" in ast.unparse(item) for one in withs for item in one.items)

    # What it trains

    @property
    def is_plain(self) -> bool:
        """Whether it has one optimizer of torch's that takes no closure, and one backward."""
        ordinary = [o for o in self.optimizers if not o.is_local and o.kind != "LBFGS"]
        return len(self.optimizers) == len(ordinary) == len(self.backwards) == 1

    @property
    def optimizer(self) -> Optimizer:
        """The only optimizer of a plain script."""
        need(self.is_plain)
        return self.optimizers[0]

    @property
    def backward(self) -> ast.Call:
        """The only backward of a script."""
        need(len(self.backwards) == 1)
        return self.backwards[0]

    def has_stages(self) -> bool:
        """Whether one function trains more than once: a pretraining and a fine-tuning."""
        owners = [self.function(o.statement) for o in self.optimizers]
        return any(isinstance(owner, ast.FunctionDef) and len(self.calls(owner.name)) > 1 for owner in owners)

    def steps(self, optimizer: Optimizer) -> list[ast.Call]:
        """The calls that step an optimizer: its own, a gradient scaler's."""
        return [
            call
            for call in self.calls("step")
            if dotted(call.func) == f"{optimizer.name}.step" or [dotted(a) for a in call.args] == [optimizer.name]
        ]

    def freezes(self, path: str = "") -> bool:
        """Whether the script freezes something, or what has this name."""
        frozen = [dotted(c.func.value) for c in self.calls("requires_grad_") if isinstance(c.func, ast.Attribute)]
        return any(f"{name}.".endswith(f".{path}.") for name in frozen) if path else bool(frozen)

    def models_named(self, name: str, function: ast.AST | None = None) -> list[Model]:
        """The models that a name may stand for, where it is the argument of a function by the calls of this one."""
        if isinstance(function, ast.FunctionDef) and name in (arguments := [a.arg for a in function.args.args]):
            at = arguments.index(name)
            given = [dotted(c.args[at]) for c in self.calls(function.name) if len(c.args) > at]
            if not all(given) or any("." in one for one in given):  # a part of a model
                return []
            return [model for one in given for model in self.models_named(one)]
        found = [model for model in self.models if model.name == name]
        for alias, node in self.assignments():
            if alias == name and isinstance(node.value, ast.Call) and dotted(node.value.func) == "torch.compile":
                found += self.models_named(dotted(node.value.args[0]))
        return found

    def trained_models(self) -> list[Model]:
        """The models whose parameters optimizers have."""
        found: list[Model] = []
        for optimizer in self.optimizers:
            names = [n.id for n in ast.walk(optimizer.parameters) if isinstance(n, ast.Name)]
            for name in names:
                found += self.models_named(name, self.function(optimizer.statement))
        return list(dict.fromkeys(found))

    def model(self) -> Model:
        """The first model that is trained."""
        found = self.trained_models()
        need(found)
        return found[0]

    def place(self, path: str) -> str | None:
        """The site of a layer, where one model is trained, so that its names are those of the run."""
        models = self.trained_models()
        one = len(models) == 1 or (len({m.layer.kind for m in models}) == 1 and models[0].layer.kind in self.classes)
        return path if one and len(self.optimizers) == 1 else None

    def is_indexed(self, layer: Layer) -> bool:
        """Whether the script takes children of a layer, or of a model, by their index."""
        names = {model.name for model in self.models} | ({layer.name} if layer.name else set())
        return any(isinstance(n, ast.Subscript) and last(n.value) in names for n in ast.walk(self.tree))

    def resolve(self, node: ast.expr, function: ast.AST) -> Layer | None:
        """The layer that `model.body` stands for."""
        first, *names = dotted(node).split(".")
        models = self.models_named(first, function)
        layer = models[0].layer if models else None
        for name in names:
            layer = layer and layer.child(name)
        return layer

    def model_calls(self) -> list[ast.Call]:
        """The calls of the only trained model, in order."""
        need(len(self.optimizers) == 1)
        trained, found = self.trained_models(), []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                models = self.models_named(node.func.id, self.function(node))
                if any(model in trained for model in models) and not self._in_class(node):
                    found.append(node)
        need(found)
        return found

    # What it minimizes

    def loss_calls(self, kind: str) -> list[ast.Call]:
        """The calls of a loss: `F.mse_loss(...)`, `nn.MSELoss()(...)`, or of a name that holds the latter."""
        held = {name for name, a in self.assignments() if last(getattr(a.value, "func", a.value)) == LOSSES[kind]}
        found = self.calls(kind) + [call for name in held for call in self.calls(name)]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and last(node.func.func) == LOSSES[kind]:
                found.append(node)
        trained = [c for c in found if len(c.args) > 1 and not self.without_gradient(c)]
        return [c for c in trained if self.loops(c) or isinstance(self.function(c), ast.FunctionDef)]

    def loss_name(self, backward: ast.Call) -> str:
        """`loss` of `loss.backward()` and of `(loss / 4).backward()`."""
        operand = backward.func.value
        while isinstance(operand, ast.BinOp):
            operand = operand.left
        need(isinstance(operand, ast.Name))
        return operand.id

    def is_known_loss(self, node: ast.expr, function: ast.AST, depth: int = 0) -> bool:
        """Whether an expression is a sum in which a loss of torch's stands, with a plus."""
        if depth > 6:
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return any(self.is_known_loss(side, function, depth + 1) for side in (node.left, node.right))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            return self.is_known_loss(node.left, function, depth + 1)
        if isinstance(node, ast.Name):
            values = [a.value for name, a in self.assignments(function) if name == node.id]
            return bool(values) and self.is_known_loss(values[0], function, depth + 1)
        if isinstance(node, ast.Call) and (inner := self.functions.get(last(node.func))):
            returns = [n.value for n in ast.walk(inner) if isinstance(n, ast.Return) and n.value]
            return len(returns) == 1 and self.is_known_loss(returns[0], inner, depth + 1)
        return isinstance(node, ast.Call) and any(node in self.loss_calls(kind) for kind in LOSSES)

    # Changes

    def replace(self, old: ast.AST, new: ast.AST) -> None:
        holder = self.parent[old]
        for name, value in ast.iter_fields(holder):
            if value is old:
                setattr(holder, name, new)
            elif isinstance(value, list):
                value[:] = [new if one is old else one for one in value]
        self.parent[new] = holder
        self._adopt(new)

    def _block(self, statement: ast.stmt) -> list[ast.stmt]:
        fields = (value for _, value in ast.iter_fields(self.parent[statement]) if isinstance(value, list))
        return next(block for block in fields if any(one is statement for one in block))

    def insert(self, statement: ast.stmt, *lines: str, after: bool = False) -> None:
        """Lines before a statement, or after it."""
        block, new = self._block(statement), [statement_of(line) for line in lines]
        at = next(i for i, one in enumerate(block) if one is statement) + after
        block[at:at] = new
        for one in new:
            self.parent[one] = self.parent[statement]
            self._adopt(one)

    def insert_after_imports(self, source: str) -> None:
        imports = [s for s in self.tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
        need(any(isinstance(s, ast.Import) and s.names[0].name == "torch" for s in imports))
        self.insert(imports[-1], source, after=True)

    def remove(self, statement: ast.stmt) -> None:
        block = self._block(statement)
        block[:] = [one for one in block if one is not statement] or [ast.Pass()]
