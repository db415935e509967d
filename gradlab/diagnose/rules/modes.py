"""Modes and settings of modules: batch norms in evaluation mode or with tiny batches, dropouts that leave nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradlab.diagnose.context import Context, ModuleFacts
from gradlab.diagnose.registry import Evidence, rule

_SYMPTOMS = ("GL3", "GL4", "GL5", "GL6", "GL702", "GL703", "GL704", "GL705", "GL706")

EVALUATING = 20
"""In so many backwards in a row a batch norm is in evaluation mode. Measured over the corpus: 125 to 150 of 150 where
train() was forgotten, 0 where a validation lies between the steps."""


@rule("GL205", "batchnorm-eval", certainty="exact", ends_after=1000, explains=_SYMPTOMS)
def batchnorm_eval(context: Context) -> Iterator[Evidence]:
    """Batch norms are in evaluation mode while the model is trained.

    **What it sees.** The mode of batch norms that keep statistics, in 20 backwards in a row: where they have never
    measured any, or where they were in training mode before and are now in evaluation mode with the module that has
    them, as after `model.eval()` for a validation.

    **Why it hurts.** They normalise by statistics of weights that have long changed, or by none at all: the signal
    grows or shrinks from layer to layer as if there were no norm, and training becomes unstable.

    **What to do.** Call `model.train()` after each evaluation, and before the first step.

    **What looks like it and is healthy.** Norms that are put into evaluation mode by themselves while the module around
    them trains, norms of a pretrained model, norms that are not trained: no finding, or `info`.

    **How to silence it.** `--ignore GL205`, or `--ignore 'GL205@backbone.*'` for one place.
    """
    stuck = [one for one in context.modules if _keeps_statistics(one) and one.num_evaluating >= EVALUATING]
    grave = [one for one in stuck if _is_by_mistake(one, context)]
    mild = [one for one in stuck if one not in grave and one.num_training and _is_trained(one, context)]
    for ones, severity in ((grave, None), (mild, "info")):
        if ones and (severity is None or not grave):
            first = ones[0]
            since = first.evaluating_since
            by = "old statistics" if first.num_training or first.is_loaded else "statistics that were never measured"
            yield Evidence(
                sites=tuple(one.name for one in ones if one.name),
                message=f"{_named(ones)} normalis{'es' if len(ones) == 1 else 'e'} by {by}: in evaluation mode in the "
                f"last {first.num_evaluating} backwards.",
                remedy="Call model.train() after each evaluation, and before the first step.",
                numbers={"backwards": float(first.num_evaluating)},
                severity="info" if severity else None,
                first_step=since,
            )


def _keeps_statistics(one: ModuleFacts) -> bool:
    return "BatchNorm" in one.kind and bool(one.settings.get("track_running_stats", 1.0))


def _is_trained(one: ModuleFacts, context: Context) -> bool:
    """Whether an optimizer trains it; or, where it has no parameters, the model."""
    own = [p for p in context.parameters if p.module == one.name]
    if own:
        return any(p.requires_grad and p.optimizers for p in own)
    owner = one.name.rpartition(".")[0]
    beside = [p for p in context.parameters if p.module.rpartition(".")[0] == owner]
    return any(p.requires_grad and p.optimizers for p in beside)


def _is_by_mistake(one: ModuleFacts, context: Context) -> bool:
    if not _is_trained(one, context):
        return False
    if one.num_training:  # trained here, and now stuck together with what is around it
        return not one.is_alone_evaluating
    return not one.is_loaded


FEW, VERY_FEW = 4, 2
"""Samples of a batch that are too few for a batch norm, the first where means over them are noisy. Measured over the
corpus: 2 in faulty trainings, 64 to 256 in healthy ones but for the last batch of an epoch."""
NOISY, NOISY_OF_VERY_FEW = 0.35, 0.035
"""Noise of a channel's mean over a batch, as a share of its spread, in the worst norm. Measured over the corpus: with
batches of 2 rows 1.0, of 2 images 0.11 to 0.5; with 64 rows 0.13, with 64 images 0.01. Of two images of 48 x 48
independent positions it is about 0.015."""


@rule("GL206", "batchnorm-batch", certainty="exact", holds=5, explains=("GL301", "GL306", "GL5"))
def batchnorm_batch(context: Context) -> Iterator[Evidence]:
    """Batch norms take their statistics from a few samples.

    **What it sees.** The number of samples that batch norms in training mode get, and how much the mean of a channel
    varies from batch to batch for that reason, as a share of the channel's spread: at five looks in a row.

    **Why it hurts.** What a sample becomes depends on its neighbours in the batch, and in evaluation the statistics are
    others than in training.

    **What to do.** Use larger batches, `GroupNorm` or `LayerNorm`; accumulating gradients does not help.

    **What looks like it and is healthy.** A last partial batch, few samples with many similar positions each, batch
    norms in evaluation mode, `SyncBatchNorm`: no finding.

    **How to silence it.** `--ignore GL206`.
    """
    few = [one for one in context.modules if one.is_training and one.batch is not None and one.batch <= FEW]
    if not few:
        return
    noise = max(one.mean_noise or 0.0 for one in few)
    very_few = [one for one in few if (one.batch or 0) <= VERY_FEW and (noise > NOISY_OF_VERY_FEW or one.batch == 1)]
    noisy = very_few or (few if noise > NOISY else [])
    if not noisy:
        return
    first = noisy[0]
    yield Evidence(
        sites=tuple(one.name for one in noisy if one.name),
        message=f"{_named(noisy)} normalis{'es' if len(noisy) == 1 else 'e'} by batches of {_samples(first.batch)}"
        + (f": means over a batch have a noise of up to {noise:.0%} of the spread of a channel." if noise else "."),
        remedy="Use larger batches, or GroupNorm or LayerNorm; accumulating gradients does not help.",
        numbers={"samples": float(first.batch or 0), "noise": noise},
        first_step=0,
    )


def _samples(number: int | None) -> str:
    return "1 sample" if number == 1 else f"{number} samples"


DROPPED = 0.8
"""The share of units that a dropout drops. Usual: 0.1 to 0.5. Measured over the corpus: 0.85 to 0.9 in faulty
trainings, at most 0.3 in healthy ones, but for 0.8 of the pixels that a masked autoencoder hides."""


@rule("GL207", "dropout", certainty="exact", holds=3, explains=("GL302", "GL4", "GL5"))
def dropout(context: Context) -> Iterator[Evidence]:
    """A dropout leaves next to nothing.

    **What it sees.** `p` of dropouts in training mode, of recurrent layers and of attention, and what the graph of the
    loss multiplies outputs of layers by: 0.8 or more is dropped.

    **Why it hurts.** What is left is scaled up five times or more, so that outputs are mostly noise.

    **What to do.** Use 0.1 to 0.5; where the setting comes from elsewhere, see whether it was the probability to keep.

    **What looks like it and is healthy.** Hiding most of the input, as a masked autoencoder does, and a `p` that
    changes in the course of training: `info` at most.

    **How to silence it.** `--ignore GL207`, or `--ignore 'GL207@head.drop'` for one place.
    """
    limit = context.limit(DROPPED)
    strong = [one for one in context.modules if one.is_training and one.settings.get("p", 0.0) >= limit]
    strong = [one for one in strong if "BatchNorm" not in one.kind]
    if context.masks is None:
        seen = [one for one in strong if not one.is_first]
    elif masks := [one for one in context.masks if one.dropped >= limit]:
        seen = [one for one in strong if not one.is_first] or strong
        layers = dict.fromkeys(one.layer.rpartition(".")[0] for one in masks)
        if not any((one.first_p or 0.0) >= limit for one in context.modules):
            yield _of_masks(list(layers), max(one.dropped for one in masks))
    else:
        seen = []  # of data, or not in use
    if seen:
        yield _of_modules(seen)


def _of_modules(ones: Sequence[ModuleFacts]) -> Evidence:
    """Dropouts first, then layers that have one of their own."""
    ones = sorted(ones, key=lambda one: "Dropout" not in one.kind)
    first = ones[0]
    changes = first.first_p is not None and first.first_p != first.settings["p"]
    rest = f", and so are {len(ones) - 1} more" if len(ones) > 1 else ""
    what = (
        "" if "Dropout" in first.kind else "between the layers of " if first.kind in ("GRU", "LSTM", "RNN") else "in "
    )
    return Evidence(
        sites=tuple(one.name for one in ones if one.name),
        message=f"{first.settings['p']:.0%} of the units {what or 'at '}{first.name!r} are dropped{rest}.",
        remedy="Use 0.1 to 0.5; where the setting comes from elsewhere, see whether it was the probability to keep.",
        numbers={"p": first.settings["p"]},
        severity="info" if changes else None,
        first_step=0,
    )


def _of_masks(layers: Sequence[str], dropped: float) -> Evidence:
    return Evidence(
        sites=tuple(one for one in layers if one),
        message=f"{dropped:.0%} of the units after {layers[0]!r} are dropped."
        if layers[0]
        else f"{dropped:.0%} of the units of a layer are dropped.",
        remedy="Use 0.1 to 0.5; where the setting comes from elsewhere, see whether it was the probability to keep.",
        numbers={"p": dropped},
        first_step=0,
    )


def _named(ones: Sequence[ModuleFacts]) -> str:
    """`norm1` or `norm1 and 3 more`."""
    first = repr(ones[0].name) if ones[0].name else "the model"
    return first if len(ones) == 1 else f"{first} and {len(ones) - 1} more"
