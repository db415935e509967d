"""Taps and Jacobians of an experiment against the names that a model has."""

from __future__ import annotations

import pytest

from gradlab.errors import ConfigError

HEAD = "name: x\nmodel: mlp\n"
SITES = [
    "input",
    "encoder.0:in",
    "encoder.0",
    "encoder.0[1]",
    "encoder.0#2",
    "encoder/relu",
    "encoder",
    "head",
    "output",
]
PARAMETERS = ["encoder.0.weight", "encoder.0.bias", "head.weight"]


def said(loaded, *names) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded.check_patterns(*names)
    assert caught.value.exit_code == 2
    return [line for line in str(caught.value).splitlines() if line[0] != " "][:-1]


def test_good_patterns_pass_and_only_stars_and_question_marks_are_wild(loaded):
    taps = 'taps: [{at: ["encoder.0[1]", "encoder.0#2", "*/rel?"], of: output}, {at: "*", of: [update, output]}]\n'
    jacobians = "jacobians: [{of: output, wrt: encoder.0.weight}, {of: head, wrt: input}]\n"
    experiment = loaded(HEAD + taps + jacobians)
    experiment.check_patterns(SITES, PARAMETERS)
    experiment.check_patterns([*SITES, *PARAMETERS])


def test_everything_that_matches_nothing_is_told_at_its_place_with_the_nearest_name(loaded):
    experiment = loaded(
        HEAD + "taps:\n"
        '  - {at: "encdoer.*", of: output}\n'
        '  - {at: ["*", "Encoder", "!haed"], of: output}\n'
        "  - {at: head, of: weight_grad}\n"
        "jacobians:\n"
        "  - {of: otuput, wrt: input}\n"
        '  - {of: head, wrt: "encoder.*"}\n'
    )
    assert said(experiment, SITES, PARAMETERS) == [
        "experiment.yaml:4:10: no tensor matches 'encdoer.*'. Did you mean 'encoder.*'?",
        "experiment.yaml:5:16: no tensor matches 'Encoder'. Did you mean 'encoder'?",
        "experiment.yaml:5:27: no tensor matches '!haed'. Did you mean 'head'?",
        "experiment.yaml:6:10: no parameter matches 'head'. Did you mean 'head.*'?",
        "experiment.yaml:8:10: jacobians.0.of is one site, and the model has no 'otuput'. Did you mean 'output'?",
        "experiment.yaml:9:21: jacobians.1.wrt is one site, not a pattern. Did you mean 'encoder.0'?",
    ]


def test_patterns_that_together_choose_nothing_are_told(loaded):
    experiment = loaded(HEAD + 'taps:\n  - {at: "!head", of: output}\n  - {at: [head, "!h*"], of: output}\n')
    assert said(experiment, SITES) == [
        "experiment.yaml:4:10: taps.0 watches output, but its patterns together choose no tensor that has one.",
        "experiment.yaml:5:6: taps.1 watches output, but its patterns together choose no tensor that has one.",
    ]


def test_a_tap_on_values_and_weights_must_choose_some_of_each(loaded):
    experiment = loaded(HEAD + 'taps:\n  - {at: "*/relu", of: [output, weight_grad]}\n')
    assert said(experiment, SITES, PARAMETERS) == [
        "experiment.yaml:4:10: taps.0 watches weight_grad, but its patterns together choose no tensor that has one."
    ]


def test_a_pattern_from_an_override_is_told_at_the_argument(loaded):
    experiment = loaded(HEAD, "taps.0.at=*/rleu", "taps.0.of=output")
    with pytest.raises(ConfigError) as caught:
        experiment.check_patterns(SITES)
    assert str(caught.value) == (
        "argument 1: no tensor matches '*/rleu'. Did you mean '*/relu'?\n"
        "       | taps.0.at=*/rleu\n       |           ^^^^^^\n1 problem; nothing was run."
    )


def test_a_problem_found_later_has_the_place_of_its_setting_or_the_nearest_above(loaded):
    experiment = loaded(HEAD + "trainer:\n  max_epochs: 3\n")
    assert str(experiment.problem("trainer.max_epochs", "too few.")).splitlines() == [
        "experiment.yaml:4:15: too few.", "     4 |   max_epochs: 3", "       |               ^",
    ]  # fmt: skip
    assert str(experiment.problem(("trainer", "devices"), "x")).startswith("experiment.yaml:3:1: x\n")
    assert str(experiment.problem("profile.wait", "x")).startswith("experiment.yaml:1:1: x\n")


def test_the_sites_of_depth_growth_are_checked_too(loaded):
    good = "depth_growth: [{at: encoder.0, of: head}, {at: ['encoder*', '!*relu'], wrt: encoder.0}]\n"
    loaded(HEAD + good).check_patterns(SITES, PARAMETERS)
    wrong = loaded(HEAD + "depth_growth:\n  - {at: 'encdoer.*', of: haed}\n  - {at: [encoder, 'x*']}\n")
    assert said(wrong, SITES, PARAMETERS) == [
        "experiment.yaml:4:10: no tensor matches 'encdoer.*'. Did you mean 'encoder.*'?",
        "experiment.yaml:4:27: depth_growth.0.of is one site, and the model has no 'haed'. Did you mean 'head'?",
        "experiment.yaml:5:20: no tensor matches 'x*'. The model has: input, encoder.0:in, encoder.0, encoder.0[1], "
        "encoder.0#2, encoder/relu, encoder, head, output.",
    ]
