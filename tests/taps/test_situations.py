"""Training loops as people write them: what is logged equals plain autograd, got another way, in each of them."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlab
from gradlab import Tap
from gradlab.frame import is_absent

GRADIENTS = [Tap("*", of=["output", "output_grad"]), Tap("*", of=["weight_grad", "update"])]


def mlp(seed: int = 0) -> nn.Sequential:
    """A small float64 network, the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(seed: int, size: int = 8) -> Tensor:
    """[size, 4] float64."""
    return torch.randn(size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(out: Tensor) -> Tensor:
    """The loss of these tests: a sum, so that losses of pieces of a batch add up."""
    return out.square().sum()


def sgd(model: nn.Module) -> torch.optim.SGD:
    """The optimizer of most tests."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def logged(monitor: gradlab.Monitor, metric: str) -> dict[str, float]:
    """The newest series of a metric, without sites that have no value."""
    series = monitor.latest()[metric]
    return {site: value for site, value in series.items() if not is_absent(np.float32([value]))[0]}


def norms_of_grads(model: nn.Module, *losses: Tensor) -> dict[str, float]:
    """The norm of the gradient of the losses' sum for each parameter, by autograd.grad."""
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(sum(losses), list(parameters.values()), allow_unused=True)  # type: ignore[arg-type]
    return {name: g.norm().item() for name, g in zip(parameters, grads, strict=True) if g is not None}


def close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_several_forwards_in_one_backward() -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        for start in (0, 2):
            sum(loss_of(model(batch(start + i))) for i in range(2)).backward()
        optimizer.step()
        whole = torch.cat([batch(i) for i in range(4)])
        out = twin(whole)
        close(logged(monitor, "weight_grad.norm"), norms_of_grads(twin, loss_of(out)))
        assert logged(monitor, "output_grad.norm")["output"] == pytest.approx((2 * out).norm().item())
        assert logged(monitor, "output.norm")["0"] == pytest.approx(twin[0](whole).norm().item())


@pytest.mark.parametrize("reentrant", [False, True])
def test_several_checkpointed_forwards_in_one_backward(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.first, self.second = mlp(seed), nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(checkpoint(self.first, x.clone().requires_grad_(), use_reentrant=reentrant))

    def passes(model: nn.Module) -> Tensor:
        return loss_of(model(batch(1))) + 10 * loss_of(model(batch(2)))

    model = Net(0)
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        passes(model).backward()
        optimizer.step()
        middle = [twin.first[1](twin.first[0](batch(i))).detach().requires_grad_() for i in (1, 2)]
        ends = [twin.second(twin.first[2](h)) for h in middle]
        grads = torch.autograd.grad(loss_of(ends[0]) + 10 * loss_of(ends[1]), middle)
        assert logged(monitor, "output_grad.norm")["first.1"] == pytest.approx(torch.cat(grads).norm().item())


def test_a_fused_optimizer_that_unscales_by_itself() -> None:
    plain, scaled = mlp().float(), mlp().float()
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=0.1, fused=fused) for m, fused in ((plain, False), (scaled, True))
    ]
    taps = [*GRADIENTS, Tap("*", of="weight_grad", stage="clipped")]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with (
        gradlab.watch(plain, optimizers[0], taps=taps, strict=True) as expected,
        gradlab.watch(scaled, optimizers[1], taps=taps, strict=True) as monitor,
    ):
        for step in range(2):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(plain(batch(step).float())).backward()
            optimizers[0].step()
            scaler.scale(loss_of(scaled(batch(step).float()))).backward()
            scaler.step(optimizers[1])
            scaler.update()
            for metric in expected.latest():
                assert logged(monitor, metric) == pytest.approx(logged(expected, metric), rel=1e-3), metric


def test_float16_weights_whose_gradients_live_by_the_loss_scale() -> None:
    model = mlp().half()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        loss_of(model(batch(1).half())).backward()
        grads = {n: p.grad.double().norm().item() for n, p in model.named_parameters()}
        optimizer.step()
        close(logged(monitor, "weight_grad.norm"), grads)


def test_an_optimizer_in_the_backward() -> None:
    """Each parameter has an optimizer of its own, which steps as soon as its gradient is accumulated."""
    model, twin = mlp(), mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    with gradlab.watch(
        model, list(optimizers.values()), taps=[Tap("*", of=["update", "weight"])], strict=True
    ) as monitor:
        for number in range(2):
            loss_of(model(batch(number))).backward()
            expected = norms_of_grads(twin, loss_of(twin(batch(number))))
            optimizer = sgd(twin)
            loss_of(twin(batch(number))).backward()
            optimizer.step()
            twin.zero_grad()
            assert monitor.step == number + 1
            close(logged(monitor, "update.norm"), {name: 0.1 * norm for name, norm in expected.items()})


class Gan(nn.Module):
    """A generator and a discriminator in one module, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.d = nn.Linear(4, 4).double(), nn.Linear(4, 1).double()


def gan_steps(gan: Gan) -> Iterator[tuple[str, torch.optim.Optimizer, Callable[[], Tensor]]]:
    """Twice the discriminator, once the generator, two rounds."""
    g, d = sgd(gan.g), sgd(gan.d)
    for round_ in range(2):
        for i in range(2):
            yield (
                "d",
                d,
                lambda i=i, r=round_: loss_of(gan.d(gan.g(batch(10 * r + i)).detach())) - gan.d(batch(i)).sum(),
            )
        yield "g", g, lambda r=round_: loss_of(gan.d(gan.g(batch(10 * r + 7))))


def test_two_monitors_follow_a_gan_whose_parts_step_unequally() -> None:
    gan, twin = Gan(), Gan()
    steps = list(gan_steps(gan))
    with (
        gradlab.watch(gan.g, steps[2][1], taps=GRADIENTS, strict=True) as of_g,
        gradlab.watch(gan.d, steps[0][1], taps=GRADIENTS, strict=True) as of_d,
    ):
        for (name, optimizer, loss), (_, twin_optimizer, twin_loss) in zip(steps, gan_steps(twin), strict=True):
            expected = norms_of_grads(getattr(twin, name), twin_loss())
            for one, function in ((optimizer, loss), (twin_optimizer, twin_loss)):
                one.zero_grad()
                function().backward()
                one.step()
            close(logged(of_g if name == "g" else of_d, "weight_grad.norm"), expected)
            if name == "g":
                gan.d.zero_grad()
        assert (of_g.step, of_d.step) == (2, 4)


def test_a_gan_in_one_watched_module_has_a_frame_each_time_an_optimizer_comes_round() -> None:
    gan = Gan()
    steps = list(gan_steps(gan))
    with gradlab.watch(gan, [steps[2][1], steps[0][1]], taps=[Tap("*", of="update")], strict=True) as monitor:
        updates = []
        for name, optimizer, loss in steps:
            optimizer.zero_grad()
            loss().backward()
            before = gan.d.weight.detach().clone()
            optimizer.step()
            updates.append((name, (gan.d.weight.detach() - before).norm().item()))
        # D steps, D again (which closes the first frame), G (both have stepped: closes the second); and so on.
        assert monitor.step == 4
        _, found = monitor.history("update.norm", "d.weight")
        expected = [updates[i][1] for i in (0, 1, 3, 4)]
        assert found == pytest.approx(expected, rel=1e-5)


def test_layers_frozen_and_thawed() -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        for step, frozen in enumerate([True, False, True]):
            optimizer.zero_grad()
            for one in (model, twin):
                one[0].requires_grad_(not frozen)
            twin.load_state_dict(model.state_dict())
            loss_of(model(batch(step))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            loss_of(twin(batch(step))).backward()
            expected = {n: p.grad.norm().item() for n, p in twin.named_parameters() if p.grad is not None}
            twin.zero_grad()
            close(logged(monitor, "weight_grad.norm"), expected)
            assert ("0" in logged(monitor, "output_grad.norm")) is not frozen or step > 0


def test_an_average_of_the_weights_runs_forwards_in_between() -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        for step in range(2):
            optimizer.zero_grad()
            twin.load_state_dict(model.state_dict())
            out = model(batch(step))
            loss_of(ema(batch(99) * 100)).backward()
            loss_of(out - ema(batch(step)).detach()).backward()
            optimizer.step()
            expected = norms_of_grads(twin, loss_of(twin(batch(step)) - ema(batch(step)).detach()))
            ema.update_parameters(model)
            close(logged(monitor, "weight_grad.norm"), expected)
            assert logged(monitor, "output.norm")["output"] == pytest.approx(out.norm().item())


def test_one_watched_model_inside_the_forward_of_another() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = mlp(), nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.head(torch.relu(self.inner(x) + 1)))

    model = Outer()
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    with (
        gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as outer,
        gradlab.watch(model.inner, optimizer, taps=GRADIENTS, strict=True) as inner,
    ):
        out = model(batch(1))
        loss_of(out).backward()
        optimizer.step()
        expected = norms_of_grads(twin, loss_of(twin(batch(1))))
        close(logged(outer, "weight_grad.norm"), expected)
        close({f"inner.{site}": v for site, v in logged(inner, "weight_grad.norm").items()},
              {site: v for site, v in expected.items() if site.startswith("inner.")})  # fmt: skip
        assert sorted(logged(outer, "output.norm")) == sorted(
            ["inner", "inner.0", "inner.1", "inner.2", "/add", "/relu", "/tanh", "head", "output"]
        )
        assert logged(inner, "output_grad.norm")["output"] == logged(outer, "output_grad.norm")["inner"]


def test_function_transforms_leave_no_trace() -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        parameters = dict(model.named_parameters())

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return loss_of(torch.func.functional_call(model, weights, (x,)))

        out = model(batch(1))
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch(2) * 100)
        with warnings.catch_warnings():  # torch scripts its decompositions on first use, and deprecates that
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.func.jacfwd(model)(batch(3)[0])
        loss_of(out).backward()
        torch.func.grad(loss)(parameters, batch(2))
        optimizer.step()
        close(logged(monitor, "weight_grad.norm"), norms_of_grads(twin, loss_of(twin(batch(1)))))
        assert logged(monitor, "output.norm")["output"] == pytest.approx(out.norm().item())
        assert logged(monitor, "output_grad.norm")["output"] == pytest.approx((2 * out).norm().item())


def test_gradients_that_are_assigned_by_hand() -> None:
    """`autograd.grad` is a probe until its result is used: the parameters tell, and the tensors have no gradient."""
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=[*GRADIENTS, Tap("*", of="weight_grad", stage="clipped")]) as monitor:
        grads = torch.autograd.grad(loss_of(model(batch(1))), list(model.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g
        optimizer.step()
        expected = norms_of_grads(twin, loss_of(twin(batch(1))))
        close(logged(monitor, "weight_grad.norm@clipped"), expected)
        close(logged(monitor, "update.norm"), {name: 0.1 * norm for name, norm in expected.items()})
        assert logged(monitor, "weight_grad.norm") == {}


@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_step_skipped_by_the_loop(set_to_none: bool) -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        for step, poison in enumerate([1.0, float("nan"), 1.0]):
            optimizer.zero_grad(set_to_none=set_to_none)
            twin.load_state_dict(model.state_dict())
            loss = loss_of(model(batch(step))) * poison
            loss.backward()
            if torch.isfinite(loss):
                optimizer.step()
        out = twin(batch(2))
        close(logged(monitor, "weight_grad.norm"), norms_of_grads(twin, loss_of(out)))
        assert logged(monitor, "output_grad.norm")["output"] == pytest.approx((2 * twin(batch(2))).norm().item())


def test_two_backwards_through_one_graph() -> None:
    """Gradients of parameters add up; those of tensors are the last backward's."""
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        out = model(batch(1))
        loss_of(out).backward(retain_graph=True)
        (3 * out).sum().backward()
        optimizer.step()
        twin_out = twin(batch(1))
        close(logged(monitor, "weight_grad.norm"), norms_of_grads(twin, loss_of(twin_out), (3 * twin_out).sum()))
        assert logged(monitor, "output_grad.norm")["output"] == pytest.approx(3 * out.numel() ** 0.5)


def test_an_exception_in_a_forward_inside_a_step() -> None:
    model, twin = mlp(), mlp()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            twin.load_state_dict(model.state_dict())
            loss_of(model(batch(1))).backward()
            with pytest.raises(RuntimeError, match="mat1 and mat2"):
                model(batch(1)[:, :3])
            loss_of(model(batch(2))).backward()
            optimizer.step()
            expected = norms_of_grads(twin, loss_of(twin(batch(1))), loss_of(twin(batch(2))))
            close(logged(monitor, "weight_grad.norm"), expected)


def test_a_model_in_eval_mode_is_trained_and_watched_all_the_same() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).double().eval()
    twin = copy.deepcopy(model)
    optimizer = sgd(model)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        loss_of(model(x)).backward()
        optimizer.step()
        close(logged(monitor, "weight_grad.norm"), norms_of_grads(twin, loss_of(twin(x))))
        assert {"linear1", "linear2", "self_attn[0]", "norm2"} <= logged(monitor, "output_grad.norm").keys()


def test_threads_that_train_a_model_each() -> None:
    def train(model: nn.Module, seed: int, steps: int, before: Callable[[], Any] = lambda: None) -> np.ndarray:
        optimizer = sgd(model)
        with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
            for step in range(steps):
                before()
                optimizer.zero_grad()
                loss_of(model(batch(seed + step))).backward()
                optimizer.step()
            metrics = [("weight_grad.norm", "0.weight"), ("output_grad.norm", "1"), ("output.norm", "output")]
            return np.array([monitor.history(*metric)[1] for metric in metrics])

    models = [mlp(seed) for seed in range(2)]
    alone = [train(mlp(seed), 10 * seed, 20) for seed in range(2)]
    barrier = threading.Barrier(2)
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = train(models[seed], 10 * seed, 20, lambda: barrier.wait(240))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in range(2):
        assert np.array_equal(found[seed], alone[seed])


def test_a_training_loop_that_is_a_generator() -> None:
    def loop(model: nn.Module) -> Iterator[float]:
        optimizer = sgd(model)
        with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
            for step in range(3):
                optimizer.zero_grad()
                out = model(batch(step))
                yield out.norm().item()
                loss_of(out).backward()
                optimizer.step()
                yield monitor.latest()["output.norm"]["output"]

    loops = [loop(mlp(seed)) for seed in range(2)]
    for _ in range(3):
        expected = [next(one) for one in loops]
        assert [next(one) for one in loops] == pytest.approx(expected, rel=1e-6)
    for one in loops:
        one.close()


def test_a_tensor_hook_of_the_users_is_seen_where_it_scales_the_gradient() -> None:
    """What is logged is the gradient that flows on: as every hook on the tensor has left it, early or late."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h.register_hook(lambda g: g * 10)
            return self.b(h)

    model = Net().double()
    optimizer = sgd(model)
    with gradlab.watch(model, optimizer, taps=GRADIENTS, strict=True) as monitor:
        out = model(batch(1))
        loss_of(out).backward()
        optimizer.step()
        assert logged(monitor, "output_grad.norm")["a"] == pytest.approx(
            10 * (2 * out @ (model.b.weight + 0.1 * model.b.weight.grad)).norm().item()
        )


def test_sparse_gradients_of_an_embedding() -> None:
    model = nn.Embedding(50, 4, sparse=True).double()
    twin = nn.Embedding(50, 4).double()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    tokens = torch.tensor([[1, 2, 2], [7, 1, 1]])
    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of=["weight_grad", "update"], stats=["norm", "max_abs"])]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            twin.load_state_dict(model.state_dict())
            loss_of(model(tokens)).backward()
            optimizer.step()
            (grad,) = torch.autograd.grad(loss_of(twin(tokens)), [twin.weight])
            close(logged(monitor, "weight_grad.norm"), {"weight": grad.norm().item()})
            close(logged(monitor, "weight_grad.max_abs"), {"weight": grad.abs().max().item()})
            close(logged(monitor, "update.norm"), {"weight": (model.weight - twin.weight).norm().item()})
