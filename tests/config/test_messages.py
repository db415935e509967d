"""What is said about each kind of mistake, word for word, in the file and in an override."""

from __future__ import annotations

import pytest

GOOD = "name: x\nmodel: mlp\n"

SNAPSHOTS = {
    "unknown key": (
        GOOD + "profile:\n  wiat: 3\n",
        """\
experiment.yaml:4:3: profile has no setting 'wiat'. Did you mean 'wait'?
     4 |   wiat: 3
       |   ^^^^
1 problem; nothing was run.""",
    ),
    "unknown key that is near nothing": (
        GOOD + "resources: {zzz: 1}\n",
        """\
experiment.yaml:3:13: resources has no setting 'zzz'. It has: gpus, nodes.
     3 | resources: {zzz: 1}
       |             ^^^
1 problem; nothing was run.""",
    ),
    "a misspelled required key is one problem, not two": (
        "nmae: x\nmodel: mlp\n",
        """\
experiment.yaml:1:1: the experiment has no setting 'nmae'. Did you mean 'name'?
     1 | nmae: x
       | ^^^^
1 problem; nothing was run.""",
    ),
    "wrong type": (
        GOOD + "profile: {active: three}\n",
        """\
experiment.yaml:3:19: profile.active must be a whole number, not the text 'three'.
     3 | profile: {active: three}
       |                   ^^^^^
1 problem; nothing was run.""",
    ),
    "number in quotes": (
        GOOD + 'seed: "7"\n',
        """\
experiment.yaml:3:7: seed must be a whole number, not the text '7'. Leave out the quotes.
     3 | seed: "7"
       |       ^^^
1 problem; nothing was run.""",
    ),
    "number for text": (
        "name: 123\nmodel: mlp\n",
        """\
experiment.yaml:1:7: name must be text, not 123. In quotes it is text: "123".
     1 | name: 123
       |       ^^^
1 problem; nothing was run.""",
    ),
    "missing keys": (
        "seed: 1\n",
        """\
experiment.yaml:1:1: the experiment needs 'name' and 'model'.
     1 | seed: 1
       | ^
1 problem; nothing was run.""",
    ),
    "nothing after a colon": (
        GOOD + "trainer:\n",
        """\
experiment.yaml:3:9: trainer must be a mapping, not null (nothing is written there).
     3 | trainer:
       |         ^
1 problem; nothing was run.""",
    ),
    "null where nothing can be off": (
        GOOD + "seed: null\n",
        """\
experiment.yaml:3:7: seed must be a whole number, not null.
     3 | seed: null
       |       ^^^^
1 problem; nothing was run.""",
    ),
    "out of range": (
        GOOD + "seed: -1\n",
        """\
experiment.yaml:3:7: seed must be a whole number from 0 to 4294967295, not -1.
     3 | seed: -1
       |       ^^
1 problem; nothing was run.""",
    ),
    "bad enum": (
        GOOD + "diagnose: {on_finding: stp}\n",
        """\
experiment.yaml:3:24: diagnose.on_finding may not be 'stp'. Did you mean 'stop'? It may be log, checkpoint, profile, \
jacobian or stop.
     3 | diagnose: {on_finding: stp}
       |                        ^^^
1 problem; nothing was run.""",
    ),
    "a word or a number": (
        GOOD + "resources: {gpus: many}\n",
        """\
experiment.yaml:3:19: resources.gpus may not be 'many'. It may be auto or a whole number from 0.
     3 | resources: {gpus: many}
       |                   ^^^^
1 problem; nothing was run.""",
    ),
    "duplicate key": (
        GOOD + "seed: 1\nseed: 2\n",
        """\
experiment.yaml:4:1: 'seed' is set twice in this mapping (first on line 3).
     4 | seed: 2
       | ^^^^
1 problem; nothing was run.""",
    ),
    "tab": (
        "name: x\nmodel:\n\tclass_path: mlp\n",
        """\
experiment.yaml:3:1: this line is indented with a tab; YAML allows only spaces there.
     3 |     class_path: mlp
       | ^^^^
1 problem; nothing was run.""",
    ),
    "no is text": (
        GOOD + "profile: {memory: no}\n",
        """\
experiment.yaml:3:19: profile.memory must be true or false, not the text 'no'.
     3 | profile: {memory: no}
       |                   ^^
1 problem; nothing was run.""",
    ),
    "tap on a quantity that does not exist": (
        GOOD + 'taps:\n  - {at: "*", of: wieght_grad}\n',
        """\
experiment.yaml:4:19: taps.0.of may not be 'wieght_grad'. Did you mean 'weight_grad'? It may be output, output_grad, \
weight, weight_grad, update or a list of them.
     4 |   - {at: "*", of: wieght_grad}
       |                   ^^^^^^^^^^^
1 problem; nothing was run.""",
    ),
    "tap without a quantity": (
        GOOD + 'taps:\n  - {at: "*"}\n  - of: output\n',
        """\
experiment.yaml:4:5: taps.0 needs 'of'.
     4 |   - {at: "*"}
       |     ^
experiment.yaml:5:5: taps.1 needs 'at'.
     5 |   - of: output
       |     ^
2 problems; nothing was run.""",
    ),
    "pattern without quotes": (
        GOOD + "taps:\n  - {at: */relu*, of: output}\n",
        """\
experiment.yaml:4:10: '*' begins an alias in YAML. If this is a pattern, write it in quotes: "*/relu*".
     4 |   - {at: */relu*, of: output}
       |          ^^^^^^^
1 problem; nothing was run.""",
    ),
    "exclusion without quotes": (
        GOOD + "taps:\n  - {at: !head.*, of: output}\n",
        """\
experiment.yaml:4:10: the tag '!head.*' is not allowed in an experiment file. If it is a pattern, write it in quotes: \
'!head.*'.
     4 |   - {at: !head.*, of: output}
       |          ^^^^^^^
1 problem; nothing was run.""",
    ),
    "short name that does not exist": (
        "name: x\nmodel: mpl\n",
        """\
experiment.yaml:2:8: 'mpl' is no class path. Did you mean 'mlp'? Short names are mlp, convnet, transformer, rnn. \
Your own class is written as my_module.MyModel.
     2 | model: mpl
       |        ^^^
1 problem; nothing was run.""",
    ),
    "a list where a mapping belongs": (
        GOOD + "profile: [1, 2]\n",
        """\
experiment.yaml:3:1: profile must be a mapping (wait, warmup, active, repeat, every, trigger, memory, shapes, \
stack, raw, max_windows, max_megabytes, max_share) or null, \
not a list of 2.
     3 | profile: [1, 2]
       | ^^^^^^^
1 problem; nothing was run.""",
    ),
    "rows of a Jacobian": (
        GOOD + "jacobians: [{of: output, wrt: input, rows: [0, -1]}]\n",
        """\
experiment.yaml:3:38: jacobians.0.rows must be a whole number from 1, a list of indices from 0 or null, \
not a list of 2.
     3 | jacobians: [{of: output, wrt: input, rows: [0, -1]}]
       |                                      ^^^^
1 problem; nothing was run.""",
    ),
    "name with a slash": (
        "name: a/b\nmodel: mlp\n",
        """\
experiment.yaml:1:7: name must be text that can name a folder (1 to 100 characters, no slash, no leading dot), \
not the text 'a/b'.
     1 | name: a/b
       |       ^^^
1 problem; nothing was run.""",
    ),
}


@pytest.mark.parametrize("case", SNAPSHOTS)
def test_a_mistake_in_the_file(case, refused):
    content, message = SNAPSHOTS[case]
    assert refused(content) == message


IN_OVERRIDES = {
    "unknown key": (
        "profile.wiat=3",
        "profile has no setting 'wiat'. Did you mean 'wait'?\n       | profile.wiat=3\n       | ^^^^^^^^^^^^",
    ),
    "wrong type": (
        "profile.active=three",
        "profile.active must be a whole number, not the text 'three'.\n"
        "       | profile.active=three\n       |                ^^^^^",
    ),
    "out of range": (
        "seed=-1",
        "seed must be a whole number from 0 to 4294967295, not -1.\n       | seed=-1\n       |      ^^",
    ),
    "bad enum": (
        "diagnose.on_finding=stp",
        "diagnose.on_finding may not be 'stp'. Did you mean 'stop'? It may be log, checkpoint, profile, jacobian or "
        "stop.\n"
        "       | diagnose.on_finding=stp\n       |                     ^^^",
    ),
    "null": (
        "seed=",
        "seed must be a whole number, not null (nothing is written there).\n       | seed=\n       |      ^",
    ),
    "duplicate key": (
        "profile={wait: 1, wait: 2}",
        "'wait' is set twice in this mapping (first on line 1).\n"
        "       | profile={wait: 1, wait: 2}\n       |                   ^^^^",
    ),
    "syntax": (
        "profile={wait: 1",
        "this mapping has no end: a comma or a '}' is missing.\n       | profile={wait: 1\n       |         ^",
    ),
    "a tab": (
        "profile.wait=\t3\x00",
        "a control character, U+0000, is not allowed in YAML. Is this a text file?\n"
        "       | profile.wait=    3\ufffd\n       |                   ^",
    ),
    "no": (
        "profile.memory=no",
        "profile.memory must be true or false, not the text 'no'.\n"
        "       | profile.memory=no\n       |                ^^",
    ),
    "tap": (
        "taps.0.of=wieght",
        "taps.0.of may not be 'wieght'. Did you mean 'weight'? It may be output, output_grad, weight, weight_grad, "
        "update or a list of them.\n       | taps.0.of=wieght\n       |           ^^^^^^",
    ),
    "missing key": (
        "taps.1.at=x",
        "taps.1 needs 'of'.\n       | taps.1.at=x\n       | ^^^^^^^^^",
    ),
    "no equals sign": (
        "seed",
        "'seed' is no override; one looks like `trainer.max_epochs=5`.\n       | seed\n       | ^^^^",
    ),
    "no key": (
        "=3",
        "the part before '=' must name a setting, as `trainer.max_epochs` does, without blanks.\n"
        "       | =3\n       | ^",
    ),
    "item beyond the list": (
        "taps.7.at=x",
        "taps is a list of 1 item, counted from 0 (the next is taps.1): no item '7'.\n"
        "       | taps.7.at=x\n       | ^^^^^^^^^",
    ),
    "inside a single value": (
        "seed.x=3",
        "seed is 4; there is nothing like 'x' inside it.\n       | seed.x=3\n       | ^^^^^^",
    ),
    "sweep axis that does not exist": (
        "sweep.over.profile.wiat=[1]",
        "profile has no setting 'wiat'. Did you mean 'wait'?\n"
        "       | sweep.over.profile.wiat=[1]\n       | ^^^^^^^^^^^^^^^^^^^^^^^",
    ),
}


@pytest.mark.parametrize("case", IN_OVERRIDES)
def test_a_mistake_in_an_override(case, refused):
    override, message = IN_OVERRIDES[case]
    content = GOOD + "seed: 4\ntaps: [{at: a, of: output}]\n"
    assert refused(content, override) == f"argument 1: {message}\n1 problem; nothing was run."


def test_every_mistake_is_reported_in_the_order_of_the_file_and_then_of_the_arguments(refused):
    content = 'name: x\nname: y\nmodel: mlp\nsede: 3\ntaps:\n  - {at: "*", of: weight, every: 0}\n'
    said = refused(content, "resources.nodes=0", "profile.wait=x")
    assert [line.split(": ")[0] for line in said.splitlines() if not line.startswith(" ")] == [
        "experiment.yaml:2:1",
        "experiment.yaml:4:1",
        "experiment.yaml:6:34",
        "argument 1",
        "argument 2",
        "5 problems; nothing was run.",
    ]


def test_a_wrong_value_behind_an_alias_is_reported_once_for_each_setting_at_the_value(refused):
    said = refused(GOOD + "profile: {wait: &n x, warmup: *n}\n")
    assert said.count("experiment.yaml:3:17") == 2
    assert "profile.wait must" in said
    assert "profile.warmup must" in said


def test_the_limits_on_foreign_fields_are_those_of_their_own_dataclasses():
    from typing import get_args, get_type_hints

    from gradlab.config.schema import LoggedSlice, WatchRule, Windows
    from gradlab.config.validation.limits import Fields, Range

    needed = {"Tap": {"at": "x", "of": "output"}, "JacobianSlice": {"of": "a", "wrt": "b"}, "Profile": {}}
    checked = 0
    for annotation in (WatchRule, LoggedSlice, Windows):
        cls, limits = get_args(annotation)
        assert isinstance(limits, Fields)
        for name, limit in limits.limits:
            assert name in get_type_hints(cls)
            if isinstance(limit, Range):
                cls(**needed[cls.__name__], **{name: limit.least})
                with pytest.raises(Exception, match=name):
                    cls(**needed[cls.__name__], **{name: limit.least - 1})
                checked += 1
    assert checked == 9
