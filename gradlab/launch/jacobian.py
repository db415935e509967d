"""One Jacobian on demand: of a run's model from its checkpoint, or of an experiment's as it is before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradlab.errors import JacobianError, RunError, UsageError
from gradlab.frame import JacobianBlock
from gradlab.jacobians.inputs import count_samples, first_samples
from gradlab.launch.prepare import Prepared, prepare
from gradlab.launch.random_state import undisturbed
from gradlab.launch.resume.origin import Origin
from gradlab.lightning.module import GradlabModule
from gradlab.runs.find import find_run
from gradlab.runs.folder import RunFolder
from gradlab.sites.leaves import leaves, replace_leaves


@dataclass(frozen=True)
class Answer:
    """A block, and the words for what it is of."""

    block: JacobianBlock
    subject: str
    """`digits-mlp (20261126-...) after step 140`, or `experiments/digits.yaml before training`."""


def compute_jacobian(
    target: str,
    root: Path,
    *,
    checkpoint: Path | None = None,
    probe: str = "train",
    samples: int = 1,
    **options: Any,
) -> Answer:
    """Build the model, fill it from the checkpoint, and measure on the first samples of the data.

    Args:
        target: an experiment file, or a run as `find_run` takes it.
        root: where runs lie.
        checkpoint: another checkpoint than the run's last.
        probe: which data the samples come from: `train` or `validation`.
        samples: how many of its first samples.
        options: the arguments of `gradlab.jacobian`.
    Raises:
        UsageError: for a site, an index or a checkpoint that does not exist.
        RunError: for a run without a checkpoint.
    """
    is_file = Path(target).suffix in (".yaml", ".yml")
    origin = Origin.here(Path(target)) if is_file else Origin.of(find_run(target, root))
    with origin.importing(), origin.naming_folder():
        prepared, subject = _prepared(target, root, checkpoint, origin)
        from gradlab.jacobians.jacobian import jacobian

        with undisturbed():
            x = _probe_input(prepared, probe, samples)
        try:
            block = jacobian(prepared.model, x, **options)
        except JacobianError as error:
            raise UsageError(str(error)) from error
    return Answer(block, f"{subject}, {samples} {probe} sample{'s' if samples > 1 else ''}")


def _prepared(target: str, root: Path, checkpoint: Path | None, origin: Origin) -> tuple[Prepared, str]:
    if Path(target).suffix in (".yaml", ".yml"):
        prepared = prepare(Path(target))
        if checkpoint is None:
            return prepared, f"{target} before training"
        return prepared, f"{target} after step {_fill(prepared, checkpoint)}"
    folder = find_run(target, root)
    prepared = prepare(folder.resolved, beside=origin.home)
    step = _fill(prepared, checkpoint or _last_checkpoint(folder))
    return prepared, f"{folder.name} ({folder.id}) after step {step}"


def _last_checkpoint(folder: RunFolder) -> Path:
    if not folder.last_checkpoint.is_file():
        raise RunError(
            f"{folder.name} ({folder.id}) has no checkpoint, as one is written after each epoch; "
            f"for the model before training give its experiment: {folder.resolved}"
        )
    return folder.last_checkpoint


def _fill(prepared: Prepared, path: Path) -> int:
    """Load the weights of a checkpoint; the step at which it was written."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        prepared.model.load_state_dict(content["state_dict"])
    except FileNotFoundError:
        raise UsageError(f"there is no checkpoint {path}.") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} cannot be loaded into this model: {reason}") from error
    return int(content.get("global_step", 0))


def _probe_input(prepared: Prepared, probe: str, samples: int) -> Any:
    """The first samples of the data, as the model's forward takes them."""
    source: Any = prepared.data if prepared.data is not None else prepared.model
    name = {"train": "train_dataloader", "validation": "val_dataloader"}[probe]
    try:
        batch = next(iter(getattr(source, name)()))
    except (StopIteration, NotImplementedError, AttributeError) as error:
        raise UsageError(f"{type(source).__name__}.{name}() gives no batch; take the other --probe.") from error
    model = prepared.model
    if isinstance(model, GradlabModule):
        x: Any = model.probe_input(batch)
    else:
        x = batch[0] if isinstance(batch, tuple | list) else batch
    have = count_samples(x)
    if have is not None and have < samples:
        raise UsageError(f"--samples {samples}: a batch of the {probe} data has {have}.")
    device = next(model.parameters(), torch.empty(0)).device
    kept = first_samples(x, samples)
    return replace_leaves(kept, {suffix: tensor.to(device) for suffix, tensor in leaves(kept)})
