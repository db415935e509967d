"""Whether this machine has what an experiment asks for, looked at before anything is built."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import torch

from gradlab.errors import MachineError, UsageError
from gradlab.launch.processes import launched_devices

_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def device_options(trainer: Mapping[str, Any], resources: Any) -> dict[str, Any]:
    """Lightning's `accelerator`, `devices` and `num_nodes` for what the experiment asks; only those that it asks for.

    Raises:
        UsageError: where `trainer` and `resources` contradict each other.
        MachineError: where this machine lacks a device.
    """
    asked = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes") if key in trainer}
    gpus = getattr(resources, "gpus", "auto")
    if isinstance(gpus, int) and not isinstance(gpus, bool):
        asked = _from_gpus(gpus, asked)
    nodes = getattr(resources, "nodes", 1)
    if nodes != 1:
        asked.setdefault("num_nodes", nodes)
    _check(asked)
    return {**asked, **launched_devices(asked)}


def machine_fault(error: BaseException) -> MachineError | None:
    """The machine's part in an error of a run: a full or read-only disk; None where it has none."""
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        where = f" ({error.filename})" if error.filename else ""
        return MachineError(f"{error.strerror}{where}. Free some space or choose another place with --runs DIR.")
    return None


def _from_gpus(gpus: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What `resources.gpus` means in Lightning's words."""
    accelerator = asked.get("accelerator", "auto")
    if gpus == 0:
        if accelerator in ("gpu", "cuda"):
            raise UsageError(f"resources.gpus is 0, but trainer.accelerator is {accelerator!r}; change one of them.")
        return {**asked, "accelerator": "cpu"}
    if accelerator not in ("auto", "gpu", "cuda"):
        raise UsageError(f"resources.gpus is {gpus}, but trainer.accelerator is {accelerator!r}; change one of them.")
    return {"devices": gpus, **asked, "accelerator": "gpu"}


def _check(asked: Mapping[str, Any]) -> None:
    """Compare the devices asked for with those that torch sees."""
    accelerator = asked.get("accelerator", "auto")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise MachineError("trainer.accelerator is 'mps', but this machine has none. Use trainer.accelerator=auto.")
    if accelerator not in ("gpu", "cuda") or (accelerator == "gpu" and torch.backends.mps.is_available()):
        return
    present = torch.cuda.device_count()
    needed = _num_devices(asked.get("devices", 1))
    if present == 0:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise MachineError(
            f"the experiment asks for a GPU, but torch {torch.__version__} (built {build}) sees none here. "
            "Use trainer.accelerator=auto and resources.gpus=auto, or ask `gradlab doctor` why."
        )
    if needed > present:
        raise MachineError(f"the experiment asks for {needed} GPUs, but this machine has {present}.")


def _num_devices(devices: Any) -> int:
    """How many devices must exist for Lightning's `devices`, at least one."""
    if isinstance(devices, str):
        if "," in devices:
            devices = [int(part) for part in devices.split(",") if part.strip()]
        elif devices.lstrip("-").isdigit():
            devices = int(devices)
        else:
            return 1
    if isinstance(devices, list | tuple):
        return max((int(index) for index in devices), default=0) + 1
    return max(1, int(devices))
