"""What rules see: plain values, without tensors.

Belongs here: the records that `facts` fills and rules read. Does not: how they are read off a training (`facts`), or
what follows from them (`rules`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gradlab.frame import Frame


class Abstain(Exception):
    """A rule cannot tell, as what it needs is not there; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class ParameterFacts:
    """One parameter that belongs to the training: of the watched model, or reached by a backward."""

    name: str
    """As `named_parameters` of the model gives it; of one outside by the variable that holds its module."""
    module: str
    """The name of the module that owns it."""
    module_class: str
    shape: tuple[int, ...]
    requires_grad: bool
    is_in_model: bool
    """Whether the watched model has it in its tables."""
    is_in_plain_list: bool = False
    """Whether it or its module is in a list, tuple or dict that is an attribute of a module, so registered nowhere."""
    is_plain: bool = False
    """Whether it is an attribute of a module as a tensor, and no `nn.Parameter` of it: registered nowhere either."""
    optimizers: tuple[int, ...] = ()
    """Places in `Context.optimizers` of those that have it."""
    is_reached: bool = False
    """Whether a backward that was read has reached it."""
    has_gradient_arrived: bool = False
    """Whether it has had a gradient at the end of a backward, or at a step."""
    is_changed_in_place: bool = False
    """Whether its values were written to since watching began, by whomever (its version counter)."""
    was_trained: bool = False
    """Whether it was trained before watching began, or loaded: written to far more often than by an initialization."""
    was_frozen: bool = False
    """Whether it did not require grad at an earlier look, or does not now."""
    is_at_default_init: bool | None = None
    """Whether its numbers still have the distribution of torch's default init; None where that was not looked at."""
    looks_random: bool | None = None
    """Whether its numbers look like independent random ones of any init, None where that was not looked at. Matrices of
    less than 1000 numbers may do so when they are trained."""
    is_called: bool | None = None
    """Whether its module was called in a forward with gradients since it was found silent; None: not looked at."""
    is_used: bool | None = None
    """Whether a function was called with it since it was found to have no gradient; None: not looked at."""
    is_cut: bool = False
    """Whether its values were seen to go into a loss, or a call of another parameter, by ways without history alone."""
    cut_by: str = ""
    """What took the history away: `detach`, `data`, `no_grad`, `numpy`, `argmin`, ..."""
    cut_before: str = ""
    """The first parameter whose call got such values; "" where they went into the loss itself."""
    num_detached_calls: int = 0
    """How often in one pass it got values of its own earlier result without history, where it never got any with."""

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows: two dimensions or more."""
        return len(self.shape) > 1

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, kw_only=True)
class ModuleFacts:
    """One module of a kind whose mode or settings rules look at: normalizations, dropouts, layers that drop out."""

    name: str
    kind: str
    """Its class."""
    is_training: bool
    """Its mode at the last backward that was read."""
    num_evaluating: int = 0
    """At how many backwards in a row, the last one included, it was in evaluation mode."""
    num_training: int = 0
    """At how many backwards it was in training mode; of those between two looks the mode at both is taken."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """`p` of a dropout or of a layer that drops out, `momentum`, `track_running_stats` of a normalization, ..."""
    requires_grad: bool = False
    """Whether one of its own parameters does."""
    is_loaded: bool = False
    """Whether its statistics were there when watching began: it was trained before, or loaded."""
    samples: int | None = None
    """Of a batch norm: numbers per channel in the last batch; None where that is not known."""
    batch: int | None = None
    """Of a batch norm: samples (images, sequences) of the last batch."""
    mean_noise: float | None = None
    """Of a batch norm: the noise of a channel's mean over the last batch, as a share of the channel's spread."""
    first_p: float | None = None
    """Of a dropout: its p at the first backward."""
    evaluating_since: int | None = None
    """The step from which on it has been in evaluation mode, where it is."""
    is_alone_evaluating: bool = False
    """Whether it is in evaluation mode while the module that has it is in training mode."""
    is_first: bool = False
    """Whether no module with parameters comes before it in the model."""


@dataclass(frozen=True, kw_only=True)
class MaskFacts:
    """One dropout behind some layer, as the graph shows it: a product with a mask. Of data there is none."""

    layer: str
    """The nearest parameter before it; "" where none is near."""
    dropped: float
    """The share of numbers that it drops."""


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts:
    """One living optimizer of torch's, with the settings of its groups as they are now."""

    name: str
    """Its class."""
    is_counted: bool
    """Whether its steps are those of this training."""
    num_steps: int
    last_step: int
    """The step at which it stepped last, -1 where it never has."""
    groups: tuple[Mapping[str, float], ...]
    """Of each group its numbers: `lr`, `weight_decay`, `momentum`, `beta1`, `beta2`, `eps`, `maximize`, ..."""
    parameters: tuple[tuple[str, ...], ...]
    """Of each group the names of its parameters, those of other models left out."""
    has_decoupled_decay: bool = False
    """Whether weight decay is subtracted from the weights (AdamW) rather than added to the gradient."""
    is_adaptive: bool = False
    """Whether it divides by a running size of the gradient (Adam, RMSprop, Adagrad, ...)."""
    shares_groups_with: tuple[int, ...] = ()
    """Places of optimizers that hold the same group objects, as a wrapper around another does."""
    num_not_reset: int = 0
    """Before how many of its last eight steps gradients were not reset, since those of the step before were used."""
    not_reset: tuple[str, ...] = ()
    """The parameters of which that is so before three or more steps, of at most 64 that are looked at."""
    were_reset: tuple[str, ...] = ()
    """Those of them that have gradients, and whose gradients were reset before each step."""


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One of the terms that a loss is the sum of."""

    function: str
    """As autograd names it, or, of what is written by hand, `SquaredError`, `AbsoluteError`, `LogLikelihood`."""
    factor: float = 1.0
    """What it is multiplied by, in plain numbers."""
    reduction: str = ""
    """`mean` or `sum`; "" where it is not known."""


@dataclass(frozen=True, kw_only=True)
class SharedUpdates:
    """What two optimizers do to the parameters that both of them have, as far as both step."""

    optimizers: tuple[int, int]
    """Their places in `Context.optimizers`."""
    parameters: tuple[str, ...]
    num_looks: int = 0
    """At how many looks both have stepped."""
    num_same_gradients: int = 0
    """At how many of them the second one used the gradients that the first one had used already."""
    cosine: float | None = None
    """Between their updates, over all looks: -1 where one takes back what the other does."""


@dataclass(frozen=True, kw_only=True)
class LossGraph:
    """What the graph of one loss says, as it was just before a backward. One record for each signature."""

    root: str
    """The function that gave the loss, as autograd names it: `NllLoss`, `Mean`; "" of a leaf."""
    chain: tuple[str, ...] = ()
    """The root and what follows it while there is one input: (`Neg`, `NllLoss`, `LogSoftmax`, `Addmm`)."""
    factor: float = 1.0
    """What the loss is multiplied by on this chain by plain numbers: -1 for `-loss`, 0.25 for `loss / 4`."""
    reduction: str = ""
    """`mean` or `sum`, of the loss function at the end of factors; "" where it is not known."""
    loss_activations: tuple[tuple[str, str], ...] = ()
    """Each (loss, activation) where the activation is the input of the loss: (`LogSoftmax`, `Softmax`)."""
    activation_modules: tuple[str, ...] = ()
    """The modules of the model that apply these activations, by name."""
    before_activation: tuple[str, ...] = ()
    """The modules whose outputs go into these activations: the layers before them."""
    terms: tuple[LossTerm, ...] = ()
    """What it is the sum of."""
    softmax_of_one: str = ""
    """`Softmax` or `LogSoftmax` where the loss comes from one over a dimension that has a single number."""
    reached: frozenset[str] = frozenset()
    """The parameters that it reaches, by name, those outside of the model included."""
    cut: frozenset[str] = frozenset()
    """Those among them that it reaches only by functions whose gradient is zero: `Round`, `Sign`, `Floor`, ..."""
    cut_by: tuple[str, ...] = ()
    """These functions."""
    before_cut: tuple[str, ...] = ()
    """The modules whose outputs go into these functions: the layers before them."""
    functions: Mapping[str, int] = field(default_factory=dict)
    """How many nodes of each name there are."""
    num_parameters: int = 0
    """How many parameters of the model it reaches."""
    num_nodes: int = 0
    is_whole: bool = True
    """Whether all nodes were read."""
    is_opaque: bool = False
    """Whether a part of it is one node of a compiled function or of somebody's own, whose inside cannot be read."""
    is_leaf: bool = False
    """Whether the loss is a leaf, which no parameter has a part in."""
    is_of_no_parameter: bool = False
    """Whether it comes from leaves alone that are neither parameters nor in an optimizer."""
    num_backwards: int = 0
    """How many backwards there were from losses of this signature."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """The target of a loss function in one batch."""

    loss: str
    """The function that saved it: `NllLoss`, `MseLoss`."""
    numel: int
    mean: float
    std: float
    prediction_mean: float | None = None
    prediction_std: float | None = None
    prediction_spread: float | None = None
    """The spread of the prediction over the batch, by its root mean square: 0 where it is the same for each sample."""
    label_counts: tuple[int, ...] = ()
    """Of classes: how often each was there."""
    nonfinite: int = 0
    is_difference: bool = False
    """Whether the loss is written by hand and keeps the target minus the prediction alone: `mean`, `std` are its."""
    leak: float | None = None
    """The largest correlation, without its sign, of a number of the model's input with a number of the target."""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class NonfiniteFacts:
    """What there was just before the backward of the first loss that is not finite, of those read on the CPU."""

    step: int
    inputs: tuple[str, ...] = ()
    """The layers that are given data which is not finite, by their weights."""
    has_bad_target: bool = False
    weights: tuple[str, ...] = ()
    """The parameters that are not finite already, in the order of the model."""
    num_weights: int = 0
    layer: str = ""
    """The first layer, by its weight in the order of the forward, whose input is not finite."""
    suspects: tuple[str, ...] = ()
    """Modules without parameters between the last of `weights` and the first parameter after it that is finite, those
    of torch that cannot make a NaN left out."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingFacts:
    """The ids that an embedding was given in one batch."""

    name: str
    """Its weight."""
    rows: int
    num_ids: int
    distinct: int


class History:
    """Numbers of sites over the last looks, [looks, sites] for each name; NaN where a site had none.

    `history["update.norm"]` raises Abstain where no look had that.
    """

    def __init__(self, most: int = 200) -> None:
        self.sites: tuple[str, ...] = ()
        self._looks: deque[tuple[int, dict[str, np.ndarray]]] = deque(maxlen=most)
        self._stacked: dict[str, np.ndarray] = {}

    def add(self, step: int, sites: tuple[str, ...], numbers: Mapping[str, np.ndarray]) -> None:
        """Append a look. Where the sites are others than before, what was kept is dropped."""
        if sites != self.sites:
            self._looks.clear()
            self.sites = sites
        self._looks.append((step, dict(numbers)))
        self._stacked.clear()

    def clear(self) -> None:
        """Forget all looks."""
        self._looks.clear()
        self._stacked.clear()

    def __len__(self) -> int:
        return len(self._looks)

    @property
    def steps(self) -> np.ndarray:
        """[looks] int64."""
        return np.array([step for step, _ in self._looks], np.int64)

    def __contains__(self, name: str) -> bool:
        return any(name in numbers for _, numbers in self._looks)

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._stacked:
            return self._stacked[name]
        if name not in self:
            raise Abstain(f"{name} is not measured")
        width = next(numbers[name].shape for _, numbers in self._looks if name in numbers)
        absent = np.full(width, np.nan)
        stacked = self._stacked[name] = np.stack([numbers.get(name, absent) for _, numbers in self._looks])
        stacked.setflags(write=False)  # one rule must not change what the next one sees
        return stacked

    def last(self, name: str) -> np.ndarray:
        """[sites] of the newest look.

        Raises:
            Abstain: the newest look has none.
        """
        if not self._looks or name not in self._looks[-1][1]:
            raise Abstain(f"{name} is not measured")
        return self._looks[-1][1][name]


@dataclass(kw_only=True)
class LossSeries:
    """The values of one loss, one a backward: `steps` and `values` are [n], the newest last."""

    root: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(kw_only=True)
class Context:
    """All that is known of one training at a look."""

    step: int = -1
    """The newest optimizer step that has ended, -1 before the first."""
    num_backwards: int = 0
    is_end: bool = False
    """Whether this is the last look, at the end of training."""
    parameters: Sequence[ParameterFacts] = ()
    modules: Sequence[ModuleFacts] = ()
    masks: Sequence[MaskFacts] | None = None
    """The dropouts in the graph of an early loss; None where it could not be read."""
    optimizers: Sequence[OptimizerFacts] = ()
    shared_updates: Sequence[SharedUpdates] = ()
    """Of each two optimizers that have some of the same parameters, without sharing their groups."""
    made_anew: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    """By shape, how many different parameters of torch's default init were reached that no module has, a new one at
    each look: those of layers that are made in the forward."""
    graphs: Sequence[LossGraph] = ()
    retained_graphs: int = 0
    """How many graphs of losses or outputs of five steps ago and before are still held."""
    retained_steps: int = 0
    """Of how many steps these are."""
    accumulation: int | None = None
    """How many backwards of one signature come to one step, each from a forward of its own; None: not known."""
    gradients_rescaled: bool = False
    """Whether gradients were written to between the last backward and the step."""
    targets: Sequence[Sequence[TargetFacts]] = ()
    """Of the last batches that were looked at, the newest last."""
    readings: History = field(default_factory=History)
    """Numbers of parameters: `weight.norm`, `weight_grad.norm`, `weight_grad.norm@clipped`, `update.norm`,
    `weight_grad.zero_rows` (share of rows without gradient), `weight.equal_rows` (how far a row is from the next one,
    by the rms, as a median), `weight_grad.tiny` (of what is used in float16: share of gradients that are zero or have
    lost digits there)."""
    samples: History = field(default_factory=History)
    """Numbers at a few fixed places of some matrices, [looks, matrices, places]: `weight`, `weight_grad`, `update`."""
    rows: History = field(default_factory=History)
    """Which rows of a matrix have no gradient, of some that are evenly spread, [looks, sites, rows]: `silent`, 1 or 0;
    NaN where there are no more rows, or no gradient."""
    inputs: History = field(default_factory=History)
    """What goes into layers with weights, in the order of the forward: `rms`, `max_abs`, `zeros` (share), `nonfinite`
    (count), `spread` (over the batch, by the rms), `columns` (largest by smallest column or channel, by the rms of what
    is not zero in it), `constant` (share of features that are the same number everywhere), `rms@last` (of the last
    call, where a forward calls a layer more than once), `is_data` (1 where no layer lies before it), `is_normalised`
    (1 where its output goes straight into a norm that removes mean and scale)."""
    attentions: History = field(default_factory=History)
    """Of attention, by the first weight before it: `max_probability` (mean over queries), `keys` (how many),
    `max_logit` (0 where it is not kept)."""
    embeddings: History = field(default_factory=History)
    """Of vectors whose length is divided by, by the last weight before them: `spread` over the batch of directions, 0
    where all are the same, 1 where they have nothing in common."""
    ids: Sequence[EmbeddingFacts] = ()
    """Of the last batch that was looked at."""
    nonfinite: NonfiniteFacts | None = None
    losses: Sequence[LossSeries] = ()
    learning_rates: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """[n, 2]: a step, and the largest learning rate from it on."""
    frames: Sequence[Frame] = ()
    """The last frames, with what the taps have measured."""
    world_size: int = 1
    limits: Mapping[str, float] = field(default_factory=dict)
    """By code, where a limit was given."""
    rule: str = ""
    """The code of the rule that looks."""

    @property
    def num_steps(self) -> int:
        """How many optimizer steps have ended."""
        return self.step + 1

    def limit(self, usual: float) -> float:
        """The limit of the rule that looks: as it was given, or `usual`."""
        return self.limits.get(self.rule, usual)

    def parameter(self, name: str) -> ParameterFacts | None:
        """The facts of a parameter."""
        return next((one for one in self.parameters if one.name == name), None)

    @cached_property
    def matrices(self) -> np.ndarray:
        """[n] int64 places in `readings.sites` of parameters with rows that are trained, embeddings left out."""
        facts = {one.name: one for one in self.parameters}
        return np.array(
            [
                place
                for place, name in enumerate(self.readings.sites)
                if name in facts
                and facts[name].is_matrix
                and facts[name].requires_grad
                and not is_embedding(facts[name])
            ],
            np.int64,
        )

    def settings(self, name: str) -> Iterator[tuple[OptimizerFacts, Mapping[str, float]]]:
        """Each counted optimizer that has a parameter, with the settings of its group."""
        for one in self.optimizers:
            if one.is_counted:
                for settings, names in zip(one.groups, one.parameters, strict=True):
                    if name in names:
                        yield one, settings

    @property
    def is_warming_up(self) -> bool:
        """Whether the learning rate has been rising lately."""
        rates = self.learning_rates
        return len(rates) > 1 and rates[-1, 1] > rates[-2, 1] and rates[-1, 0] >= self.step - 2


def is_embedding(one: ParameterFacts) -> bool:
    """Whether a parameter is a table of which a batch uses some rows."""
    return "Embedding" in one.module_class
