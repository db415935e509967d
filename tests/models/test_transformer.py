"""The transformer looks back only, ties its head on request, and equals attention written out."""

import copy
import pickle

import pytest
import torch

from gradlab.errors import UsageError
from gradlab.models import Transformer
from gradlab.models.transformer import CausalSelfAttention
from gradlab.sites.forward import sites_of

SMALL = {"vocab_size": 11, "context": 8, "width": 8, "num_heads": 2}


def test_a_token_changes_no_prediction_before_it():
    model = Transformer(**SMALL)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, 5] = 10
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_attention_equals_softmax_written_out():
    attention = CausalSelfAttention(6, num_heads=2, dropout=0.0).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    q, k, v = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2))
    future = torch.ones(5, 5).triu(1).bool()
    weights = (q @ k.transpose(2, 3) / 3**0.5).masked_fill(future, -torch.inf).softmax(dim=-1)
    expected = attention.out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


def test_the_loss_before_training_is_near_that_of_guessing():
    model = Transformer()
    model.log = lambda *args, **kwargs: None
    tokens = torch.randint(256, (8, 65))
    loss = model.training_step((tokens[:, :-1], tokens[:, 1:]), 0).item()
    assert loss == pytest.approx(5.545, abs=0.1)  # the logarithm of 256


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_a_tied_head_stays_tied_in_a_copy(copied):
    model = copied(Transformer(**SMALL, tied_head=True))
    assert model.head.weight is model.tokens.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_a_head_is_its_own_unless_tied():
    model = Transformer(**SMALL)
    assert model.head.weight is not model.tokens.weight


def test_attention_gelu_and_the_embedding_are_sites():
    names = {site.name for site in sites_of(Transformer(**SMALL), torch.zeros(1, 8, dtype=torch.long))}
    assert {"embedded", "blocks.1.attention/scaled_dot_product_attention", "blocks.1.feedforward/gelu"} <= names
    assert {"blocks.0/add", "blocks.0/add_1", "features"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 10, "num_heads": 4}, "width must be a multiple of num_heads=4, got 10; try width=8."),
        ({"num_layers": 0}, "num_layers must be a whole number from 1, got 0."),
        ({"dropout": -0.1}, "dropout must be from 0 up to, not including, 1, got -0.1."),
    ],
)
def test_wrong_arguments_are_named_with_the_nearest_fix(arguments, message):
    with pytest.raises(UsageError) as error:
        Transformer(**arguments)
    assert str(error.value) == f"Transformer: {message}"


def test_too_many_tokens_are_refused():
    with pytest.raises(UsageError, match=r"got 9 tokens, more than context=8\. Build it with context=9"):
        Transformer(**SMALL)(torch.zeros(1, 9, dtype=torch.long))
