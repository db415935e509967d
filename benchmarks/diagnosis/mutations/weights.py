"""Faults of the weights that a training starts from (GL4xx)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mutations.layers import DROPOUTS, MATRICES, Layer, last
from mutations.mutator import mutator
from mutations.script import NotHere, Script, need
from mutations.wiring import access

ODD = {"Tanh", "ReLU", "LeakyReLU", "GELU", "SiLU", "ELU", "Softsign"}
"""Activations that leave 0 at 0."""
SHAPES = {"Flatten", "Unflatten", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "Identity", "MaxPool1d", "AvgPool1d"}


def _has_bias(layer: Layer) -> bool:
    return not any(k.arg == "bias" for k in layer.call.keywords)


def _before_relu(script: Script, model: Layer) -> list[Layer]:
    """The layers whose output goes into a ReLU and nowhere else."""
    found = []
    for one in model.walk():
        if one.kind == "Sequential":
            pairs = zip(one.children, one.children[1:], strict=False)
            found += [layer for layer, then in pairs if layer.kind in MATRICES and then.kind == "ReLU"]
        elif one.kind in script.classes:
            for call in script.calls("relu", script.classes[one.kind]):
                inner = call.args[0] if call.args else call.func.value
                layer = one.child(last(inner.func)) if isinstance(inner, ast.Call) else None
                found += [layer] if layer and layer.kind in MATRICES else []
    return [layer for layer in found if _has_bias(layer)]


@mutator("GL401")
def bias_minus(script: Script) -> str | None:
    """the biases before ReLU are -10, so that the units are dead."""
    model = script.model()
    layers = _before_relu(script, model.layer)
    need(layers)
    # A list of which only the first part was read would leave the others alive.
    need(all(one.whole for one in model.layer.walk()))
    for layer in reversed(layers):
        script.insert(
            model.statement, f"torch.nn.init.constant_({access(model.name, layer.path)}.bias, -10.0)", after=True
        )
    return script.place(layers[0].path)


def _chains(layer: Layer) -> Iterator[list[Layer]]:
    """Linear and convolutional layers that follow each other with nothing but activations that leave 0 at 0."""
    for one in layer.walk():
        if one.kind != "Sequential" or not one.whole:
            continue
        chain: list[Layer] = []
        for child in one.children:
            if child.kind in MATRICES - {"Embedding"}:
                chain.append(child)
            elif child.kind not in ODD | SHAPES | DROPOUTS:
                yield chain
                chain = []
        yield chain


@mutator("GL403")
def zero_init(script: Script) -> str | None:
    """consecutive layers start at zero, weights and biases."""
    model = script.model()
    for chain in _chains(model.layer):
        if len(chain) > 1 and not (len(chain) == 2 and chain[1] is list(model.layer.leaves())[-1]):
            zeroed = chain[:-1] if len(chain) > 2 else chain
            for layer in reversed(zeroed):
                for name in ("weight", "bias") if _has_bias(layer) else ("weight",):
                    script.insert(
                        model.statement, f"torch.nn.init.zeros_({access(model.name, layer.path)}.{name})", after=True
                    )
            return script.place(zeroed[0].path)
    raise NotHere


@mutator("GL404")
def constant_init(script: Script) -> str | None:
    """the weights of a layer and of the next start at one number, so that the units stay alike."""
    # With the next layer's weights at random the units would differ after the first step.
    model = script.model()
    need(not any(one.kind in DROPOUTS for one in model.layer.walk()))
    for chain in _chains(model.layer):
        if len(chain) > 1:
            first, then = (access(model.name, layer.path) for layer in chain[:2])
            script.insert(model.statement, f"torch.nn.init.constant_({then}.weight, 0.05)", after=True)
            if _has_bias(chain[0]):
                script.insert(model.statement, f"torch.nn.init.zeros_({first}.bias)", after=True)
            script.insert(model.statement, f"torch.nn.init.constant_({first}.weight, 0.05)", after=True)
            return script.place(chain[0].path)
    raise NotHere
