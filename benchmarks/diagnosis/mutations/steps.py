"""Faults of the size of a step: learning rate, weight decay, clipping, scale of the loss (GL3xx)."""

from __future__ import annotations

import ast

from mutations.layers import dotted, last
from mutations.mutator import mutator
from mutations.script import ADAM, OPTIMIZERS, Optimizer, Script, expression_of, need

DEFAULT_RATE = {"SGD": 1e-3, "Adam": 1e-3, "AdamW": 1e-3, "RMSprop": 1e-2, "Adagrad": 1e-2}


def rate(optimizer: Optimizer) -> ast.expr:
    """The learning rate as the script gives it, or the default one."""
    if keyword := optimizer.option("lr"):
        return keyword.value
    if len(optimizer.call.args) > 1 and optimizer.kind in OPTIMIZERS:
        return optimizer.call.args[1]
    need(optimizer.kind in DEFAULT_RATE)
    return ast.Constant(DEFAULT_RATE[optimizer.kind])


def set_option(optimizer: Optimizer, name: str, value: ast.expr) -> None:
    if keyword := optimizer.option(name):
        keyword.value = value
    else:
        optimizer.call.keywords.append(ast.keyword(name, value))


def times(value: ast.expr, factor: float) -> ast.expr:
    if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
        return ast.Constant(float(f"{value.value * factor:.6g}"))
    return ast.BinOp(ast.Constant(factor), ast.Mult(), value)


def scale_rates(script: Script, factor: float) -> None:
    need(script.optimizers and all(o.kind != "LBFGS" for o in script.optimizers))  # its line search mends the rate
    for optimizer in script.optimizers:
        new = times(rate(optimizer), factor)
        if optimizer.option("lr") is None and len(optimizer.call.args) > 1 and not optimizer.is_local:
            optimizer.call.args[1] = new
        else:
            set_option(optimizer, "lr", new)
        for node in ast.walk(optimizer.parameters):
            if isinstance(node, ast.Dict):
                for i, key in enumerate(node.keys):
                    if isinstance(key, ast.Constant) and key.value == "lr":
                        node.values[i] = times(node.values[i], factor)
    for node in ast.walk(script.tree):
        if isinstance(node, ast.keyword) and node.arg == "max_lr":
            node.value = times(node.value, factor)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):  # group["lr"] = ...
            key = node.targets[0].slice
            if isinstance(key, ast.Constant) and key.value == "lr":
                node.value = times(node.value, factor)


def need_harm(script: Script) -> None:
    """Leaves out trainings that were measured to learn as well at 100 times the rate: batch norm takes the scale of
    the weights out again as the rate decays, and a small policy may be as sure as it likes."""
    text = ast.unparse(script.tree)
    need(not ("BatchNorm" in text and "lr_scheduler" in text) and "distributions" not in text)


@mutator("GL301")
def lr_times_100(script: Script) -> str:
    """the learning rate is 100 times too large."""
    need_harm(script)
    scale_rates(script, 100)
    return ""


@mutator("GL301")
def lr_times_1000(script: Script) -> str:
    """the learning rate is 1000 times too large."""
    for optimizer in script.optimizers:
        value = rate(optimizer)
        need(isinstance(value, ast.Constant) and value.value <= (1e-2 if optimizer.kind == "SGD" else 1e-3))
    need_harm(script)
    scale_rates(script, 1000)
    return ""


@mutator("GL302")
def lr_div_1000(script: Script) -> str:
    """the learning rate is 1000 times too small."""
    scale_rates(script, 0.001)
    return ""


@mutator("GL303")
def decay_large(script: Script) -> str:
    """weight decay takes 10 % of the weights at each step."""
    optimizer = script.optimizer
    need(optimizer.kind in ("SGD", "AdamW"))
    value = rate(optimizer)
    decay = ast.BinOp(ast.Constant(0.1), ast.Div(), value)
    if isinstance(value, ast.Constant):
        decay = ast.Constant(float(f"{0.1 / value.value:.6g}"))
    for node in ast.walk(optimizer.parameters):
        if isinstance(node, ast.Dict):
            for i, key in enumerate(node.keys):
                if isinstance(key, ast.Constant) and key.value == "weight_decay":
                    need(isinstance(node.values[i], ast.Constant))
                    node.values[i] = decay if node.values[i].value else node.values[i]
    set_option(optimizer, "weight_decay", decay)
    return ""


@mutator("GL304")
def clip_tiny(script: Script) -> str:
    """gradients are clipped to a norm of 0.001."""
    optimizer = script.optimizer
    need(optimizer.kind == "SGD")
    clips = script.calls("clip_grad_norm_")
    for call in clips:
        limit = [k for k in call.keywords if k.arg == "max_norm"]
        if limit:
            limit[0].value = ast.Constant(0.001)
        else:
            call.args[1] = ast.Constant(0.001)
    if not clips:
        (step,) = script.steps(optimizer)
        group = f'[p for group in {optimizer.name}.param_groups for p in group["params"]]'
        given = optimizer.parameters
        if isinstance(given, ast.Call) and last(given.func) == "parameters" and dotted(given.func):
            group = ast.unparse(given)
        script.insert(script.statement(step), f"torch.nn.utils.clip_grad_norm_({group}, 0.001)")
    return ""


@mutator("GL305")
def loss_tiny(script: Script) -> str:
    """the loss is multiplied by 1e-9."""
    need(script.backwards and script.optimizers and all(o.kind in ADAM for o in script.optimizers))
    for backward in script.backwards:
        operand = backward.func.value
        need(not isinstance(operand, ast.Call))
        scaled = expression_of("0 * 1e-9")
        scaled.left = operand
        script.replace(operand, scaled)
    return ""
