"""The Trainer of Hugging Face: a callback; the curated scalars appear in the Trainer's own log."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gradlab.integrations.huggingface import GradlabCallback

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2))
tokens = torch.randint(0, 64, (32, 16))
data = [{"input_ids": row, "labels": row} for row in tokens]
arguments = TrainingArguments(
    "runs/huggingface",
    max_steps=8,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    logging_steps=2,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=data)
callback = GradlabCallback().first_of(trainer)
trainer.train()
print(callback.monitor.step, [sorted(key for key in entry if "gradlab" in key) for entry in trainer.state.log_history])
