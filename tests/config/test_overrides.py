"""What an override changes."""

from __future__ import annotations

import pytest

GOOD = "name: x\nmodel: mlp\ntaps:\n  - {at: a, of: output}\n"


def test_a_value_replaces_the_files_and_a_key_may_be_new(loaded):
    experiment = loaded(
        GOOD, "name=y", "seed=0x10", "trainer.max_epochs=3", "profile.wait=1", "diagnose={on_finding: stop}"
    ).experiment
    assert (experiment.name, experiment.seed, experiment.trainer) == ("y", 16, {"max_epochs": 3})
    assert experiment.profile.wait == 1
    assert experiment.diagnose.on_finding == "stop"


def test_list_items_are_changed_by_number_and_added_at_the_end(loaded):
    taps = loaded(GOOD, "taps.0.every=5", "taps.1.at=b", "taps.1.of=[output, update]").experiment.taps
    assert [(tap.at, tap.of, tap.every) for tap in taps] == [("a", "output", 5), ("b", ("output", "update"), 1)]
    assert loaded("name: x\nmodel: mlp\n", "taps.0.at=c", "taps.0.of=output").experiment.taps[0].at == "c"


def test_a_short_name_opens_up_where_an_argument_is_set(loaded):
    model = loaded(GOOD, "model.init_args.widths=[3]").experiment.model
    assert (model.class_path, model.init_args) == ("gradlab.models.MLP", {"widths": [3]})


def test_null_takes_a_part_away(loaded):
    content = GOOD + "profile: {wait: 1}\noptimizer: torch.optim.SGD\n"
    experiment = loaded(content, "profile=null", "optimizer=null", "taps=null").experiment
    assert (experiment.profile, experiment.optimizer, experiment.taps) == (None, None, None)


def test_a_pattern_needs_no_second_quotes(loaded):
    taps = loaded(GOOD, "taps.0.at=*/relu*", "taps.1.at=['*', '!head.*']", "taps.1.of=output").experiment.taps
    assert [tap.at for tap in taps] == ["*/relu*", ("*", "!head.*")]


def test_setting_a_key_twice_is_an_error_since_one_would_do_nothing(refused):
    said = refused(GOOD, "profile.wait=1", "profile.wait=2", "profile={wait: 3}")
    assert said.splitlines()[0] == "argument 2: profile.wait is set already, by argument 1."
    assert said.splitlines()[3] == "argument 3: profile is set already, by argument 1."


def test_a_whole_part_and_then_a_piece_of_it_work_in_order(loaded):
    profile = loaded(GOOD, "profile={wait: 3, active: 4}", "profile.wait=2").experiment.profile
    assert (profile.wait, profile.active) == (2, 4)


def test_a_mistake_in_the_file_that_an_override_corrects_is_gone(loaded):
    assert loaded(GOOD + "seed: seven\n", "seed=7").experiment.seed == 7


def test_a_key_of_a_thousand_levels_is_one_sentence(refused):
    said = refused(GOOD, ".".join(["a"] * 1000) + "=1")
    assert said.startswith("argument 1: no setting lies 1000 levels deep.\n")


def test_an_axis_of_a_sweep_is_set_by_its_dotted_key(loaded):
    sweep = loaded(GOOD, "sweep.over.model.init_args.widths=[[3], [4]]", "sweep.over.seed=[1, 2]").experiment.sweep
    assert sweep.over == {"model.init_args.widths": ([3], [4]), "seed": (1, 2)}


AS_THEY_STAND = (
    "run #2",
    "#2",
    "a#b",
    "two  blanks ",
    " led by one",
    "a:b",
    "12:30",
    "x=y=z",
    "yes",
    "it's",
    'say "so"',
    "größe ✓",
    "line\nbreak",
    "tab\there",
    "a, b",
    "@x",
    "`x`",
    "%d",
    "*.weight",
    "&x",
    "--- x",
    "a\\nb",
    "->",
    "a - b",
    "2026-11-28",
    "null and void",
)


@pytest.mark.parametrize("text", AS_THEY_STAND)
def test_text_in_an_argument_is_taken_as_it_stands(loaded, text):
    experiment = loaded(TEXT, f"model.init_args.text={text}").experiment
    assert experiment.model.init_args["text"] == text
    again = loaded(loaded(TEXT, f"model.init_args.text={text}").resolved()).experiment
    assert again == experiment


TEXT = "name: x\nmodel: {class_path: mine.Net, init_args: {text: a}}\n"

AS_IN_YAML = {
    "1e-3": 1e-3,
    " 3 ": 3,
    "~": None,
    "null": None,
    "": None,
    "true": True,
    "{a: b}": {"a": "b"},
    "[a, b]": ["a", "b"],
    "- x": ["x"],
    "a: b": {"a": "b"},
    '"run #2"': "run #2",
    "'[x]'": "[x]",
    "[a, 'b #2']": ["a", "b #2"],
}


@pytest.mark.parametrize("text", AS_IN_YAML)
def test_other_values_of_an_argument_are_yaml(loaded, text):
    experiment = loaded(TEXT, f"model.init_args.text={text}").experiment
    assert experiment.model.init_args["text"] == AS_IN_YAML[text]


@pytest.mark.parametrize("text", ['"run" #2', "[a] # b", "note: run #2", "- run #2"])
def test_a_comment_in_an_argument_is_refused(refused, text):
    said = refused(TEXT, f"model.init_args.text={text}")
    assert said.startswith("argument 1: '#' begins a comment here. If it is text, write that in quotes.\n")
    number, caret = (line.split(" | ", 1)[1] for line in said.splitlines()[1:3])
    assert number[caret.index("^")] == "#"
