"""Transformer: a small GPT that predicts the next token. Letters in shapes: B batch, T tokens, C width, H heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradlab.errors import UsageError
from gradlab.lightning.module import GradlabModule
from gradlab.models.checks import check_count, check_dropout
from gradlab.sites.named import tap
from gradlab.taps.rule import Tap


class Transformer(GradlabModule):
    """Token and position embeddings, pre-norm blocks, a norm, a head that may share the token embedding's weight.

    Its sites: `tokens`, `embedded`, `blocks.0.attention/scaled_dot_product_attention`, `blocks.0/add`,
    `blocks.0.feedforward/gelu`, `blocks.0/add_1`, `blocks.0`, ..., `features`, `head`.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        context: int = 64,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        tied_head: bool = False,
        dropout: float = 0.0,
        lr: float = 2e-3,
    ) -> None:
        """Build it.

        Args:
            vocab_size: how many different tokens; 256 for bytes.
            context: the most tokens of one sequence.
            width: size of the residual stream, a multiple of num_heads.
            num_layers: blocks.
            num_heads: attention heads of a block.
            tied_head: whether the head's weight is the token embedding's.
            dropout: fraction dropped on the embedding and on each branch while training.
            lr: learning rate of the default optimizer.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__()
        for name, value in (
            ("vocab_size", vocab_size),
            ("context", context),
            ("width", width),
            ("num_layers", num_layers),
            ("num_heads", num_heads),
        ):
            check_count("Transformer", name, value)
        check_dropout("Transformer", dropout)
        if width % num_heads:
            nearest = max(1, round(width / num_heads)) * num_heads
            raise UsageError(
                f"Transformer: width must be a multiple of num_heads={num_heads}, got {width}; try width={nearest}."
            )
        self.save_hyperparameters(logger=False)
        self.lr = lr
        self.context = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied_head:
            self.head.weight = self.tokens.weight
        self._initialize(num_layers)

    @torch.no_grad()
    def _initialize(self, num_layers: int) -> None:
        """Normal weights of GPT-2 (Radford et al. 2019); each branch's end is scaled down by how many are added up."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                branch_end = name.endswith(("attention.out.weight", "feedforward.contract.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers) if branch_end else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def taps(self) -> Sequence[Tap]:
        """Every weight's gradient, and every tenth step the residual stream from the embedding to the head."""
        stream = Tap(["embedded", "blocks.?", "features"], of=["output", "output_grad"], every=10)
        return (*super().taps(), stream)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position: [B, T] int64 -> [B, T, vocab_size]."""
        length = tokens.shape[1]
        if length > self.context:
            raise UsageError(
                f"Transformer: got {length} tokens, more than context={self.context}. "
                f"Build it with context={length}, or give the data context={self.context}."
            )
        x = tap("embedded", self.tokens(tokens) + self.positions[:length])
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(tap("features", self.norm(x)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy of the next token, in nats, of (tokens [B, T], next tokens [B, T]); logs `train/loss`."""
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val/loss` in nats and `val/bits_per_byte`, the same in bits (a token is a byte)."""
        loss = self._loss(batch)
        self.log("val/loss", loss, batch_size=len(batch[0]), sync_dist=True)
        self.log("val/bits_per_byte", loss / math.log(2), batch_size=len(batch[0]), sync_dist=True)

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, following = batch
        return F.cross_entropy(self(tokens).flatten(0, 1), following.flatten())


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, num_heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


class CausalSelfAttention(nn.Module):
    """Every token attends to itself and to those before it."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, C / H]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linears with a functional gelu between, four times as wide inside."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.dropout(self.contract(F.gelu(self.expand(x))))
