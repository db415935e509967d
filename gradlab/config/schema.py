"""The settings of an experiment: every key of experiment.yaml is a field here, in Tap, Profile or
what `gradlab.jacobians.options` holds.

Belongs here: names, types, limits, defaults and one sentence each. The JSON Schema, the checks and the documentation
are made from these. Does not: anything that must be imported to be checked (`class_paths`, `trainer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from gradlab.config.rule_names import RuleName
from gradlab.config.validation.limits import Entries, NotEmpty, Range, Spelled, fields
from gradlab.diagnose.options import Diagnose as DiagnoseOptions
from gradlab.diagnose.options import Reaction
from gradlab.errors import ConfigError, did_you_mean
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Sharpness
from gradlab.profiling.options import Profile
from gradlab.taps.rule import Tap

MODELS = {
    "mlp": "gradlab.models.MLP",
    "convnet": "gradlab.models.ConvNet",
    "transformer": "gradlab.models.Transformer",
    "rnn": "gradlab.models.RNN",
}
"""Short names for `model:`. A table of words, so that reading it imports nothing."""
DATA = {
    "digits": "gradlab.data.Digits",
    "bytes": "gradlab.data.Bytes",
    "synthetic": "gradlab.data.Synthetic",
}
"""Short names for `data:`."""

FolderName = Annotated[
    str,
    Spelled(
        r"[^\s./\\\x00-\x1f\x7f]([^/\\\x00-\x1f\x7f]{0,98}[^\s/\\\x00-\x1f\x7f])?",
        "text that can name a folder (1 to 100 characters, no slash, no leading dot)",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ClassSpec:
    """A class and its arguments, `{class_path: ..., init_args: {...}}`; or the class alone, `model: mlp`."""

    class_path: str
    """The class, as `package.module.Class`; a module beside the experiment file will do. Or a short name."""
    init_args: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of its constructor, by name."""

    shorthand: ClassVar[str] = "class_path"
    short_names: ClassVar[Mapping[str, str]] = {}
    example: ClassVar[str] = "package.module.Class"

    def __post_init__(self) -> None:
        path = self.short_names.get(self.class_path, self.class_path)
        if "." not in path:
            known = f" Short names are {', '.join(self.short_names)}." if self.short_names else ""
            raise ConfigError(
                f"{self.class_path!r} is no class path.{did_you_mean(path, self.short_names, most=1)}{known} "
                f"Your own class is written as {self.example}.",
                field="class_path",
            )
        object.__setattr__(self, "class_path", path)


class ModelSpec(ClassSpec):
    """The model: a LightningModule."""

    short_names = MODELS
    example = "my_module.MyModel"


class DataSpec(ClassSpec):
    """The data: a LightningDataModule."""

    short_names = DATA
    example = "my_module.MyData"


class OptimizerSpec(ClassSpec):
    """The optimizer: a torch.optim.Optimizer."""

    example = "torch.optim.AdamW"


RuleNames = Annotated[str, RuleName()] | Sequence[Annotated[str, RuleName()]]
RuleNamesAtSites = Annotated[str, RuleName(sites=True)] | Sequence[Annotated[str, RuleName(sites=True)]]


@dataclass(frozen=True, kw_only=True)
class AskedRules:
    """Which rules are asked."""

    select: RuleNames = ()
    """The rules that are asked, by code (`GL301`), beginning of codes (`GL3`) or name; all where left out."""
    ignore: RuleNamesAtSites = ()
    """Rules that are not; with `@` and a glob over sites (`GL401@encoder.*`), not for those sites."""
    limits: Mapping[Annotated[str, RuleName()], float] = field(default_factory=dict)
    """By rule: what is used in place of its own limit, which `gradlab rules CODE` tells."""


@dataclass(frozen=True, kw_only=True)
class Diagnose(AskedRules):
    """What is looked for, and what is done about findings."""

    on_finding: Reaction = "log"
    """At a finding above `info` that no other explains, once a code and at most three times a run: only `log` it, save
    a `checkpoint`, record three steps (`profile`), measure what helps to judge it (`jacobian`), or `stop` the run."""
    nonfinite: Literal["report", "explain", "skip"] = "report"
    """At a gradient that is NaN or infinite: `report` the first site, `explain` by naming the op (a host read a step),
    or explain and `skip` the update, with the batch saved in the run folder."""

    def options(self) -> DiagnoseOptions:
        """What a monitor is given.

        Raises:
            UsageError: a name is that of no rule, once all modules have made theirs.
        """
        return DiagnoseOptions(select=self.select, ignore=self.ignore, limits=self.limits, on_finding=self.on_finding)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the run is given to run on."""

    gpus: Literal["auto"] | Annotated[int, Range(0)] = "auto"
    """How many GPUs: `auto` takes what the machine has, 0 none."""
    nodes: Annotated[int, Range(1)] = 1
    """How many machines."""


@dataclass(frozen=True, kw_only=True)
class LogRange:
    """A range that is searched evenly in the logarithm."""

    log: tuple[float, float]
    """The lowest and the highest value."""
    points: Annotated[int, Range(2)] | None = None
    """How many values a grid takes, both ends included; one a decade where left out."""

    def __post_init__(self) -> None:
        low, high = self.log
        if not 0 < low < high < float("inf"):
            raise ConfigError(f"log needs two numbers, 0 < lowest < highest, not {low!r} and {high!r}.", field="log")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a trial of a sweep is stopped early."""

    metric: str
    """The metric that trials are compared by, as the model logs it: `val/loss`."""
    mode: Literal["min", "max"] = "min"
    """Whether less (`min`) or more (`max`) of it is better."""
    rule: Literal["asha"] = "asha"
    """Who is stopped: `asha` lets the better part of each rung go on."""


Axis = Annotated[Sequence[Any], NotEmpty()] | LogRange


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Many runs of this experiment with other values for some settings."""

    over: Annotated[Mapping[str, Axis], NotEmpty()]
    """For each setting that varies (as an override names it): a list of values, or `{log: [lowest, highest]}`."""
    search: Literal["grid", "random"] = "grid"
    """`grid` tries every combination, `random` draws `trials` of them."""
    trials: Annotated[int, Range(1)] | None = None
    """How many combinations a random search draws."""
    stop: Stop | None = None
    """When a trial is stopped early; null or left out: never."""

    def __post_init__(self) -> None:
        if self.search == "random" and self.trials is None:
            raise ConfigError("a random search needs 'trials': how many combinations are drawn.", field="search")
        if self.search == "grid" and self.trials is not None:
            raise ConfigError("'trials' is for `search: random`; a grid tries every combination.", field="trials")
        if self.search == "random" and any(isinstance(axis, LogRange) and axis.points for axis in self.over.values()):
            raise ConfigError("'points' is for `search: grid`; a random search draws from the whole range.")


WatchRule = Annotated[Tap, fields(at=NotEmpty(), of=NotEmpty(), stats=NotEmpty(), stage=NotEmpty(), every=Range(1))]
LoggedSlice = Annotated[
    JacobianSlice,
    fields(of=NotEmpty(), wrt=NotEmpty(), rows=Entries(), cols=Entries(), every=Range(1), samples=Range(1)),
]
LoggedGrowth = Annotated[
    DepthGrowth,
    fields(at=NotEmpty(), of=NotEmpty(), wrt=NotEmpty(), directions=Range(1), every=Range(1), samples=Range(1)),
]
LoggedSharpness = Annotated[Sharpness, fields(every=Range(1), top=Range(1), samples=Range(1), products=Range(1))]
Windows = Annotated[
    Profile,
    fields(
        wait=Range(0),
        warmup=Range(0),
        active=Range(1),
        repeat=Range(0),
        max_windows=Range(1),
        max_megabytes=Range(1),
    ),
]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of an experiment."""

    name: FolderName
    """What the experiment is called; its runs are in `runs/<name>/`."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """The seed of every random number generator."""
    model: ModelSpec
    """The model: a short name, a class path, or a class path with arguments."""
    data: DataSpec | None = None
    """The data, likewise; null or left out: the model brings its own."""
    optimizer: OptimizerSpec | None = None
    """The optimizer, likewise; null or left out: the model configures its own."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer, in its own words."""
    taps: tuple[WatchRule, ...] | None = None
    """What is watched; null or left out: what the model declares. An empty list watches nothing."""
    jacobians: tuple[LoggedSlice, ...] = ()
    """Jacobian slices to log."""
    depth_growth: tuple[LoggedGrowth, ...] = ()
    """Growth of directions from site to site to log."""
    sharpness: tuple[LoggedSharpness, ...] = ()
    """Largest eigenvalues of the training loss's Hessian to log."""
    profile: Windows | None = None
    """Steps to profile; null or left out: none."""
    diagnose: Diagnose = Diagnose()
    """What is looked for, and what is done about findings."""
    resources: Resources = Resources()
    """What the run is given to run on."""
    sweep: Sweep | None = None
    """Many runs with other values; null or left out: one run. `gradlab run` checks it and goes on without it."""
