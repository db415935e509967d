"""Shared fixtures: a fixed seed, the device of the tests; a clean environment; one thread for each of many workers."""

from __future__ import annotations

import os

import environment

environment.clean()  # before anything reads it

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Where the tests are spread over the cores, a worker and every process that its tests start have one thread."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where tests that move tensors run: GRADLAB_TEST_DEVICE, else the CPU."""
    return torch.device(os.environ.get("GRADLAB_TEST_DEVICE", "cpu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))
