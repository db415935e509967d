"""Devices: which one a model is on, in which precision it multiplies there, and its peak rate from the data sheet.

Belongs here: what does not change while a device works. Does not: its memory and load (telemetry.py). The peak rates
are dense: makers print tensor rates with 2:4 sparsity since Hopper; the table has half of those, the rate that an
ordinary matrix product can reach.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TF32 = "tf32"
"""float32 whose products are rounded to 10 bits in the tensor cores."""


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer that is on one; the CPU where there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return torch.device("cpu")


@dataclass(frozen=True)
class Peak:
    """The best rates of one kind of device, in TFLOP/s."""

    pattern: str
    """Found in the name that torch gives to the device."""
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float
    source: str
    """The title of the maker's page."""

    def tflops(self, precision: torch.dtype | str) -> float | None:
        """The rate at a precision; None where the device has none."""
        rates: dict[Any, float | None] = {
            torch.bfloat16: self.bf16,
            torch.float16: self.fp16,
            TF32: self.tf32 or self.fp32,
            torch.float32: self.fp32,
        }
        return rates.get(precision)


_H100 = "NVIDIA H100 Tensor Core GPU data sheet"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet"
_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_ADA = "NVIDIA Ada GPU architecture, whitepaper 2.1, appendices"
_AMPERE = "NVIDIA Ampere GA102 GPU architecture, whitepaper 2.1, appendix A"
_CDNA3 = "AMD Instinct MI300X data sheet"

# The first that is found in the name counts, so narrower names come first.
PEAKS: tuple[Peak, ...] = (
    Peak(r"B200", 2250, 2250, 1125, 75, "NVIDIA HGX B200 data sheet"),
    Peak(r"H200 NVL", 835.5, 835.5, 417.5, 60, _H200),
    Peak(r"GH200|H200", 989.4, 989.4, 494.7, 66.9, _H200),
    Peak(r"H100 NVL", 835.5, 835.5, 417.5, 60, _H100),
    Peak(r"H100 PCIe", 756, 756, 378, 51.2, _H100),
    Peak(r"H100", 989.4, 989.4, 494.7, 66.9, _H100),
    Peak(r"H800 PCIe", 756, 756, 378, 51.2, "NVIDIA H800 Tensor Core GPU data sheet"),
    Peak(r"H800", 989.4, 989.4, 494.7, 66.9, "NVIDIA H800 Tensor Core GPU data sheet"),
    Peak(r"A100|A800", 312, 312, 156, 19.5, _A100),
    Peak(r"A30\b", 165, 165, 82, 10.3, "NVIDIA A30 Tensor Core GPU data sheet"),
    Peak(r"A40\b", 149.7, 149.7, 74.8, 37.4, "NVIDIA A40 data sheet"),
    Peak(r"A10\b", 125, 125, 62.5, 31.2, "NVIDIA A10 Tensor Core GPU data sheet"),
    Peak(r"RTX A6000", 154.8, 154.8, 77.4, 38.7, _AMPERE),
    Peak(r"L40S", 362.1, 362.1, 183, 91.6, "NVIDIA L40S data sheet"),
    Peak(r"L40\b", 181.1, 181.1, 90.5, 90.5, "NVIDIA L40 data sheet"),
    Peak(r"\bL4\b", 121, 121, 60, 30.3, "NVIDIA L4 Tensor Core GPU data sheet"),
    Peak(r"RTX 4090$", 165.2, 165.2, 82.6, 82.6, _ADA),
    Peak(r"RTX 3090$", 71, 71, 35.6, 35.6, _AMPERE),
    Peak(r"V100.*PCIE|V100 PCIe", None, 112, None, 14, "NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(r"V100", None, 125, None, 15.7, "NVIDIA V100 Tensor Core GPU data sheet"),
    Peak(r"\bT4\b", None, 65, None, 8.1, "NVIDIA T4 Tensor Core GPU data sheet"),
    Peak(r"MI300X", 1307.4, 1307.4, 653.7, 163.4, _CDNA3),
)


def peak_of(device_name: str) -> Peak | None:
    """The peak of a device by torch's name for it; None for what is not in the table, and for a part of a device."""
    if "MIG" in device_name.split():
        return None
    return next((peak for peak in PEAKS if re.search(peak.pattern, device_name)), None)


def precision_of(dtype: torch.dtype, device: torch.device) -> torch.dtype | str:
    """The precision in which matrices of `dtype` are multiplied here and now: autocast and TF32 taken into account."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    if dtype == torch.float32 and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return TF32
    return dtype
