"""Two processes under Accelerate and the Trainer of Hugging Face, replicated and sharded: the numbers of all data."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from torch import Tensor, nn
from two_ranks import SIZE, STEPS, TAPS, Numbers, are_equal, batch, check, event_files, is_rare, local, network, numbers

import gradlab
from gradlab.sinks import MemorySink

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs gradlab[integrations]"),
]

CLIP = 0.05
ACCELERATE: dict[str, dict[str, Any]] = {
    "accelerate, ddp": {"rare": True},
    "accelerate, ddp, accumulated": {"micro": 2, "clip": CLIP},
    "accelerate, fsdp2": {"clip": CLIP},
    "accelerate, fsdp2, accumulated": {"micro": 2, "clip": CLIP},
}
TRAINER = {
    "trainer, ddp": 1,
    "trainer, ddp, accumulated": 2,
    "trainer, fsdp2, checkpointed": 1,
    "trainer, fsdp2, accumulated": 2,
}
"""How many micro-batches a step has."""
Trained = tuple[list[Tensor], list[float], str]
"""This rank's weights at the end, the losses, and the class of the model that was trained."""


@contextmanager
def sharding(is_on: bool) -> Iterator[None]:
    """Accelerate shards on devices alone, and on the CPU leaves its plugin aside without a word. Here it shards."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()
    init = AcceleratorState.__init__

    def with_devices(self: Any, *args: Any, **kwargs: Any) -> None:
        PartialState(cpu=True)
        kind = DistributedType.MULTI_GPU if is_on else DistributedType.MULTI_CPU
        PartialState._shared_state["distributed_type"] = kind
        init(self, *args, **kwargs)

    AcceleratorState.__init__ = with_devices
    try:
        yield
    finally:
        AcceleratorState.__init__ = init


def under_accelerate(
    name: str, folder: Path, sink: MemorySink | None, *, micro: int = 1, clip: float | None = None, rare: bool = False
) -> Trained:
    """A loop as Accelerate's documentation has it."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin

    options: dict[str, Any] = {"kwargs_handlers": [DistributedDataParallelKwargs(find_unused_parameters=True)]}
    if "fsdp2" in name:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=20)
        options = {"fsdp_plugin": plugin}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro, **options)
    net = network()
    loader = torch.utils.data.DataLoader(range(STEPS * micro * SIZE))
    net, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1), loader)
    monitor, losses, rank = None, [], accelerator.process_index
    if sink is not None:
        watching = {"taps": TAPS, "sinks": [sink], "logdir": folder, "strict": True}
        monitor = gradlab.watch(net, optimizer, across_ranks=True, **watching)
    for index, _ in enumerate(loader):
        step, number = divmod(index, micro)
        with accelerator.accumulate(net):
            loss = net(batch(step, rank, number), rare and is_rare(step, rank)).square().mean()
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    return [local(p).clone() for p in net.parameters()], losses, type(net).__name__


def language_model() -> Any:
    """GPT-2 from a configuration, whose head shares its weights with the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, **ids, **dropout)
    ).double()


def rows() -> list[dict[str, Tensor]]:
    """Tokens, the first of each row no label: the Trainer counts it where the model's loss does not."""
    tokens = torch.randint(0, 64, (64, 16), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[:, 0] = -100
    return [{"input_ids": ids, "labels": these} for ids, these in zip(tokens, labels, strict=True)]


def under_trainer(name: str, folder: Path, sink: MemorySink | None, *, micro: int) -> Trained:
    """The Trainer with the callback, which makes an event file of its own."""
    from transformers import Trainer, TrainingArguments

    from gradlab.integrations.huggingface import GradlabCallback

    options: dict[str, Any] = {}
    if "fsdp2" in name:
        wrap: dict[str, Any] = {
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["GPT2Block"],
        }
        wrap |= {"activation_checkpointing": "checkpointed" in name}
        options = {"fsdp": "full_shard", "fsdp_config": {"version": 2, **wrap}}
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=micro,
        max_grad_norm=CLIP,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(language_model(), arguments, train_dataset=rows())
    if sink is not None:
        GradlabCallback(taps=TAPS, sinks=[sink], strict=True).first_of(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [local(p).clone() for p in trainer.model.parameters()], losses, type(trainer.model_wrapped).__name__


def truth_of_the_trainer(micro: int) -> Numbers:
    """What autograd says of the parameters, in one process on whole batches."""
    net, found = language_model(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    size, data = 2 * SIZE * micro, rows()
    for step in range(STEPS):
        optimizer.zero_grad()
        chosen = data[step * size : (step + 1) * size]
        net(**{key: torch.stack([row[key] for row in chosen]) for key in chosen[0]}).loss.backward()
        logged = {"weight_grad.norm": {n: p.grad.norm().item() for n, p in net.named_parameters()}}
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        logged["weight_grad.norm@clipped"] = {n: p.grad.norm().item() for n, p in net.named_parameters()}
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer.step()
        logged["update.norm"] = {n: (p.detach() - before[n]).norm().item() for n, p in net.named_parameters()}
        found.append(logged)
    return found


def work(folder: Path) -> None:
    """One rank: all cases, one after another in one process group, each bare and watched."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name in (*ACCELERATE, *TRAINER):

        def train(place: Path, sink: MemorySink | None, name: str = name) -> Trained:
            with sharding("fsdp2" in name):
                if name in TRAINER:
                    return under_trainer(name, place, sink, micro=TRAINER[name])
                return under_accelerate(name, place, sink, **ACCELERATE[name])

        sink = MemorySink()
        weights, losses, _ = train(folder / "bare" / name, None)
        watched, its_losses, kind = train(folder / name, sink)
        is_same = are_equal(weights, watched) and losses == its_losses
        found[name] = {"is_same": is_same, "kind": kind, "numbers": numbers(sink.frames)}
    two_ranks.save(found)


def test_two_ranks_log_what_autograd_says_of_the_whole_batch(tmp_path: Path) -> None:
    """All cases in one test, which starts its ranks once."""
    ranks = two_ranks.launch(__file__, tmp_path, ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    for name in (*ACCELERATE, *TRAINER):
        truth = truth_of_the_trainer(TRAINER[name]) if name in TRAINER else two_ranks.reference(**ACCELERATE[name])
        for found in (one[name] for one in ranks):
            assert found["is_same"], name
            assert found["kind"].startswith("FSDP" if "fsdp2" in name else "DistributedDataParallel"), name
            # The ranks agree a little later on a site that one of them alone has met.
            check(found["numbers"], truth, name, sites_from=STEPS)
            assert found["numbers"][-1].keys() >= truth[0].keys(), name
        assert event_files(tmp_path / name) == 1, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_ranks.meet()
    work(Path(sys.argv[1]))
