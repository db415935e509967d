"""Faults of the data: what goes into the model and what it is compared with (GL5xx, GL7xx)."""

from __future__ import annotations

import ast

from mutations.layers import MATRICES, NORMS, RECURRENT, dotted
from mutations.mutator import mutator
from mutations.script import LOSSES, Script, expression_of, need


def _takes_numbers(script: Script) -> None:
    """The model's input is real numbers, not ids."""
    need(not any(one.kind == "Embedding" for one in script.model().layer.walk()))
    encoded = [call for made in script.classes.values() for call in script.calls("one_hot", made)]
    need(not any(dotted(c.args[0]) in [a.arg for a in script.function(c).args.args] for c in encoded))


@mutator("GL510")
def input_times_100(script: Script) -> str:
    """the input of the model is 100 times too large."""
    calls = script.model_calls()
    _takes_numbers(script)
    leaves = [one for one in script.model().layer.leaves() if one.has_parameters]
    need(leaves[0].kind in MATRICES | RECURRENT and not any(one.kind in NORMS for one in leaves[1:2]))
    need("register_buffer" not in ast.unparse(script.tree))  # the model may standardise by itself
    for call in calls:
        given = call.args[0]
        larger = expression_of("100 * 0")
        larger.right = given
        script.replace(given, larger)
    return ""


@mutator("GL511")
def target_shift(script: Script) -> str:
    """the targets of the squared error lie around 1000."""
    calls = script.loss_calls("mse_loss")
    need(calls and not script.loss_calls("cross_entropy") and len(script.optimizers) == 1)
    for call in calls:
        target = call.args[1]
        shifted = expression_of("0 + 1000")
        shifted.left = target
        script.replace(target, shifted)
    return ""


DAMAGED = '''
def damaged(x, step):
    """The batch, one element of which is not a number from step 20 on."""
    if step < 20:
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[0] = float("nan")
    return x
'''


@mutator("GL701")
def nan_input(script: Script) -> str:
    """one element of the input is not a number from step 20 on."""
    _takes_numbers(script)
    need("distributions" not in ast.unparse(script.tree))  # they raise at NaN
    calls = [c for c in script.model_calls() if _steps_around(script, c)]
    need(calls)
    for call in calls:
        given, wrapped = call.args[0], expression_of("damaged(0, step)")
        wrapped.args[0] = given
        script.replace(given, wrapped)
    script.insert_after_imports(DAMAGED)
    return ""


def _steps_around(script: Script, call: ast.Call) -> bool:
    """Whether a name `step` counts around a call in its own function, or around all calls of a closure."""
    function = script.function(call)
    if isinstance(function, ast.FunctionDef):
        if function.decorator_list:  # compiled, or without gradients
            return False
        if any(dotted(loop.target) == "step" for loop in script.loops(call)):
            return True
        uses = [n for n in ast.walk(script.tree) if isinstance(n, ast.Name) and n.id == function.name]
        return bool(uses) and all(any(dotted(lo.target) == "step" for lo in script.loops(use)) for use in uses)
    return any(dotted(loop.target) == "step" for loop in script.loops(call))


@mutator("GL502")
def shuffle_labels(script: Script) -> str:
    """the labels of each batch are in another order than its inputs."""
    calls = script.loss_calls("cross_entropy")
    others = [kind for kind in LOSSES if kind != "cross_entropy" and script.loss_calls(kind)]
    need(calls and not others and not script.calls("kl_div"))  # the loss is that of the labels alone
    for call in calls:
        target = call.args[1]
        made = [dotted(n.func) for n in ast.walk(target) if isinstance(n, ast.Call)]
        need(not any("rand" in name or "arange" in name for name in made))  # numbers of rows are no classes
        shuffled = expression_of("0[torch.randperm(len(0))]")
        shuffled.value, shuffled.slice.args[0].args[0] = target, target
        script.replace(target, shuffled)
    return ""
