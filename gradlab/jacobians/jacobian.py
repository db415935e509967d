"""`gradlab.jacobian`: a slice of the Jacobian between any two sites of a model, at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradlab.arguments import ANYTHING, FLAG, NAME, check_arguments, described, mapping, named_options, optional
from gradlab.errors import JacobianError
from gradlab.frame import JacobianBlock
from gradlab.identity import WeakIdentityDict
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.entries import Picks, as_tuple
from gradlab.jacobians.isolation.modules import ModuleMode
from gradlab.jacobians.measure import measure
from gradlab.jacobians.options import Reduce, Slice
from gradlab.jacobians.request import Request
from gradlab.sites.leaves import leaves
from gradlab.sites.names import unwrapped
from gradlab.torch_arguments import INPUTS, MATRIX, MODEL


@named_options
def jacobian(
    model: nn.Module,
    x: Any,
    *,
    of: str = "output",
    wrt: str = "input",
    rows: Picks = None,
    cols: Picks = None,
    samples: Picks = None,
    reduce: Reduce = "mean",
    of_map: Literal["softmax"] | None = None,
    weights: Tensor | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    engine: str = "auto",
    mode: ModuleMode = "eval",
    batched: bool | None = None,
    chunk: int | None = None,
    audit: bool = True,
    spectrum: bool = True,
    block: bool = True,
    top: int = 8,
) -> JacobianBlock:
    """The slice [rows, cols] of d(of)/d(wrt), exact, without a trace in the model.

        block = gradlab.jacobian(model, x[:1], of="output", wrt="layers.0", rows=10)
        block.values, block.row_names, block.summaries["sigma_1"]

    J[i, j] = d of.flatten()[rows[i]] / d wrt.flatten()[cols[j]], of each sample, then reduced over samples.

    Args:
        model: any module, wrapped (DDP, compile) or not. It is run once, from the inputs to `of`, on copies of its
            buffers; modes, random numbers, `.grad` and buffers are afterwards what they were.
        x: the input: a tensor, a tuple of arguments or a mapping of keyword arguments.
        of: the site that is differentiated: `output`, `layers.0`, `layers.0/relu`, `rnn[1]`, a `gradlab.tap` name.
        wrt: the site that it is differentiated by: `input`, `layers.1:in`, any of the above, or a parameter such as
            `layers.0.weight`. Frozen parameters and layers are no obstacle.
        rows: which entries of `of`, of one sample: the first so many, or flat indices; all where left out.
        cols: which entries of `wrt`. Asking for fewer saves memory; asking for less than half as many as rows, time.
        samples: which samples of `x`: the first so many, or indices; all where left out.
        reduce: `mean` or `rms` over samples, entry by entry, or `none` for [samples, rows, cols].
        of_map: `softmax` over the last axis of `of`.
        weights: [k, entries of one sample], in place of `rows`: the rows are then `weights @ J`.
        groups: names and entries of `of`, in place of `rows`: each row is the derivative of the mean of its entries.
        engine: `auto`, or one to insist on: `vmap`, `is_grads_batched`, `loop` (rows), `columns`, `columns_math`
            (through the backward), `forward` (mode), `rank` (parameters of linear layers), `differences`.
        mode: `eval` (no dropout, running statistics) or `as_is` (the modes that the modules are in).
        batched: whether axis 0 of `x` counts samples; where left out, it does if `x` has more than one axis.
        chunk: vectors pulled back at once; from a budget of memory where left out, and halved where memory runs out.
        audit: whether to compare the block with one plain backward.
        spectrum: whether to compute norms, ranks and singular values.
        block: without, only the norm (with an interval) and the `top` leading singular values are estimated, by
            products with a few vectors: for Jacobians too large to hold. `values` is then empty.
        top: how many singular values where they are not all computed, beyond a shorter side of 1,024.
    Returns:
        The block, on the host. `audit_error` compares it with one plain backward; `engine` and `notes` say how it was
        made; `summaries` hold norms and ranks of the slice.
    Raises:
        JacobianError: if a site or an index does not exist, `of` does not depend on `wrt`, or a tensor is not
            floating-point.
    Cost: one forward and min(rows, about 2 * cols) backward passes' arithmetic between the two sites, batched.
    """
    given = {"model": model, "x": x, "of": of, "wrt": wrt, "weights": weights, "groups": groups, "engine": engine}
    flags = {"batched": batched, "audit": audit, "spectrum": spectrum, "block": block}
    kept = check_arguments("jacobian()", _ARGUMENTS, given | flags, JacobianError)
    _check_words(reduce=reduce, of_map=of_map, mode=mode)
    what = Slice(
        of=of,
        wrt=wrt,
        rows=as_tuple(rows),
        cols=as_tuple(cols),
        groups=groups,
        weights=kept["weights"],
        reduce=reduce,
        of_map=of_map,
        block=block,
    )
    _check_counts(chunk=chunk, top=top)
    request = Request(
        slice=what,
        samples=as_tuple(samples),
        module_mode=mode,
        batched=batched,
        chunk=chunk,
        audit=audit,
        spectrum=spectrum,
        top=top,
    )
    return measure(model, x, request, _fallback_for(model, x, request, engine), torch.Generator().manual_seed(0))


_ARGUMENTS = {
    "model": MODEL,
    "x": INPUTS,
    **dict.fromkeys(("of", "wrt", "engine"), NAME),
    "weights": optional(MATRIX),
    "groups": optional(mapping(ANYTHING, "a mapping from names to lists of indices")),
    "batched": optional(FLAG),
    **dict.fromkeys(("audit", "spectrum", "block"), FLAG),
}

_WORDS: dict[str, tuple[str | None, ...]] = {
    "reduce": ("mean", "rms", "none"),
    "of_map": ("softmax", None),
    "mode": ("eval", "as_is"),
}


def _check_words(**given: Any) -> None:
    for name, value in given.items():
        if not (value is None or isinstance(value, str)) or value not in _WORDS[name]:
            words = ", ".join(map(repr, _WORDS[name]))
            raise JacobianError(f"{name}={described(value)} means nothing here; give one of {words}.")


def _check_counts(**given: Any) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise JacobianError(f"{name}={value!r}: give a whole number from 1.")


_fallbacks: WeakIdentityDict = WeakIdentityDict()
"""For each model, what was learned of the engines for each request."""
_MOST_FALLBACKS = 64


def _fallback_for(model: nn.Module, inputs: Any, request: Request, engine: str) -> Fallback:
    """What was learned from an equal request of this model with inputs of these shapes, or a new fallback."""
    key = request.key()
    if key is None:
        return Fallback(engine)
    shapes = tuple((suffix, t.shape, t.dtype, t.device) for suffix, t in leaves(inputs))
    known: dict[Hashable, Fallback] = _fallbacks.setdefault(unwrapped(model), {})
    if len(known) >= _MOST_FALLBACKS:
        known.clear()
    return known.setdefault((key, engine, shapes), Fallback(engine))
