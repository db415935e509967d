"""Rules for gradients on their way, on small trainings with the fault and on their healthy twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlab
from gradlab import Tap
from gradlab.diagnose.catalogue import all_rules
from gradlab.diagnose.context import Context, OptimizerFacts, ParameterFacts
from gradlab.diagnose.options import Diagnose
from gradlab.diagnose.places import covering
from gradlab.finding import Finding

OURS = ("GL103", "GL106", "GL107", "GL109")


def trained(
    model: nn.Module,
    steps: int,
    step: Callable[[int], None],
    *optimizers: torch.optim.Optimizer,
) -> list[Finding]:
    """The findings of these rules over some steps, each made by a function of its number."""
    taps, diagnose = [Tap("*", of="weight_grad")], Diagnose(select=OURS)
    with gradlab.watch(model, list(optimizers), taps=taps, diagnose=diagnose, strict=True) as monitor:
        for number in range(steps):
            step(number)
    return monitor.findings


def seen(code: str, **facts: object) -> list[object]:
    """What a rule says of a context made by hand."""
    return list(all_rules()[code].look(Context(**facts)))  # type: ignore[arg-type]


class Halves(nn.Module):
    """An encoder and a head, with something done to the features between them."""

    def __init__(self, kind: str, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        encoders: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)),
            "conv": lambda: nn.Sequential(
                nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)
            ),
            "attention": lambda: nn.Sequential(
                nn.Unflatten(1, (3, 2)),
                nn.TransformerEncoderLayer(2, 1, 4, 0.0, batch_first=True),
                nn.Flatten(),
                nn.Linear(6, 4),
            ),
        }
        self.encoder, self.head, self.between = encoders[kind](), nn.Linear(4, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


KINDS = ["mlp", "conv", "attention"]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


def one_step(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], reset: Callable[[int], None]
) -> Callable[[int], None]:
    def step(number: int) -> None:
        x, y = batch()
        loss = F.cross_entropy(model(x), y)
        reset(number)
        loss.backward()
        for one in optimizers:
            one.step()

    return step


def sgd(parameters: Iterable[nn.Parameter], **options: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, **options)


# --- GL103


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reset", "sites"),
    [
        (lambda model, n: None, ()),
        (lambda model, n: model.zero_grad() if n % 6 == 0 else None, ()),
        (lambda model, n: model.head.zero_grad(), ("encoder",)),
    ],
    ids=["never", "now and then", "a part"],
)
def test_gradients_that_are_not_reset_are_named(
    kind: str, reset: Callable[[nn.Module, int], None], sites: tuple[str, ...]
) -> None:
    model = Halves(kind)
    optimizer = sgd(model.parameters(), momentum=0.5)
    (finding,) = trained(model, 12, one_step(model, [optimizer], lambda n: reset(model, n)), optimizer)
    assert (finding.code, finding.sites, finding.severity) == ("GL103", sites, "error")


def test_of_two_optimizers_that_which_is_not_reset_is_named() -> None:
    model = Halves("mlp")
    ones = [sgd(model.encoder.parameters()), sgd(model.head.parameters())]
    (finding,) = trained(model, 12, one_step(model, ones, lambda n: ones[1].zero_grad()), *ones)
    assert (finding.code, finding.sites) == ("GL103", ("encoder",))


def by_data(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


@pytest.mark.parametrize(
    "reset",
    [
        lambda model: model.zero_grad(),
        lambda model: model.zero_grad(set_to_none=False),
        lambda model: [setattr(p, "grad", None) for p in model.parameters()],
        by_data,
        lambda model: [p.grad.mul_(0.5) for p in model.parameters() if p.grad is not None],
    ],
    ids=["to none", "to zero", "by hand", "by data", "scaled"],
)
def test_no_way_to_reset_gradients_is_missed(reset: Callable[[nn.Module], None]) -> None:
    model = Halves("mlp")
    optimizer = sgd(model.parameters())
    assert not trained(model, 12, one_step(model, [optimizer], lambda n: reset(model)), optimizer)


def test_accumulation_is_healthy() -> None:
    model = Halves("mlp")
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        optimizer.zero_grad()
        for _ in range(3):
            x, y = batch()
            (F.cross_entropy(model(x), y) / 3).backward()
        optimizer.step()

    assert not trained(model, 12, step, optimizer)


def test_a_discriminator_that_the_generators_backward_adds_to_is_healthy() -> None:
    model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)})
    g, d = sgd(model["g"].parameters()), sgd(model["d"].parameters())

    def step(number: int) -> None:
        made = model["g"](torch.randn(8, 2))
        d.zero_grad()
        (model["d"](made.detach()).mean() - model["d"](torch.randn(8, 2)).mean()).backward()
        d.step()
        g.zero_grad()
        (-model["d"](made).mean()).backward()
        g.step()

    assert not trained(model, 60, step, g, d)


def test_lbfgs_and_its_closures_are_healthy() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, y = torch.randn(16, 3), torch.randn(16, 1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    assert not trained(model, 10, lambda n: optimizer.step(closure), optimizer)


# --- GL106


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("between", "by"),
    [
        (lambda x: x.detach(), "detach()"),
        (lambda x: x.data, ".data"),
        (lambda x: torch.from_numpy(x.detach().numpy() * 2), "NumPy"),
        (lambda x: F.one_hot(x.argmax(1), 4).float(), "argmax()"),
    ],
    ids=["detach", "data", "numpy", "argmax"],
)
def test_an_encoder_that_is_cut_off_is_named_with_what_cuts_it(
    kind: str, between: Callable[[Tensor], Tensor], by: str
) -> None:
    model = Halves(kind, between)
    optimizer = sgd(model.parameters())
    (finding,) = trained(model, 52, one_step(model, [optimizer], lambda n: model.zero_grad()), optimizer)
    assert (finding.code, finding.sites, finding.severity) == ("GL106", ("encoder",), "warning")
    assert f"{by} cuts off" in finding.message and "before head" in finding.message


def test_a_last_layer_that_is_cut_off_from_the_loss_is_named() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(6, 4), "a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        x, y = batch()
        h = model["trunk"](x)
        optimizer.zero_grad()
        (F.cross_entropy(model["a"](h), y) + model["b"](h).detach().square().mean()).backward()
        optimizer.step()

    (finding,) = trained(model, 52, step, optimizer)
    assert (finding.code, finding.sites, finding.severity) == ("GL106", ("b",), "warning")


@pytest.mark.parametrize("is_called", [True, False])
def test_a_head_that_no_loss_depends_on_is_no_more_than_an_information(is_called: bool) -> None:
    model = nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        x, y = batch()
        if is_called:
            model["b"](x)
        optimizer.zero_grad()
        F.cross_entropy(model["a"](x), y).backward()
        optimizer.step()

    (finding,) = trained(model, 52, step, optimizer)
    assert (finding.code, finding.sites, finding.severity) == ("GL106", ("b",), "info")


def test_a_target_network_in_the_same_optimizer_is_healthy() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"online": nn.Linear(6, 3), "target": nn.Linear(6, 3)})
    model["target"].load_state_dict(model["online"].state_dict())
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        x, _ = batch()
        with torch.no_grad():
            wanted = model["target"](x)
        optimizer.zero_grad()
        F.mse_loss(model["online"](x), wanted + 1).backward()
        optimizer.step()

    assert all(one.severity == "info" for one in trained(model, 52, step, optimizer))


def test_heads_that_take_turns_are_healthy() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(6, 4), **{str(n): nn.Linear(4, 3) for n in range(5)}})
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model[str(number % 5)](model["trunk"](x)), y).backward()
        optimizer.step()

    assert not trained(model, 55, step, optimizer)


def silent(**facts: object) -> ParameterFacts:
    known = {"shape": (3, 3), "requires_grad": True, "is_in_model": True, "optimizers": (0,), "module_class": "Linear"}
    return ParameterFacts(name="a.weight", module="a", **{**known, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({"is_used": True, "is_cut": True}, None),
        ({"is_used": True}, "info"),
        ({"is_used": None, "is_cut": True}, "none"),
        ({"is_used": True, "is_cut": True, "is_changed_in_place": True}, "none"),
        ({"is_used": True, "is_cut": True, "has_gradient_arrived": True}, "none"),
        ({"is_used": True, "is_cut": True, "optimizers": ()}, "none"),
        ({"is_used": True, "is_cut": True, "was_trained": True}, "info"),
    ],
)
def test_what_the_facts_of_a_silent_parameter_amount_to(facts: dict[str, object], severity: str | None) -> None:
    optimizer = OptimizerFacts(
        name="SGD", is_counted=True, num_steps=60, last_step=59, groups=({},), parameters=(("a.weight",),)
    )
    said = seen("GL106", num_backwards=60, parameters=[silent(**facts)], optimizers=[optimizer])
    assert [one.severity for one in said] == ([] if severity == "none" else [severity])


# --- GL107


class Recurrent(nn.Module):
    """A recurrent network of one kind; its state goes through a function at each time step."""

    def __init__(self, kind: str, between: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.between = kind, between
        if kind == "inline":
            self.i2h, self.embed = nn.Linear(9, 6), nn.Linear(2, 3)
        elif kind == "layer":
            self.rnn = nn.LSTM(2, 6, batch_first=True)
        else:
            self.rnn = nn.GRUCell(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), 6), x.new_zeros(1, len(x), 6)
        for number, now in enumerate(x.view(len(x), 6, -1)[:, :, :2].unbind(1)):
            h = self.between(h, number)
            if self.kind == "inline":
                h = torch.tanh(self.i2h(torch.cat([self.embed(now), h], 1)))
            elif self.kind == "layer":
                out, (_, c) = self.rnn(now[:, None], (h[None], self.between(c, number)))
                h = out[:, -1]
            else:
                h = self.rnn(now, h)
        return self.head(h)


def recurrent_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
    def step(number: int) -> None:
        x, y = torch.randn(8, 12), torch.randint(0, 3, (8,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(("kind", "site"), [("cell", "rnn"), ("layer", "rnn"), ("inline", "i2h")])
@pytest.mark.parametrize(
    "between",
    [lambda h, n: h.detach(), lambda h, n: h.detach().clone() * 1.0, lambda h, n: h.data],
    ids=["detach", "clone", "data"],
)
def test_a_state_that_is_detached_at_each_time_step_is_named(
    kind: str, site: str, between: Callable[[Tensor, int], Tensor]
) -> None:
    model = Recurrent(kind, between)
    optimizer = sgd(model.parameters())
    (finding,) = trained(model, 12, recurrent_step(model, optimizer), optimizer)
    assert (finding.code, finding.sites[0], finding.severity) == ("GL107", site, "warning")


@pytest.mark.parametrize("kind", ["cell", "layer", "inline"])
@pytest.mark.parametrize("every", [3, 100])
def test_a_state_that_is_detached_now_and_then_or_never_is_healthy(kind: str, every: int) -> None:
    model = Recurrent(kind, lambda h, n: h.detach() if n % every == 0 else h)
    optimizer = sgd(model.parameters())
    assert not trained(model, 12, recurrent_step(model, optimizer), optimizer)


def test_samples_chunks_and_adversarial_examples_that_are_fed_back_are_healthy() -> None:
    model = nn.ModuleDict({"policy": nn.Linear(3, 3), "rnn": nn.GRU(3, 3, batch_first=True)})
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        state, hidden, losses = torch.randn(4, 3), None, []
        for _ in range(5):
            mean = model["policy"](state)
            chosen = torch.distributions.Normal(mean, 1.0)
            action = chosen.sample()
            losses.append(chosen.log_prob(action).mean())
            state = 0.5 * state + action
            out, hidden = model["rnn"](torch.randn(4, 2, 3), hidden)
            losses.append(out.mean())
            hidden = hidden.detach()
            x = state.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model["policy"](x).square().sum(), x)
            state = state + 0.01 * slope.sign()
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    assert not trained(model, 8, step, optimizer)


# --- GL109


def keeping(kept: list[object], what: Callable[[Tensor, Tensor], object]) -> list[Finding]:
    model = Halves("mlp")
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        x, y = batch()
        out = model(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.append(what(out, loss))

    return trained(model, 22, step, optimizer)


@pytest.mark.parametrize("what", [lambda out, loss: loss, lambda out, loss: out, lambda out, loss: (0, out.softmax(1))])
def test_graphs_that_are_kept_are_counted(what: Callable[[Tensor, Tensor], object]) -> None:
    (finding,) = keeping([], what)
    assert (finding.code, finding.sites, finding.severity) == ("GL109", (), "warning")
    assert "more at each step" in finding.message


@pytest.mark.parametrize("what", [lambda out, loss: loss.item(), lambda out, loss: out.detach()])
def test_numbers_that_are_kept_are_healthy(what: Callable[[Tensor, Tensor], object]) -> None:
    assert not keeping([], what)


def test_a_few_graphs_or_young_ones_are_healthy() -> None:
    assert not seen("GL109", retained_graphs=2)
    assert seen("GL109", retained_graphs=40, retained_steps=1)


def test_places_are_the_largest_modules_that_hold_some_parameters_alone() -> None:
    everything = ["a.0.w", "a.1.w", "b.w", "b.bias", "c.w"]
    assert covering(["a.0.w", "a.1.w", "b.w"], everything) == ("a", "b.w")
    assert covering([], everything) == ()
    assert covering(everything, everything) == ("a", "b", "c")


def test_each_rule_says_what_it_needs_to_say() -> None:
    for code in OURS:
        for part in ("What it sees.", "Why it hurts.", "What to do.", "What looks like it and is healthy."):
            assert f"**{part}**" in all_rules()[code].about
    assert not any(seen(code) for code in OURS)


def test_modes_of_the_user_are_on_and_off_as_they_would_be() -> None:
    model = Halves("mlp")
    optimizer = sgd(model.parameters())

    def step(number: int) -> None:
        with torch.device("cpu"):
            x, y = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if number % 2:
                optimizer.step()
        if not number % 2:
            optimizer.step()

    trained(model, 8, step, optimizer)
    assert torch._C._len_torch_function_stack() == 0
