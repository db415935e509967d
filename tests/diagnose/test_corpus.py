"""A part of the corpus of `benchmarks/diagnosis`: no alarm on a healthy training, the right code on a faulty one.

`python benchmarks/diagnosis.py` runs all of it, and says how often the diagnosis is right.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "benchmarks" / "diagnosis"
HEALTHY = sorted(path.stem for path in (CORPUS / "healthy").glob("*.py"))
FAULTY = sorted(path.stem for path in (CORPUS / "faulty").glob("GL*.py"))
FIRST = sorted({name[:5]: name for name in reversed(FAULTY)}.values())
"""One script a code."""
ONE_TIME = 7
"""So many scripts are run by one process."""
TRICKY = """
checkpointing compiled dqn frozen_pretrained gan lbfgs linear_probe moe multi_head ppo raw_units sam simsiam
set_to_none_false transformer_warmup truncated_bptt unfreezing wgan_clip
""".split()
"""Healthy trainings that have come close to an alarm, or are of a kind of their own."""
NOT_NAMED: set[str] = set()
"""Faults of the first architecture that are known to be missed."""


def pieces(names: list[str]) -> list[list[str]]:
    return [names[start : start + ONE_TIME] for start in range(0, len(names), ONE_TIME)]


def lines_of(folder: str, names: list[str], *options: str) -> dict[str, str]:
    """By script: what `run.py` says of it."""
    command = [sys.executable, str(CORPUS / "run.py"), *(f"{folder}/{name}.py" for name in names), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CORPUS)
    assert ended.returncode == 0, ended.stderr
    found = {line.split()[0]: line for line in ended.stdout.splitlines() if re.search(r"\(\d+\.\d s\)$", line)}
    assert found.keys() == set(names)
    return found


def test_there_are_trainings_of_both_kinds() -> None:
    assert len(HEALTHY) >= 30
    assert set(TRICKY) <= set(HEALTHY)
    assert len(FIRST) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("names", pieces(TRICKY), ids=lambda names: names[0])
def test_a_healthy_training_gets_no_warning(names: list[str]) -> None:
    wrong = [line for line in lines_of("healthy", names, "--seed", "3").values() if " silent " not in line]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("names", pieces(FIRST[::2]), ids=lambda names: names[0])
def test_a_fault_is_named_first_and_at_its_place(names: list[str]) -> None:
    lines = lines_of("faulty", names)
    wrong = [line for name, line in lines.items() if " right " not in line and name not in NOT_NAMED]
    assert not wrong, "\n".join(wrong)
