"""NVML's readings, from a stand-in of the driver."""

import sys
import time
import types

import pytest
import torch

from gradlab.perf.telemetry import Telemetry, read_nvml


def fake_nvml(**refuses):
    def refusing(name, value):
        def answer(*args):
            if name in refuses:
                raise RuntimeError(refuses[name])
            return value

        return answer

    nvml = types.ModuleType("pynvml")
    nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM = 0, 1
    nvml.nvmlInit = refusing("init", None)
    nvml.nvmlDeviceGetHandleByUUID = refusing("handle", "handle")
    nvml.nvmlDeviceGetUtilizationRates = refusing("utilization", types.SimpleNamespace(gpu=87))
    nvml.nvmlDeviceGetMemoryInfo = refusing("memory", types.SimpleNamespace(used=2**30))
    nvml.nvmlDeviceGetPowerUsage = refusing("power", 412_000)
    nvml.nvmlDeviceGetTemperature = refusing("temperature", 61)
    nvml.nvmlDeviceGetClockInfo = refusing("clock", 1980)
    return nvml


def test_nvml_is_read_in_the_units_of_the_tags():
    assert read_nvml(fake_nvml(), "handle") == {
        "perf/gpu_utilization": 0.87,
        "perf/gpu_memory_used_bytes": 2.0**30,
        "perf/gpu_power_watts": 412.0,
        "perf/gpu_temperature_celsius": 61.0,
        "perf/gpu_clock_mhz": 1980.0,
    }
    assert "perf/gpu_power_watts" not in read_nvml(fake_nvml(power="not supported"), "handle")


def test_telemetry_samples_in_a_thread_and_stops(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234"))
    telemetry = Telemetry(torch.device("cuda:0"), interval_seconds=0.001)
    thread = telemetry._thread
    deadline = time.monotonic() + 60
    while not telemetry.scalars() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert telemetry.scalars()["perf/gpu_utilization"] == 0.87 and telemetry.missing == ""
    telemetry.close()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("nvml", "why"), [(None, "pynvml"), (fake_nvml(init="driver not loaded"), "driver not loaded")]
)
def test_without_nvml_there_is_no_telemetry_and_a_reason(nvml, why, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    telemetry = Telemetry(torch.device("cuda:0"))
    assert telemetry.scalars() == {} and why in telemetry.missing
    telemetry.close()
