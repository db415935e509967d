"""The RNN reads rows in order, flat or not, and says so where they do not come out even."""

import pytest
import torch

from gradlab.errors import UsageError
from gradlab.models import RNN
from gradlab.sites.forward import sites_of


def test_flat_samples_and_images_are_the_same_rows():
    model, images = RNN(), torch.randn(3, 1, 8, 8)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_the_last_row_comes_last():
    model, x = RNN(row_size=4, hidden_size=6), torch.randn(1, 5, 4)
    states, _ = model.rnn(torch.tanh(model.embed(x)))
    assert torch.equal(model.features(x), states[:, -1])


def test_the_tuple_of_an_lstm_and_the_tensor_of_a_gru_are_sites():
    x = torch.randn(2, 64)
    lstm = [site.name for site in sites_of(RNN("lstm"), x) if site.name.startswith("rnn[")]
    gru = [site.name for site in sites_of(RNN("gru"), x) if site.name.startswith("rnn[")]
    assert lstm == ["rnn[0]", "rnn[1][0]", "rnn[1][1]"]
    assert gru == ["rnn[0]", "rnn[1]"]


def test_an_unknown_cell_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"RNN: cell has no 'ltsm'\. Did you mean 'lstm'\? It may be lstm, gru\."):
        RNN("ltsm")


def test_rows_that_do_not_come_out_even_are_refused():
    with pytest.raises(UsageError, match=r"64 numbers is no whole count of rows of row_size=7.*divides 64"):
        RNN(row_size=7)(torch.zeros(1, 64))
