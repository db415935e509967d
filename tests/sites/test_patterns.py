"""Patterns: which names they choose, what is said of one that chooses none, and which modules they can reach."""

from __future__ import annotations

import pytest

from gradlab import TapError
from gradlab.sites.names import is_op
from gradlab.sites.patterns import chooser, chooses, is_wild, match, may_match, may_own_ops, select

NAMES = """
    input encoder.0:in encoder.0 encoder.0/relu encoder.0/relu_1 encoder.0#2 encoder.0#2/relu encoder.1[logits]
    encoder.10 Encoder.0 head output
""".split()


@pytest.mark.parametrize(
    "pattern, matched",
    [
        ("head", ["head"]),
        ("Head", []),
        ("encoder.?", ["encoder.0"]),
        ("encoder.1*", ["encoder.1[logits]", "encoder.10"]),
        ("encoder.1[logits]", ["encoder.1[logits]"]),
        ("*#2*", ["encoder.0#2", "encoder.0#2/relu"]),
        ("*/relu", ["encoder.0/relu", "encoder.0#2/relu"]),
        ("*:in", ["encoder.0:in"]),
        ("", []),
    ],
)
def test_a_pattern_matches_whole_names(pattern: str, matched: list[str]) -> None:
    assert [name for name in NAMES if match(pattern, name)] == matched
    assert is_wild(pattern) == ("*" in pattern or "?" in pattern)


def test_only_a_pattern_that_speaks_of_inputs_chooses_them() -> None:
    assert [name for name in NAMES if chooses("*", name)] == [n for n in NAMES if n not in ("input", "encoder.0:in")]
    assert [name for name in NAMES if chooses("*:in*", name)] == ["encoder.0:in"]
    assert [name for name in NAMES if chooses("input*", name)] == ["input"]


def test_patterns_together_choose_in_forward_order_and_take_away() -> None:
    assert select(["output", "encoder.*", "!*/*", "!*#*"], NAMES) == [
        "encoder.0", "encoder.1[logits]", "encoder.10", "output"
    ]  # fmt: skip
    assert not chooser(["!head"])("output")


@pytest.mark.parametrize(
    "patterns, says",
    [
        (
            ["haed"],
            "no tensor matches 'haed'. Did you mean 'head'? The model has: input, encoder.0:in, encoder.0, "
            "encoder.0/relu, encoder.0/relu_1, encoder.0#2, encoder.0#2/relu, encoder.1[logits], encoder.10, "
            "Encoder.0, head, output.",
        ),
        (["head", "!head"], "the patterns 'head', '!head' together select nothing."),
    ],
)
def test_a_pattern_that_chooses_nothing_says_so(patterns: list[str], says: str) -> None:
    with pytest.raises(TapError) as caught:
        select(patterns, NAMES)
    assert str(caught.value) == says


PATTERNS = "* *:in head encoder.0 encoder.* encoder.0/* encoder.0/relu encoder.0#2/relu encoder.?/relu *relu enc* x.*"


@pytest.mark.parametrize("pattern", PATTERNS.split())
@pytest.mark.parametrize("module", ["encoder", "encoder.0", "encoder.1", "encoder.10", "head"])
def test_a_module_is_left_without_a_hook_only_where_no_site_of_it_can_be_chosen(pattern: str, module: str) -> None:
    sites = [name for name in NAMES if name == module or name.startswith(tuple(f"{module}{sign}" for sign in ":#/["))]
    chosen = [site for site in sites if match(pattern, site)]
    assert may_match(pattern, module) or not chosen
    assert may_own_ops(module, [pattern]) or not any(map(is_op, chosen))
    assert not may_match("x.*", module) and not may_own_ops(module, ["x.*", "y"])
