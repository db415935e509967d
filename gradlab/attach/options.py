"""What `gradlab attach` was asked for: read from flags and a file, handed to the script's processes as one variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from gradlab.diagnose.options import Diagnose, Reaction
from gradlab.errors import TapError, UsageError
from gradlab.jacobians.options import JacobianSlice
from gradlab.profiling.options import Profile, Trigger
from gradlab.taps.rule import DEFAULT_TAPS, Tap

VARIABLE = "GRADLAB_ATTACH"
"""The variable of the environment that holds the options in the script's processes."""


@dataclass(frozen=True, kw_only=True)
class AttachOptions:
    """The settings of one `gradlab attach`."""

    command_pid: int
    """The process of the command itself, which becomes the script's."""
    began: float
    """When it was called, in seconds since the epoch."""
    command: tuple[str, ...]
    """What is run, for the record."""
    run: str
    """The run folder, made by the first process that trains; "" where `logdir` is given."""
    logdir: str = ""
    """Where event files go instead of a run folder."""
    taps: tuple[Tap, ...] = DEFAULT_TAPS
    """What is watched in every model."""
    jacobians: tuple[JacobianSlice, ...] = ()
    """Jacobian slices to log."""
    profile: Profile | None = None
    """Steps to profile."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Limits of diagnosis rules in place of their own. Which rules are asked is in the environment."""
    on_finding: str = "log"
    """What is done about findings: `log`, `profile` or `jacobian`."""
    across_ranks: bool = False
    """Whether the numbers of all ranks are logged together."""

    def to_text(self) -> str:
        """As one line of JSON, without what is left at its default."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> AttachOptions:
        """The options that `to_text` wrote."""
        values: Mapping[str, Any] = json.loads(text)
        profile = values["profile"]
        if profile is not None and profile["trigger"] is not None:
            profile = {**profile, "trigger": Trigger(**profile["trigger"])}
        return cls(
            **{
                **values,
                "command": tuple(values["command"]),
                "taps": tuple(Tap(**tap) for tap in values["taps"]),
                "jacobians": tuple(JacobianSlice(**one) for one in values["jacobians"]),
                "profile": None if profile is None else Profile(**profile),
            }
        )

    @classmethod
    def from_environment(cls) -> AttachOptions:
        """Those of this process."""
        return cls.from_text(os.environ[VARIABLE])

    def diagnose(self) -> Diagnose:
        """Which rules are asked, and what is done about findings, without what the environment says.

        Raises:
            UsageError: a limit is for no rule.
        """
        return Diagnose(limits=self.limits, on_finding=cast("Reaction", self.on_finding))

    @property
    def is_command(self) -> bool:
        """Whether this process is that of the command, and not one that the script has started."""
        return os.getpid() == self.command_pid

    def has_results(self) -> bool:
        """Whether any process of the script has written results."""
        if self.run:
            return Path(self.run).exists()
        return any(file.stat().st_mtime >= self.began for file in Path(self.logdir).rglob("events.out.*"))


def parse_tap(text: str, every: int) -> Tap:
    """A tap as the command line writes it: `GLOB=OF[,OF...][:STAT[,STAT...]]`, as in `*/relu*=output,output_grad`.

    Without quantities: the gradients of the parameters that the glob matches.

    Raises:
        UsageError: no such quantity, with the near ones.
    """
    at, _, rest = text.partition("=")
    of, _, stats = rest.partition(":")
    words: dict[str, Any] = {"stats": tuple(stats.split(","))} if stats else {}
    try:
        words["of"] = tuple(of.split(",")) if of else "weight_grad"
        return Tap(tuple(at.split(",")), every=every, **words)
    except TapError as error:
        raise UsageError(f"--taps {text!r}: {error}") from None


def taps_of(texts: Sequence[str], every: int | None) -> tuple[Tap, ...]:
    """The taps of the command line; where it names none the gradient of every parameter, `every` so many steps."""
    if texts:
        return tuple(parse_tap(text, every or 1) for text in texts)
    return DEFAULT_TAPS if every is None else (Tap("*", of="weight_grad", every=every),)
