"""Faults of the wiring: which parameters are trained, by what, and how gradients reach them (GL1xx)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutations.layers import ATTENTION, MATRICES, RECURRENT, Layer, dotted, last
from mutations.mutator import mutator
from mutations.script import NotHere, Script, expression_of, need


@mutator("GL103")
def drop_zero_grad(script: Script) -> str:
    """gradients are never reset."""
    need(not any(o.is_local for o in script.optimizers))  # SAM resets inside of its steps
    resets = [c for c in script.calls("zero_grad") if isinstance(script.parent[c], ast.Expr)]
    resets += [c for c in script.calls("zero_") if "grad" in dotted(c.func)]
    found = [script.statement(call) for call in resets]
    for node in ast.walk(script.tree):
        if isinstance(node, ast.Assign) and last(node.targets[0]) == "grad" and ast.unparse(node.value) == "None":
            found.append(node)
    need(found)
    for statement in found:
        loop = script.parent[statement]
        script.remove(loop if isinstance(loop, ast.For) and len(loop.body) == 1 else statement)
    return ""


@mutator("GL104")
def drop_step(script: Script) -> str:
    """no optimizer is ever stepped."""
    need(script.optimizers and not any(o.is_local for o in script.optimizers))
    by_hand = {"clamp_", "add_", "sub_", "mul_", "clip_"}
    for loop in (n for n in ast.walk(script.tree) if isinstance(n, ast.For) and ".parameters()" in ast.unparse(n.iter)):
        need(not any(script.calls(name, loop) for name in by_hand))  # weights that move without an optimizer
    steps = [call for optimizer in script.optimizers for call in script.steps(optimizer)]
    need(steps)
    for call in steps:
        closure = [a for a in call.args if dotted(a) in script.functions]
        if closure:
            script.replace(call, ast.Call(closure[0], [], []))
        else:
            need(isinstance(script.parent[call], ast.Expr))
            script.remove(script.statement(call))
    for call in script.calls("update"):
        if "scaler" in dotted(call.func):  # it raises without a step
            script.remove(script.statement(call))
    return ""


def _dropped_child(script: Script, layer: Layer) -> Layer:
    """The last child that is trained: used, not frozen, with weights of its own."""
    forward = _forward(script, layer)
    for child in reversed(layer.trained):
        uses = [n for n in ast.walk(forward or script.tree) if isinstance(n, ast.Attribute) and n.attr == child.name]
        used = layer.kind == "Sequential" or any(not script.without_gradient(n) for n in uses)
        if used and not child.tied and not script.freezes(child.name) and child.kind != "Parameter":
            return child
    raise NotHere


def _without_one_child(script: Script, node: ast.expr, function: ast.AST) -> tuple[ast.expr, str]:
    """`model.parameters()` without those of one child, and the name of this one."""
    need(isinstance(node, ast.Call) and last(node.func) == "parameters")
    layer, owner = script.resolve(node.func.value, function), ast.unparse(node.func.value)
    need(layer and layer.whole)
    while len(layer.trained) == 1:
        layer = layer.trained[0]
        owner = f"{owner}[{layer.name}]" if layer.name.isdigit() else f"{owner}.{layer.name}"
        need(layer.whole)
    need(len(layer.trained) > 1)
    child = _dropped_child(script, layer)
    tied = [one for one in layer.trained if one.tied]
    kept = [one for one in layer.trained if one is not child and one not in tied[1:]]
    need(any(not script.freezes(one.name) for one in kept))
    if layer.kind == "Sequential":
        at = layer.children.index(child)
        cut = "-1" if at == len(layer.children) - 1 else str(at)
        return expression_of(f"{owner}[:{cut}].parameters()"), child.path
    if len(kept) == 1 and kept[0].kind != "Parameter":
        return expression_of(f"{owner}.{kept[0].name}.parameters()"), child.path
    parts = [f"{owner}.{k.name}" if k.kind == "Parameter" else f"*{owner}.{k.name}.parameters()" for k in kept]
    return expression_of(f"[{', '.join(parts)}]"), child.path


def _path_of(script: Script, node: ast.AST, function: ast.AST) -> str | None:
    """The layer whose `parameters()` stand in an expression."""
    calls = script.calls("parameters", node)
    layer = script.resolve(calls[0].func.value, function) if len(calls) == 1 else None
    return script.place(layer.path) if layer else None


@mutator("GL101")
def drop_parameter_group(script: Script) -> str | None:
    """the optimizer does not have the parameters of one part of the model."""
    need(script.optimizers)
    optimizer = script.optimizers[0]
    given, function = optimizer.parameters, script.function(optimizer.statement)
    if isinstance(given, ast.List) and len(given.elts) > 1:  # groups, or [*a.parameters(), *b.parameters()]
        return _path_of(script, given.elts.pop(), function)
    if isinstance(given, ast.BinOp) and isinstance(given.op, ast.Add):
        script.replace(given, given.left)
        return _path_of(script, given.right, function)
    if isinstance(given, ast.Call) and last(given.func) == "chain" and len(given.args) > 1:
        return _path_of(script, given.args.pop(), function)
    all_of = given.generators[0].iter if isinstance(given, ast.ListComp) else given
    less, path = _without_one_child(script, all_of, function)
    script.replace(all_of, less)
    return script.place(path)


def _forward(script: Script, layer: Layer) -> ast.FunctionDef | None:
    made = script.classes.get(layer.kind)
    methods = made.body if made else []
    return next((f for f in methods if isinstance(f, ast.FunctionDef) and f.name == "forward"), None)


def _classes_of(script: Script, layer: Layer) -> Iterator[tuple[Layer, ast.FunctionDef]]:
    """The layers of a model whose class is in the script, and their forwards, the outermost first."""
    for one in layer.walk():
        if forward := _forward(script, one):
            yield one, forward


@mutator("GL102")
def plain_list(script: Script) -> str | None:
    """submodules are kept in a plain list."""
    model = script.model()
    need(not script.freezes() or not script.has_stages())
    for owner, forward in _classes_of(script, model.layer):
        for child in owner.children:
            rest = [one for one in model.layer.walk() if not one.children and one.has_parameters]
            rest = [one for one in rest if not f"{one.path}.".startswith(f"{child.path}.")]
            uses = [
                node
                for node in ast.walk(script.tree)
                if isinstance(node, ast.Attribute) and node.attr == child.name and isinstance(node.ctx, ast.Load)
            ]
            inside = all(script.function(use) is forward for use in uses)
            if rest and uses and inside and child.kind in ("ModuleList", "Sequential") and child.has_parameters:
                if child.kind == "Sequential" and not _iterate(script, uses):
                    continue
                _make_list(script, child)
                return script.place(child.path)
    raise NotHere


def _iterate(script: Script, uses: list[ast.Attribute]) -> bool:
    """Turns `self.body(x)` into a fold over the list, where all uses are such calls."""
    calls = [script.parent[use] for use in uses]
    if not all(isinstance(call, ast.Call) and call.func is use for call, use in zip(calls, uses, strict=True)):
        return False
    if not all(len(call.args) == 1 and not call.keywords for call in calls):
        return False
    for call in calls:
        fold = expression_of("functools.reduce(lambda h, layer: layer(h), 0, 0)")
        fold.args[1:] = [call.func, call.args[0]]
        script.replace(call, fold)
    script.insert_after_imports("import functools")
    return True


def _make_list(script: Script, child: Layer) -> None:
    call = child.call
    if child.kind == "ModuleList" and len(call.args) == 1 and not isinstance(call.args[0], ast.Starred):
        given = call.args[0]
        made = given if isinstance(given, ast.List | ast.ListComp) else ast.Call(ast.Name("list"), [given], [])
        if isinstance(given, ast.GeneratorExp):
            made = ast.ListComp(given.elt, given.generators)
    else:
        made = ast.List(call.args, ast.Load())
    script.replace(call, made)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function in the order in which they are evaluated, near enough."""
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)
    yield node


def _returns_tuple(script: Script, layer: Layer) -> bool:
    forward = _forward(script, layer)
    if layer.kind in RECURRENT - {"RNNCell", "GRUCell"} or layer.kind == "MultiheadAttention":
        return True
    if layer.kind == "ModuleList" or (layer.kind in script.classes and forward is None):
        return True
    return any(isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple) for n in ast.walk(forward or ast.Pass()))


@mutator("GL106")
def detach_middle(script: Script) -> str | None:
    """the graph is cut by a detach() in the middle of the model."""
    need(not any(o.is_local for o in script.optimizers))
    model = script.model()
    forward = _forward(script, model.layer)
    if forward is not None:
        calls = [
            (child, node)
            for node in _in_order(forward)
            if isinstance(node, ast.Call) and dotted(node.func).startswith("self.")
            if (child := model.layer.child(last(node.func))) and child.has_parameters
            if not script.without_gradient(node)
        ]
        for child, _ in calls[: next((i for i, (c, _) in enumerate(calls) if c is calls[-1][0]), 0)]:
            if not (child.tied or _returns_tuple(script, child) or script.freezes(child.name)):
                for node in [node for one, node in calls if one is child]:
                    script.replace(node, ast.Call(ast.Attribute(node, "detach", ast.Load()), [], []))
                return script.place(child.path)
        others = [c for c in model.layer.trained if calls and c is not calls[-1][0]]
        before = [c for c in others if not (c.tied or script.freezes(c.name) or c.kind == "Parameter")]
        given = {argument.arg for argument in forward.args.args}  # the input of the model has no gradient anyway
        heads = [node for child, node in calls if child is calls[-1][0] and len(node.args) == 1]
        heads = [node for node in heads if dotted(node.args[0]) not in given]
        if len(before) == len(others) == len(heads) == 1:
            given = heads[0].args[0]
            script.replace(given, ast.Call(ast.Attribute(given, "detach", ast.Load()), [], []))
            return script.place(before[0].path)
    return _detach_in_sequence(script, model.layer)


def _detach_in_sequence(script: Script, layer: Layer) -> str | None:
    for one in layer.walk():
        used = one is layer or any(not script.without_gradient(n) and n.ctx for n in _uses(script, one))
        if one.kind == "Sequential" and one.whole and len(one.trained) > 1 and used:
            need(not script.is_indexed(one))
            need(not script.freezes(one.name) and not script.calls("load_state_dict"))
            before = one.trained[len(one.trained) // 2 - 1]
            need(not _returns_tuple(script, before))
            at = one.children.index(before)
            one.call.args.insert(at + 1, expression_of("Detach()"))
            script.insert_after_imports(DETACH)
            return script.place(before.path)
    raise NotHere


DETACH = """
class Detach(torch.nn.Module):
    def forward(self, x):
        return x.detach()
"""


def _uses(script: Script, layer: Layer) -> list[ast.Attribute]:
    found = [n for n in ast.walk(script.tree) if isinstance(n, ast.Attribute) and n.attr == layer.name]
    return [n for n in found if isinstance(script.parent[n], ast.Call) and script.parent[n].func is n]


@mutator("GL108")
def frozen_random(script: Script) -> str | None:
    """a layer is frozen at its random init."""
    need(script.optimizers and not any(o.is_local for o in script.optimizers))
    need(not script.has_stages() and "nn.init" not in ast.unparse(script.tree).replace("nn.init.zeros_", ""))
    model = script.model()
    kinds = (MATRICES | RECURRENT | ATTENTION) - {"Embedding"}
    found = [one for one in model.layer.walk() if one.kind in kinds and not one.tied]
    found = [one for one in found if not script.freezes(one.path.split(".")[0])]
    need(len(found) > 1 or (found and found[0] is not model.layer))
    chosen = found[1] if len(found) > 1 else found[0]
    need(any(leaf.has_parameters and leaf is not chosen for leaf in model.layer.leaves()))
    script.insert(model.statement, f"{access(model.name, chosen.path)}.requires_grad_(False)", after=True)
    return script.place(chosen.path)


def access(owner: str, path: str) -> str:
    """`model.body[3]` of `body.3`."""
    names = path.split(".") if path else []
    return owner + "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in names)


@mutator("GL109")
def retain_losses(script: Script) -> str:
    """all losses are kept with their graphs."""
    need(len({o.name for o in script.optimizers}) == 1)
    backward = script.backwards[0] if script.backwards else None
    need(backward)
    name, loops = script.loss_name(backward), script.loops(backward)
    if not loops:  # a closure: the loss that its step gives
        steps = [script.statement(c) for c in script.steps(script.optimizers[0]) if script.loops(c)]
        need(len(steps) == 1 and isinstance(steps[0], ast.Assign) and dotted(steps[0].targets[0]))
        name, loops, backward = dotted(steps[0].targets[0]), script.loops(steps[0]), steps[0]
    used = {n.id for n in ast.walk(script.tree) if isinstance(n, ast.Name)}
    kept = next(one for one in ("kept", "losses", "kept_losses") if one not in used)
    script.insert(loops[-1], f"{kept} = []")
    script.insert(script.statement(backward), f"{kept}.append({name})", after=True)
    return ""


@mutator("GL105")
def two_optimizers(script: Script) -> str | None:
    """a second optimizer moves the last layer too."""
    optimizer, model = script.optimizer, script.model()
    steps = script.steps(optimizer)
    need(len(steps) == 1 and script.function(steps[0]) is script.function(optimizer.statement))
    need(isinstance(script.parent[steps[0]], ast.Expr) and dotted(steps[0].func) == f"{optimizer.name}.step")
    calls = script.calls("parameters", optimizer.parameters)
    need(len(calls) == 1 and model.layer.whole)
    layer, owner = script.resolve(calls[0].func.value, script.function(optimizer.statement)), calls[0].func.value
    need(layer and layer.whole and len(layer.trained) > 1)
    child = _dropped_child(script, layer)
    part = access(ast.unparse(owner), child.name)
    if script.has_stages():
        need(not script.freezes(child.name))
    script.insert(optimizer.statement, f"second_optimizer = torch.optim.SGD({part}.parameters(), lr=0.01)", after=True)
    script.insert(script.statement(steps[0]), "second_optimizer.step()", after=True)
    return script.place(child.path)
