"""ConvNet: convolutions with batch norm, residual additions and functional activations, for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from gradlab.models.checks import check_count, check_counts
from gradlab.models.classifier import Classifier
from gradlab.taps.rule import Tap


class ConvNet(Classifier):
    """A stem, one residual block a width, the mean over space, a linear head.

    Its sites: `stem.conv`, `stem.norm`, `stem`, `/relu`, `blocks.0.first`, `blocks.0/relu`, `blocks.0.second`,
    `blocks.0/add`, `blocks.0/relu_1`, `blocks.0`, ..., `/mean`, `features`, `head`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        in_channels: int = 1,
        num_classes: int = 10,
        lr: float = 3e-3,
    ) -> None:
        """Build it.

        Args:
            channels: width of each residual block; each block after the first halves height and width.
            in_channels: channels of an image.
            num_classes: logits.
            lr: learning rate of the default optimizer.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__()
        check_counts("ConvNet", "channels", channels)
        check_count("ConvNet", "in_channels", in_channels)
        check_count("ConvNet", "num_classes", num_classes)
        self.save_hyperparameters(logger=False)
        self.lr = lr
        self.stem = ConvNorm(in_channels, channels[0])
        sizes = [channels[0], *channels]
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, stride=1 if index == 0 else 2)
            for index, (before, after) in enumerate(pairwise(sizes))
        )
        self.head = nn.Linear(channels[-1], num_classes)

    def taps(self) -> Sequence[Tap]:
        """Every weight's gradient, and every tenth step the stem and the blocks."""
        depth = Tap(["stem", "blocks.*"], of=["output", "output_grad"], stats=["norm", "zeros"], every=10)
        return (*super().taps(), depth)

    def features(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> [batch, channels[-1]], the mean over space."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(2, 3))


class ConvNorm(nn.Module):
    """A convolution without bias and the batch norm that makes its bias needless."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] -> [batch, out, height / stride, width / stride]."""
        return self.norm(self.conv(x))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + second(relu(first(x)))); the shortcut is the identity unless the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, stride=stride)
        self.second = ConvNorm(out_channels, out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else ConvNorm(in_channels, out_channels, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] -> [batch, out, height / stride, width / stride]."""
        change = self.second(F.relu(self.first(x)))
        return F.relu(change + (x if self.shortcut is None else self.shortcut(x)))
