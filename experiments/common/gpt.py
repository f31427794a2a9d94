"""A small decoder for characters (section 9.5 of the protocol), and batches of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention. Queries, keys and values have no bias, the output projection has one."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, width) to the same."""
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a two-layer network of four times the width with ReLU, both behind a layer norm, both added."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, width) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.dropout(self.down(self.up(self.norm2(x)).relu()))


class GPT(nn.Module):
    """Scores of the next character at every position; 10,808,923 parameters with the sizes of the paper.

    Args:
        symbols: different characters.
        length: of a context.
        width: of the embeddings.
        layers: blocks.
        heads: of each block.
        dropout: rate.
    """

    def __init__(self, symbols: int, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, symbols)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def attentions(self) -> list[Attention]:
        """Of all blocks."""
        return [m for m in self.modules() if isinstance(m, Attention)]

    def forward(self, text: Tensor) -> Tensor:
        """(n, t) numbers of characters to (n, t, symbols)."""
        x = self.characters(text) + self.positions.weight[: text.shape[1]]
        return self.scores(self.norm(self.blocks(x)))


def encoded(text: str) -> tuple[Tensor, list[str]]:
    """Numbers of the characters of a text, and the characters in the order of their numbers."""
    symbols = sorted(set(text))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([number[symbol] for symbol in text], dtype=torch.uint8), symbols


def excerpts(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(n, length) characters from each start, and the characters that come after each of them."""
    at = starts[:, None] + torch.arange(length + 1, device=text.device)
    rows = text[at].long()
    return rows[:, :-1], rows[:, 1:]
