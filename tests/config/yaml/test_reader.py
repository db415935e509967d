"""Text to values: YAML 1.2 scalars, anchors and merges, and files that mean harm."""

from __future__ import annotations

import math
import os
import time

import pytest

from gradlab.config import load
from gradlab.errors import ConfigError

GOOD = "name: x\nmodel: mlp\n"

SCALARS = {
    "1e-3": 0.001, "1E5": 1e5, "-.5": -0.5, "5.": 5.0, "+7": 7, "010": 10, "0o10": 8, "0x1F": 31, "-0": 0,
    ".inf": math.inf, "-.INF": -math.inf, "no": "no", "off": "off", "y": "y", "Yes": "Yes", "1:30": "1:30",
    "2026-01-01": "2026-01-01", "1_000": "1_000", "0b1": "0b1", "0o8": "0o8", "e3": "e3", "true": True, "FALSE": False,
    "tRUE": "tRUE", "null": None, "~": None, "": None, "nil": "nil", '"7"': "7", "'1e-3'": "1e-3", "!!str 7": "7",
    "! 7": "7", "!!int '7'": 7, "!!float 7": 7.0, "[1, [2]]": [1, [2]], "{a: {1: b}}": {"a": {1: "b"}}, "漢字": "漢字",
    "|\n   two\n   lines": "two\nlines\n",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_has_the_value_and_type_of_yaml_1_2(text, loaded):
    value = loaded(GOOD + f"trainer:\n  key: {text}\n").experiment.trainer["key"]
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


def test_nan_is_a_number(loaded):
    assert math.isnan(loaded(GOOD + "trainer: {key: .nan}\n").experiment.trainer["key"])


def test_an_override_has_the_values_of_the_file(loaded):
    for text in SCALARS:
        if "\n" not in text and text[:1] != "!":
            value = loaded(GOOD, f"trainer.key={text}").experiment.trainer["key"]
            assert value == SCALARS[text], text
            assert type(value) is type(SCALARS[text]), text


def test_anchors_aliases_and_merge_keys_work_and_a_key_of_its_own_wins(loaded):
    content = GOOD + (
        "trainer: {a: &base {x: 1, y: [2]}, b: {<<: *base, x: 3}, c: *base, d: {x: 4, <<: [{x: 5, z: 6}, *base]}}\n"
    )
    trainer = loaded(content).experiment.trainer
    assert trainer["b"] == {"x": 3, "y": [2]}
    assert trainer["c"] == {"x": 1, "y": [2]}
    assert trainer["d"] == {"x": 4, "z": 6, "y": [2]}


def test_a_byte_order_mark_windows_line_ends_and_a_document_start_are_fine(loaded, folder):
    (folder / "experiment.yaml").write_bytes(b"\xef\xbb\xbf---\r\nname: x\r\nmodel: mlp\r\n...\r\n")
    assert load("experiment.yaml", deep=False).experiment.name == "x"


HOSTILE = {
    "empty": (b"", "experiment.yaml: is empty. An experiment needs at least `name:` and `model:`."),
    "comments": (
        b"# nothing\n",
        "experiment.yaml: holds no settings, only comments. An experiment needs at least `name:` and `model:`.",
    ),
    "a list": (b"- 1\n", "experiment.yaml:1:1: an experiment is a mapping of settings, `name: ...`, not a list of 1."),
    "binary": (b"\x89PNG\r\n\x1a", "experiment.yaml: is not UTF-8 text (byte 0x89 on line 1 fits no character)."),
    "NUL": (
        b"name: a\0b\n",
        "experiment.yaml:1:8: a control character, U+0000, is not allowed in YAML. Is this a text file?",
    ),
    "latin-1": (
        GOOD.encode() + b"# caf\xe9",
        "experiment.yaml: is not UTF-8 text (byte 0xe9 on line 3 fits no character).",
    ),
    "too large": (
        b"[" * 10_000_000,
        "experiment.yaml: is larger than 1,000,000 bytes, the most that an experiment file may have.",
    ),
    "nested lists": (b"[" * 900_000, "experiment.yaml:1:61: lists and mappings nest deeper than 60 levels."),
    "nested mappings": (b"{a: " * 200_000, "experiment.yaml:1:241: lists and mappings nest deeper than 60 levels."),
    "many values": (b"a: [" + b"1," * 400_000, "experiment.yaml:1:40003: the file holds more than 10,000 values."),
    "billion laughs": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10)) for c in b"bcdefghi"),
        "experiment.yaml:4:4: this holds more than 10,000 values once its aliases are expanded.",
    ),
    "deep aliases": (
        b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (i + 1, i + 1, i) for i in range(99)),
        "experiment.yaml:60:12: with this alias, lists and mappings nest deeper than 60 levels.",
    ),
    "an alias inside itself": (
        b"a: &a {b: *a}\n",
        "experiment.yaml:1:11: the alias '*a' stands inside the value that it names.",
    ),
    "two documents": (
        GOOD.encode() + b"---\nname: y\n",
        "experiment.yaml:3:1: a second document begins here; an experiment file holds one.",
    ),
    "a number too long": (b"seed: " + b"9" * 5000, "experiment.yaml:1:7: a number of 5000 digits; the most is 400."),
    "a float too large": (
        b"lr: 1e999\n",
        "experiment.yaml:1:5: 1e999 is too large for a float. Infinity is written `.inf`.",
    ),
    "a key that is a list": (
        b"? [a]\n: 1\n",
        "experiment.yaml:1:3: a key must be a single word, not a list or a mapping.",
    ),
    "no colon": (
        b"name x\nmodel: mlp\n",
        "experiment.yaml:1:1: a colon and a space are missing here: a setting is written `key: value`.",
    ),
    "no space": (
        b"name: x\nmodel:mlp\n",
        "experiment.yaml:2:1: a key needs a colon and a space after it: `key: value`.",
    ),
    "two colons": (
        b"name: a: b\n",
        "experiment.yaml:1:8: a colon does not belong here. Text that has ': ' in it needs quotes.",
    ),
    "an open list": (b"a: [1, 2\nb: 3\n", "experiment.yaml:1:4: this list has no end: a comma or a ']' is missing."),
    "open quotes": (b"a: 'x\nb: 3\n", "experiment.yaml:1:4: these quotes are never closed."),
    "bad indentation": (
        b"a:\n   b: 1\n  c: 2\n",
        "experiment.yaml:3:3: this line is not indented like the settings beside it.",
    ),
    "an at sign": (
        b"a: @b\n",
        "experiment.yaml:1:4: a value cannot begin with '@'. If it is text, write it in quotes.",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_clear_sentence_in_bounded_time(case, refused):
    content, sentence = HOSTILE[case]
    started = time.process_time()
    said = refused(content)
    assert time.process_time() - started < 2
    assert sentence in said.splitlines()


def test_a_language_tag_is_refused_and_not_run(refused, folder):
    said = refused(GOOD + f"data: !!python/object/apply:os.mkdir ['{folder}/made']\n")
    assert said.startswith("experiment.yaml:3:7: the tag '!!python/object/apply:os.mkdir' is not allowed")
    assert not (folder / "made").exists()


def test_a_folder_a_missing_file_and_one_that_may_not_be_read(folder, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"^sub: is a folder, not an experiment file. It holds a.yaml.\n1 problem"):
        load("sub")
    with pytest.raises(ConfigError, match=r"^sub/b.yaml: there is no such file. Did you mean 'a.yaml'\?\n1 problem"):
        load("sub/b.yaml")
    with pytest.raises(ConfigError, match=r"^/dev/null: is not a regular file.\n1 problem"):
        load("/dev/null")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ConfigError, match=r"this file may not be read \(permission denied\)"):
        load("sub/a.yaml")


def test_random_bytes_and_random_cuts_of_a_good_file_only_ever_raise_config_errors(folder):
    import random

    choose = random.Random(0)
    good = (GOOD + 'taps: [{at: ["a*", \'b\'], of: &o output}, {at: "*", of: *o}]\nprofile: {wait: 1}\n').encode()
    for _ in range(400):
        start, stop = sorted(choose.choices(range(len(good)), k=2))
        noise = bytes(choose.choices(b"{}[]:,&*!'\"|>-# \n\t%@xe1.~", k=choose.randrange(6)))
        (folder / "experiment.yaml").write_bytes(good[:start] + noise + good[stop:])
        try:
            load("experiment.yaml", deep=False)
        except ConfigError as error:
            assert error.problems


def test_a_pure_python_parser_gives_the_same_positions_and_sentences(refused, monkeypatch):
    import yaml

    cases = [content for name, (content, _) in HOSTILE.items() if len(content) < 6000]
    by_c = [refused(content) for content in cases]
    monkeypatch.setattr("gradlab.config.yaml.reader._LOADER", yaml.SafeLoader)
    assert [refused(content) for content in cases] == by_c


def test_reading_an_experiment_of_sixty_lines_takes_milliseconds(loaded, folder):
    lines = [
        f"  - {{at: 'layers.{i}.*', of: [output, output_grad], stats: [norm, zeros], every: {i + 1}}}"
        for i in range(56)
    ]
    content = GOOD + "taps:\n" + "\n".join(lines) + "\n"
    loaded(content)
    times = []
    for _ in range(10):
        started = time.process_time()
        load("experiment.yaml", deep=False)
        times.append(time.process_time() - started)
    assert min(times) < 0.03, times


def test_checking_the_shape_imports_neither_torch_nor_lightning(folder):
    import subprocess
    import sys

    (folder / "experiment.yaml").write_text(GOOD + "trainer: {max_epochs: 3}\nsweep: {over: {seed: [1, 2]}}\n")
    program = (
        "import sys; from gradlab.config import load; load('experiment.yaml', ['seed=3'], deep=False);"
        "print({'torch', 'pytorch_lightning', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
