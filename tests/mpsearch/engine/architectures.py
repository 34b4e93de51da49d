"""Small models of every shape that the engine has to follow: branches, sharing, in-place writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 17


class Residual(nn.Module):
    """Two residual blocks whose additions and activations write in place."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.relu = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            y += x
            return self.relu(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(self.Block(8), self.Block(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu_()).mean((2, 3)))


class PreActivation(nn.Module):
    """Blocks that begin by writing to their own input, which the shortcut reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
        self.block2 = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.block1(x) + x  # x is already rectified here
        x = self.block2(x) + x
        return self.head(x.mean((2, 3)))


class Branched(nn.Module):
    """Branches that pass lists and tuples, views, and an output that is its own input."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(8, 8)
            self.right = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            right = self.right(x)
            return self.left(x), [right, right[:, :4]]

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.same = nn.Identity()
        self.pair = self.Pair()
        self.flatten = nn.Flatten()
        self.mix = nn.Linear(20, 8)
        self.leave = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.enter(x))
        left, (right, half) = self.pair(x)
        x += 1  # after its branches were computed
        joined = torch.cat([self.flatten(left), right, half], 1)
        return self.leave(torch.tanh(self.mix(joined)) + x)


class Shared(nn.Module):
    """One block that runs three times, one activation used everywhere, a head tied to a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.act = nn.GELU()
        self.block = nn.Sequential(nn.Linear(8, 8), self.act, nn.Linear(8, 8))
        self.last = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(self.act(self.last(x)))


class FunctionalTie(nn.Module):
    """The head reads the table's weight without calling any module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.body(self.table(ids)), self.table.weight)


class Attention(nn.Module):
    """Encoder layers with torch's fused kernels, and an attention of separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cross = nn.MultiheadAttention(16, 4, kdim=16, vdim=16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.table(ids))
        y, _ = self.cross(x, x.flip(1), x.flip(1))
        return self.head((x + y).mean(1))


class Padded(nn.Module):
    """An encoder given a mask, which torch turns into nested tensors between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        padding = torch.arange(ids.shape[1]) >= 3 + torch.arange(len(ids))[:, None] % 4
        x = self.encoder(self.table(ids), src_key_padding_mask=padding)
        return self.head(x[:, 0])


class Recurrent(nn.Module):
    """Both recurrent kinds and a transposed convolution with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 8, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 6, 3, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.table(ids))
        x, _ = self.gru(x)
        return self.head(self.up(x.transpose(1, 2)).mean(2))


class Experts(nn.Module):
    """Banks of experts, (experts, out, in), chosen by the data: the order of work varies."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 12, 8) / 3)
        self.down = nn.Parameter(torch.randn(4, 8, 12) / 3)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows = (chosen == expert).nonzero().squeeze(1)
            hidden = functional.linear(x[rows], self.up[expert]).relu()
            y[rows] = functional.linear(hidden, self.down[expert])
        return y


class Mixture(nn.Module):
    """Two layers, each with a router and a bank of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.routers = nn.ModuleList([nn.Linear(8, 4) for _ in range(2)])
        self.experts = nn.ModuleList([Experts() for _ in range(2)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for router, experts in zip(self.routers, self.experts, strict=True):
            x = x + experts(x, router(x).argmax(1))
        return self.head(x)


class ModuleExperts(nn.Module):
    """Experts that are modules: which of them run, and so the order of calls, depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                y[rows] = expert(x[rows])
        return self.head(y)


class Volume(nn.Module):
    """One- and three-dimensional convolutions and their transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Conv1d(4, 8, 3, padding=1)
        self.deep = nn.Conv3d(2, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.head = nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.flat(x).reshape(len(x), 2, 4, 2, -1)
        return self.head(self.up(torch.relu(self.deep(y))).mean((2, 3, 4)))


class MixedCalls(nn.Module):
    """Passes an object that calls leave traces in, and keyword arguments."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor, *, history: object) -> dict[str, Tensor]:
            y = torch.relu(self.linear(input=x))
            history.seen.append(y)  # type: ignore[attr-defined]
            return {"y": y}

    class History:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([self.Step() for _ in range(3)])
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        history = self.History()
        for step in self.steps:
            x = step(x, history=history)["y"]
        return self.head(sum(history.seen, torch.zeros_like(x)))


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6)


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (4, 7))


def rows() -> Tensor:
    return torch.randn(9, 6)


ARCHITECTURES = {
    "sequential": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)
        ),
        rows,
    ),
    "residual": (Residual, images),
    "pre-activation": (PreActivation, images),
    "branched": (Branched, rows),
    "shared": (Shared, tokens),
    "functional tie": (FunctionalTie, tokens),
    "attention": (Attention, tokens),
    "padded attention": (Padded, tokens),
    "recurrent": (Recurrent, tokens),
    "mixture of experts": (Mixture, rows),
    "experts as modules": (ModuleExperts, rows),
    "volume": (Volume, lambda: torch.randn(3, 4, 8)),
    "mixed calls": (MixedCalls, rows),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode, with settled batch norms, and a batch for it."""
    torch.manual_seed(seed)
    make, data = ARCHITECTURES[name]
    model = make()
    with torch.no_grad():
        model(data())
    return model.eval(), data()
