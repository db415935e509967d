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

SEVERAL = """
import hashlib, json, torch
import pytorch_lightning as pl
import torch.nn.functional as F
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
from transformers import ViTConfig, ViTForImageClassification
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.manual_seed(0)
tokens = lambda *shape: torch.randint(0, 32, shape)
found = {}

def note(net, norms):
    weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
    found[type(net).__name__] = [hashlib.sha256(weights).hexdigest(), *norms]

def train(net, loss):
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    norms = []
    for _ in range(4):
        optimizer.zero_grad()
        loss(net).backward()
        norms.append(nn.utils.clip_grad_norm_(net.parameters(), 0.5).item())
        optimizer.step()
    note(net, norms)

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 7, num_layers=2, dropout=0.1), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][-1])

train(Tagger(), lambda net: F.cross_entropy(net(torch.randn(6, 2, 5)), torch.randint(0, 3, (2,))))
train(nn.Transformer(16, 2, 1, 1, 32), lambda net: net(torch.randn(5, 2, 16), torch.randn(4, 2, 16)).square().mean())

layers = Decoder(dim=16, depth=2, heads=2, rotary_pos_emb=True)
decoder = TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers)
train(AutoregressiveWrapper(decoder), lambda net: net(tokens(2, 12)))

sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
llama = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, bos_token_id=0, eos_token_id=1))
llama.gradient_checkpointing_enable()
train(llama, lambda net: net(input_ids=(x := tokens(2, 12)), labels=x).loss)

t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
train(T5ForConditionalGeneration(t5), lambda net: net(input_ids=tokens(2, 9), labels=tokens(2, 7)).loss)

sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes))
train(vit, lambda net: net(torch.randn(2, 3, 8, 8), labels=torch.randint(0, 3, (2,))).loss)

class Demo(BoringModel):
    norms = ()

    def on_before_optimizer_step(self, optimizer):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        self.norms = (*self.norms, norm.item())

off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
demo = Demo()
pl.Trainer(max_epochs=1, limit_train_batches=4, limit_val_batches=0, accelerator="cpu", **off).fit(demo)
note(demo, demo.norms)
print(json.dumps(found))
"""


def global_norms(ended: Ended) -> list[float]:
    """The global gradient norm of every step, before clipping."""
    (file,) = ended.event_files
    return norms_in(file)


def norms_in(file: Path) -> list[float]:
    """Of one event file."""
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


def test_models_that_nobody_here_wrote_one_after_another(script: Script) -> None:
    script.write(SEVERAL, model="")
    bare, ended = script.bare(), script.attached()
    assert ended.code == 0, ended.stderr
    assert ended.stdout == bare.stdout and ended.said == []
    found = json.loads(ended.stdout.splitlines()[-1])
    folders = {file.parent.name.partition("-")[2] or "Tagger": file for file in ended.event_files}
    assert folders.keys() == found.keys() and len(found) == 7
    for name, (_, *norms) in found.items():
        assert norms_in(folders[name]) == pytest.approx(norms, rel=1e-5), name
