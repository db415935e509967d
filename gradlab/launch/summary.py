"""What a run has to say at its end, as plain values: printed, and kept in `summary.json` for `gradlab show`.

Nothing here imports torch, so that a run can be shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gradlab.finding import Finding, finding_of_record, finding_record
from gradlab.findings import latest
from gradlab.runs.folder import RunFolder, read_json, write_json
from gradlab.summary.layer_table import Layer
from gradlab.summary.numbers import number_text

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NUMBERS = 12


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of one attempt of a run."""

    name: str
    """The experiment's name."""
    run: str
    """The id of the run."""
    folder: str
    """Where it lies."""
    seconds: float
    """How long this attempt took, from the first step's preparation to the last."""
    epochs: int | None
    """Epochs that are complete, over all attempts; None where nobody counts them."""
    steps: int
    """Optimizer steps, over all attempts."""
    metrics: Mapping[str, float]
    """The last value of every metric that the model logged."""
    findings: tuple[Finding, ...]
    """What diagnosis has seen in this attempt."""
    answers: Mapping[str, str]
    """What the model has to show, as text."""
    layers: tuple[Layer, ...]
    """The table of layers."""
    abstained: Mapping[str, str] = field(default_factory=dict)
    """By code of each rule that could not tell when it was last asked: what was missing."""

    def save(self, folder: RunFolder) -> None:
        """Write `summary.json`."""
        write_json(folder.summary, asdict(self) | {"findings": [finding_record(one) for one in latest(self.findings)]})


def load_summary(folder: RunFolder) -> Summary | None:
    """The summary that a run has left, or None."""
    saved = read_json(folder.summary)
    if saved is None:
        return None
    findings = tuple(map(finding_of_record, saved.pop("findings")))
    layers = tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in saved.pop("layers"))
    return Summary(**saved, findings=findings, layers=layers)


def final_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Lightning's last metrics as numbers, sorted by name."""
    return {name: float(value) for name, value in sorted(metrics.items())}


def answer_text(value: Tensor | float | None) -> str:
    """A model's answer as text: numbers and small tensors as they are, large tensors by shape and range."""
    if value is None:
        return "None"
    if isinstance(value, int | float):
        return number_text(float(value))
    value = value.detach().double().cpu()
    if value.numel() <= _MOST_NUMBERS:
        return _nested_text(value.tolist())
    shape = " x ".join(str(size) for size in value.shape)
    return f"{shape}, from {number_text(value.min().item())} to {number_text(value.max().item())}"


def _nested_text(value: Any) -> str:
    """Nested lists of numbers as Python writes them, the numbers for people."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_nested_text, value)) + "]"
    return number_text(value)
