"""Options of the diagnosis: the same words in Python, YAML, flags and the environment, with near misses for each."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner

import gradlab
from gradlab import Diagnose
from gradlab.attach.command import environment_of
from gradlab.attach.options import AttachOptions
from gradlab.cli.attach import attach_command
from gradlab.config.attach_file import load_attach
from gradlab.config.load import load
from gradlab.diagnose.options import IGNORE, SELECT
from gradlab.errors import ConfigError, GradlabWarning, UsageError

EXPERIMENT = "name: x\nmodel: mlp\n"


def test_a_wrong_code_has_near_misses() -> None:
    for given in ({"select": "GL99"}, {"ignore": ["doubel-softmax"]}, {"limits": {"GL999": 1.0}}):
        with pytest.raises(UsageError, match="no rule has the code or name"):
            Diagnose(**given)
    with pytest.raises(UsageError, match="Did you mean 'double-softmax'"):
        Diagnose(ignore="doubel-softmax@fc")


def test_a_reaction_is_a_word_or_a_function() -> None:
    assert Diagnose(on_finding="stop").on_finding == "stop"
    assert Diagnose(on_finding=print).on_finding is print
    with pytest.raises(UsageError, match=r"on_finding must be log, .*, got 'stp'\. Did you mean 'stop'"):
        Diagnose(on_finding="stp")  # type: ignore[arg-type]


def test_options_are_values() -> None:
    one = Diagnose(ignore=["GL201"], limits={"GL201": 2}, on_finding="profile")
    assert one == Diagnose(ignore=("GL201",), limits={"GL201": 2.0}, on_finding="profile")
    assert pickle.loads(pickle.dumps(one)) == one


def test_the_environment_selects_in_place_and_ignores_in_addition() -> None:
    given = Diagnose(select="GL2", ignore="GL201@a", on_finding="profile")
    assert given.with_environment({}) is given
    changed = given.with_environment({SELECT: " GL7, GL2 ,", IGNORE: "double-softmax@fc*"})
    assert changed.select == ("GL7", "GL2") and changed.ignore == ("GL201@a", "double-softmax@fc*")
    assert changed.on_finding == "profile"


def test_what_names_no_rule_in_the_environment_is_left_out_with_a_warning() -> None:
    with pytest.warns(GradlabWarning, match=r"GRADLAB_IGNORE: no rule has the code or name 'GL2011'. Did you mean"):
        assert Diagnose().with_environment({IGNORE: "GL2011,GL201"}).ignore == ("GL201",)


def test_every_monitor_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    monkeypatch.setenv(IGNORE, "GL201")
    model = nn.Sequential(nn.Linear(5, 3), nn.Softmax(1))
    with gradlab.watch(model, torch.optim.SGD(model.parameters(), 0.1)) as monitor:
        for _ in range(3):
            nn.functional.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))).backward()
    assert [one for one in monitor.findings if one.code == "GL201"] == []


@pytest.fixture
def experiment(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(EXPERIMENT + text)
        return path

    return write


def test_an_experiment_has_the_same_words(experiment) -> None:
    text = "diagnose: {on_finding: jacobian, select: GL2, ignore: [GL201@fc.*, MY001], limits: {GL201: 2}}\n"
    diagnose = load(experiment(text), deep=False).experiment.diagnose
    assert (diagnose.select, diagnose.ignore) == ("GL2", ("GL201@fc.*", "MY001"))  # MY001 may be made by a module yet
    assert (diagnose.limits, diagnose.on_finding) == ({"GL201": 2}, "jacobian")


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("diagnose:\n  ignore: [GL201, GL2O1@fc]\n", "4:19", "diagnose.ignore.1: no rule has the code or name 'GL2O1'"),
        ("diagnose: {select: GL999}\n", "3:20", "diagnose.select: no rule has the code or name 'GL999'"),
        ("diagnose: {limits: {GL2O1: 1}}\n", "3:21", "no rule has the code or name 'GL2O1'. Did you mean 'GL201'"),
        ("diagnose: {limits: {GL201: much}}\n", "3:28", "diagnose.limits.GL201 must be a number"),
        ("diagnose: {select: [3]}\n", "3:21", "diagnose.select.0 must be text, not 3"),
    ],
)
def test_a_wrong_name_is_shown_at_its_place(experiment, text: str, place: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(experiment(text), deep=False)
    assert f"experiment.yaml:{place}: " in str(caught.value) and what in str(caught.value)


def test_a_resolved_experiment_loads_back(experiment, tmp_path: Path) -> None:
    loaded = load(experiment("diagnose: {select: [GL2], ignore: GL201@a.*, limits: {GL201: 2}}\n"), deep=False)
    (tmp_path / "again.yaml").write_text(loaded.resolved())
    assert load(tmp_path / "again.yaml", deep=False).experiment == loaded.experiment


def test_attach_has_them_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "attach.yaml"
    path.write_text("diagnose: {ignore: [GL201], on_finding: profile}\n")
    assert load_attach(path)["diagnose"].ignore == ("GL201",)
    path.write_text("diagnose:\n  on_finding: stop\n")
    with pytest.raises(
        ConfigError, match=r"attach.yaml:2:15: diagnose.on_finding: an attached script is never stopped"
    ):
        load_attach(path)


def test_attach_hands_them_to_the_script_in_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = []
    monkeypatch.setattr("os.execve", lambda *arguments: called.append(arguments))
    (tmp_path / "train.py").write_text("")
    (tmp_path / "a.yaml").write_text("diagnose: {select: GL7, ignore: GL201@a, limits: {GL201: 2}}\n")
    monkeypatch.setenv(IGNORE, "GL702")
    flags = [
        "--config",
        str(tmp_path / "a.yaml"),
        "--select",
        "GL2,GL7",
        "--ignore",
        "GL801",
        "--on-finding",
        "profile",
    ]
    result = CliRunner().invoke(attach_command, [*flags, str(tmp_path / "train.py")])
    assert result.exit_code == 0, result.output
    environment = called[0][2]
    assert (environment[SELECT], environment[IGNORE]) == ("GL2,GL7", "GL702,GL201@a,GL801")
    assert AttachOptions.from_text(environment["GRADLAB_ATTACH"]).diagnose() == Diagnose(
        limits={"GL201": 2}, on_finding="profile"
    )


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--ignore", "GL2O1@fc"], "no rule has the code or name 'GL2O1'. Did you mean 'GL201'"),
        (["--on-finding", "stop"], "--on-finding: an attached script is never stopped"),
        (["--on-finding", "checkpoint"], "--on-finding: an attached script saves its own"),
        (["--on-finding", "profil"], "it may be log, profile, jacobian, not 'profil'. Did you mean 'profile'?"),
    ],
)
def test_attach_refuses_what_it_cannot_do(flags: list[str], what: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    result = CliRunner().invoke(attach_command, [*flags, str(tmp_path / "train.py")])
    assert result.exit_code == 2 and what in " ".join(result.output.split())


def test_without_flags_the_environment_stays_as_it_is(tmp_path: Path) -> None:
    options = AttachOptions(command_pid=1, began=0.0, command=("x",), run="r")
    assert SELECT not in environment_of(options, {}) and environment_of(options, {IGNORE: "GL7"})[IGNORE] == "GL7"
