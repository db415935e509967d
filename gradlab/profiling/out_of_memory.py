"""Out of memory: which module asked for how much, and what the memory was full of.

Belongs here: reading the error and its traceback while the frames still hold their tensors, and the files about it.
Does not: what a run does then (`gradlab.launch`, `gradlab.monitor`).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradlab.finding import Finding
from gradlab.perf.devices import device_of
from gradlab.profiling.persistent_memory import persistent_memory
from gradlab.sites.names import module_names

_REQUEST = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUM_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """What was known when memory ran out."""

    step: int
    where: str
    """Who asked: `the forward of encoder.0`, `the backward`, ..."""
    module: str | None
    """The qualified name of the module, None outside every module."""
    asked_bytes: int | None
    """None where the message does not say."""
    device: str
    categories: Mapping[str, int]
    """Bytes by category; `activations and temporaries` is what the allocator holds beyond those that are known."""
    reserved_unused_bytes: int | None
    """What the allocator holds without using it: fragmentation. None without a CUDA allocator."""
    modules: Mapping[str, int]
    """Bytes of the parameters, gradients and buffers that each module owns itself, the largest first."""
    folder: str
    """Where the files are, or "" where they could not be written."""

    @property
    def sentence(self) -> str:
        """Who asked for how much, the largest categories, and where to read more."""
        asked = f" for {size_text(self.asked_bytes)}" if self.asked_bytes is not None else ""
        largest = sorted(self.categories.items(), key=lambda item: item[1], reverse=True)[:_NUM_NAMED]
        held = ", ".join(f"{name.replace('_', ' ')} {size_text(size)}" for name, size in largest if size)
        files = "memory table and snapshot are" if self.reserved_unused_bytes is not None else "memory table is"
        rest = f" The {files} in {self.folder}." if self.folder else ""
        return f"out of memory on {self.device}: {self.where} asked{asked}; held by {held or 'nothing known'}.{rest}"

    @property
    def finding(self) -> Finding:
        """`sentence` and `advice` as a finding."""
        return Finding(
            code="GL804",
            name="out-of-memory",
            first_step=self.step,
            sites=(self.module,) if self.module else (),
            message=self.sentence,
            evidence={name: float(size) for name, size in self.categories.items()},
            remedy=self.advice,
            severity="error",
        )

    @property
    def advice(self) -> str:
        """What to try, after what takes most."""
        largest = max(self.categories, key=self.categories.__getitem__, default="")
        if (self.reserved_unused_bytes or 0) > (self.asked_bytes or float("inf")):
            return "Try PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: there was room, in pieces."
        if largest == "optimizer_state":
            return "Try an optimizer with less state, or sharding it (FSDP2)."
        if largest in ("parameters", "gradients"):
            return "Try sharding the model (FSDP2), or bf16-true parameters."
        return "Try a smaller batch with accumulate_grad_batches, activation checkpointing, or bf16-mixed."


def explain(
    error: BaseException, model: nn.Module | None, optimizers: Sequence[Optimizer], *, folder: Path, step: int
) -> OutOfMemory:
    """Read a torch.OutOfMemoryError, and write `oom_000123/` with `oom.json` and `snapshot.pickle` beside `folder`.

    To be called while the error is on its way. On a machine without CUDA there is no allocator to ask, and no snapshot.
    The snapshot opens at pytorch.org/memory_viz; it has stacks where `torch.cuda.memory._record_memory_history` is on.
    """
    module, where = _requester(error.__traceback__, model)
    device = device_of(model) if model is not None else torch.device("cpu")
    allocated, reserved = _allocator(device)
    categories = _categories(model, optimizers, allocated)
    target = folder.parent / f"oom_{step:06d}"
    found = OutOfMemory(
        step=step,
        where=where,
        module=module,
        asked_bytes=_requested_bytes(str(error)),
        device=str(device),
        categories=categories,
        reserved_unused_bytes=None if reserved is None or allocated is None else reserved - allocated,
        modules=_by_module(model),
        folder=str(target),
    )
    try:
        _write_files(found, error, target, device)
    except OSError:
        return OutOfMemory(**{**asdict(found), "folder": ""})
    return found


def size_text(num_bytes: int) -> str:
    """A number of bytes for people: `1.5 GiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if num_bytes >= _UNITS[unit]:
            return f"{num_bytes / _UNITS[unit]:.3g} {unit}"
    return f"{num_bytes} bytes"


def _requested_bytes(message: str) -> int | None:
    found = _REQUEST.search(message)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _requester(traceback: TracebackType | None, model: nn.Module | None) -> tuple[str | None, str]:
    """The innermost of what was under way: a module's name where it was its forward, and in words what it was."""
    names = {id(module): name for module, name in module_names(model).items()} if model is not None else {}
    found: tuple[str | None, str] = (None, "code outside every module")
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_locals.get("self")
        if id(owner) in names and _is_forward(frame):
            name, kind = names[id(owner)], type(owner).__name__
            found = name, f"the forward of {name} ({kind})" if name else f"the forward of {kind}"
        elif phase := _phase_of(frame, owner):
            found = None, phase
        traceback = traceback.tb_next
    return found


def _is_forward(frame: FrameType) -> bool:
    return frame.f_code.co_name == "forward" or frame.f_code.co_name in ("_call_impl", "_wrapped_call_impl")


def _phase_of(frame: FrameType, owner: Any) -> str:
    """In words, the phase that a frame outside modules is in: the backward, or an optimizer's step; "" for others."""
    if frame.f_globals.get("__name__") == "torch.autograd.graph" and frame.f_code.co_name == "_engine_run_backward":
        return "the backward"
    if isinstance(owner, Optimizer) and frame.f_code.co_name == "step":
        return f"the step of {type(owner).__name__}"
    return ""


def _allocator(device: torch.device) -> tuple[int | None, int | None]:
    if device.type != "cuda":
        return None, None
    stats = torch.cuda.memory_stats(device)
    return stats.get("allocated_bytes.all.current"), stats.get("reserved_bytes.all.current")


def _categories(model: nn.Module | None, optimizers: Sequence[Optimizer], allocated: int | None) -> dict[str, int]:
    categories = {"parameters": 0, "gradients": 0, "optimizer_state": 0}
    for block in persistent_memory(model, optimizers).values():
        categories[block.category] += block.num_bytes
    if allocated is not None:
        categories["activations and temporaries"] = max(0, allocated - sum(categories.values()))
    return categories


def _by_module(model: nn.Module | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for module, name in module_names(model).items() if model is not None else ():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        own += [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in own)
    return dict(sorted(((name, size) for name, size in sizes.items() if size), key=lambda item: -item[1]))


def _write_files(found: OutOfMemory, error: BaseException, target: Path, device: torch.device) -> None:
    target.mkdir(parents=True, exist_ok=True)
    table = {"schema": 1, **asdict(found), "message": str(error), "sentence": found.sentence, "advice": found.advice}
    (target / "oom.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if device.type == "cuda":
        (target / "memory.txt").write_text(torch.cuda.memory_summary(device), encoding="utf-8")
        with (target / "snapshot.pickle").open("wb") as file:
            pickle.dump(torch.cuda.memory._snapshot(), file)
