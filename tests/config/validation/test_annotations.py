"""Every annotation of a constructor: its values are made what it says, or refused by its name, in one sentence."""

# ruff: noqa: E501  sentences as they are shown

import datetime
import decimal
import sys
from collections import deque
from pathlib import Path

import pytest
import torch

from gradlab.config.validation.annotations import rule_of

KINDS = """
from __future__ import annotations
import collections, dataclasses, datetime, decimal, enum, numbers, os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import *
import attr_like
import pytorch_lightning as pl
import torch

class Mode(enum.Enum):
    FAST = "fast-mode"
    SLOW = 2
    OFF = None

class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

class Size(NamedTuple):
    height: int
    width: int = 7

class Options(TypedDict):
    rate: float
    mode: NotRequired[Mode]

@dataclasses.dataclass
class Base:
    rate: float

@dataclasses.dataclass
class Scaled(Base):
    factor: dataclasses.InitVar[float]
    _: dataclasses.KW_ONLY
    steps: list[int] = dataclasses.field(default_factory=list)
    total: float = dataclasses.field(init=False, default=0.0)
    mode: Mode = Mode.FAST
    extra: dataclasses.InitVar[int] = 3

    def __post_init__(self, factor, extra):
        self.total = self.rate * factor + extra

class Thing: pass
Width = NewType("Width", int)
T = TypeVar("T", bound=int)

class Net(pl.LightningModule):
    def __init__(self, x: KIND):
        super().__init__()
        self.x = x
    def train_dataloader(self): return []
"""


@pytest.fixture
def with_kind(folder, loaded, refused, monkeypatch):
    """`with_kind(annotation)`: writes a class whose argument `x` has it; gives functions from YAML to value or message."""
    monkeypatch.syspath_prepend(str(folder))

    def with_kind(annotation):
        (folder / "attr_like.py").write_text(
            "class Pair:\n    __attrs_attrs__ = ()\n    left: int\n    right: int\n"
            "    def __init__(self, left: int, right: int = 2): self.left, self.right = left, right\n"
        )
        (folder / "kinds.py").write_text(KINDS.replace("KIND", annotation))
        for name in ("kinds", "attr_like"):
            sys.modules.pop(name, None)

        def text(value):
            return f"name: x\nmodel: {{class_path: kinds.Net, init_args: {{x: {value}}}}}\n"

        def value(written):
            experiment = loaded(text(written), deep=True)
            made = experiment.build().model.x
            again = loaded(experiment.resolved(), deep=True)
            assert again.experiment == experiment.experiment
            return made

        def message(written):
            said = refused(text(written), deep=True).splitlines()
            assert said[-1] == "1 problem; nothing was run."
            return said[0].split(": ", 1)[1]

        return value, message

    return with_kind


CONVERTED = [
    ("Mode", "FAST", lambda k: k.Mode.FAST),
    ("Mode", "fast-mode", lambda k: k.Mode.FAST),
    ("Mode", "2", lambda k: k.Mode.SLOW),
    ("Mode | None", "SLOW", lambda k: k.Mode.SLOW),
    ("Mode | None", "null", lambda k: None),
    ("str | Mode", "FAST", lambda k: k.Mode.FAST),
    ("str | Mode", "other", lambda k: "other"),
    ("Level", "HIGH", lambda k: k.Level.HIGH),
    ("Level", "1", lambda k: k.Level.LOW),
    ("list[Mode]", "[FAST, 2]", lambda k: [k.Mode.FAST, k.Mode.SLOW]),
    ("dict[Mode, int]", "{FAST: 1}", lambda k: {k.Mode.FAST: 1}),
    ("dict[int, str]", "{1: a}", lambda k: {1: "a"}),
    ("Literal[Mode.FAST, 'none']", "FAST", lambda k: k.Mode.FAST),
    ("Literal[Mode.FAST, 'none']", "none", lambda k: "none"),
    ("Literal['a', None]", "null", lambda k: None),
    ("Path", "a/b", lambda k: Path("a/b")),
    ("os.PathLike", "a/b", lambda k: Path("a/b")),
    ("os.PathLike[str] | None", "a/b", lambda k: Path("a/b")),
    ("torch.dtype", "float32", lambda k: torch.float32),
    ("torch.dtype", "torch.bfloat16", lambda k: torch.bfloat16),
    ("torch.device | str", "cuda:0", lambda k: torch.device("cuda:0")),
    ("datetime.timedelta", "90", lambda k: datetime.timedelta(seconds=90)),
    ("datetime.timedelta | None", "{minutes: 2}", lambda k: datetime.timedelta(minutes=2)),
    ("datetime.date", "2026-11-28", lambda k: datetime.date(2026, 11, 28)),
    ("decimal.Decimal", "0.10", lambda k: decimal.Decimal("0.10")),
    ("numbers.Real", "3", lambda k: 3),
    ("set[int]", "[1, 1]", lambda k: {1}),
    ("frozenset[str]", "[a]", lambda k: frozenset("a")),
    ("collections.deque[int]", "[1]", lambda k: deque([1])),
    ("tuple[int, ...]", "[1, 2]", lambda k: (1, 2)),
    ("tuple[()]", "[]", lambda k: ()),
    ("Sequence[Mode]", "[FAST]", lambda k: (k.Mode.FAST,)),
    ("Iterable[int] | int", "[3]", lambda k: (3,)),
    ("Mapping[str, Mode]", "{a: FAST}", lambda k: {"a": k.Mode.FAST}),
    ("Size", "[3]", lambda k: k.Size(3, 7)),
    ("Size", "{width: 1, height: 2}", lambda k: k.Size(2, 1)),
    ("Options", "{rate: 0.5, mode: FAST}", lambda k: {"rate": 0.5, "mode": k.Mode.FAST}),
    ("Options | None", "{rate: 1}", lambda k: {"rate": 1}),
    ("Width", "3", lambda k: 3),
    ("T", "3", lambda k: 3),
    ("Final[Mode]", "FAST", lambda k: k.Mode.FAST),
    ("Annotated[Mode, 'note']", "FAST", lambda k: k.Mode.FAST),
    ("Annotated[Mode | None, ['unhashable']]", "FAST", lambda k: k.Mode.FAST),
    ("Callable[[torch.Tensor], torch.Tensor]", "torch.nn.functional.relu", lambda k: torch.nn.functional.relu),
    ("Callable | None", "kinds.Thing", lambda k: k.Thing),
    ("type[torch.nn.Module]", "torch.nn.ReLU", lambda k: torch.nn.ReLU),
    ("type", "kinds.Thing", lambda k: k.Thing),
    ("Any", "[1, {a: b}]", lambda k: [1, {"a": "b"}]),
    ("object", "a", lambda k: "a"),
    ("Undefined", "a", lambda k: "a"),
    ("torch.Tensor | int", "3", lambda k: 3),
    ("Thing | None", "null", lambda k: None),
    ("Optional[Union[int, Mode]]", "FAST", lambda k: k.Mode.FAST),
]


@pytest.mark.parametrize(("annotation", "written", "expected"), CONVERTED)
def test_a_value_is_made_what_the_annotation_says(with_kind, annotation, written, expected):
    value, _ = with_kind(annotation)
    made = value(written)
    wanted = expected(sys.modules["kinds"])
    assert made == wanted and type(made) is type(wanted)


NOT = "model.init_args.x may not be "
REFUSED = [
    ("Mode", "nonsense", NOT + "'nonsense'. It may be FAST, SLOW, OFF, fast-mode or 2."),
    ("Mode", "slow", NOT + "'slow'. Did you mean 'SLOW'? It may be FAST, SLOW, OFF, fast-mode or 2."),
    ("Mode | None", "FSAT", NOT + "'FSAT'. Did you mean 'FAST'? It may be FAST, SLOW, OFF, fast-mode, 2 or null."),
    ("list[Mode]", "[FAST, 3]", "model.init_args.x.1 may not be 3. It may be FAST, SLOW, OFF, fast-mode or 2."),
    ("Level", "true", NOT + "True. It may be LOW, HIGH, 1 or 2."),
    (
        "dict[Mode, int]",
        "{SLWO: 1}",
        "model.init_args.x.SLWO may not be 'SLWO'. Did you mean 'SLOW'? It may be FAST, SLOW, OFF, fast-mode or 2.",
    ),
    ("dict[int, str]", "{a: b}", "model.init_args.x.a must be a whole number, not the text 'a'."),
    ("torch.dtype", "flaot32", "model.init_args.x must be a dtype such as float32, not 'flaot32'."),
    ("torch.device", "cudas", "model.init_args.x must be a device such as cpu or cuda:0, not 'cudas'."),
    ("decimal.Decimal", "ten", "model.init_args.x must be a decimal number, not 'ten'."),
    (
        "datetime.timedelta",
        "soon",
        "model.init_args.x must be a number of seconds or a mapping (weeks, days, hours, minutes, seconds, milliseconds, microseconds), not the text 'soon'.",
    ),
    ("Size", "[1, 2, 3]", "model.init_args.x must be a list or a mapping (height, width), not a list of 3."),
    ("Size", "[]", "model.init_args.x needs 'height'."),
    ("Options", "{mode: FAST}", "model.init_args.x needs 'rate'."),
    ("Options", "{rate: 1, made: x}", "model.init_args.x has no setting 'made'. Did you mean 'mode'?"),
    (
        "type[torch.nn.Module]",
        "kinds.Thing",
        "model.init_args.x must be the path of a subclass of Module, as text; kinds.Thing is not.",
    ),
    (
        "Callable",
        "kinds.Thong",
        "model.init_args.x: 'kinds.Thong' cannot be imported (AttributeError: kinds has no 'Thong').",
    ),
    (
        "torch.Tensor",
        "[1]",
        "model.init_args.x takes a value of type Tensor, which an experiment file cannot hold. Give the class an argument of another type, or leave it out.",
    ),
    (
        "Thing",
        "{a: 1}",
        "model.init_args.x takes a value of type Thing, which an experiment file cannot hold. Give the class an argument of another type, or leave it out.",
    ),
    ("Thing | None", "3", NOT + "3, only null: a value of type Thing cannot be written in an experiment file."),
    (
        "Thing | torch.Tensor",
        "3",
        "model.init_args.x takes a value of type Thing or Tensor, which an experiment file cannot hold. Give the class an argument of another type, or leave it out.",
    ),
    ("torch.Tensor | int", "a", "model.init_args.x must be a whole number, not the text 'a'."),
    (
        "bytes",
        "a",
        "model.init_args.x takes a value of type bytes, which an experiment file cannot hold. Give the class an argument of another type, or leave it out.",
    ),
    (
        "complex",
        "1",
        "model.init_args.x takes a value of type complex, which an experiment file cannot hold. Give the class an argument of another type, or leave it out.",
    ),
]


@pytest.mark.parametrize(("annotation", "written", "expected"), REFUSED)
def test_what_cannot_be_made_is_refused_in_one_sentence(with_kind, annotation, written, expected):
    assert with_kind(annotation)[1](written) == expected


def test_a_default_of_none_allows_null_beside_what_no_file_can_write(with_kind):
    value, message = with_kind("Thing = None")
    assert value("null") is None
    assert message("3") == NOT + "3, only null: a value of type Thing cannot be written in an experiment file."
    value, message = with_kind("Mode = None")
    assert value("null") is None
    assert message("3") == NOT + "3. It may be FAST, SLOW, OFF, fast-mode, 2 or null."


def test_a_dataclass_is_made_with_all_that_its_constructor_takes(with_kind):
    value, message = with_kind("Scaled")
    made = value("{rate: 2, factor: 3, mode: SLOW, extra: 1}")
    assert (made.rate, made.total, made.steps, made.mode.name) == (2, 7, [], "SLOW")
    assert message("{rate: 2, factr: 3}") == "model.init_args.x has no setting 'factr'. Did you mean 'factor'?"
    assert message("{rate: 2}") == "model.init_args.x needs 'factor'."
    assert message("{rate: 2, factor: big}") == "model.init_args.x.factor must be a number, not the text 'big'."
    assert message("{rate: 2, factor: 1, total: 3}").startswith("model.init_args.x has no setting 'total'.")


def test_a_class_like_one_of_attrs_is_made_by_its_constructor(with_kind):
    value, message = with_kind("attr_like.Pair | None")
    assert (value("{left: 1}").left, value("{left: 1}").right) == (1, 2)
    assert message("{left: a}") == "model.init_args.x.left must be a whole number, not the text 'a'."


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a type statement needs Python 3.12")
def test_a_type_statement_is_what_it_stands_for():
    names = {"Decimal": decimal.Decimal}
    exec("type Plain = int | None\ntype Many[T] = list[T]\n", names)
    assert rule_of(names["Plain"]) == rule_of(int | None)
    assert rule_of(names["Many"][Path]) == rule_of(list[Path])


CLASS_PATHS = {
    "paths.Net.made": "paths.Net.made is a function, not a class.",
    "paths.function": "paths.function is a function, not a class.",
    "paths.part": "paths.part is a value of type partial, not a class.",
}


@pytest.mark.parametrize("path", CLASS_PATHS)
def test_what_is_no_class_is_told(refused, folder, path):
    (folder / "paths.py").write_text(
        "import functools\nimport pytorch_lightning as pl\nclass Net(pl.LightningModule):\n"
        "    @classmethod\n    def made(cls): return cls()\ndef function(): pass\npart = functools.partial(Net)\n"
    )
    said = refused(f"name: x\nmodel: {path}\ndata: mine.Data\n", deep=True)
    assert said.splitlines()[0].split(": ", 1)[1] == CLASS_PATHS[path]


def test_arguments_are_read_off_new_and_parents_too(loaded, refused, folder):
    (folder / "made.py").write_text(
        "import pytorch_lightning as pl\nclass Parent(pl.LightningModule):\n"
        "    def __init__(self, width: int = 3): super().__init__(); self.width = width\n"
        "    def train_dataloader(self): return []\n"
        "class Child(Parent):\n    def __init__(self, depth: int = 1, **rest): super().__init__(**rest); self.depth = depth\n"
        "class Inherits(Parent): pass\n"
    )
    built = loaded("name: x\nmodel: {class_path: made.Child, init_args: {depth: 2, width: 5}}\n", deep=True).build()
    assert (built.model.depth, built.model.width) == (2, 5)
    said = refused("name: x\nmodel: {class_path: made.Inherits, init_args: {width: x}}\n", deep=True)
    assert "model.init_args.width must be a whole number, not the text 'x'." in said
