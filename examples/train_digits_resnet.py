"""Train the bundled digits ResNet and write its weights as safetensors.

Run from the repository root:

    python examples/train_digits_resnet.py

About a minute on two CPU cores. The result is mpsearch/models/weights/digits-resnet.safetensors,
which the package ships; pass --out to write elsewhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.models.digits import DigitsResNet, digits

SHIPPED = Path(__file__).parents[1] / "mpsearch" / "models" / "weights"


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to one pixel in each direction, filling with background."""
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, down : down + 8, right : right + 8]


def train(epochs: int, seed: int) -> DigitsResNet:
    """Train with Adam on one-cycle learning rates, on the calibration part only."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = digits()
    assert data.targets is not None
    model = DigitsResNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    steps = epochs * (len(data) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for rows in order.split(64):
            loss = nn.functional.cross_entropy(
                model(shifted(data.inputs[rows], generator)),
                data.targets[rows],
                label_smoothing=0.05,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d}  loss {loss.item():.4f}")
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the held-out images that are classified correctly."""
    data = digits()
    assert data.held_out_inputs is not None
    guesses = model(data.held_out_inputs).argmax(1)
    return float((guesses == data.held_out_targets).double().mean())


def main() -> None:
    """Parse the command line, train, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED / "digits-resnet.safetensors")
    arguments = parser.parse_args()
    model = train(arguments.epochs, arguments.seed)
    print(f"held-out accuracy {accuracy(model):.2%}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out)
    print(f"wrote {arguments.out} ({arguments.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
