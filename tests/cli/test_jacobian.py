"""`gradlab jacobian`: of an experiment before training, and of a run from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gradlab as library
from gradlab.data import Digits
from gradlab.models import MLP
from gradlab.runs.find import find_run

EXPERIMENT = """
name: tiny
seed: 3
model: {class_path: gradlab.models.MLP, init_args: {widths: [5]}}
data: {class_path: gradlab.data.Digits, init_args: {batch_size: 64}}
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 2, limit_val_batches: 1}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT)
    return path


def first(samples: int, loader: str = "train_dataloader") -> torch.Tensor:
    data = Digits(batch_size=64)
    data.setup()
    return next(iter(getattr(data, loader)()))[0][:samples]


def test_an_experiment_before_training_is_printed_and_saved(gradlab, experiment: Path) -> None:
    result = gradlab("jacobian", experiment, "--rows", 3, "--samples", 2, "--save", "j.npz", "--save", "j.png")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"d output / d input of {experiment} before training, 2 train samples"
    assert lines[1].startswith("3 x 64, engine vmap, audit error ")
    assert lines[2] == "note: mean over 2 samples"
    assert lines[3].startswith("fro 0.")
    assert lines[4].startswith("singular values ")
    assert lines[-2:] == ["saved j.npz", "saved j.png"]
    with np.load("j.npz") as saved:
        assert saved["values"].shape == (3, 64)
        assert list(saved["row_names"]) == ["0", "1", "2"]
        assert saved["engine"] == "vmap"
    assert Path("j.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_measured_from_its_checkpoint(gradlab, experiment: Path) -> None:
    assert gradlab("run", experiment).exit_code == 0
    folder = find_run("tiny", Path("runs"))
    arguments = ["--wrt", "layers.0.linear.weight", "--rows", "1,", "--probe", "validation", "--save", "j.npz"]
    result = gradlab("jacobian", "@1", *arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith(
        f"d output / d layers.0.linear.weight of tiny ({folder.id}) after step 2, 1 validation sample\n"
        "1 x 320, engine rank, audit error "
    )
    model = MLP([5])
    model.load_state_dict(torch.load(folder.last_checkpoint, weights_only=False)["state_dict"])
    expected = library.jacobian(model, first(1, "val_dataloader"), wrt="layers.0.linear.weight", rows=[1])
    with np.load("j.npz") as saved:
        np.testing.assert_allclose(saved["values"], expected.values, rtol=1e-5, atol=1e-7)


def test_only_the_spectrum(gradlab, experiment: Path) -> None:
    result = gradlab("jacobian", experiment, "--of", "layers.0", "--softmax", "--spectrum-only")
    assert result.exit_code == 0
    assert result.stdout.startswith("d softmax(layers.0) / d input of ")
    assert "fro_lo" in result.stdout and "singular values" in result.stdout
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--of", "outptu"], "of='outptu' is no site in this forward of MLP. Did you mean 'output'?"),
        (["--rows", "99"], "rows=99 asks for the first 99 entries of 'output', which has 10; give 1 to 10,"),
        (["--rows", "many"], "'many' is neither a number of entries (10) nor a list of indices (0,3,-1 or 4,)."),
        (["--samples", "70"], "--samples 70: a batch of the train data has 64."),
        (["--save", "j.jpg"], "--save j.jpg: give a name that ends in .npz (the numbers) or .png (a picture)."),
        (["--save", "no/j.npz"], "--save no/j.npz: there is no folder no."),
        (["--spectrum-only", "--save", "j.png"], "there is no block to draw with --spectrum-only"),
        (["--checkpoint", "none.ckpt"], "there is no checkpoint none.ckpt."),
    ],
)
def test_mistakes_are_named_and_exit_with_two(gradlab, experiment: Path, arguments: list[str], message: str) -> None:
    result = gradlab("jacobian", experiment, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_run_without_a_checkpoint_names_its_experiment(gradlab, experiment: Path) -> None:
    assert gradlab("run", experiment, "trainer.enable_checkpointing=false").exit_code == 0
    result = gradlab("jacobian", "tiny")
    assert result.exit_code == 1
    assert "has no checkpoint, as one is written after each epoch; for the model before training give" in result.stderr


def test_a_checkpoint_of_another_model_is_refused(gradlab, experiment: Path) -> None:
    torch.save({"state_dict": {"other": torch.zeros(1)}}, "other.ckpt")
    result = gradlab("jacobian", experiment, "--checkpoint", "other.ckpt")
    assert result.exit_code == 2
    assert "other.ckpt cannot be loaded into this model: Error(s) in loading state_dict for MLP" in result.stderr
