"""Networks and data of a user's own, named `own_networks:FUNCTION` on the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tagger(nn.Module):
    """Embedding, two layers of bidirectional LSTM, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(input_ids))[0].mean(1))


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return Tagger()


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 5, stride=2, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def tokens() -> list[dict[str, Tensor]]:
    """Batches as loaders of text give them."""
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(50, (16, 12), generator=draw),
            "labels": torch.randint(5, (16,), generator=draw),
        }
        for _ in range(3)
    ]


def signals() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(64, 3, 40, generator=draw), torch.randint(4, (64,), generator=draw)
