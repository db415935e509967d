"""Files are UTF-8 whatever the locale says, and a terminal that lacks a character gets an escape for it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradlab
from gradlab.config.overrides import apply
from gradlab.config.problems import Position, Source
from gradlab.config.yaml.nodes import Mapping, plain
from gradlab.launch.outputs import run_card
from gradlab.runs.folder import RunFolder, read_from_disk, spelled_on_disk

SOURCES = sorted(Path(gradlab.__file__).parent.rglob("*.py"))


def without_encoding(call):
    """Whether a call opens text without saying how it is encoded."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given or ast.unparse(call.func) == "os.open":
        return False
    if name in ("read_text", "write_text", "FileHandler", "NamedTemporaryFile", "TextIOWrapper"):
        return True
    if name in ("run", "Popen", "check_output"):
        return any(key in given for key in ("text", "universal_newlines"))
    if name in ("open", "fdopen"):
        if isinstance(call.func, ast.Attribute) and not call.args and not given:
            return False  # a method of that name on something that is no file
        position = 0 if isinstance(call.func, ast.Attribute) and name == "open" else 1
        mode = given.get("mode", call.args[position] if len(call.args) > position else None)
        return not (isinstance(mode, ast.Name) or (isinstance(mode, ast.Constant) and "b" in str(mode.value)))
    return False


@pytest.mark.parametrize(
    ("call", "is_wrong"),
    [
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open('x')", True),
        ("path.open('ab')", False),
        ("path.read_text()", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command)", False),
        ("os.open(path, os.O_RDONLY)", False),
    ],
)
def test_text_that_is_opened_in_the_locales_encoding_is_noticed(call, is_wrong):
    assert without_encoding(ast.parse(call).body[0].value) is is_wrong


def test_every_file_is_opened_with_its_encoding_said():
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and without_encoding(node)
    ]
    assert not found


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_the_name_of_a_run_is_utf8_on_disk_in_every_locale(encoding, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsencode", lambda name: os.fspath(name).encode(encoding, "surrogateescape"))
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode(encoding, "surrogateescape"))
    spelled = spelled_on_disk("größe")
    assert os.fsencode(spelled) == "größe".encode()
    assert read_from_disk(spelled) == "größe"
    assert RunFolder(tmp_path / spelled / "20260101-000000-abcd").name == "größe"


def test_an_argument_that_the_locale_could_not_read_is_text_all_the_same():
    root, problems = apply(Mapping(Position(Source("x")), ()), ["name=gr\udcc3\udcb6ße", "other=größe"])
    assert plain(root) == {"name": "größe", "other": "größe"} and not problems


def test_the_card_of_a_run_can_be_written_whatever_its_command_was(tmp_path):
    record = {"started": "now", "argv": ["gr\udcf6"], "git": None, "seed": 0, "devices": [], "versions": {}}
    card = run_card(RunFolder(tmp_path / "x" / "y"), {**record, "host": {"name": "h", "cpus": 1}}, "name: x")
    assert "gr&#92;udcf6" in card.encode().decode()


def in_locale(folder, *command, **environment):
    kept = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [os.fsencode(sys.executable), b"-m", b"gradlab", *command]
    return subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, timeout=240)


def test_a_terminal_without_a_character_gets_an_escape_and_no_traceback(tmp_path):
    (tmp_path / "exp.yaml").write_text("name: größe ✓\nmodl: mlp\n", encoding="utf-8")
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}):
        done = in_locale(tmp_path, b"new", **locale)
        assert done.returncode == 0 and b"Traceback" not in done.stderr
    done = in_locale(tmp_path, b"show", b"gr\xc3\xb6\xc3\x9fe", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2 and b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_in_a_latin1_locale_is_like_any_other(tmp_path):
    """With the run's name and an argument outside ASCII, and read again by a process in UTF-8."""
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef to make a Latin-1 locale with")
    made = tmp_path / "locales"
    made.mkdir()
    done = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(made / "de_DE.ISO-8859-1")], capture_output=True
    )
    if done.returncode:
        pytest.skip("a Latin-1 locale cannot be made here")
    (tmp_path / "net.py").write_text(
        "from gradlab.models import MLP\nclass Net(MLP):\n"
        "    def __init__(self, text: str):\n        super().__init__()\n        print(text, '✓')\n",
        encoding="utf-8",
    )
    (tmp_path / "exp.yaml").write_text(
        "name: größe\nmodel: {class_path: net.Net, init_args: {text: größe}}\ndata: digits\n"
        "trainer: {max_steps: 2, accelerator: cpu}\n",
        encoding="utf-8",
    )
    latin = {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(made)}
    done = in_locale(tmp_path, b"run", b"exp.yaml", **latin)
    assert done.returncode == 0, done.stderr
    assert "größe \\u2713".encode("latin-1") in done.stdout
    (run,) = (tmp_path / "runs" / "größe").iterdir()
    assert "text: größe" in (run / "resolved.yaml").read_text(encoding="utf-8")
    done = in_locale(
        tmp_path,
        b"check",
        f"runs/größe/{run.name}/resolved.yaml".encode(),
        **latin,
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    assert done.returncode == 0, done.stderr
    done = in_locale(tmp_path, b"show", "größe".encode("latin-1"), **latin)
    assert done.returncode == 0, done.stderr
    assert "größe".encode("latin-1") in done.stdout
