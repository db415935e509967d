"""Generated data: the shapes of each kind, and that it holds what it promises."""

import pytest
import torch

from gradlab.data import Synthetic
from gradlab.errors import UsageError


@pytest.mark.parametrize("kind", ["blobs", "spirals"])
def test_classes(kind):
    data = Synthetic(kind, num_samples=300, num_outputs=3)
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 2), torch.float32, (64,), torch.int64)
    assert data.class_names == ("0", "1", "2")
    assert torch.cat((data.train_data.targets, data.val_data.targets)).bincount().tolist() == [100, 100, 100]


def test_blobs_are_clouds_around_their_centres():
    train = Synthetic("blobs", in_features=5, noise=0.01).train_data
    for label in range(3):
        cloud = train.inputs[train.targets == label]
        assert cloud.std(dim=0).max() < 0.02


def test_spirals_without_noise_lie_in_the_unit_disc():
    assert Synthetic("spirals", noise=0.0).train_data.inputs.norm(dim=1).max() <= 1.0


def test_a_regression_without_noise_is_linear():
    train = Synthetic("regression", in_features=4, num_outputs=2, noise=0.0).train_data
    weight = torch.linalg.lstsq(train.inputs, train.targets).solution
    assert train.targets.shape[1] == 2
    torch.testing.assert_close(train.inputs @ weight, train.targets, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "blob"}, "kind has no 'blob'. Did you mean 'blobs'? It may be blobs, spirals, regression."),
        ({"num_samples": 1}, "num_samples must be a whole number from 2, got 1."),
        ({"kind": "spirals", "in_features": 3}, "spirals lie in the plane, so in_features must be 2, got 3."),
        ({"noise": -0.5}, "noise must be 0 or more, got -0.5."),
    ],
)
def test_wrong_arguments_are_named_with_the_nearest_fix(arguments, message):
    with pytest.raises(UsageError) as error:
        Synthetic(**arguments)
    assert str(error.value) == f"Synthetic: {message}"
