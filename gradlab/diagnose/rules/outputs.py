"""What comes out of a model: the same for every input, or no more than how often each answer occurs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnose.context import Context, LossSeries, TargetFacts
from gradlab.diagnose.registry import Evidence, rule

_LOOKS = 5
"""In so many looks in a row outputs must be constant."""
_SETTLED = 40
"""Before this step a slow start may look so: a head of zeros, a deep plain net."""
_STEPS = 80
"""So many losses are looked at."""
_NAMES = {"Softmax": "softmax", "LogSoftmax": "log_softmax (or cross_entropy)"}


# GL501. Spread of the prediction over a batch, by its rms: faulty up to 3e-5, healthy from 2e-3 on.
@rule("GL501", "constant-output", certainty="scale-free", explains=("GL302", "GL407", "GL502"))
def constant_output(context: Context) -> Iterator[Evidence]:
    """The output of the model is the same for every input.

    **What it sees.** A softmax over a dimension that holds one number, right before the loss: its result is 1 whatever
    goes in. Otherwise the predictions that the loss has got: over a batch they differ by less than a ten-thousandth of
    their size, in five looks in a row after 40 steps.

    **Why it hurts.** The loss can reach no more than what the best constant gives: log 2 for two classes.

    **What to do.** Of one output unit take the sigmoid, with binary_cross_entropy_with_logits. Otherwise look for what
    cuts the input off: dead units, a vanishing signal, an input that is overwritten or multiplied by zero.

    **What looks like it and is healthy.** A head of zeros before its first step, the first steps of a deep
    net. Most often it is the symptom of
    another finding, under which it is then told.
    """
    for graph in context.graphs:
        if graph.softmax_of_one:
            site = graph.activation_modules[0] if len(graph.activation_modules) == 1 else ""
            yield Evidence(
                sites=(site,) if site else (),
                message=f"the loss is given a {_NAMES[graph.softmax_of_one]} over a dimension of size 1"
                f"{f' (module {site!r})' if site else ''}: it is the same for every input, and has no gradient.",
                remedy="For one output unit use a sigmoid, with binary_cross_entropy_with_logits; for a softmax give "
                "the model one unit a class.",
                severity="error",
                first_step=0,
            )
            return
    yield from _constant_predictions(context)


def _constant_predictions(context: Context) -> Iterator[Evidence]:
    if context.step < _SETTLED:
        return
    recent = list(context.targets)[-_LOOKS:]
    spreads = [one.prediction_spread for targets in recent for one in targets[:1]]
    known = [one for one in spreads if one is not None and not math.isnan(one)]
    if len(known) < _LOOKS or max(known) > context.limit(1e-4):
        return
    inputs = context.inputs
    site = inputs.sites[-1] if inputs.sites else ""
    yield Evidence(
        sites=(site,) if site else (),
        message=f"the output no longer depends on the input: over a batch predictions differ by at most "
        f"{max(known):.0e} of their size in the last {len(known)} looks.",
        numbers={"spread": max(known), "looks": float(len(known))},
        remedy="Look for what cuts the input off: dead units, a signal that vanishes, an input that is overwritten.",
    )


@rule("GL502", "only-frequencies", certainty="scale-free", severity="info", after=100)
def only_frequencies(context: Context) -> Iterator[Evidence]:
    """The loss is that of a guess which knows how often each answer occurs, and nothing of the input.

    **What it sees.** The mean of the last losses, beside the entropy of the labels (for a squared error: beside the
    variance of the targets): within 2 %, with nothing gained over the whole run.

    **Why it hurts.** The model has learned nothing from its inputs. Often they do not belong to the labels: shuffled
    apart, or read from two loaders.

    **What to do.** Look at some pairs of input and label by eye, as the model gets them. Try to fit a single batch.

    **What looks like it and is healthy.** A slow start: this is no more than a hint. Other findings come first.
    """
    if not context.losses or not context.targets:
        return
    loss = max(context.losses, key=lambda one: len(one.values))
    name, guess = _guess(list(context.targets))
    values = loss.values[-_STEPS:]
    if not guess or len(values) < _STEPS // 2 or not _is_plain(loss, name):
        return
    late = values[-len(values) // 2 :]
    share, noise = float(np.mean(late)) / guess, float(np.std(late)) / guess / math.sqrt(len(late))
    if abs(share - 1) > context.limit(0.02) + 2 * min(noise, 0.02):
        return
    of = "the variance of the targets" if name == "MseLoss" else "the entropy of the labels"
    yield Evidence(
        message=f"the loss is {np.mean(late):.4g} over the last {len(late)} steps, {share:.1%} of {of}: it is that of "
        "a guess which knows nothing of the input.",
        numbers={"loss": float(np.mean(late)), of.removeprefix("the "): guess},
        remedy="Check that inputs and labels belong together, as the model gets them; try to fit a single batch.",
    )


def _is_plain(loss: LossSeries, name: str) -> bool:
    """Whether the values are those of the loss function itself."""
    return loss.root == name


def _guess(batches: Sequence[Sequence[TargetFacts]]) -> tuple[str, float]:
    """The loss function of the last batches, and the loss of the best guess that is the same for every input."""
    ones = [targets[0] for targets in batches if len(targets) == 1]
    if len(ones) < _LOOKS or len({one.loss for one in ones}) > 1:
        return "", 0.0
    name = ones[0].loss
    if name.startswith("Nll") and all(len(one.label_counts) == len(ones[0].label_counts) > 1 for one in ones):
        counts = np.sum([one.label_counts for one in ones], 0)
        shares = counts[counts > 0] / counts.sum()
        return name, float(-(shares * np.log(shares)).sum())
    mean = float(np.mean([one.mean for one in ones]))
    if name.startswith("BinaryCrossEntropy") and 0 < mean < 1:
        return name, -(mean * math.log(mean) + (1 - mean) * math.log(1 - mean))
    if name == "MseLoss":
        squares = [one.std**2 + (one.mean - mean) ** 2 for one in ones]
        return name, float(np.mean(squares))
    return "", 0.0
