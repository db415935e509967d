"""What can be seen of a loader from outside: in which of three ways it goes on, its parts, and what is hidden in it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from gradlab.launch.resume.pipeline_search import is_stateful, search_pipeline


def kind_of(loader: Any) -> str:
    """How a loader goes on: `stateful`, `indices` or `items`, as explained in `loaders`."""
    if is_stateful(loader):
        return "stateful"
    is_indexed = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return "indices" if is_indexed else "items"


def is_torchdata(loader: Any) -> bool:
    """Whether a loader is torchdata's: from the end of an epoch it goes on without being given its state."""
    return any(cls.__module__.startswith("torchdata.") for cls in type(loader).__mro__)


def roots_of(loader: Any) -> dict[str, Any]:
    """The parts of a loader that may remember something."""
    if not isinstance(loader, DataLoader):
        return {"dataset": loader}
    names = ("sampler", "batch_sampler", "generator", "collate_fn", "worker_init_fn", "dataset")
    return {name: getattr(loader, name, None) for name in names}


def what_is_hidden(loader: Any) -> list[str]:
    """Sentences on what of a loader's state cannot be had, so that a run that is stopped may not go on exactly."""
    name = type(loader).__name__
    found = search_pipeline(roots_of(loader))
    sentences = [f"{name}.{path} {why}" for path, why in found.hidden.items() if path != "dataset"]
    if "dataset" in found.hidden:
        sentences.append(f"{name} {found.hidden['dataset']}")
    if getattr(loader, "num_workers", 0) and not getattr(loader, "in_order", True):
        sentences.append(f"{name} has in_order=False, so batches come as workers finish them")
    return sentences
