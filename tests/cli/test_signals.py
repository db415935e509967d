"""A signal to a whole process group, as `timeout` and most schedulers send it: the workers of a loader hear it too."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradlab.runs.find import find_run

CODE = """
import os, signal
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.rand(4) + index

class Model(pl.LightningModule):
    def __init__(self, stop: int = -1):
        super().__init__()
        self.net, self.stop = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout(0.5)), stop

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == self.stop and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.killpg(0, signal.SIGTERM)
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Rows(), 4, shuffle=True, num_workers=2, persistent_workers=True)
"""

EXPERIMENT = """
name: group
seed: 7
model: {class_path: groups_module.Model}
data: {class_path: groups_module.Data}
trainer: {max_epochs: 3, accelerator: cpu, accumulate_grad_batches: 3}
"""


def run(*arguments):
    """`gradlab run` as the leader of a process group of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gradlab", "run", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=240,
    )


def weights(name):
    return torch.load(find_run(name, Path("runs")).last_checkpoint, weights_only=False)["state_dict"]


@pytest.mark.slow
def test_workers_outlive_a_signal_to_the_whole_group_and_the_run_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("groups_module.py").write_text(CODE)
    Path("group.yaml").write_text(EXPERIMENT)
    assert run("group.yaml", "name=whole").returncode == 0
    stopped = run("group.yaml", "name=stopped", "model.init_args.stop=13")
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by SIGTERM after step 6;" in stopped.stderr  # four in the first epoch, and up to the 15th batch
    resumed = run("--resume", "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert "warning" not in resumed.stderr
    whole, again = weights("whole"), weights("stopped")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_worker_ends_when_its_loader_says_so_and_not_by_a_signal_to_all():
    """Without the process of a run: the handler alone."""
    import multiprocessing

    from gradlab.launch.resume.workers import _end_if_told

    ended = []

    class Ended(Exception):
        pass

    def leave(code):
        ended.append(code)
        raise Ended

    def _worker_loop(done_event):
        _end_if_told(signal.SIGTERM, sys._getframe())

    event = multiprocessing.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", leave)
        _worker_loop(event)
        assert not ended
        event.set()
        with pytest.raises(Ended):
            _worker_loop(event)
    assert ended == [0]
