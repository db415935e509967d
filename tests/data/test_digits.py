"""The digits: shapes, scale, and a split that loses nothing."""

import pytest
import torch

from gradlab.data import Digits


@pytest.mark.parametrize(("image", "shape"), [(False, (64,)), (True, (1, 8, 8))])
def test_shapes_and_types(image, shape):
    data = Digits(image=image)
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, *shape), torch.float32, (64,), torch.int64)
    assert data.input_shape == shape


def test_images_are_the_flat_rows_in_another_shape():
    assert torch.equal(Digits(image=True).train_data.inputs.flatten(1), Digits().train_data.inputs)


def test_every_image_is_in_one_of_both_parts():
    data = Digits(val_fraction=0.25, standardize=False)
    assert len(data.val_data) == round(0.25 * 1797)
    assert len(data.train_data) + len(data.val_data) == 1797
    train, val = (set(map(tuple, part.inputs.tolist())) for part in (data.train_data, data.val_data))
    assert train.isdisjoint(val)  # no image occurs twice in the digits


def test_every_class_has_a_name_and_occurs():
    data = Digits()
    assert data.class_names == tuple("0123456789")
    assert data.val_data.targets.unique().tolist() == list(range(10))


def test_standardized_by_the_training_pixels():
    train = Digits().train_data.inputs
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)


def test_without_standardizing_pixels_lie_between_zero_and_one():
    train = Digits(standardize=False).train_data.inputs
    assert (train.min().item(), train.max().item()) == (0.0, 1.0)
