"""A replayed slice is measured on the same samples again and again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import gradlab
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.replayed import ReplayedSlice


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def test_a_block_is_the_mean_over_the_first_samples() -> None:
    net, x = model(), torch.randn(9, 4)
    spec = JacobianSlice(of="output", wrt="input", rows=2, cols=[0, 3], samples=4, of_map="softmax", probe="validation")
    block = ReplayedSlice(spec, net, x).measure(0)
    each = [gradlab.jacobian(net, x[i : i + 1], rows=2, cols=[0, 3], of_map="softmax").values for i in range(4)]
    np.testing.assert_allclose(block.values, np.mean(each, 0), rtol=1e-5, atol=1e-7)
    assert block.notes == ("mean over 4 samples",)
    assert block.name == "softmax(output)__wrt__input@validation"


def test_the_probe_batch_is_a_copy_and_the_numbers_repeat() -> None:
    net, x = model(), torch.randn(2, 4)
    probe = ReplayedSlice(JacobianSlice(of="output", wrt="input"), net, x)
    first = probe.measure(5)
    x.zero_()
    torch.randn(100)
    again = probe.measure(5)
    assert pickle.dumps(first) == pickle.dumps(again)


def test_the_model_of_the_moment_is_measured() -> None:
    net = nn.Linear(4, 3)
    probe = ReplayedSlice(JacobianSlice(of="output", wrt="input"), net, torch.randn(2, 4))
    probe.measure(0)
    with torch.no_grad():
        net.weight.add_(1)
    assert np.array_equal(probe.measure(1).values, net.weight.detach().numpy())


def test_an_input_without_samples_is_measured_whole() -> None:
    block = ReplayedSlice(JacobianSlice(of="output", wrt="input"), nn.Linear(4, 3), torch.randn(4)).measure(0)
    assert block.values.shape == (3, 4)


@pytest.mark.gpu
def test_the_probe_batch_follows_the_model_to_its_device() -> None:
    net = model()
    probe = ReplayedSlice(JacobianSlice(of="output", wrt="input"), net, torch.randn(2, 4))
    before = probe.measure(0)
    after = ReplayedSlice(probe.spec, net.cuda(), probe.inputs).measure(0)
    np.testing.assert_allclose(after.values, before.values, rtol=1e-4, atol=1e-5)
