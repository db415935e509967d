"""A forward walk shows each tensor by its site's name, and puts in what the visitor returns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

import gradlab
from gradlab.sites.forward import Site, forward_walk, forward_walk_at, sites_of
from gradlab.sites.names import is_op, module_names, owner, unwrapped


class Net(nn.Module):
    """A module that is called twice, functional ops, a named tensor, an output of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.head = nn.Sequential(nn.Linear(3, 2), nn.Tanh())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.encoder(x))
        hidden = gradlab.tap("hidden", torch.tanh(self.encoder(hidden)))
        return {"logits": self.head(hidden) * 2, "hidden": hidden.detach()}


SITES = """
    input encoder:in encoder /tanh encoder#2:in encoder#2 /tanh_1 hidden head:in head.0:in head.0 head.1:in head.1 head
    /mul output[logits] output[hidden]
""".split()


def walked(model: nn.Module, walk: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """What a walk shows, without what only one of both kinds shows."""
    found: dict[str, Tensor] = {}
    with walk(lambda site, value: found.__setitem__(site, value.detach().clone())):
        model(*args, **kwargs)
    return found


def test_every_tensor_is_shown_once_in_forward_order() -> None:
    model, x = Net(), torch.randn(4, 3)
    seen: list[str] = []
    with forward_walk(model, lambda site, value: seen.append(site)):
        model(x)
        assert seen == SITES
        model(x)
    assert seen == SITES * 2
    seen.clear()
    with forward_walk(model, lambda site, value: seen.append(site), functional=False):
        model(x)
    assert seen == [site for site in SITES if not is_op(site)]


@pytest.mark.parametrize("site", SITES)
def test_what_the_visitor_returns_goes_on_in_the_forward(site: str) -> None:
    model, x = Net(), torch.randn(4, 3)
    before = model(x)
    with forward_walk(model, lambda name, value: value + 1 if name == site else None):
        inside = model(x)
    changed = [name for name in before if not torch.equal(before[name], inside[name])]
    assert changed and set(changed) <= {"logits", "hidden"}
    assert all(torch.equal(before[name], after) for name, after in model(x).items())


def test_nothing_stays_behind_and_an_exception_leaves_the_walk_in_order() -> None:
    model, x = Net(), torch.randn(4, 3)
    seen: list[str] = []
    with forward_walk(model, lambda site, value: seen.append(site)):
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 5))
        seen.clear()
        model(x)
    assert seen == SITES
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    model(x)
    assert seen == SITES


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_a_walk_at_some_sites_shows_there_what_a_walk_through_all_shows(name: str) -> None:
    torch.manual_seed(0)
    model, x = zoo.ZOO[name].make().eval(), zoo.ZOO[name].batch()
    core = unwrapped(model)
    everything = walked(copy.deepcopy(core), lambda see: forward_walk(core, see, functional=False), x)
    names = set(module_names(core).values())
    sites = [site for site in everything if owner(site) in names]
    some = walked(core, lambda see: forward_walk_at(sites, core, see), x)
    assert set(sites) <= some.keys()


def test_sites_are_listed_with_what_they_are() -> None:
    sites = {site.name: site for site in sites_of(Net(), torch.randn(4, 3))}
    assert list(sites) == [*SITES, "encoder.weight", "encoder.bias", "head.0.weight", "head.0.bias"]
    assert sites["head"] == Site("head", "module", (4, 2), "float32")
    kinds = {kind: [name for name, site in sites.items() if site.kind == kind] for kind in ("op", "input", "named")}
    assert kinds["op"] == ["/tanh", "/tanh_1", "/mul"] and kinds["named"] == ["hidden"]
    assert kinds["input"] == [site for site in SITES if ":in" in site or site == "input"]
    assert sites["encoder.weight"].kind == "parameter" and sites["output[logits]"].kind == "module"
    file, line = sites["/mul"].place.rsplit(":", 1)
    assert file == __file__ and "self.head(hidden) * 2" in Path(file).read_text().splitlines()[int(line) - 1]
