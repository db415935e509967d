"""Faults of the loss and of the mode of the modules (GL2xx)."""

from __future__ import annotations

import ast

from mutations.layers import DROPOUTS, NORMS, dotted
from mutations.mutator import mutator
from mutations.script import NotHere, Script, expression_of, need


@mutator("GL201")
def add_softmax(script: Script) -> str:
    """the cross entropy is given probabilities."""
    calls = script.loss_calls("cross_entropy")
    need(calls)
    for call in calls:
        probabilities = expression_of("torch.softmax(0, dim=1)")
        logits = call.args[0]
        probabilities.args[0] = logits
        script.replace(logits, probabilities)
    return ""


@mutator("GL202")
def negate_loss(script: Script) -> str:
    """the loss is maximized."""
    need(script.optimizer)
    operand = script.backward.func.value
    need(script.is_known_loss(operand, script.function(script.backward)))
    script.replace(operand, ast.UnaryOp(ast.USub(), operand))
    return ""


@mutator("GL203")
def leaf_loss(script: Script) -> str:
    """the loss is made anew of a number, without a path to the weights."""
    need(not any(o.is_local for o in script.optimizers) and len(script.optimizers) == 1)
    need("scaler" not in ast.unparse(script.backward))  # its step raises without gradients
    name = script.loss_name(script.backward)
    script.insert(script.statement(script.backward), f"{name} = torch.tensor({name}.item(), requires_grad=True)")
    return ""


@mutator("GL204")
def no_average(script: Script) -> str:
    """the losses of a step are added up and not averaged."""
    need(script.optimizer.kind == "SGD" and len(script.loops(script.backward)) > 1)
    (step,) = script.steps(script.optimizer)
    need(len(script.loops(step)) < len(script.loops(script.backward)))
    operand = script.backward.func.value
    if isinstance(operand, ast.Name):
        values = [a.value for n, a in script.assignments(script.loops(script.backward)[0]) if n == operand.id]
        operand = values[-1] if values else operand
    need(isinstance(operand, ast.BinOp) and isinstance(operand.op, ast.Div))
    script.replace(operand, operand.left)
    return ""


@mutator("GL205")
def eval_mode(script: Script) -> str | None:
    """the model is trained in evaluation mode."""
    model, backward = script.model(), script.backward
    norms = [one for one in model.layer.leaves() if one.kind.startswith("BatchNorm")]
    switched = [c for c in script.calls("eval") + script.calls("train") if isinstance(script.parent[c], ast.Expr)]
    switched = [c for c in switched if isinstance(c.func, ast.Attribute)]
    need(norms and script.loops(backward) and not script.freezes() and not script.has_stages())
    for call in switched:
        need(dotted(call.func.value) == model.name)
        if call.func.attr == "train":  # the call after an evaluation, which is the one that is forgotten
            script.remove(script.statement(call))
    need(script.function(backward) is script.function(model.statement))
    script.insert(script.loops(backward)[-1], f"{model.name}.eval()")
    return script.place(norms[0].path)


@mutator("GL207")
def dropout_up(script: Script) -> str | None:
    """dropout drops 95 % of the units."""
    model = script.model()
    strong = ast.Constant(0.95)
    inside = False
    for one in model.layer.leaves():
        inside |= one.has_parameters
        if one.kind in DROPOUTS and inside:  # before the first weights it hides inputs, as in a masked autoencoder
            one.call.args, one.call.keywords = [strong], []
            return script.place(one.path)
        dropout = [k for k in one.call.keywords if k.arg == "dropout" and one.kind == "TransformerEncoderLayer"]
        if dropout:
            dropout[0].value = strong
            return script.place(one.path)
    for one in model.layer.walk():
        if one.kind == "Sequential" and one.whole and len(one.trained) > 2:
            need(not script.is_indexed(one) and not script.calls("load_state_dict"))
            need(not any(inner.kind in NORMS for inner in one.walk()))
            at = one.children.index(one.trained[-1])
            one.call.args.insert(at, expression_of("torch.nn.Dropout(0.95)"))
            return script.place(f"{one.path}.{at}".lstrip("."))
    raise NotHere
