"""`gradlab new`: the experiments of the repository, as they ship."""

from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


def test_every_experiment_is_listed_with_what_it_shows(gradlab):
    result = gradlab("new")
    assert result.exit_code == 0
    listed = dict(line.split(maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert list(listed) == [path.stem for path in EXPERIMENTS]
    assert all(len(sentence) > 20 for sentence in listed.values())


@pytest.mark.parametrize("target", [(), ("mine.yaml",), (".",)])
def test_a_copy_is_the_same_file(gradlab, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    result = gradlab("new", "digits", *target)
    assert result.exit_code == 0
    (copy,) = tmp_path.iterdir()
    assert copy.name == ("mine.yaml" if target == ("mine.yaml",) else "digits.yaml")
    assert copy.read_bytes() == (EXPERIMENTS[0].parent / "digits.yaml").read_bytes()
    assert result.stdout == f"{copy.name}: gradlab run {copy.name}\n"


def test_nothing_is_overwritten(gradlab, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    result = gradlab("new", "digits", path)
    assert result.exit_code == 2
    assert result.stderr == f"{path} exists already; choose another PATH.\n"
    assert path.read_text() == "precious"


def test_an_unknown_template_is_refused_with_the_nearest(gradlab):
    result = gradlab("new", "digts")
    assert result.exit_code == 2
    assert result.stderr.startswith("no template 'digts'. Did you mean 'digits'? There are ")


def test_a_place_that_cannot_be_written_says_so(gradlab, tmp_path):
    result = gradlab("new", "digits", tmp_path / "absent" / "mine.yaml")
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr
