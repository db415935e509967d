"""Lightning's Trainer, built once on trial: what it says of arguments that contradict each other, without a trace.

No device, folder or process group is touched: the Trainer does that when it fits. What it does touch while it is built
(PyTorch's deterministic flags, a few variables of the environment, its rank and its log) is put back. What depends on
this machine, such as a device or a package that is not there, is no fault of the experiment: it is kept apart, since it
ends with another exit code.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

_LAUNCHERS = re.compile(
    r"(WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|NODE_RANK|MASTER_ADDR|MASTER_PORT"
    r"|(TORCHELASTIC|SLURM|LSB|JSM|OMPI|PMI)_.*)"
)
"""Variables by which a launcher settles devices and nodes: those of the experiment are looked at without them."""
_OF_A_MACHINE = re.compile(r"\b(accelerators?|GPUs?|CUDA|MPS|TPUs?|XLA|device|install|pip)\b", re.IGNORECASE)
_DEFAULTS = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}


@dataclass(frozen=True)
class Refusal:
    """What the Trainer says of its arguments."""

    text: str
    argument: str | None
    """The argument that is refused; None where it is no single one."""
    is_of_machine: bool
    """Whether another machine could do it."""


def refusal_of(arguments: Mapping[str, Any]) -> Refusal | None:
    """What the Trainer refuses of these arguments; None where it takes them.

    Where this machine is the reason, they are tried once more as for a CPU, so that what is wrong anyway is found too.
    """
    found = _look(arguments)
    if found is None or arguments.get("accelerator", "auto") == "cpu":
        return found
    anyway = _look({**arguments, "accelerator": "cpu", "devices": _count(arguments.get("devices", 1))})
    if anyway is None:
        return replace(found, is_of_machine=True)
    names_machine = anyway.is_of_machine or (_OF_A_MACHINE.search(anyway.text) and anyway.argument != "devices")
    return found if not found.is_of_machine or names_machine else anyway


def _look(arguments: Mapping[str, Any]) -> Refusal | None:
    error = _error_of(arguments)
    if error is None:
        return None
    text = _sentence(error)
    is_of_machine = isinstance(error, ImportError) or "install" in text
    if arguments.get("accelerator", "auto") != "cpu":
        is_of_machine = is_of_machine or bool(_OF_A_MACHINE.search(text))
    return Refusal(text, _refused_argument(arguments, text), is_of_machine)


def _refused_argument(arguments: Mapping[str, Any], text: str) -> str | None:
    """The last of the arguments without which the Trainer would not say this."""
    for name in reversed(list(arguments)):
        rest = {key: value for key, value in arguments.items() if key != name}
        error = _error_of(rest)
        if error is None or _sentence(error) != text:
            return name
    return None


def _error_of(arguments: Mapping[str, Any]) -> Exception | None:
    from pytorch_lightning import Trainer

    try:
        with _without_a_trace():
            Trainer(**{**_DEFAULTS, **arguments})
    except Exception as error:
        return error
    return None


def _sentence(error: Exception) -> str:
    """Its text in one line, ending like a sentence."""
    text = " ".join(str(error).split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _count(devices: Any) -> Any:
    """How many devices are meant, for a machine that has no indices."""
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part.strip()]
        devices = int(devices) if devices.lstrip("-").isdigit() else len(parts) if devices != "auto" else 1
    if isinstance(devices, list | tuple):
        return len(devices)
    return 1 if devices == -1 else devices


@contextmanager
def _without_a_trace() -> Iterator[None]:
    """Put back what building a Trainer changes in this process, and keep it from speaking."""
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    environment = dict(os.environ)
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    rank = getattr(rank_zero_only, "rank", None)
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for name in filter(_LAUNCHERS.fullmatch, environment):
        del os.environ[name]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if rank is not None:
            rank_zero_only.rank = rank  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.backends.cudnn.benchmark = benchmark
