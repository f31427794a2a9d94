"""Hand-written sequence models: attention in four spellings, an MLP mixer, a recurrent net, a state-space block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import _hf
from benchmarks.zoo._family import Family, family, images, tokens
from benchmarks.zoo._zero import Axis, Task, Units, cols, neurons, rows

DIM = 16  # width of a head, everywhere


def ids(generator: torch.Generator) -> tuple[Tensor]:
    return (tokens(generator),)


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=norm_first, activation="gelu")
    body = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(64) if norm_first else None, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(99, 64), body, nn.Linear(64, 5))


def mha_heads(model: nn.Module) -> Iterator[Units]:
    """Heads of `nn.MultiheadAttention`, whose one projection makes all queries, then all keys, then all values."""
    for attn in model.modules():
        if isinstance(attn, nn.MultiheadAttention):
            q, k, v = (
                [Axis(p, 0, i * attn.embed_dim, attn.head_dim) for p in (attn.in_proj_weight, attn.in_proj_bias)]
                for i in range(3)
            )
            yield Units(attn.num_heads, [v], [*q, *k, *cols(attn.out_proj, block=attn.head_dim)])


class CausalAttention(nn.Module):
    """One layer makes queries, keys and values; the number of heads is an attribute that `view` reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (y.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), CausalAttention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 96), "c_proj": nn.Linear(96, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGpt(nn.Module):
    """A small GPT whose output layer is its token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(99, 64), nn.Embedding(16, 64)
        self.h, self.ln_f = nn.ModuleList(NanoBlock(64, 4) for _ in range(2)), nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 99, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class VitBlock(nn.Module):
    """Attention as image libraries write it: one layer, one reshape to (3, B, heads, N, dim), unbound."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """Patches, class token, position embedding, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls_token = nn.Conv2d(3, 64, 8, stride=8), nn.Parameter(torch.zeros(1, 1, 64))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 64))
        self.blocks, self.norm = nn.Sequential(VitBlock(64, 4), VitBlock(64, 4)), nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    """One MLP over the patches, one over the channels."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        sizes = (patches, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes)
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(n, 40), nn.GELU(), nn.Linear(40, n)) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlps[0](self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlps[1](self.norms[1](x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.blocks, self.head = nn.Sequential(MixerBlock(32, 16), MixerBlock(32, 16)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(dim=1))


class Lstm(nn.Module):
    """Embedding, two recurrent layers, a classifier with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(99, 24), nn.LSTM(24, 32, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(32, 20), nn.Linear(20, 5)

    def forward(self, idx: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.lstm(self.embed(idx))[0][:, -1])))


def lstm_units(m: Lstm) -> Iterator[Units]:
    """A unit whose candidate rows (the third quarter) are zero keeps the state 0."""
    n = m.lstm.hidden_size
    for layer in range(2):
        names = [f"{kind}_{side}_l{layer}" for kind in ("weight", "bias") for side in ("ih", "hh")]
        yield Units(n, [[Axis(getattr(m.lstm, name), 0, 2 * n) for name in names]], [])


class MambaBlock(nn.Module):
    """Selective scan, step by step, with a depthwise causal convolution in front and a gate behind."""

    def __init__(self, width: int = 32, inner: int = 48, state: int = 4, rank: int = 2) -> None:
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.norm, self.in_proj = nn.LayerNorm(width), nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj, self.dt_proj = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.A_log, self.D = nn.Parameter(torch.zeros(inner, state)), nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.in_proj(self.norm(u)).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., : u.size(1)].transpose(1, 2))
        dt, b, c = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        decay = torch.exp(torch.einsum("bld,dn->bldn", dt, -torch.exp(self.A_log)))
        drive = torch.einsum("bld,bln,bld->bldn", dt, b, x)
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(u.size(1)):
            h = decay[:, t] * h + drive[:, t]
            outputs.append(torch.einsum("bdn,bn->bd", h, c[:, t]))
        y = torch.stack(outputs, dim=1) + x * self.D
        return u + self.out_proj(y * F.silu(z))


def mamba() -> nn.Module:
    return nn.Sequential(nn.Embedding(99, 32), MambaBlock(), MambaBlock(), nn.LayerNorm(32), nn.Linear(32, 99))


def mamba_channels(model: nn.Module) -> Iterator[Units]:
    """A channel dies with its input row and its filter; gate, step size, decay and skip go with it."""
    for m in model.modules():
        if hasattr(m, "A_log"):
            inner = m.D.numel()
            gone = rows(m.in_proj, offset=inner) + rows(m.dt_proj) + cols(m.x_proj, m.out_proj)
            yield Units(inner, [rows(m.in_proj, m.conv1d)], [*gone, Axis(m.A_log, 0), Axis(m.D, 0)])


def pictures(generator: torch.Generator) -> tuple[Tensor]:
    return (images(generator),)


LINEARS = {"neurons": Task(lambda m: _hf.mlps(m, "linear1 linear2")), "heads": Task(mha_heads)}
FAMILIES: list[Family] = [
    family("encoder_norm_first", lambda: encoder(norm_first=True), ids, **LINEARS),
    family("encoder_norm_last", lambda: encoder(norm_first=False), ids, **LINEARS),
    family(
        "nanogpt",
        NanoGpt,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "c_fc c_proj")),
        heads=Task(lambda m: _hf.fused_attention(m, DIM, 4, "c_attn c_proj")),
    ),
    family(
        "vit_timm_style",
        Vit,
        pictures,
        neurons=Task(_hf.mlps),
        heads=Task(lambda m: _hf.fused_attention(m, DIM, 4, "qkv proj")),
    ),
    family(
        "mlp_mixer", Mixer, pictures, neurons=Task(lambda m: [neurons(x[0], x[2]) for b in m.blocks for x in b.mlps])
    ),
    family(
        "lstm",
        Lstm,
        ids,
        neurons=Task(lambda m: [neurons(m.fc1, m.fc2)], note="of the classifier"),
        recurrent=Task(lstm_units, note="recurrent units are kept: one op holds all of them", exact=False),
    ),
    family("mamba", mamba, ids, channels=Task(mamba_channels)),
]
