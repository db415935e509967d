"""The environment that every test has, whatever machine it runs on: a login node, a job, a desktop, a container.

Decided here once, for the tests and for every process that they start. A test that is about a variable sets it.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import MutableMapping

_LAUNCHERS = (
    r"SLURM_|SBATCH_|SRUN_|OMPI_|PMI_|PMIX_|PALS_|MPI_|MPIR_|HYDI_|I_MPI_|MV2_|LSB_|LSF_|JSM_|PBS_|FLUX_|PET_|KUBERNETES_"
    r"|TORCHELASTIC_|NODE_RANK$|GROUP_|ROLE_|RANK$|LOCAL_RANK$|WORLD_SIZE$|LOCAL_WORLD_SIZE$|MASTER_(ADDR|PORT)$"
)
_TRACKERS = r"WANDB_|MLFLOW_|COMET_|NEPTUNE_|CLEARML_|TENSORBOARD_|PL_|LIGHTNING_"
_PYTHON = r"PYTHON(WARNINGS|OPTIMIZE|UTF8|IOENCODING|STARTUP|HOME|INSPECT|PROFILEIMPORTTIME|UNBUFFERED|TRACEMALLOC)$"
_TORCH = r"TORCH_LOGS|TORCH_SHOW_CPP_STACKTRACES$|TORCHINDUCTOR_COMPILE_THREADS$|KINETO_"
_TERMINAL = r"NO_COLOR$|FORCE_COLOR$|CLICOLOR|COLUMNS$|LINES$|COLORTERM$|PAGER$|TTY_"
_OURS = r"GRADLAB_(?!TEST_)"
_INHERITED = re.compile("|".join((_LAUNCHERS, _TRACKERS, _PYTHON, _TORCH, _TERMINAL, _OURS)))


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take away what a launcher, a tracker, a terminal or a habit of the user's has left there, and settle the rest.

    A choice of CUDA devices stays where tests use them (`GRADLAB_TEST_DEVICE`). The home is a folder of the tests' own
    where it cannot be written to.
    """
    for name in [name for name in environment if _INHERITED.match(name) or name.startswith("LC_")]:
        del environment[name]
    if not environment.get("GRADLAB_TEST_DEVICE", "").startswith("cuda"):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment |= {"LANG": "C.UTF-8", "TERM": "dumb", "TZ": "UTC"}
    home = environment.get("HOME", "")
    if not os.access(home, os.W_OK):
        environment["HOME"] = tempfile.mkdtemp(prefix="gradlab-tests-home-")
    for name in [name for name in environment if name.startswith("XDG_")]:
        if not os.access(environment[name], os.W_OK):
            del environment[name]
    if environment is os.environ:
        time.tzset()
        os.umask(0o022)
