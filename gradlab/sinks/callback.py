"""CallbackSink: results to a function of yours, such as those of Weights & Biases and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gradlab.arguments import FLAG, FUNCTION, TEXT, check_arguments, named_options, optional
from gradlab.finding import Finding
from gradlab.frame import Frame, JacobianBlock
from gradlab.sinks.scalars import Scalars, block_scalars, check_scalars, frame_scalars

_ARGUMENTS = {"function": FUNCTION, "on_finding": optional(FUNCTION), "name": TEXT, "prompt": FLAG}


class CallbackSink:
    """Calls `function(scalars, step)` with the named numbers of a step: `CallbackSink(wandb.log)`.

    The numbers of a frame are those that TensorBoardSink writes as scalars, those of a Jacobian block its summaries.
    Texts are left out.
    """

    @named_options
    def __init__(
        self,
        function: Callable[[dict[str, float], int], object],
        *,
        on_finding: Callable[[Finding], object] | None = None,
        scalars: Scalars = "few",
        name: str = "callback",
        prompt: bool = False,
    ) -> None:
        """Call `function` with numbers by tag and the step, and `on_finding` with each finding.

        Args:
            function: takes {tag: number} and the step, as `wandb.log` and `mlflow.log_metrics` do.
            on_finding: takes a finding; left out, findings are not passed on.
            scalars: `few` or `all` numbers of a frame.
            name: how warnings call this sink.
            prompt: call as soon as numbers have arrived. Where left out, those of several short steps may come at once,
                up to a tenth of a second late.
        """
        check_scalars(scalars)
        given = {"function": function, "on_finding": on_finding, "name": name, "prompt": prompt}
        check_arguments("CallbackSink()", _ARGUMENTS, given)
        self.prompt = prompt
        self.name = name
        self._function = function
        self._on_finding = on_finding
        self._scalars = scalars

    def frame(self, frame: Frame) -> None:
        """Pass on the numbers of one step."""
        self.scalars(frame_scalars(frame, self._scalars), frame.step, frame.wall_time)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Pass on a few named numbers."""
        if values:
            self._function(dict(values), step)

    def finding(self, finding: Finding, wall_time: float) -> None:
        """Pass on a finding."""
        if self._on_finding is not None:
            self._on_finding(finding)

    def jacobian(self, block: JacobianBlock, step: int, wall_time: float) -> None:
        """Pass on the summaries of a block."""
        self.scalars(block_scalars(block), step, wall_time)

    def text(self, tag: str, markdown: str, step: int, wall_time: float) -> None:
        """Texts are for people; a metrics service has no place for them."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The function is not ours to close."""
