"""A sweep's axes obey the rules of the settings that they vary."""

# ruff: noqa: E501  sentences as they are shown

from __future__ import annotations

import pytest

GOOD = """\
name: x
model: {class_path: mine.Net, init_args: {widths: [3]}}
data: mine.Data
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}
"""

MISTAKES = {
    "sweep: {over: {seed: []}}": "experiment.yaml:5:16: sweep.over.seed must be a list with something in it, "
    "not an empty list.",
    "sweep: {over: {}}": "experiment.yaml:5:9: sweep.over must be a mapping with something in it, not an empty mapping.",
    "sweep: {over: {seed: 3}}": "experiment.yaml:5:22: sweep.over.seed must be a list with something in it or a mapping "
    "(log, points), not 3.",
    "sweep: {over: {seed: [1, -2]}}": "experiment.yaml:5:26: seed must be a whole number from 0 to 4294967295, not -2.",
    "sweep: {over: {sede: [1]}}": "experiment.yaml:5:16: the experiment has no setting 'sede'. Did you mean 'seed'?",
    "sweep: {over: {name: [a, b]}}": "experiment.yaml:5:16: 'name' is the same for all runs of a sweep.",
    "sweep: {over: {seed.x: [1]}}": "experiment.yaml:5:16: seed is 5; there is nothing like 'x' inside it.",
    "sweep: {over: {seed: {log: [10, 1]}}}": "experiment.yaml:5:23: log needs two numbers, 0 < lowest < highest, not 10 "
    "and 1.",
    "sweep: {over: {seed: {log: [0.5, 2.5]}}}": "experiment.yaml:5:29: seed must be a whole number, not 0.5.",
    "sweep: {over: {seed: [1]}, search: random}": "experiment.yaml:5:36: a random search needs 'trials': how many "
    "combinations are drawn.",
    "sweep: {over: {seed: [1]}, trials: 3}": "experiment.yaml:5:36: 'trials' is for `search: random`; a grid tries every "
    "combination.",
    "sweep: {over: {seed: {log: [1, 9], points: 3}}, search: random, trials: 2}": "experiment.yaml:5:1: 'points' is for "
    "`search: grid`; a random search draws from the whole range.",
    "sweep: {over: {seed: [1]}, search: gird}": "experiment.yaml:5:36: sweep.search may not be 'gird'. Did you mean "
    "'grid'? It may be grid or random.",
    "sweep: {over: {seed: [1]}, stop: {mode: min}}": "experiment.yaml:5:28: sweep.stop needs 'metric'.",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_wrong_sweep(line, refused):
    content = GOOD + line + "\n"
    said = refused(content + ("seed: 5\n" if "seed.x" in line else ""))
    assert MISTAKES[line] in said.splitlines()


def test_values_are_held_against_signatures_each_at_its_place(refused):
    said = refused(
        GOOD + "sweep:\n  over:\n"
        "    optimizer.init_args.lr: {log: [1e-4, 1e-1]}\n"
        "    optimizer.init_args.betas: [[0.9, 0.99], [0.9, 2]]\n"
        "    model.init_args.widths: [[64], [128, wide]]\n"
        "    model.init_args.widht: [1]\n"
        "    trainer.max_epochs: [1, two]\n"
        "    data.class_path: [mine.Data, mine.Dato]\n",
        deep=True,
    )
    assert [line for line in said.splitlines() if line.startswith("experiment")] == [
        "experiment.yaml:8:5: torch.optim.AdamW refused: ValueError: Invalid beta parameter at index 1: 2",
        "experiment.yaml:9:42: model.init_args.widths.1 must be a whole number, not the text 'wide'.",
        "experiment.yaml:10:5: mine.Net takes no argument 'widht'. Did you mean 'widths'?",
        "experiment.yaml:11:29: trainer.max_epochs must be a whole number from -1 or null, not the text 'two'.",
        "experiment.yaml:12:34: mine has no 'Dato'. Did you mean 'Data'?",
    ]


def test_a_mistake_that_the_file_has_without_the_sweep_is_told_once(refused):
    said = refused(GOOD + "trainer: {max_epoch: 3}\nsweep: {over: {trainer.max_steps: [1, 2]}}\n", deep=True)
    assert said.count("max_epoch'") == 1
    assert said.endswith("1 problem; nothing was run.")


def test_what_a_value_breaks_elsewhere_is_told_at_the_axis(refused):
    said = refused(
        "name: x\nmodel: {class_path: mine.Net, init_args: {widths: [3]}}\ndata: mine.Data\n"
        "sweep: {over: {optimizer.init_args.lr: [1]}}\n",
        deep=True,
    )
    assert said.splitlines()[0] == "experiment.yaml:4:16: optimizer needs 'class_path'."


def test_a_good_sweep_is_read(loaded):
    sweep = loaded(
        GOOD + "sweep:\n  over: {optimizer.init_args.lr: {log: [1e-4, 1e-1]}, seed: [1, 2]}\n"
        "  stop: {metric: val/loss, mode: max, rule: asha}\n",
        deep=True,
    ).experiment.sweep
    assert sweep.over["optimizer.init_args.lr"].log == (1e-4, 1e-1)
    assert sweep.over["seed"] == (1, 2)
    assert (sweep.stop.metric, sweep.stop.mode) == ("val/loss", "max")
