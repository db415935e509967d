"""Pictures of matrices: the colour map, enlarging and pooling, and PNG against Pillow."""

import io

import numpy as np
import pytest

from gradlab.events import diverging, png

Image = pytest.importorskip("PIL.Image")

WHITE, AMBER = [255, 255, 255], [255, 196, 0]


def small(values):
    return diverging(np.array(values), least_pixels=1)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (300, 2, 3)])
def test_pillow_reads_back_the_very_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_zero_is_white_and_the_two_signs_differ_alike():
    (row,) = small([[-2.0, -1.0, 0.0, 1.0, 2.0]]).tolist()
    assert row[2] == WHITE
    assert row[0][2] > row[0][0] and row[4][0] > row[4][2]  # blue below, red above
    for full, half in ((row[0], row[1]), (row[4], row[3])):
        np.testing.assert_allclose(half, (np.array(full) + 255) / 2, atol=1)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e38, 1e300])
def test_the_scale_follows_the_largest_magnitude(scale):
    np.testing.assert_array_equal(small([[-scale, scale / 2]]), small([[-1.0, 0.5]]))


def test_what_is_not_finite_is_amber_and_does_not_set_the_scale():
    (row,) = small([[np.nan, np.inf, -np.inf, 1.0]]).tolist()
    assert row[:3] == [AMBER] * 3 and row[3] == small([[1.0]])[0, 0].tolist()


def test_an_all_zero_matrix_is_white():
    assert (small(np.zeros((2, 2))) == 255).all()


def test_short_sides_are_enlarged_by_a_whole_factor_each():
    pixels = diverging(np.arange(6.0).reshape(2, 3))
    assert pixels.shape == (256, 255, 3)
    np.testing.assert_array_equal(pixels[::128, ::85], small(np.arange(6.0).reshape(2, 3)))


def test_long_sides_are_pooled_so_that_no_spike_is_lost():
    values = np.zeros((3, 5001))
    values[1, 4000], values[2, 5000] = -7.0, np.nan
    pixels = diverging(values, least_pixels=1, most_pixels=1000)
    assert pixels.shape[:2] == (3, 834)
    assert pixels[1, 4000 // 6].tolist() == small([[-7.0]])[0, 0].tolist()
    assert pixels[2, 833].tolist() == AMBER


def test_a_matrix_without_entries_is_a_picture_without_pixels():
    assert diverging(np.zeros((0, 4))).shape[0] == 0
