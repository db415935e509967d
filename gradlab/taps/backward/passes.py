"""The forward passes of one step, and the rows of slots that their hooks write to.

A pass lives as long as its autograd graph, which a backward may still reach. When the graph is freed the pass is either
void, or its row is sent to the host at once and merged there (`finished_passes`). So memory is bounded where forward
and backward take turns, and where forwards are left alone; where one backward goes through all of them it grows with
the graph itself, by a small part of it.

Belongs here: which row is whose, and which passes are over. Does not: when a pass begins (`recorder`), or which
backwards count (`tasks`).
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter

import torch
from torch import Tensor

from gradlab.autograd_engine import NO_TASK, next_node_number
from gradlab.sites.names import CallNumbers, without_call_number
from gradlab.taps.buffer.finished_passes import FinishedPasses
from gradlab.taps.buffer.rows import Row
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.plan import Plan, Target

_MANY = 256
"""Beyond so many passes of a step it is looked which of them are over, and which rows can be packed."""
_order = count()


class Pass:
    """One forward pass: the row that its hooks write to, and rows for further backwards through it."""

    __slots__ = (
        "__weakref__", "first_node", "inside", "is_over", "modes", "named", "order", "row", "task", "task_row",
        "task_rows", "unhooked",
    )  # fmt: skip

    def __init__(self, row: Row) -> None:
        self.row = row
        # Inside of an autograd function (reentrant checkpointing) gradients are off, and its node is there already.
        self.first_node = next_node_number() - (not torch.is_grad_enabled())
        """The sequence number of its first autograd node."""
        self.order = next(_order)
        self.is_over = False
        """Whether a backward has gone through it: a module that is called from now on belongs to another pass."""
        self.inside = NO_TASK
        """The outermost backward that this forward ran in, if any."""
        self.task = NO_TASK
        """The backward whose gradients its hooks write now, into `task_row`."""
        self.modes = False
        """Whether that backward runs under function modes or dispatch modes, which are the same all along."""
        self.task_row = row
        self.task_rows: dict[int, Row] = {}
        """By backward, the row that its gradients were written into."""
        self.named = CallNumbers()
        """How often `gradlab.tap` has used each name."""
        self.unhooked: dict[str, list[Target | None]] = {}
        """By site, one entry a call that ran without gradients: its target, or None where the tensor has a hook."""


class Passes:
    """The passes of the step under way."""

    def __init__(self) -> None:
        self.parameters: Sequence[Tensor] = ()
        """The model's; it is on the device that they are on."""
        self._plan: Plan | None = None
        self._all: list[Pass] = []
        self._first: Pass | None = None
        """The pass that writes into the row of the step."""
        self._step_row: Row | None = None
        self._sweep_at = _MANY
        self.finished: FinishedPasses | None = None
        """The passes of the step whose graph is freed; None where there are none."""

    def __iter__(self) -> Iterator[Pass]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def start(self, plan: Plan | None) -> None:
        """A step begins under a plan (None: nothing is due); all rows of the step before are free again."""
        if self._plan is not None:
            rows = {row for one in self._all for row in (one.row, *one.task_rows.values())}
            if self._step_row is not None:
                rows.add(self._step_row)
            self._plan.row_pool.give_back(list(rows))
        self._plan, self._step_row, self.finished = plan, None, None
        self._all, self._first = [], None
        self._sweep_at = _MANY

    @property
    def plan(self) -> Plan:
        """The plan of the step, which has one wherever passes are."""
        assert self._plan is not None
        return self._plan

    def new(self, open_tasks: Collection[int], committed: Collection[int]) -> Pass:
        """A forward begins.

        Args:
            open_tasks: the backwards under way.
            committed: those that have ended and count.
        """
        if len(self._all) >= self._sweep_at:
            self._sweep(open_tasks, committed)
        if len(self._all) >= _MANY:
            self._put_away(self._all[-1])
        one = Pass(self.step_row() if self._first is None else self._extra_row())
        if self._first is None:
            self._first = one
        self._all.append(one)
        return one

    def _sweep(self, open_tasks: Collection[int], committed: Collection[int]) -> None:
        """Let go of the passes whose graph is freed: no backward will reach them any more.

        The hooks in a graph hold their pass. So a pass that is gone as soon as nothing here holds it is over.
        """
        kept = [one for one in self._all if one is self._first or not one.task_rows.keys().isdisjoint(open_tasks)]
        known = set(map(id, kept))
        others = [(weakref.ref(one), one.row, one.task_rows) for one in self._all if id(one) not in known]
        self._all, over = [], list[Row]()
        for ref, row, task_rows in others:
            if (one := ref()) is not None:
                kept.append(one)
            elif row is not self._step_row:
                if last := _last_counted(task_rows, committed):
                    over.append(_with_gradients_of(row, last, self.plan))
                self.plan.row_pool.give_back([one for one in {row, *task_rows.values()} if one not in over])
        self._all = sorted(kept, key=attrgetter("order"))
        self._sweep_at = max(_MANY, 2 * len(kept))
        if over:
            if self.finished is None:
                self.finished = FinishedPasses(self.plan.layout)
            self.finished.add(HostCopy(over))
            self.plan.row_pool.give_back(over)

    def _put_away(self, one: Pass) -> None:
        """Pack the rows of a pass that nobody writes to for now: it may be one of very many."""
        for row in (one.row, one.task_row):
            if row is not self._step_row:
                row.pack()
        one.task = NO_TASK

    def enter(self, one: Pass, task: int, outermost: int, left: Pass | None) -> None:
        """The first gradient of a backward arrives at a pass: choose the row that it writes to.

        Args:
            one: the pass.
            task: the backward.
            outermost: the backward that it is a part of, or itself.
            left: the pass that gradients arrived at before.
        """
        if len(self._all) > _MANY and left is not None and left is not one:
            self._put_away(left)
        if outermost not in one.task_rows:
            fresh = not one.task_rows
            one.task_rows[outermost] = one.row if fresh else self._extra_row()
        one.task, one.task_row = task, one.task_rows[outermost]
        one.task_row.unpack()

    def made(self, node_number: int) -> Pass:
        """The pass in which an autograd node was made, by the sequence number of the node."""
        return next((one for one in reversed(self._all) if one.first_node <= node_number), self._all[0])

    def drop(self, passes: Iterable[Pass]) -> None:
        """Some passes of the step count no more."""
        void = {id(one): one for one in passes}
        self._all = [one for one in self._all if id(one) not in void]
        for one in void.values():
            if one is self._first:
                self._first = None
                self.plan.forget_tensors(one.row)
            elif one.row is not self._step_row:
                self.plan.row_pool.give_back([one.row])

    def drop_reached_by(self, tasks: Collection[int]) -> None:
        """The gradients of some backwards are void, and so are the passes that these have reached."""
        self.drop([one for one in self._all if not one.task_rows.keys().isdisjoint(tasks)])
        if self.finished is not None:
            self.finished.forget_unused()

    def discard_gradients(self, task: int) -> None:
        """A backward was a probe: forget the gradients that it wrote."""
        for one in self._all:
            row = one.task_rows.pop(task, None)
            if row is one.row:
                self.plan.forget_tensors(row, only_gradients=True)
            if row is not None:
                one.task = NO_TASK

    def forget_repeated(self, task: int) -> None:
        """What a forward recorded without gradients is void where a hook of its backward has run it again with them.

        The later values count, as they have gradients too.
        """
        inner = [one for one in self._all if one.inside == task and task in one.task_rows]
        if not inner:
            return
        bases = {without_call_number(entry.site) for one in inner for entry in one.row.written()}
        for one in self._all:
            if one.inside == NO_TASK and task in one.task_rows:
                void = [target for base in bases & one.unhooked.keys() for target in one.unhooked.pop(base)]
                one.row.forget_entries({t.value for t in void if t is not None and t.value is not None})

    def rescale(self, factor: Tensor, tasks: Collection[int]) -> None:
        """Multiply the gradients of tensors that some backwards have written."""
        entries = [target.grad for target in self.plan.targets.values() if target is not None and target.grad]
        for one in self._all:
            for task, row in one.task_rows.items():
                if task in tasks:
                    row.rescale(entries, factor)

    def counted_rows(self, committed: Collection[int]) -> list[Row]:
        """The rows of the step that count: its own, and those of further passes that a counting backward reached.

        Where several backwards ran through one pass, the gradients of tensors are those of the last.
        """
        rows = [self.step_row()]
        void = []
        for one in self._all:
            last = _last_counted(one.task_rows, committed)
            if last is None:
                void.append(one)
                continue
            row = _with_gradients_of(one.row, last, self.plan)
            if row is not self._step_row:
                rows.append(row)
        if void:
            self.drop(void)
        return rows

    def step_row(self) -> Row:
        """The row of the step: the parameters' entries, and those of its first pass."""
        if self._step_row is None:
            self._step_row = self._take_row()
        return self._step_row

    def _extra_row(self) -> Row:
        """A row of its own for a pass or a further backward, where anything is written there."""
        return self._take_row() if self.plan.writes_in_passes else self.step_row()

    def _take_row(self) -> Row:
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        return self.plan.row_pool.take(device)


def _last_counted(task_rows: dict[int, Row], committed: Collection[int]) -> Row | None:
    """The row of the last backward through a pass that counts; None where there is none."""
    return next((task_rows[task] for task in reversed(task_rows) if task in committed), None)


def _with_gradients_of(own: Row, last: Row, plan: Plan) -> Row:
    """A pass's own row, with the gradient slots of a later backward through the same graph copied over."""
    if last is not own:
        for row in (last, own):
            row.flush()
            row.unpack()
        for target in plan.targets.values():
            entry = target.grad if target is not None else None
            if entry is not None and entry.index < len(last.numel) and last.numel[entry.index]:
                for slot in range(entry.start, entry.start + sum(entry.widths)):
                    own.views[slot].copy_(last.views[slot])
                own.numel[entry.index] = last.numel[entry.index]
    return own
