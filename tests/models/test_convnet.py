"""The ConvNet's blocks: their shapes, their sites, and that the residual addition is one."""

import pytest
import torch
from torch import nn

from gradlab.errors import UsageError
from gradlab.models import ConvNet
from gradlab.models.convnet import ResidualBlock
from gradlab.sites.forward import sites_of


def test_blocks_after_the_first_halve_the_image():
    shapes = {site.name: site.shape for site in sites_of(ConvNet([4, 8, 16]), torch.randn(2, 1, 8, 8))}
    assert [shapes[f"blocks.{i}"] for i in range(3)] == [(2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2)]
    assert shapes["features"] == (2, 16)


def test_functional_relus_and_the_addition_are_sites():
    names = [site.name for site in sites_of(ConvNet([4]), torch.randn(2, 1, 8, 8)) if "/" in site.name]
    assert names == ["/relu", "blocks.0/relu", "blocks.0/add", "blocks.0/relu_1", "/mean"]


def test_a_block_whose_branch_is_silent_passes_a_positive_input_through():
    block = ResidualBlock(4, 4, stride=1)
    nn.init.zeros_(block.second.norm.weight)
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("channels", [[], [4, -1], "16"])
def test_wrong_channels_are_refused(channels):
    with pytest.raises(UsageError, match="ConvNet: channels"):
        ConvNet(channels)
