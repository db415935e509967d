"""The wiring between parameters and optimizers: what is trained by none, by two, or by one that never steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gradlab.diagnose.context import Abstain, Context, OptimizerFacts, ParameterFacts, SharedUpdates
from gradlab.diagnose.registry import Evidence, rule

_FEWEST_BACKWARDS = 10
"""Before so many backwards a loop may still be about to do what it has not done yet."""
_FEWEST_WITHOUT = 20
"""The same where no optimizer has stepped yet."""
_WHOLE = 1000
"""From so many numbers on, a matrix that was trained is told from a random one. After 60 to 200 steps of Adam 21 of 21
matrices of 2048 numbers and more did not look random, and 16 of 21 of 1024; of 144 and 384 numbers 0 of 10."""
NEVER = 100
"""After so many backwards without a step nobody is accumulating gradients any more."""
OPPOSED = -0.4
"""A cosine below this between the updates of two optimizers: one takes back what the other does. Measured: an encoder
with two tasks, a generator with an information loss -0.18 to 0.08; a generator that the other optimizer moves,
too, -0.76 to -0.85; a classifier that its adversary moves, too, -0.27 to -0.52, with one optimizer that goes uphill."""


@rule("GL101", "missing-parameters", certainty="exact", severity="error", holds=2, explains=("GL302", "GL5"))
def missing_parameters(context: Context) -> Iterator[Evidence]:
    """Parameters get gradients, and no optimizer has them.

    **What it sees.** Each loss's graph is read: the parameters that it reaches, those of modules outside of the model
    included. Some of them require grad and get gradients, are in no optimizer of the process, and nothing ever writes
    to them.

    **Why it hurts.** They stay as they were initialised: the rest of the network has to make do with a random part.

    **What to do.** Give the optimizer the parameters of the whole model, made after the model is complete;
    `add_param_group` for those that come later.

    **What looks like it and is healthy.** A base that was trained or loaded before, with a new head that is trained
    alone: `info`. Layers that are frozen and join later by `add_param_group`; weights that are moved by hand: nothing.

    **How to silence it.** `requires_grad_(False)` for what is not to be trained, which saves its backward, too; or
    `ignore=["GL101"]`.
    """
    is_young = context.num_steps < _FEWEST_BACKWARDS if context.num_steps else context.num_backwards < _FEWEST_WITHOUT
    if context.num_backwards < _FEWEST_BACKWARDS or (is_young and not context.is_end):
        return
    missing = [one for one in context.parameters if _gets_nothing(one) and not _is_unregistered(one)]
    if not missing:
        return
    if not context.optimizers:
        raise Abstain("no optimizer is known")
    groups = _grouped(missing, context.parameters)
    trained = {site for site, ones in groups.items() if _was_trained(ones)}
    if trained:  # beside a trained matrix, norms and biases that cannot be told from new ones are of the same training
        trained |= {site for site, ones in groups.items() if not any(map(_can_be_told, ones))}
    trained -= {site for site, ones in groups.items() if any(one.was_frozen for one in ones)}
    holds = 1 if context.is_end else None
    new = [site for site in groups if site not in trained]
    if new:
        count = sum(len(groups[site]) for site in new)
        yield Evidence(
            sites=tuple(new),
            message=f"{_named(new)} {_gets(new)} gradients and no optimizer has {_it(new)} ({_tensors(count)}, as "
            f"initialised); {_has_instead(context)}.",
            numbers={"parameters": float(count)},
            remedy=f"Give the optimizer all parameters, those of {_named(new)} as well: make it once the model is "
            "complete, or use add_param_group.",
            holds=holds,
        )
    if trained:
        sites = [site for site in groups if site in trained]
        count = sum(len(groups[site]) for site in sites)
        yield Evidence(
            key="trained before",
            sites=tuple(sites),
            message=f"{_named(sites)}, trained or loaded before, {_gets(sites)} gradients that no optimizer uses "
            f"({_tensors(count)}).",
            numbers={"parameters": float(count)},
            remedy=f"If {_named(sites)} should stay as it is, requires_grad_(False) saves its backward; else give it "
            "to the optimizer.",
            severity="info",
            holds=holds,
        )


@rule(
    "GL102", "unregistered", certainty="exact", severity="error", after=3, holds=2, explains=("GL101", "GL302", "GL5")
)
def unregistered(context: Context) -> Iterator[Evidence]:
    """Layers or tensors that the model uses, and of which `model.parameters()` does not know.

    **What it sees.** A loss reaches parameters that are in no table of the model: their module is in a plain list,
    tuple or dict; or they are plain tensors, or views of parameters, that a module has as attributes; or a layer is
    made anew in each forward, so that each graph has another one. No optimizer has them.

    **Why it hurts.** They are not trained, not saved and not moved to a device with the model.

    **What to do.** `nn.ModuleList`, `nn.ModuleDict`, `nn.ParameterList` in place of the list or dict; `nn.Parameter`
    around the finished tensor; layers are made in `__init__`.

    **What looks like it and is healthy.** A teacher that is kept in a list to leave it out of the state: no gradient
    reaches it. Modules in a list whose parameters were given to the optimizer by hand; inputs that require grad.

    **How to silence it.** `ignore=["GL102"]`, or with a site `"GL102@blocks.*"`.
    """
    if context.num_backwards < _FEWEST_BACKWARDS:
        return
    holds = 1 if context.is_end else None
    left = [one for one in context.parameters if _gets_nothing(one)]
    if ones := [one for one in left if one.is_in_plain_list]:
        sites = list(_grouped(ones, context.parameters))
        where = sites[0].rpartition(".")[0] or sites[0]
        kind = "modules" if any(one.module.startswith(where) for one in ones) else "parameters"
        yield Evidence(
            key="container",
            sites=tuple(sites),
            message=f"the {kind} in {where} are in a plain list or dict, so the model does not know of them: "
            f"{_tensors(len(ones))} {'gets' if len(ones) == 1 else 'get'} gradients and {_are(ones)} never trained.",
            numbers={"parameters": float(len(ones))},
            remedy=f"Make {where} an nn.ModuleList or nn.ModuleDict (nn.ParameterList, nn.ParameterDict for tensors).",
            holds=holds,
        )
    if ones := [one for one in left if one.is_plain]:
        yield Evidence(
            key="tensor",
            sites=tuple(one.name for one in ones),
            message=f"{_named([one.name for one in ones])} {_gets([one.name for one in ones])} gradients and "
            f"{'is no nn.Parameter' if len(ones) == 1 else 'are no nn.Parameters'}, so the model does not know of "
            f"{_it(ones)}, and no optimizer moves {_it(ones)}.",
            numbers={"parameters": float(len(ones))},
            remedy="Assign nn.Parameter(...) of the finished tensor to the attribute: a view, a product or a plain "
            "tensor that requires grad is not registered.",
            holds=holds,
        )
    if made := {shape: count for shape, count in context.made_anew.items() if count > 2}:
        shape = next(iter(made))
        yield Evidence(
            key="made anew",
            message=f"a layer with a weight of {' × '.join(map(str, shape))} is made anew in each forward: each of the "
            f"{made[shape]} graphs that were read has another one, freshly initialised, which nothing trains.",
            numbers={"graphs": float(made[shape])},
            remedy="Make the layer in __init__, as an attribute of the module, and only call it in forward.",
            holds=holds,
        )


@rule("GL104", "never-stepped", certainty="exact", severity="error", explains=("GL101", "GL302", "GL5"))
def never_stepped(context: Context) -> Iterator[Evidence]:
    """Gradients are computed, and the optimizer that has these parameters never steps.

    **What it sees.** A hundred backwards, or the end after ten, without a `step` of any optimizer that has some of
    the parameters; these are not written to by anybody else. Of several optimizers the one that never steps.

    **Why it hurts.** The weights stay as they were initialised.

    **What to do.** Call `optimizer.step()` after `backward()`, with its parentheses; that of a scheduler moves nothing.

    **What looks like it and is healthy.** Many backwards before one step (accumulation); gradients that are only
    looked at; weights that are moved by hand; an optimizer whose parameters another one steps meanwhile.

    **How to silence it.** `ignore=["GL104"]`.
    """
    if context.num_backwards < (_FEWEST_BACKWARDS if context.is_end else NEVER):
        return
    still = [
        one
        for one in context.parameters
        if one.requires_grad
        and one.has_gradient_arrived
        and one.optimizers
        and not one.is_changed_in_place
        and not any(context.optimizers[place].num_steps for place in one.optimizers)
    ]
    if not still:
        return
    names = _named(list(dict.fromkeys(context.optimizers[place].name for one in still for place in one.optimizers)))
    if not any(one.num_steps for one in context.optimizers):
        if any(one.is_changed_in_place for one in context.parameters):
            return  # somebody moves the weights by hand
        yield Evidence(
            message=f"{context.num_backwards} backwards and not one step of {names}: the weights are what they were "
            "at the beginning.",
            numbers={"backwards": float(context.num_backwards), "steps": 0.0},
            remedy="Call optimizer.step() after loss.backward().",
            first_step=0,
        )
        return
    sites = list(_grouped(still, context.parameters))
    steps = max(one.num_steps for one in context.optimizers)
    yield Evidence(
        key="one of several",
        sites=tuple(sites),
        message=f"{names}, which has the parameters of {_named(sites)}, has not stepped once, while another optimizer "
        f"has made {steps} steps: {_tensors(len(still))} {_are(still)} where they were at the beginning.",
        numbers={"steps": 0.0, "steps of others": float(steps)},
        remedy=f"Call the step() of {names}, too.",
        first_step=0,
    )


@rule("GL105", "two-optimizers", certainty="exact", after=5, holds=2, explains=("GL301", "GL306", "GL5"))
def two_optimizers(context: Context) -> Iterator[Evidence]:
    """Two optimizers move the same parameters.

    **What it sees.** Two optimizers that do not share their groups have some of the same parameters, and both step in
    turn: with the very same gradients, or with updates that take back what the other has done (a cosine below -0.4,
    or below 0 where one of them maximizes).

    **Why it hurts.** Each has its own learning rate and its own memory of gradients, and neither knows what the other
    has done: steps add up or cancel.

    **What to do.** Each parameter belongs to one optimizer.

    **What looks like it and is healthy.** SAM, Lookahead and other wrappers share the groups of the optimizer inside:
    nothing. One optimizer after another (Adam, then L-BFGS): nothing. An encoder that two losses train by two
    optimizers that do not work against each other (InfoGAN): `info`.

    **How to silence it.** `ignore=["GL105"]`.
    """
    for pair in context.shared_updates:
        if pair.num_looks < 3 or not pair.parameters:
            continue
        first, second = (context.optimizers[place].name for place in pair.optimizers)
        names = set(pair.parameters)
        sites = list(_grouped([one for one in context.parameters if one.name in names], context.parameters))
        is_twice = 2 * pair.num_same_gradients > pair.num_looks
        limit = 0.0 if _goes_uphill(context, pair) else context.limit(OPPOSED)
        is_opposed = pair.cosine is not None and pair.cosine < limit
        how = "one after the other"
        if is_twice:
            how = "by the same gradients, one after the other"
        elif is_opposed:
            how = f"against each other: the cosine between their updates is {pair.cosine:.2f}"
        yield Evidence(
            key=f"{pair.optimizers}",
            sites=tuple(sites),
            message=f"{_named(sites)} {'is' if len(sites) == 1 else 'are'} moved by two optimizers, {first} and "
            f"{second}, {how}.",
            numbers={"parameters": float(len(names)), "cosine": float("nan") if pair.cosine is None else pair.cosine},
            remedy=f"Give {_named(sites)} to one of the two optimizers only.",
            severity="warning" if is_twice or is_opposed else "info",
        )


@rule("GL108", "frozen-random", certainty="scale-free", after=2, explains=("GL302", "GL5"))
def frozen_random(context: Context) -> Iterator[Evidence]:
    """Layers are frozen, and still hold the random numbers of their initialization.

    **What it sees.** Parameters that do not require grad, that nothing writes to, whose modules are called in forwards
    with gradients, and whose matrices are those of torch's default init, or look like independent random numbers of
    another one: uniform or normal, no row, column or singular value that stands out.

    **Why it hurts.** The layers on top learn from random features.

    **What to do.** Load the trained weights (`load_state_dict` tells which names have not matched), or unfreeze.

    **What looks like it and is healthy.** A pretrained base, the base of an adapter: their matrices are not random any
    more, or were loaded or trained in this process. Teachers and target networks are called under `no_grad`, and are
    changed in place. Random features on purpose do look like it.

    **How to silence it.** `ignore=["GL108@features.*"]`.
    """
    trained = [one for one in context.parameters if one.requires_grad and one.has_gradient_arrived]
    frozen = [one for one in context.parameters if not one.requires_grad and not one.is_changed_in_place]
    if not frozen or not trained:
        return
    groups = _grouped(frozen, context.parameters)
    left = {site: ones for site, ones in groups.items() if _is_random(ones)}
    if any(_was_trained(ones) for ones in groups.values()):
        left = {site: ones for site, ones in left.items() if _is_surely_random(ones)}
    if left:
        ones = [one for group in left.values() for one in group]
        share = sum(one.numel for one in ones) / max(sum(one.numel for one in context.parameters), 1)
        sites = list(left)
        yield Evidence(
            sites=tuple(sites),
            message=f"{_named(sites)} {_are(sites)} frozen at {'its' if len(sites) == 1 else 'their'} random init: "
            f"{_tensors(len(ones))}, {100 * share:.0f} % of the model's numbers, do not require grad and "
            "were not loaded.",
            numbers={"parameters": float(len(ones)), "share": share},
            remedy=f"Load trained weights into {_named(sites)} (the result of load_state_dict tells which names did "
            "not match), or set requires_grad to True and give the parameters to the optimizer.",
        )


def _goes_uphill(context: Context, pair: SharedUpdates) -> bool:
    """Whether one of two optimizers maximizes and the other does not."""
    ways = {any(group.get("maximize") for group in context.optimizers[place].groups) for place in pair.optimizers}
    return len(ways) > 1


def _gets_nothing(one: ParameterFacts) -> bool:
    """Whether a parameter gets gradients, and nothing moves it."""
    return one.requires_grad and one.has_gradient_arrived and not one.optimizers and not one.is_changed_in_place


def _is_unregistered(one: ParameterFacts) -> bool:
    return one.is_in_plain_list or one.is_plain


def _can_be_told(one: ParameterFacts) -> bool:
    """Whether it is known if a parameter still is as it was initialised."""
    return one.was_trained or bool(one.is_at_default_init) or (one.looks_random is not None and one.numel >= _WHOLE)


def _was_trained(ones: Sequence[ParameterFacts]) -> bool:
    """Whether some parameters were trained or loaded before."""
    return any(one.was_trained or one.looks_random is False for one in ones)


def _is_random(ones: Sequence[ParameterFacts]) -> bool:
    """Whether some parameters are those of an initialization, and are used."""
    told = [one for one in ones if one.looks_random is not None]
    is_used = any(one.is_called for one in ones)
    return bool(told) and is_used and not _was_trained(ones) and _is_large(told)


def _is_large(ones: Sequence[ParameterFacts]) -> bool:
    return any(one.is_at_default_init or one.numel >= _WHOLE for one in ones)


def _is_surely_random(ones: Sequence[ParameterFacts]) -> bool:
    return any(one.numel >= _WHOLE and one.looks_random for one in ones)


def _grouped(ones: Sequence[ParameterFacts], everything: Sequence[ParameterFacts]) -> dict[str, list[ParameterFacts]]:
    """Parameters by the largest module that has no others, or by their own name, in the order of the model."""
    names = {one.name for one in ones}
    others = [one.name for one in everything if one.name not in names]
    taken = {prefix for name in others for prefix in _prefixes(name)}
    found: dict[str, list[ParameterFacts]] = {}
    for one in ones:
        site = next((prefix for prefix in _prefixes(one.name) if prefix not in taken), one.name)
        found.setdefault(site, []).append(one)
    return found


def _prefixes(name: str) -> list[str]:
    """The names of the modules around a parameter, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _has_instead(context: Context) -> str:
    """What the optimizers have, in words."""
    known: list[OptimizerFacts] = [one for one in context.optimizers if any(one.parameters)]
    if not known:
        return f"{_named([one.name for one in context.optimizers])} has none of the model's parameters"
    count = len({name for one in known for group in one.parameters for name in group})
    return f"{_named([one.name for one in known])} has {_tensors(count)} of the model's {len(context.parameters)}"


def _named(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and 3 more`."""
    ones = list(dict.fromkeys(names))
    if len(ones) < 3:
        return " and ".join(ones)
    return f"{ones[0]}, {ones[1]} and {len(ones) - 2} more"


def _gets(ones: Sequence[object]) -> str:
    return "gets" if len(ones) == 1 else "get"


def _it(ones: Sequence[object]) -> str:
    return "it" if len(ones) == 1 else "them"


def _are(ones: Sequence[object]) -> str:
    return "is" if len(ones) == 1 else "are"


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"
