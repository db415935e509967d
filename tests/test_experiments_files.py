"""The files in experiments/: each passes every check, and reaches what its first line claims."""

import re
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from gradlab.config.load import load
from gradlab.sites.forward import sites_of

FILES = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
CLAIM = re.compile(r"reaches ([\d.]+) (% validation accuracy|bits per byte) in (\d+) epochs?")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def first_line(path: Path) -> str:
    return path.read_text().splitlines()[0]


def claims(paths) -> list[Path]:
    return [path for path in paths if CLAIM.search(first_line(path))]


def test_there_are_experiments():
    assert {"digits", "convnet", "rnn", "transformer"} <= {path.stem for path in claims(FILES)}


def test_names_are_distinct():
    names = [load(path, deep=False).experiment.name for path in FILES]
    assert len(set(names)) == len(names)


def test_the_first_line_says_what_it_shows(path):
    assert re.fullmatch(r"# \S.{40,}\.", first_line(path))


def test_patterns_match_the_model_that_it_builds(path):
    loaded = load(path)
    built = loaded.build()
    batch = next(iter((built.data or built.model).train_dataloader()))
    sites = sites_of(built.model, built.model.probe_input(batch))
    parameters = [site.name for site in sites if site.kind == "parameter"]
    loaded.check_patterns([site.name for site in sites if site.kind != "parameter"], parameters)


def reached(path: Path, tmp_path: Path) -> dict[str, float]:
    """The last metrics of a plain fit on the CPU, without anything of gradlab's watching."""
    loaded = load(path)
    experiment = loaded.experiment
    pl.seed_everything(experiment.seed, verbose=False)
    built = loaded.build()
    if built.make_optimizer is not None:
        built.model.configure_optimizers = lambda: built.make_optimizer(built.model.parameters())
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, few batches: meant so
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's, with torch 2.13
        settings = {**experiment.trainer, **quiet, "accelerator": "cpu", "default_root_dir": tmp_path}
        trainer = pl.Trainer(**settings)
        trainer.fit(built.model, datamodule=built.data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def check_claim(path: Path, tmp_path: Path) -> None:
    number, unit, epochs = CLAIM.search(first_line(path)).groups()
    assert load(path).experiment.trainer["max_epochs"] == int(epochs)
    metrics = reached(path, tmp_path)
    if unit == "bits per byte":
        assert metrics["val/bits_per_byte"] <= float(number)
    else:
        assert metrics["val/accuracy"] >= float(number) / 100


QUICK = [path for path in claims(FILES) if path.stem != "transformer"]


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_a_fit_reaches_what_the_first_line_claims(path, tmp_path):
    check_claim(path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in claims(FILES) if path not in QUICK], ids=lambda path: path.stem)
def test_a_long_fit_reaches_what_the_first_line_claims(path, tmp_path):
    check_claim(path, tmp_path)
