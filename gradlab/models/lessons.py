"""Three tiny models of the kind that lessons on autograd begin with: their gradients can be checked by hand.

Each works out its answers with autograd itself when the run is over, on copies, so that nothing of the model changes.
The first two bring their own single batch and an optimizer of learning rate 0: the numbers stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gradlab.errors import UsageError, without_warnings
from gradlab.lightning.module import GradlabModule
from gradlab.models.classifier import accuracy
from gradlab.models.mlp import MLP
from gradlab.sites.named import tap
from gradlab.taps.rule import Tap


class FixedInputModel(GradlabModule):
    """A model with one fixed input, which is its data, and parameters that stay."""

    lr = 0.0
    point: Tensor
    """The input of every step."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.register_buffer("point", point, persistent=False)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """One batch of one sample: `point`."""
        return DataLoader(_Single(self.point.detach().cpu()), generator=torch.Generator())

    def configure_optimizers(self) -> optim.Optimizer:
        """Plain gradient descent with learning rate 0, so that every step computes gradients and changes nothing."""
        return optim.SGD(self.parameters(), lr=self.lr)


class _Single(torch.utils.data.Dataset[Tensor]):
    """A data set of one sample."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        return self.sample


class ScalarLine(FixedInputModel):
    """z = w * x + b. w and b are leaves; y = w * x and z are not, so only retain_grad shows their gradients."""

    def __init__(self, w: float = 3.0, b: float = 1.0, x: float = 2.0) -> None:
        """Build it, with these values of w, b and x."""
        super().__init__(torch.tensor(float(x)))
        self.save_hyperparameters(logger=False)
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def taps(self) -> Sequence[Tap]:
        """The gradients of both leaves, and of y and z, which are kept for that."""
        return (*super().taps(), Tap(["y", "z"], of="output_grad", stats=["norm", "mean"], keep=True))

    def forward(self, x: Tensor) -> Tensor:
        """z for each x, of the same shape. The sites `y` and `z` are the two non-leaf tensors."""
        y = tap("y", self.w * x)
        return tap("z", y + self.b)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """z itself is the loss: its gradients are dz/dw and dz/db."""
        z = self(x).sum()
        self.log("train/loss", z, batch_size=len(x))
        return z

    def answers(self) -> Mapping[str, Tensor | float | None]:
        """dz/dw, dz/db, the gradient of the non-leaf y without and with retain_grad, and after a second backward."""
        with torch.enable_grad():
            w, b, y, z = self._graph()
            z.backward()
            found = {"z = w*x + b": z.detach(), "dz/dw (is x)": w.grad, "dz/db (is 1)": b.grad}
            found["y.grad without retain_grad (y is not a leaf)"] = _grad(y)

            w, b, y, z = self._graph()
            y.retain_grad()
            z.backward(retain_graph=True)
            found["y.grad with retain_grad (is dz/dy)"] = _copy(_grad(y))
            z.backward()
            found["w.grad after a second backward under retain_graph (gradients add up)"] = w.grad
            found["b.grad after a second backward under retain_graph (gradients add up)"] = b.grad
        return found

    def _graph(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A fresh graph of the line on copies of the parameters: w, b, y, z."""
        w, b = _leaf(self.w), _leaf(self.b)
        y = w * self.point
        return w, b, y, y + b


class TwoByTwo(FixedInputModel):
    """y1 = x1² + a x2 and y2 = x2² + b x1: two inputs, two outputs, so backward needs a vector and gives vᵀJ."""

    def __init__(self, x: Sequence[float] = (1.0, 2.0), a: float = 3.0, b: float = 2.0) -> None:
        """Build it, with these values of x1 and x2, and of the factors a and b."""
        if len(x) != 2:
            raise UsageError(f"TwoByTwo: x must be two numbers, as [1.0, 2.0], got {list(x)}.")
        super().__init__(torch.tensor([float(number) for number in x]))
        self.save_hyperparameters(logger=False)
        self.a = nn.Parameter(torch.tensor(float(a)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def taps(self) -> Sequence[Tap]:
        """The gradients of a and b, and of the outputs."""
        return (*super().taps(), Tap(["y1", "y2", "output"], of=["output", "output_grad"], stats=["norm", "mean"]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2] -> [..., 2]. The sites `y1` and `y2` are the two outputs."""
        return _two_by_two(x, self.a, self.b)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """y1 + y2: backward of a sum is the vector-Jacobian product with gradient=[1, 1]."""
        loss = self(x).sum()
        self.log("train/loss", loss, batch_size=len(x))
        return loss

    def answers(self) -> Mapping[str, Tensor | float | None]:
        """y, its Jacobian by x, and x.grad for three vectors that backward is given."""
        a, b = self.a.detach(), self.b.detach()

        def function(x: Tensor) -> Tensor:
            return _two_by_two(x, a, b)

        def vjp(vector: list[float]) -> Tensor | None:
            x = _leaf(self.point)
            function(x).backward(gradient=x.new_tensor(vector))
            return x.grad

        with torch.enable_grad():
            return {
                "x": self.point.clone(),
                "y = [x1^2 + a*x2, x2^2 + b*x1]": function(self.point).detach(),
                "vjp with gradient=[1, 0] (first row of the Jacobian)": vjp([1.0, 0.0]),
                "vjp with gradient=[0, 1] (second row of the Jacobian)": vjp([0.0, 1.0]),
                "vjp with gradient=[1, 1] (sum of the rows)": vjp([1.0, 1.0]),
                "Jacobian dy/dx": torch.autograd.functional.jacobian(function, self.point),
            }


class ModuleVsFunctional(GradlabModule):
    """Two equal MLPs, one with nn.ReLU and one with F.relu, trained side by side on the same batches.

    Its sites: `module_net.layers.0.activation` in the one is `functional_net.layers.0/relu` in the other.
    """

    largest_loss_difference: Tensor
    """The largest difference of the two losses in any training step so far, a 0-d tensor."""

    def __init__(
        self, widths: Sequence[int] = (64, 32), in_features: int = 64, num_classes: int = 10, lr: float = 3e-3
    ) -> None:
        """Build both, with the same weights; the arguments are those of MLP."""
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.lr = lr
        self.module_net = MLP(widths, in_features, num_classes, functional=False)
        self.functional_net = MLP(widths, in_features, num_classes, functional=True)
        self.functional_net.load_state_dict(self.module_net.state_dict())
        self.register_buffer("largest_loss_difference", torch.zeros(()))

    def taps(self) -> Sequence[Tap]:
        """Every weight's gradient, and the activations of both nets with their gradients."""
        activations = Tap(["*.activation", "*/relu"], of=["output", "output_grad"], stats=["norm", "zeros"])
        return (*super().taps(), activations)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the net with modules and of the one with functions, each [batch, classes]."""
        return self.module_net(x), self.functional_net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The sum of both losses, so each net gets the gradient of its own; logs both and their difference."""
        x, target = batch
        by_module, by_function = (F.cross_entropy(logits, target) for logits in self(x))
        difference = (by_module - by_function).detach()
        self.largest_loss_difference = torch.maximum(self.largest_loss_difference, difference.abs())
        losses = {"train/loss_module": by_module, "train/loss_functional": by_function}
        self.log_dict({**losses, "train/loss_difference": difference}, batch_size=len(target))
        return by_module + by_function

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the accuracy of both, and as `val/accuracy` and `val/loss` those of the one with functions."""
        x, target = batch
        by_module, by_function = self(x)
        metrics = {
            "val/loss": F.cross_entropy(by_function, target),
            "val/accuracy": accuracy(by_function, target),
            "val/accuracy_module": accuracy(by_module, target),
        }
        self.log_dict(metrics, batch_size=len(target), sync_dist=True)

    def answers(self) -> Mapping[str, Tensor | float | None]:
        """The largest differences between the two nets, in loss and in weights: 0 where they are the same."""
        pairs = zip(self.module_net.parameters(), self.functional_net.parameters(), strict=True)
        weights = [(by_module - by_function).detach().abs().max() for by_module, by_function in pairs]
        return {
            "largest difference of the loss in any step, nn.ReLU against F.relu": self.largest_loss_difference.clone(),
            "largest difference of a weight at the end, nn.ReLU against F.relu": torch.stack(weights).max(),
        }


def _two_by_two(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    x1, x2 = x[..., 0], x[..., 1]
    y1 = tap("y1", x1**2 + a * x2)
    y2 = tap("y2", x2**2 + b * x1)
    return torch.stack((y1, y2), dim=-1)


def _leaf(value: Tensor) -> Tensor:
    """A copy of `value` that is a leaf of a new graph."""
    return value.detach().clone().requires_grad_()


def _grad(value: Tensor) -> Tensor | None:
    """`value.grad`, without torch's warning that a non-leaf has none."""
    with without_warnings(message="The .grad attribute of a Tensor that is not a leaf"):
        return value.grad


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()
