"""Two processes under Lightning and Fabric, replicated, sharded and tensor-parallel: the numbers of the whole batch."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning_fabric
import pytest
import pytorch_lightning as pl
import torch
import two_ranks
from lightning_fabric.strategies import DDPStrategy as FabricDDP
from lightning_fabric.strategies import ModelParallelStrategy as FabricModelParallel
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader
from two_ranks import (
    SIZE,
    STEPS,
    TAPS,
    are_equal,
    batch,
    check,
    event_files,
    is_rare,
    local,
    network,
    numbers,
    reference,
)

import gradlab
from gradlab.lightning.callback import GradlabCallback
from gradlab.sinks import MemorySink


class Case(NamedTuple):
    """A way to train."""

    loop: str
    """`trainer` or `fabric`."""
    mesh: tuple[int, int] | None = None
    """Ranks that shard the data and the parameters, and that share the work of a layer; None for DDP."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Of DDP."""
    micro: int = 1
    clip: float | None = None
    rare: bool = False
    spoilt: int | None = None
    """The step in which one rank's loss is infinite, under a GradScaler."""


CASES = {
    "ddp": Case("trainer", options={"find_unused_parameters": True}),
    "ddp, buckets are views": Case(
        "trainer", options={"gradient_as_bucket_view": True, "find_unused_parameters": True}, clip=0.01
    ),
    "ddp, static graph": Case("trainer", options={"static_graph": True}),
    "ddp, accumulated": Case("trainer", options={"find_unused_parameters": True}, micro=2, clip=0.01),
    "ddp, unused on one rank": Case("trainer", options={"find_unused_parameters": True}, rare=True),
    "ddp, scaled": Case("trainer", options={"find_unused_parameters": True}, clip=0.01, spoilt=2),
    "fsdp2": Case("trainer", (2, 1)),
    "fsdp2, accumulated": Case("trainer", (2, 1), micro=2, clip=0.01),
    "tensor parallel": Case("trainer", (1, 2)),
    "fabric, ddp, accumulated": Case("fabric", options={"find_unused_parameters": True}, micro=2, clip=0.01),
    "fabric, fsdp2": Case("fabric", (2, 1), clip=0.01),
    "fabric, fsdp2, accumulated": Case("fabric", (2, 1), micro=2),
    "fabric, tensor parallel": Case("fabric", (1, 2)),
}


def parallelized(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Along the first dimension of the mesh FSDP2, along the second one tensor parallelism."""
    if mesh["tensor_parallel"].size() > 1:
        parallelize_module(net, mesh["tensor_parallel"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
    if mesh["data_parallel"].size() > 1:
        fully_shard(net.a, mesh=mesh["data_parallel"])
        fully_shard(net, mesh=mesh["data_parallel"])
    return net


class Module(pl.LightningModule):
    """Trains the network of `two_ranks`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net, self.case, self.losses, self.is_done = network(), case, [], False

    def configure_model(self) -> None:
        if self.case.mesh is not None and not self.is_done:
            parallelized(self.net, self.device_mesh)
        self.is_done = True

    def training_step(self, _: Any, index: int) -> Tensor:
        step, micro = divmod(index, self.case.micro)
        mesh = self.device_mesh
        rank = self.global_rank if mesh is None else mesh["data_parallel"].get_local_rank()
        loss = self.net(batch(step, rank, micro), self.case.rare and is_rare(step, rank)).square().mean()
        self.losses.append(loss.item())
        return loss * float("inf") if (step, rank) == (self.case.spoilt, 1) else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(STEPS * self.case.micro))


Trained = tuple[list[Tensor], list[float]]
"""This rank's weights at the end, and its losses."""


def under_trainer(case: Case, folder: Path, sink: MemorySink | None) -> Trained:
    """Lightning's Trainer with the callback, which makes an event file of its own."""
    ddp, meshed = DDPStrategy, ModelParallelStrategy
    strategy = ddp(process_group_backend="gloo", **case.options) if case.mesh is None else meshed(*case.mesh)
    callback = GradlabCallback(taps=TAPS, logdir=folder, strict=True)
    if sink is not None:
        callback.sinks = (sink,)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module = Module(case)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=SIZE,
        strategy=strategy,
        use_distributed_sampler=False,
        accumulate_grad_batches=case.micro,
        gradient_clip_val=case.clip,
        default_root_dir=folder,
        callbacks=[callback] if sink is not None else [],
        plugins=[] if case.spoilt is None else [MixedPrecision("16-mixed", "cpu", GradScaler("cpu", 1024.0))],
        **off,
    )
    trainer.fit(module)
    return [local(p).clone() for p in module.parameters()], module.losses


def under_fabric(case: Case, folder: Path, sink: MemorySink | None) -> Trained:
    """Fabric, with accumulation as its documentation has it."""
    ddp = FabricDDP(process_group_backend="gloo", **case.options)
    strategy = ddp if case.mesh is None else FabricModelParallel(parallelized, *case.mesh)
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=SIZE, strategy=strategy)
    fabric.launch()
    if case.mesh is None:
        net = network()
        net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))
    else:
        net = fabric.setup(network())
        optimizer = fabric.setup_optimizers(torch.optim.SGD(net.parameters(), 0.1))
    monitor, losses = None, []
    if sink is not None:
        options = {"taps": TAPS, "sinks": [sink], "logdir": folder, "strict": True}
        monitor = gradlab.watch(net, optimizer, across_ranks=True, **options)
    rank = fabric.global_rank if case.mesh is None or case.mesh[0] > 1 else 0
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(case.micro):
            is_last = micro == case.micro - 1
            with nullcontext() if is_last else fabric.no_backward_sync(net):
                loss = net(batch(step, rank, micro)).square().mean()
                fabric.backward(loss / case.micro)
                losses.append(loss.item())
        if case.clip is not None:
            fabric.clip_gradients(net, optimizer, max_norm=case.clip)
        optimizer.step()
    if monitor is not None:
        monitor.close()
    return [local(p).clone() for p in net.parameters()], losses


def work(folder: Path) -> None:
    """One rank: all cases, one after another in one process group, each bare and watched."""
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found = {}
    for name, case in CASES.items():
        train = under_trainer if case.loop == "trainer" else under_fabric
        sink = MemorySink()
        weights, losses = train(case, folder / "bare" / name, None)
        watched, its_losses = train(case, folder / name, sink)
        is_same = are_equal(weights, watched) and losses == its_losses
        skipped = sorted({one.step for one in sink.findings if one.kind == "skipped_update"})
        found[name] = {"is_same": is_same, "numbers": numbers(sink.frames, "net."), "skipped": skipped}
    two_ranks.save(found)


@pytest.mark.slow
def test_two_ranks_log_what_autograd_says_of_the_whole_batch(tmp_path: Path) -> None:
    """All cases in one test, which starts its ranks once."""
    ranks = two_ranks.launch(__file__, tmp_path)
    for name, case in CASES.items():
        is_sharing = case.mesh == (1, 2)
        options = {"micro": case.micro, "clip": case.clip, "rare": case.rare, "left_out": case.spoilt}
        truth = reference(**options, ranks=1 if is_sharing else SIZE)
        metrics = [metric for metric in truth[0] if not (is_sharing and metric.startswith("output"))]
        for found in (one[name] for one in ranks):
            assert found["is_same"], name
            assert found["skipped"] == [step for step in (case.spoilt,) if step is not None], name
            # The ranks agree a little later on a site that one of them alone has met.
            check(found["numbers"], truth, name, sites_from=STEPS, metrics=metrics)
            assert found["numbers"][-1].keys() >= set(metrics), name
        assert event_files(tmp_path / name) == 1, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_ranks.meet()
    work(Path(sys.argv[1]))
