"""What a rule says of itself: its docstring, its limits, and how it is silenced, as text and as Markdown.

Belongs here: whatever `gradlab rules CODE` and `docs/rules/` have of one rule. Does not: their form (`cli.rules`,
`cli.rules_pages`).
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from gradlab.diagnose.catalogue import FROM_ELSEWHERE, all_rules
from gradlab.diagnose.registry import Rule

SILENCE = "**How to silence it.**"
"""How the paragraph begins that is made here; one in a docstring gives way to it."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A number that a rule compares with, unless `limits` has another for it."""

    usual: float
    """What it is where none is given."""
    about: str
    """What is compared, and the ranges that were measured; "" where its file does not say."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What there is to say of one code."""

    code: str
    name: str
    certainty: str
    severity: str
    about: str
    """Markdown, with the paragraph on how it is silenced."""
    limits: tuple[Limit, ...] = ()

    @property
    def first_line(self) -> str:
        """What is seen, in one line."""
        return self.about.partition("\n\n")[0].replace("\n", " ")


def entries() -> list[Entry]:
    """Every code that a finding may have, in order: those of rules, and those of findings from elsewhere."""
    rules = all_rules()
    made = {code: _entry(rule) for code, rule in rules.items()}
    others = {code: _other_entry(code, name) for code, name in FROM_ELSEWHERE.items() if code not in made}
    return [one for _, one in sorted({**others, **made}.items())]


def _entry(rule: Rule) -> Entry:
    limits = limits_of(rule)
    paragraphs = [one for one in rule.about.split("\n\n") if not one.startswith(SILENCE)]
    return Entry(
        code=rule.code,
        name=rule.name,
        certainty=rule.certainty,
        severity=rule.severity,
        about="\n\n".join([*paragraphs, _how_to_silence(rule.code, limits)]),
        limits=tuple(limits),
    )


_ELSEWHERE = {
    "GL703": (
        "error",
        "The op that made the first number that is not finite.\n\n"
        "**What it sees.** Where `nonfinite=` asks for it, gradients are looked at before each update, and where one "
        "is not finite the step is computed again, op by op.",
    ),
    "GL704": (
        "info",
        "Updates that were left out, as by a GradScaler.\n\n"
        "**What it sees.** The optimizer was not called for a step whose gradients had been made.\n\n"
        "**What looks like it and is healthy.** A few while the loss scale finds its place.",
    ),
    "GL801": (
        "info",
        "What limits the speed of the steps in a profile window.\n\n"
        "**What it sees.** The windows of torch.profiler, where some are recorded; `docs/profile.md` has each verdict.",
    ),
    "GL804": (
        "error",
        "What was in memory when a device ran out of it.\n\n"
        "**What it sees.** The allocator of the device at the moment of torch.OutOfMemoryError.",
    ),
}
"""Of findings that no rule makes: how severe they are, and what they say."""


def _other_entry(code: str, name: str) -> Entry:
    severity, text = _ELSEWHERE.get(code, ("warning", f"A finding of gradlab's own: {name.replace('-', ' ')}."))
    about = "\n\n".join([*map(_filled, text.split("\n\n")), _how_to_silence(code, [])])
    return Entry(code=code, name=name, certainty="exact", severity=severity, about=about)


def limits_of(rule: Rule) -> list[Limit]:
    """The numbers that `limits={code: ...}` takes the place of; none where the source is not there to be read."""
    module = sys.modules.get(rule.look.__module__)
    constants = vars(module) if module is not None else {}
    found: dict[str, Limit] = {}
    for node in _limit_calls(rule):
        name = ast.unparse(node)
        value = node.value if isinstance(node, ast.Constant) else constants.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = Limit(usual=float(value), about=_notes(rule.look.__module__).get(name, ""))
    return list(found.values())


def _how_to_silence(code: str, limits: Sequence[Limit]) -> str:
    own = (
        f" With another limit: `Diagnose(limits={{'{code}': ...}})`; its own is {limits[0].usual:g}." if limits else ""
    )
    return _filled(
        f"{SILENCE} `gradlab.watch(..., diagnose=gradlab.Diagnose(ignore=['{code}']))`; for some sites alone "
        f"`ignore=['{code}@encoder.*']`. For a script that you do not edit: `gradlab attach --ignore {code} train.py`, "
        f"or `GRADLAB_IGNORE={code}` in the environment. In an experiment file: `diagnose: {{ignore: [{code}]}}`.{own}"
    )


def _filled(text: str, width: int = 120) -> str:
    """Lines of at most `width` letters; code in backticks is not broken."""
    lines, line = [], ""
    for word in re.findall(r"`[^`]*`\S*|\S+", text):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".lstrip()
    return "\n".join([*lines, line])


def _limit_calls(rule: Rule) -> Iterator[ast.expr]:
    """What is given to `context.limit` in the function of a rule and in those of its file that it calls."""
    functions, waiting, seen = _functions(rule.look.__module__), [rule.look.__name__], set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Name):
                waiting.append(node.id)
            is_limit = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "limit"
            if is_limit and isinstance(node, ast.Call) and node.args:
                yield node.args[0]


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError, SyntaxError):  # made in a notebook, or at a prompt
        return ast.Module(body=[], type_ignores=[])


@cache
def _functions(module: str) -> Mapping[str, ast.FunctionDef]:
    return {node.name: node for node in _tree(module).body if isinstance(node, ast.FunctionDef)}


@cache
def _notes(module: str) -> Mapping[str, str]:
    """By name of a constant: the text below it."""
    body = _tree(module).body
    found = {}
    for node, after in pairwise(body):
        names = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        text = after.value if isinstance(after, ast.Expr) else None
        if names and isinstance(text, ast.Constant) and isinstance(text.value, str):
            found[ast.unparse(names[0])] = " ".join(text.value.split())
    return found
