"""The command itself: what it lists, what it imports, how it refuses."""

import json
import subprocess
import sys

import pytest

from gradlab.cli.main import _COMMANDS, main

HEAVY = ("torch", "pytorch_lightning", "lightning_fabric", "pydantic", "yaml", "numpy", "rich", "tensorboard", "pandas")


def loaded_by(*arguments):
    """The heavy modules that a call of `gradlab` in a process of its own has imported."""
    code = (
        "import json, sys\n"
        "from gradlab.cli.main import main\n"
        f"main({list(arguments)!r}, prog_name='gradlab', standalone_mode=False)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_imports_nothing_heavy():
    assert loaded_by("--help") == []


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command):
    assert loaded_by(command, "--help") == []


def test_listing_runs_imports_neither_torch_nor_lightning(tmp_path):
    assert loaded_by("runs", "--json", "--runs", str(tmp_path)) == []


def test_help_lists_every_command_with_a_sentence(gradlab):
    result = gradlab("--help")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ") and line.split()}
    for command in _COMMANDS:
        assert lines[command].endswith(".") and not lines[command].endswith("..."), lines[command]


def test_a_module_can_be_run_as_well():
    done = subprocess.run([sys.executable, "-m", "gradlab", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("gradlab, version ")


def test_an_unknown_command_is_refused_with_the_nearest(gradlab):
    result = gradlab("rnu")
    assert result.exit_code == 2
    assert "Error: No such command 'rnu'. Did you mean 'run'" in result.stderr


def test_an_unknown_option_is_refused(gradlab):
    result = gradlab("runs", "--josn")
    assert result.exit_code == 2
    assert "No such option" in result.stderr and "--json" in result.stderr


def test_an_error_of_gradlab_itself_keeps_its_traceback(monkeypatch, gradlab):
    def broken(root):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("gradlab.cli.runs.all_runs", broken)
    with pytest.raises(ZeroDivisionError):
        gradlab("runs")


def test_every_command_has_its_name():
    for name in _COMMANDS:
        assert main.get_command(None, name).name == name
