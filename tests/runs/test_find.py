"""What a person types, and the run that it means."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gradlab.errors import UnknownRunError
from gradlab.runs.find import all_runs, find_run

IDS = {"20261101-080000-abcd": "digits", "20261102-080000-efgh": "digits", "20261103-080000-ijkl": "text"}


@pytest.fixture
def root(tmp_path):
    for run_id, name in IDS.items():
        (tmp_path / name / run_id).mkdir(parents=True)
        (tmp_path / name / run_id / "record.json").write_text("{}")
    (tmp_path / "digits" / "notes").mkdir()
    return tmp_path


def test_runs_are_listed_latest_first_and_other_folders_are_not_runs(root):
    assert [run.id for run in all_runs(root)] == sorted(IDS, reverse=True)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("20261101-080000-abcd", "20261101-080000-abcd"),
        ("20261102", "20261102-080000-efgh"),
        ("abcd", "20261101-080000-abcd"),
        ("digits", "20261102-080000-efgh"),
        ("@1", "20261103-080000-ijkl"),
        ("@3", "20261101-080000-abcd"),
    ],
)
def test_a_run_is_found_by(root, what, found):
    assert find_run(what, root).id == found


def test_a_run_is_found_by_its_path(root):
    path = root / "digits" / "20261101-080000-abcd"
    assert find_run(str(path), Path("elsewhere")).path == path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("digit", "no run 'digit' in {root}. Did you mean 'digits'?"),
        ("zzz", "no run 'zzz' in {root}. The latest is text (20261103-080000-ijkl); `gradlab runs` lists them all."),
        ("202611", "'202611' may mean 20261103-080000-ijkl (text), 20261102-080000-efgh (digits), "
                   "20261101-080000-abcd (digits); type more of the id."),
        ("@4", "there is no run @4: {root} holds 3 runs."),
        ("@0", "'@0' is no run: @1 is the latest, @2 the one before."),
        ("@x", "'@x' is no run: @1 is the latest, @2 the one before."),
        ("", "no run '' in {root}. The latest is text (20261103-080000-ijkl); `gradlab runs` lists them all."),
    ],
)  # fmt: skip
def test_what_is_no_run_is_explained(root, what, message):
    with pytest.raises(UnknownRunError, match=re.escape(message.format(root=root)) + "$"):
        find_run(what, root)


def test_an_empty_root_says_so(tmp_path):
    with pytest.raises(UnknownRunError, match=r"holds no runs\. Choose another place with --runs DIR\."):
        find_run("digits", tmp_path)


def test_runs_are_in_the_order_in_which_they_began_whatever_their_ids_say(tmp_path, monkeypatch):
    """Ids made in local time, as before they were in UTC, at the ends of the earth and within one second."""
    began = {
        "20261128-151424-late": "2026-11-28T01:14:24+00:00",  # by the clock of Kiritimati
        "20261127-171500-mind": "2026-11-28T01:15:00+00:00",  # by that of Los Angeles, a little later
        "20261128-011501-aaaa": "2026-11-28T01:15:01.900+00:00",
        "20261128-011501-zzzz": "2026-11-28T01:15:01.100+00:00",
    }
    for run_id, started in began.items():
        (tmp_path / "x" / run_id).mkdir(parents=True)
        (tmp_path / "x" / run_id / "record.json").write_text(json.dumps({"started": started}))
    order = ["20261128-011501-aaaa", "20261128-011501-zzzz", "20261127-171500-mind", "20261128-151424-late"]
    assert [run.id for run in all_runs(tmp_path)] == order
    assert find_run("@1", tmp_path).id == find_run("x", tmp_path).id == order[0]


@pytest.mark.parametrize("record", ["{}", "[1]", '{"started": null}', '{"started": "noon"}', None])
def test_a_run_whose_record_does_not_say_is_ordered_by_its_id(tmp_path, record):
    run = tmp_path / "x" / "20261128-011424-abcd"
    run.mkdir(parents=True)
    if record is not None:
        (run / "record.json").write_text(record)
    assert all_runs(tmp_path)[0].started() == datetime(2026, 11, 28, 1, 14, 24, tzinfo=UTC)
