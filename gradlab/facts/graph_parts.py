"""Numbers of the parts of a graph that are no layers: attention, ids of embeddings, directions of embedded samples.

Belongs here: reducing what their nodes have saved, on the device. Does not: finding them (`loss_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.diagnose.context import EmbeddingFacts
from gradlab.facts.loss_graph import ReadGraph, layers_below, saved
from gradlab.facts.numbers import Numbers

_MOST_PARTS = 16
_MOST_QUERIES = 64
_MOST_PROBABILITIES = 1 << 18
_FEWEST_KEYS = 4
_MOST_VECTORS = 1024
_ATTENTION = ("max_probability", "keys", "max_logit")


class PartsReading:
    """The numbers of one graph's parts.

    Args:
        graph: read just now; its nodes are not kept.
        names: of parameters, by id: the sites.
        number: tells it from others at the same look.
        numbers: takes them to the host.
    """

    def __init__(self, graph: ReadGraph, names: Mapping[int, str], number: int, numbers: Numbers) -> None:
        self._number = number
        self._numbers = numbers
        self._layers = {node: names[weight] for weight, _, node in graph.layers if weight in names}
        self._order = {site: place for place, site in enumerate(self._layers.values())}
        self.attentions: list[str] = []
        self.embeddings: list[str] = []
        self.ids: dict[str, tuple[int, int]] = {}
        """By weight of an embedding: how many rows it has, how many ids it was given."""
        for node in graph.parts.get("attention", ())[:_MOST_PARTS]:
            self._read_attention(node)
        for node in graph.parts.get("length", ())[:_MOST_PARTS]:
            self._read_length(node)
        for weight, name, node in graph.layers:
            if name in ("Embedding", "EmbeddingBag") and weight in names:
                self._read_ids(names[weight], graph.leaves[weight], node)
        self._layers = {}

    def _nearest(self, node: Any) -> list[str]:
        """The layers right below a node, in the order of the forward."""
        return sorted({self._layers[one] for one in layers_below(node, self._layers)}, key=self._order.__getitem__)

    def _read_attention(self, node: Any) -> None:
        below = self._nearest(node)
        if not below or below[0] in self.attentions:
            return
        probabilities = saved(node, "result")
        logit: Tensor | float = 0.0
        if probabilities is None:
            query, key = saved(node, "query"), saved(node, "key")
            if query is None or key is None or query.dim() != 4:
                return
            probabilities, logit = _probabilities(node, query, key)
        largest, keys = _sharpness(probabilities.detach())
        self._numbers.add(
            ("attention", self._number, below[0]), torch.stack([largest, keys, largest.new_tensor(0.0) + logit])
        )
        self.attentions.append(below[0])

    def _read_length(self, node: Any) -> None:
        vectors, dims = saved(node, "self"), getattr(node, "_saved_dim", None)
        if vectors is None or vectors.dim() != 2 or len(vectors) < 8 or vectors.shape[1] < 2 or not dims:
            return
        if len(dims) != 1 or dims[0] % (1 << 64) not in (1, (1 << 64) - 1):
            return
        below = self._nearest(node)
        if not below or below[-1] in self.embeddings:
            return
        unit = torch.nn.functional.normalize(_rows(vectors.detach(), _MOST_VECTORS).float(), dim=1)
        spread = unit.var(0, correction=0).sum().sqrt()
        self._numbers.add(("embedding", self._number, below[-1]), spread.reshape(1))
        self.embeddings.append(below[-1])

    def _read_ids(self, site: str, weight: Tensor, node: Any) -> None:
        ids = saved(node, "indices")
        if ids is None or not ids.numel() or site in self.ids or weight.dim() != 2:
            return
        there = torch.zeros(len(weight), device=ids.device)
        there[ids.detach().reshape(-1)] = 1.0
        self._numbers.add(("ids", self._number, site), there.sum())
        self.ids[site] = len(weight), ids.numel()

    def attention_numbers(self) -> dict[str, np.ndarray]:
        """By name, [sites]."""
        values = self._numbers.values()
        table = np.stack([values["attention", self._number, site] for site in self.attentions])
        return dict(zip(_ATTENTION, table.T, strict=True))

    def embedding_numbers(self) -> dict[str, np.ndarray]:
        """By name, [sites]."""
        values = self._numbers.values()
        return {"spread": np.concatenate([values["embedding", self._number, site] for site in self.embeddings])}

    def ids_facts(self) -> tuple[EmbeddingFacts, ...]:
        """Of each embedding."""
        values = self._numbers.values()
        return tuple(
            EmbeddingFacts(name=site, rows=rows, num_ids=count, distinct=int(values["ids", self._number, site]))
            for site, (rows, count) in self.ids.items()
        )


def _sharpness(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of a query in the mean, and how many keys a query may see.

    A key that no sample and no head sees is masked. Queries that may see fewer than four are left out.
    """
    square = probabilities.reshape(-1, *probabilities.shape[-2:])
    square = square[:: max(1, square.numel() // _MOST_PROBABILITIES)]
    keys = torch.count_nonzero(square.amax(0), -1).float()
    weights = (keys >= _FEWEST_KEYS).float()
    total = weights.sum().clamp(min=1.0)
    largest = (square.amax(-1).float().mean(0) * weights).sum() / total
    return largest, (keys * weights).sum() / total


def _probabilities(node: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """[n, queries, keys] of a few samples and queries of fused attention, and the largest logit."""
    if query.shape[1] != key.shape[1] and key.shape[1]:  # grouped queries
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    step = max(1, query.shape[2] // _MOST_QUERIES)
    places = torch.arange(0, query.shape[2], step, device=query.device)
    scale = getattr(node, "_saved_scale", None) or query.shape[-1] ** -0.5
    logits = query.detach()[:4, :, places].float() @ key.detach()[:4].float().transpose(-1, -2) * scale
    largest = logits.abs().amax()
    mask = saved(node, "attn_mask")
    if mask is not None:
        mask = mask.detach().expand(*query.shape[:3], key.shape[2])[:4, :, places]
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else logits + mask
    if getattr(node, "_saved_is_causal", False):
        later = torch.arange(key.shape[2], device=query.device) > places[:, None]
        logits = logits.masked_fill(later, -torch.inf)
    return logits.softmax(-1), largest


def _rows(x: Tensor, most: int) -> Tensor:
    """[at most so many, last]: evenly spread rows."""
    x = x.reshape(-1, x.shape[-1])
    return x[:: max(1, len(x) // most)]
