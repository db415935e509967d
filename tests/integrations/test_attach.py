"""`gradlab attach` under other people's loops: the same output, and the numbers that they print themselves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from scripts import Ended, Script

from gradlab.events.reader import read_events

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs gradlab[integrations]"),
]

TRAINER = """
import json, hashlib, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.manual_seed(0)
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
model = GPT2LMHeadModel(config)
data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (32, 16))]
arguments = TrainingArguments(
    "out", max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1,
    save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.5,
)
trainer = Trainer(model, arguments, train_dataset=data)
trainer.train()
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
norms = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
print(json.dumps([hashlib.sha256(weights).hexdigest(), *norms]))
"""

ACCELERATE = """
import hashlib, json, torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
loader = torch.utils.data.DataLoader([(torch.randn(8), i % 3) for i in range(32)], batch_size=4)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader)
norms = []
for x, y in loader:
    accelerator.backward(F.cross_entropy(model(x), y))
    norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.1).item())
    optimizer.step()
    optimizer.zero_grad()
if accelerator.is_main_process:
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print(json.dumps([hashlib.sha256(weights).hexdigest(), *norms]))
"""


def global_norms(ended: Ended) -> list[float]:
    """The global gradient norm of every step, before clipping."""
    (file,) = ended.event_files
    return [float(v.value) for v in read_events(file) if v.tag == "gradlab/global/weight_grad.norm"]


def told(ended: Ended) -> tuple[str, list[float]]:
    """The hash of the weights and the norms that a script prints in its last line."""
    assert ended.code == 0, ended.stderr
    first, *norms = json.loads(ended.stdout.splitlines()[-1])
    return first, norms


def test_a_hugging_face_trainer(script: Script) -> None:
    script.write(TRAINER, model="")
    bare, ended = script.bare(), script.attached()
    assert told(ended) == told(bare)
    assert ended.said == []
    assert global_norms(ended) == pytest.approx(told(ended)[1], rel=1e-5)


def test_accelerate_launch_with_two_processes(script: Script) -> None:
    script.write(ACCELERATE, model="")
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    bare = script.call(*launch, *options, "train.py")
    ended = script.call(sys.executable, "-m", "gradlab", "attach", *launch, *options, "train.py")
    assert told(ended) == told(bare)
    assert ended.said == []
    assert global_norms(ended) == pytest.approx(told(ended)[1], rel=1e-5)
    assert ended.stderr.count("open it in TensorBoard") == 1
