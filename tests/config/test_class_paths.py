"""Class paths and their arguments: users' modules, signatures, Lightning's Trainer, and building."""

# ruff: noqa: E501  sentences as they are shown

from __future__ import annotations

import sys

import pytest
import torch

from gradlab.config import load
from gradlab.errors import ConfigError

NET = "{class_path: mine.Net, init_args: {widths: [3]}}"
GOOD = f"name: x\nmodel: {NET}\ndata: mine.Data\n"


def first_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line[0] != " "][:-1]


SNAPSHOTS = {
    "module that does not exist": (
        "model: mnie.Net",
        "experiment.yaml:2:8: there is no module 'mnie' (for mnie.Net), neither beside the experiment file nor "
        "installed. Did you mean 'mine'?\n     2 | model: mnie.Net\n       |        ^^^^^^^^",
    ),
    "name that does not exist": (
        "model: torch.nn.Linaer",
        "experiment.yaml:2:8: torch.nn has no 'Linaer'. Did you mean 'Linear'?\n"
        "     2 | model: torch.nn.Linaer\n       |        ^^^^^^^^^^^^^^^",
    ),
    "submodule that does not exist": (
        "model: torch.optm.Adam",
        "experiment.yaml:2:8: torch has no 'optm'. Did you mean 'optim'?\n"
        "     2 | model: torch.optm.Adam\n       |        ^^^^^^^^^^^^^^^",
    ),
    "no class": (
        "model: mine.function",
        "experiment.yaml:2:8: mine.function is a function, not a class.\n"
        "     2 | model: mine.function\n       |        ^^^^^^^^^^^^^",
    ),
    "no class path": (
        "model: mine.Net()",
        "experiment.yaml:2:8: 'mine.Net()' is no class path; one looks like my_module.MyClass.\n"
        "     2 | model: mine.Net()\n       |        ^^^^^^^^^^",
    ),
    "no model": (
        "model: torch.nn.Linear",
        "experiment.yaml:2:8: torch.nn.Linear is no LightningModule. Derive it from "
        "pytorch_lightning.LightningModule and give it a training_step.\n"
        "     2 | model: torch.nn.Linear\n       |        ^^^^^^^^^^^^^^^",
    ),
    "unknown argument": (
        "model: {class_path: mine.Net, init_args: {widths: [3], in_feature: 3}}",
        "experiment.yaml:2:56: mine.Net takes no argument 'in_feature'. Did you mean 'in_features'?\n"
        "     2 | model: {class_path: mine.Net, init_args: {widths: [3], in_feature: 3}}\n"
        "       |                                                        ^^^^^^^^^^",
    ),
    "missing argument": (
        "model: mine.Net",
        "experiment.yaml:2:8: mine.Net needs the argument 'widths'.\n     2 | model: mine.Net\n       |        ^^^^^^^^",
    ),
    "missing argument among others": (
        "model: {class_path: mine.Net, init_args: {in_features: 3}}",
        "experiment.yaml:2:31: mine.Net needs the argument 'widths'.\n"
        "     2 | model: {class_path: mine.Net, init_args: {in_features: 3}}\n"
        "       |                               ^^^^^^^^^",
    ),
    "wrong type of an argument": (
        "model: {class_path: mine.Net, init_args: {widths: [3, wide]}}",
        "experiment.yaml:2:55: model.init_args.widths.1 must be a whole number, not the text 'wide'.\n"
        "     2 | model: {class_path: mine.Net, init_args: {widths: [3, wide]}}\n"
        "       |                                                       ^^^^",
    ),
}


@pytest.mark.parametrize("case", SNAPSHOTS)
def test_a_wrong_class_or_argument(case, refused):
    line, message = SNAPSHOTS[case]
    assert refused(f"name: x\n{line}\ndata: mine.Data\n", deep=True) == f"{message}\n1 problem; nothing was run."


def test_the_same_mistakes_in_overrides_are_told_at_the_argument(refused):
    said = refused(GOOD, "model.class_path=mine.Nte", "data=torch.nn.ReLU", "optimizer=torch.optim.Adm", deep=True)
    assert first_lines(said) == [
        "argument 1: mine has no 'Nte'. Did you mean 'Net'?",
        "argument 2: torch.nn.ReLU is no LightningDataModule. Derive it from pytorch_lightning.LightningDataModule "
        "and give it a train_dataloader.",
        "argument 3: torch.optim has no 'Adm'. Did you mean 'Adam'?",
    ]


def test_a_class_of_the_package_lightning_is_told_apart(refused, folder):
    (folder / "unified.py").write_text(
        "class LightningModule: pass\nLightningModule.__module__ = 'lightning.pytorch.core'\n"
        "class Net(LightningModule): pass\n"
    )
    said = refused("name: x\nmodel: unified.Net\ndata: mine.Data\n", deep=True)
    assert "unified.Net is a LightningModule of the package `lightning`; import it from `pytorch_lightning`" in said


def test_an_exception_in_a_users_module_is_one_problem_with_its_line(refused, folder):
    (folder / "broken.py").write_text("import torch\n\n\ndef f():\n    return undefined\n\n\nf()\n")
    (folder / "typo.py").write_text("def f(:\n    pass\n")
    (folder / "lacking.py").write_text("import surely_not_installed\n")
    (folder / "leaving.py").write_text("import sys\n\nsys.exit('enough')\n")
    for name, sentence in {
        "broken": "importing broken failed at broken.py:5: NameError: name 'undefined' is not defined",
        "typo": "importing typo failed at typo.py:1: SyntaxError: invalid syntax",
        "lacking": "importing lacking failed at lacking.py:1: ModuleNotFoundError: No module named 'surely_not_installed'",
        "leaving": "importing leaving failed at leaving.py:3: SystemExit: enough",
    }.items():
        said = refused(f"name: x\nmodel: {name}.Net\ndata: mine.Data\n", deep=True)
        assert first_lines(said) == [f"experiment.yaml:2:8: {sentence}"]


def test_a_model_without_data_needs_data_unless_it_brings_its_own(refused, loaded):
    said = refused(f"name: x\nmodel: {NET}\n", deep=True)
    assert first_lines(said) == [
        "experiment.yaml:2:21: the experiment needs 'data': mine.Net has no train_dataloader of its own."
    ]
    built = loaded("name: x\nmodel: mine.Complete\n", deep=True).build()
    assert built.data is None
    assert built.make_optimizer is None


def test_arguments_behind_keywords_are_let_through_and_told_when_built(loaded):
    experiment = loaded("name: x\nmodel: {class_path: mine.Complete, init_args: {in_feature: 3}}\n", deep=True)
    with pytest.raises(ConfigError, match=r"mine.Complete refused at mine.py:.*: TypeError: .*'in_feature'"):
        experiment.build()


def test_the_trainers_own_settings_are_checked(refused):
    trainer = {
        "max_epoch: 5": "trainer has no setting 'max_epoch'. Did you mean 'max_epochs'?",
        "max_epochs: three": "trainer.max_epochs must be a whole number from -1 or null, not the text 'three'.",
        "max_steps: -5": "trainer.max_steps must be a whole number from -1, not -5.",
        "accelerator: gpus": "trainer.accelerator may not be 'gpus'. Did you mean 'gpu'? It may be auto, cpu, cuda, gpu, "
        "mps or tpu.",
        "precision: bf16-mixd": "trainer.precision may not be 'bf16-mixd'. Did you mean 'bf16-mixed'? It may be 64, 32, "
        "16, transformer-engine, transformer-engine-float16, 16-true, 16-mixed, bf16-true, bf16-mixed, 32-true, 64-true, "
        "bf16 or null.",
        "devices: -2": "trainer.devices must be a whole number from -1, not -2.",
        "limit_val_batches: 1.5": "trainer.limit_val_batches must be a number from 0 to 1, not 1.5.",
        "gradient_clip_algorithm: nrom": "trainer.gradient_clip_algorithm may not be 'nrom'. Did you mean 'norm'? It may "
        "be norm, value or null.",
        "strategy: dpd": "trainer.strategy may not be 'dpd'. Did you mean 'ddp'? It may be auto, ddp, ",
        "enable_progress_bar: 1": "trainer.enable_progress_bar must be true or false or null, not 1.",
        "logger: true": "trainer.logger is gradlab's: what the model logs with `self.log` goes to the run's own event "
        "file.",
        "callbacks: []": "trainer.callbacks is gradlab's. Your own go into the model's `configure_callbacks`; what is "
        "watched, into `taps:`, `jacobians:` and `profile:`.",
        "default_root_dir: x": "trainer.default_root_dir is gradlab's: each run has a folder of its own, in "
        "`runs/<name>/`.",
        "profiler: simple": "trainer.profiler is gradlab's. Use `profile:`, as in `profile: {wait: 2, warmup: 1, active: "
        "3}`.",
    }
    lines = refused(GOOD + "trainer:\n  " + "\n  ".join(trainer) + "\n", deep=True).splitlines()
    said = [line.split(": ", 1)[1] for line in lines if line.startswith("experiment.yaml")]
    assert len(said) == len(trainer)
    for seen, expected in zip(said, trainer.values(), strict=True):
        assert seen[: len(expected)] == expected if expected.endswith(" ") else seen == expected


def test_good_trainer_settings_pass(loaded):
    settings = (
        "{max_epochs: -1, max_steps: 10, accelerator: cpu, devices: auto, precision: 32, strategy: auto, "
        "limit_train_batches: 0.5, limit_val_batches: 3, gradient_clip_val: 1, deterministic: warn, "
        "max_time: {hours: 1}, fast_dev_run: 2, val_check_interval: 0.25, enable_checkpointing: null}"
    )
    trainer = loaded(GOOD + f"trainer: {settings}\n", deep=True).experiment.trainer
    assert trainer["max_time"] == {"hours": 1}
    for devices in ("[0, 1]", '"0,1"', "2", "-1", '"2"'):
        loaded(GOOD, f"trainer.devices={devices}", deep=True)


def test_what_an_optimizer_refuses_is_known_before_anything_runs(refused):
    said = refused(
        GOOD + "optimizer: {class_path: torch.optim.AdamW, init_args: {weight_decay: 0.1, lr: -0.5}}\n", deep=True
    )
    assert said.splitlines()[0] == (
        "experiment.yaml:4:79: torch.optim.AdamW refused: ValueError: Invalid learning rate: -0.5"
    )
    said = refused(GOOD + "optimizer: {class_path: mine.Stubborn, init_args: {lr: 0.1, depth: 4}}\n", deep=True)
    assert first_lines(said)[0].startswith("experiment.yaml:4:68: mine.Stubborn refused at mine.py:")
    said = refused(GOOD + "optimizer: {class_path: torch.optim.SGD, init_args: {params: [], lr: fast}}\n", deep=True)
    assert first_lines(said) == [
        "experiment.yaml:4:54: params is gradlab's: the optimizer is given all parameters of the model.",
        "experiment.yaml:4:70: optimizer.init_args.lr must be a number, not the text 'fast'.",
    ]
    said = refused(GOOD + "optimizer: mine.Plain\n", deep=True)
    assert first_lines(said) == ["experiment.yaml:4:12: mine.Plain is no Optimizer. One is torch.optim.AdamW."]


def test_building_makes_the_objects_with_their_arguments(loaded):
    experiment = loaded(
        GOOD + "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1e-2, momentum: 0.9}}\n",
        "data.init_args.batch_size=3",
        deep=True,
    )
    built = experiment.build()
    assert type(built.model).__name__ == "Net"
    assert built.data.batch_size == 3
    optimizer = built.make_optimizer(built.model.parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    # Net appends to the list that it is given; the experiment keeps its own.
    assert experiment.experiment.model.init_args == {"widths": [3]}
    assert type(experiment.build().model.layers[1]) is torch.nn.Linear


def test_building_after_a_shallow_load_runs_the_deep_checks(loaded):
    assert type(loaded(GOOD).build().model).__name__ == "Net"
    with pytest.raises(ConfigError, match="takes no argument 'widht'"):
        loaded(GOOD, "model.init_args.widht=3").build()


def test_a_constructor_that_raises_is_one_problem_at_the_argument_that_it_names(loaded, folder):
    experiment = loaded(GOOD, "model.init_args.dropout=2.0", deep=True)
    with pytest.raises(ConfigError) as caught:
        experiment.build()
    lines = (folder / "mine.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "raise ValueError" in text)
    assert str(caught.value) == (
        f"argument 1: mine.Net refused at mine.py:{line}: ValueError: dropout must be below 1, got 2.0\n"
        "       | model.init_args.dropout=2.0\n       |                         ^^^\n1 problem; nothing was run."
    )
    assert isinstance(caught.value.__cause__, ValueError)


def test_two_experiments_can_each_have_a_module_of_the_same_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "local_model.py").write_text(
            f"import pytorch_lightning as pl\nclass Net(pl.LightningModule):\n    origin = {name!r}\n"
            "    def train_dataloader(self): return []\n"
        )
        (tmp_path / name / "e.yaml").write_text("name: x\nmodel: local_model.Net\n")
    before = list(sys.path)
    origins = [load(tmp_path / name / "e.yaml").build().model.origin for name in ("a", "b", "a")]
    assert origins == ["a", "b", "a"]
    assert sys.path == before


def test_annotations_that_only_type_checkers_can_read_do_not_hide_the_others(refused, folder):
    (folder / "guarded.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nimport pytorch_lightning as pl\n"
        "if TYPE_CHECKING:\n    from nowhere import Thing\n"
        "class Net(pl.LightningModule):\n"
        "    def __init__(self, thing: Thing, size: int = None, mode: str | list[float] = 'a', shape: tuple[int, int] = (1, 2)):\n"
        "        super().__init__()\n"
        "    def train_dataloader(self): return []\n"
    )
    said = refused(
        "name: x\nmodel:\n  class_path: guarded.Net\n"
        "  init_args: {thing: 1, size: big, mode: [1, x], shape: [1, 2, 3]}\n",
        deep=True,
    )
    assert [line.split(": ", 1)[1] for line in first_lines(said)] == [
        "model.init_args.size must be a whole number or null, not the text 'big'.",
        "model.init_args.mode.1 must be a number, not the text 'x'.",
        "model.init_args.shape must be a list of 2, not a list of 3.",
    ]
