import pytest
import torch
from lightning_fabric.utilities.throughput import _CUDA_FLOPS
from torch._inductor.analysis.device_info import _device_mapping

from gradlab.perf.devices import PEAKS, TF32, peak_of, precision_of

NAMES = {
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A10": 125,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362.1,
    "NVIDIA L40": 181.1,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA B200": 2250,
    "NVIDIA GeForce RTX 4090": 165.2,
    "AMD Instinct MI300X": 1307.4,
}


@pytest.mark.parametrize(("name", "bf16"), NAMES.items())
def test_a_device_is_known_by_the_name_that_torch_gives_it(name, bf16):
    assert peak_of(name).tflops(torch.bfloat16) == bf16


@pytest.mark.parametrize(
    "name", ["NVIDIA A10G", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_what_is_not_in_the_table_is_unknown_rather_than_guessed(name):
    assert peak_of(name) is None


def test_every_peak_names_its_source_and_its_rates_make_sense():
    for peak in PEAKS:
        assert len(peak.source) > 15
        assert peak.fp16 > peak.fp32 and peak.fp16 in (peak.bf16, peak.fp16)
        assert peak.tf32 is None or peak.fp32 <= peak.tf32 <= peak.fp16


LIGHTNINGS = {
    "h100 sxm": "NVIDIA H100 80GB HBM3",
    "h100 pcie": "NVIDIA H100 PCIe",
    "a100": "NVIDIA A100-SXM4-80GB",
    "l4": "NVIDIA L4",
}
TORCHS = {"NVIDIA H100": "NVIDIA H100 80GB HBM3", "NVIDIA A100": "NVIDIA A100-SXM4-80GB"}


@pytest.mark.parametrize(("theirs", "name"), LIGHTNINGS.items())
def test_the_table_agrees_with_lightnings_where_that_one_is_dense(theirs, name):
    rates, peak = _CUDA_FLOPS[theirs], peak_of(name)
    for precision in (torch.bfloat16, torch.float16, torch.float32):
        assert peak.tflops(precision) == pytest.approx(rates[precision] / 1e12, rel=0.01)
    assert peak.tflops(TF32) == pytest.approx(rates["tfloat32"] / 1e12, rel=0.01)


@pytest.mark.parametrize(("theirs", "name"), TORCHS.items())
def test_the_table_agrees_with_torchs_without_sparsity(theirs, name):
    info, peak = _device_mapping[theirs], peak_of(name)
    # torch 2.11 has rates with sparsity for the H100, without saying so, and no right one for TF32.
    is_told = hasattr(info, "tops_sparsity_factor")
    sparsity = info.tops_sparsity_factor if is_told else 2 if "H100" in theirs else 1
    assert peak.tflops(torch.bfloat16) == pytest.approx(info.tops[torch.bfloat16] / sparsity, rel=0.01)
    if is_told:
        assert peak.tflops(TF32) == pytest.approx(info.tops["torch.tf32"] / sparsity, rel=0.01)


def test_volta_has_no_bf16():
    assert peak_of("Tesla V100-SXM2-16GB").tflops(torch.bfloat16) is None
    assert peak_of("Tesla V100-SXM2-16GB").tflops(torch.float64) is None


def test_the_precision_is_that_of_autocast_and_of_tf32():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert precision_of(torch.float32, cpu) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precision_of(torch.float32, cpu) == torch.bfloat16
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert precision_of(torch.float32, cuda) == TF32
        torch.set_float32_matmul_precision("highest")
        assert precision_of(torch.float32, cuda) == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)
