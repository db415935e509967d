"""What watching keeps in memory: the peak of a training step above idle, against the same step unwatched.

Idle is what stays between two steps once the gradients are gone: weights and the optimizer's state. Allocations are
those that torch's profiler records.

    python benchmarks/memory.py [--device cuda] [--models transformer ...] [--variants ...]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from environment import write_result
from reads import peak_bytes
from subjects import SUBJECTS, make, names
from variants import BASE, VARIANTS, attached, available


def peak_mb(name: str, variant: str, device: str) -> float | str:
    """The peak of a step above idle, in 1e6 bytes, or why the variant cannot train this model."""
    step = attached(variant, make(name, device))
    if isinstance(step, str):
        return step
    with VARIANTS[variant].turn():
        return peak_bytes(step, VARIANTS[variant].period, device) / 1e6


def measure(name: str, variants: list[str], device: str) -> list[dict[str, Any]]:
    """The rows of one model."""
    base = peak_mb(name, BASE, device)
    assert isinstance(base, float)
    rows: list[dict[str, Any]] = [{"model": name, "variant": BASE, "peak MB": round(base, 3), "ratio": 1.0, "note": ""}]
    for variant in variants[1:]:
        peak = peak_mb(name, variant, device)
        is_number = isinstance(peak, float)
        rows.append(
            {
                "model": name,
                "variant": variant,
                "peak MB": round(peak, 3) if is_number else None,
                "ratio": round(peak / base, 4) if is_number else None,
                "note": "" if is_number else peak,
            }
        )
    return rows


def main() -> None:
    """Measure every model and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", choices=list(SUBJECTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = available(arguments.variants)
    models = arguments.models or names(arguments.device)
    rows = [row for name in models for row in measure(name, variants, arguments.device)]
    suffix = "" if arguments.device == "cpu" else f"-{arguments.device}"
    write_result(f"memory{suffix}", rows, "gradlab", "wandb", "pytorch-lightning", "torchlens", threads=1)


if __name__ == "__main__":
    main()
