"""The suite passes wherever it is run: on a login node, in a job, in another language, without a home."""

import os
import subprocess
import sys
from pathlib import Path

import environment
import pytest

INHERITED = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODELIST": "n[1-2]",
    "SLURM_JOB_NAME": "train", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1",
    "PMI_SIZE": "4", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1",
    "WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "http://nowhere", "PYTHONWARNINGS": "error", "FORCE_COLOR": "1",
    "NO_COLOR": "1", "COLUMNS": "40", "LC_ALL": "C", "LC_NUMERIC": "de_DE", "GRADLAB_RUNS": "/nonexistent",
    "KINETO_LOG_LEVEL": "0", "TORCH_LOGS": "+dynamo",
}  # fmt: skip
SETTLED = {"LANG": "de_DE.ISO-8859-1", "TZ": "Pacific/Kiritimati", "TERM": "xterm", "HOME": "/nonexistent"}
SELECTION = [
    "tests/launch/test_messages.py", "tests/launch/test_processes.py", "tests/lightning/test_logger.py", "tests/runs",
    "tests/cli/test_runs.py", "tests/events/test_writer.py", "tests/profiling/test_trace_file.py",
    "tests/attach/test_report.py",
]  # fmt: skip


def test_what_a_machine_has_left_in_the_environment_is_taken_away():
    kept = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": "/src", "GRADLAB_TEST_DEVICE": "cpu", "USER": "me"}
    found = kept | INHERITED | SETTLED | {"CUDA_VISIBLE_DEVICES": "3", "XDG_CACHE_HOME": "/nonexistent"}
    environment.clean(found)
    home = found.pop("HOME")
    assert found == kept | {"LANG": "C.UTF-8", "TZ": "UTC", "TERM": "dumb"}
    assert os.access(home, os.W_OK)
    os.rmdir(home)


def test_a_choice_of_devices_stays_where_tests_use_them(tmp_path):
    found = {"GRADLAB_TEST_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "3", "HOME": str(tmp_path)}
    environment.clean(found)
    assert found["CUDA_VISIBLE_DEVICES"] == "3" and found["HOME"] == str(tmp_path)


@pytest.mark.slow
def test_tests_pass_on_a_login_node_in_another_language_without_a_home(tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "sinfo", "squeue", "scontrol", "mpirun"):
        (commands / name).write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
        (commands / name).chmod(0o755)
    hostile = {**os.environ, **INHERITED, **SETTLED, "PATH": f"{commands}:{os.environ['PATH']}"}
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/größe und so", "-m", "not slow"]
    program = f"import os, sys; os.umask(0o077); os.execv({sys.executable!r}, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, sys.executable, *arguments, *SELECTION],
        cwd=Path(__file__).parents[1],
        env=hostile,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-4000:]
