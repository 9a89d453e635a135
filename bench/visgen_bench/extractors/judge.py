"""A small classifier of handwritten digits: says which digit a sample is, and how surely.

Input: uint8 images of any size; channels are averaged, the picture is brought to 16 x 16 by
half-pixel bilinear interpolation (with antialias when shrinking) and divided by 255. So one network
judges the sets `digits:8`, `digits:16` and `digits:32`. Its weights ship with the package;
`judge.toml` holds their sha256 and what they reach on the 360 test images. Below 98.5 % accuracy
there, or with fewer than 95 % of the test images judged with more than 0.9, the metrics made from
it would mean nothing.

`python -m visgen_bench.extractors.judge` trains it again (20 s on one core) and writes both
files. Bits may differ between kinds of CPU; figures may not differ much.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgen_bench.extractors.images import check_images
from visgen_bench.extractors.precision import full_precision
from visgen_bench.extractors.weights import WeightsMissing, read_verified

NAME = "digit-judge"
CLASSES = 10
CONFIDENT = 0.9
_SIDE = 16
_SEED = 0
_FOLDER = Path(__file__).parent
_WEIGHTS, _CARD = "judge.safetensors", "judge.toml"


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """What judge.toml says of the shipped weights.

    Attributes:
        sha256: Of judge.safetensors.
        seed: Of the training.
        accuracy: Share of the 360 test images judged right, the worst of the three sizes.
        confident: Share of them judged with more than 0.9, the worst of the three sizes.
    """

    sha256: str
    seed: int
    accuracy: float
    confident: float


class JudgeNetwork(nn.Module):
    """Three convolutions and a linear layer: 48,618 parameters, 195 kB in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, stride=2, padding=1)
        self.out = nn.Linear(64 * (_SIDE // 4) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 1, 16, 16) in 0..1 -> logits (n, 10)."""
        x = F.relu(self.conv1(x))  # (n, 24, 16, 16)
        x = F.relu(self.conv2(x))  # (n, 48, 8, 8)
        x = F.relu(self.conv3(x))  # (n, 64, 4, 4)
        x = F.dropout(x, 0.25, self.training)
        return self.out(x.flatten(1))


def preprocess(images: Tensor) -> Tensor:
    """uint8 (n, 3, h, w), 0..255 -> float32 (n, 1, 16, 16) in 0..1."""
    grey = check_images(images).float().mean(dim=1, keepdim=True)
    if grey.shape[-2:] != (_SIDE, _SIDE):
        grey = F.interpolate(
            grey, (_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True
        )
    return grey / 255.0


@cache
def card() -> JudgeCard:
    """What is known of the shipped weights."""
    return JudgeCard(**tomllib.loads((_FOLDER / _CARD).read_text()))


def unavailable() -> str | None:
    """Why the judge cannot be used, or None. Its weights are part of the package."""
    if (_FOLDER / _WEIGHTS).is_file():
        return None
    return (
        f"{_FOLDER / _WEIGHTS} is missing; fix: reinstall visgen-harness, or run "
        "python -m visgen_bench.extractors.judge"
    )


class DigitJudge:
    """The extractor of `digit_classes` and `digit_confident`."""

    name = NAME
    widths = {"probabilities": CLASSES}  # noqa: RUF012 - read only

    def __init__(self, device: str = "cpu", network: JudgeNetwork | None = None) -> None:
        self.device = torch.device(device)
        self.sha256 = card().sha256 if network is None else "not stored"
        self.network = (network or load_network()).to(self.device).eval()

    def layers(
        self, images: Tensor, names: tuple[str, ...] = ("probabilities",)
    ) -> dict[str, Tensor]:
        """uint8 (n, 3, h, w), 0..255 -> {"probabilities": float32 (n, 10)} on the CPU."""
        check_images(images)
        with full_precision(self.device):
            parts = [
                self.network(preprocess(part.to(self.device))).softmax(dim=1).cpu()
                for part in images.split(256)
            ]
        found = torch.cat(parts) if parts else torch.empty(0, CLASSES)
        return {name: found for name in names}

    def extract(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w), 0..255 -> class probabilities float32 (n, 10) on the CPU."""
        return self.layers(images)["probabilities"]


def load_network() -> JudgeNetwork:
    """The shipped network on the CPU.

    Raises:
        WeightsMissing: if its file is not there.
        WeightsMismatch: if it is another file than judge.toml describes.
    """
    import safetensors.torch

    problem = unavailable()
    if problem is not None:
        raise WeightsMissing(problem)
    network = JudgeNetwork()
    network.load_state_dict(
        safetensors.torch.load(read_verified(_FOLDER / _WEIGHTS, card().sha256))
    )
    return network.requires_grad_(False).eval()


def train_judge(seed: int = _SEED, epochs: int = 30, batch: int = 64) -> JudgeNetwork:
    """Train on the 1,437 training digits at 8, 16 and 32 pixels, on one thread.

    Adam, one-cycle learning rate up to 3e-3, small random rotations, shifts and scales. 60 epochs
    are as accurate as 30, but surer of pictures that are no digits (0.58 instead of 0.48 of a
    PCA-20 Gaussian's samples come out confident).

    Args:
        seed: Of the initial weights, the order and the distortions.
        epochs: Passes over the 1,437 digits; each takes one of the three sizes at random.
        batch: Pictures a step.
    """
    from visgen.data import open_data

    sets = [open_data(f"digits:{side}") for side in (8, 16, 32)]
    indices = sets[0].split("train")
    pictures = torch.stack([preprocess(data.images(indices)) for data in sets])  # (3, n, 1, 16, 16)
    labels = sets[0].labels(indices)
    if labels is None:
        raise ValueError("digits without labels cannot train a classifier.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _fit(JudgeNetwork(), pictures, labels, epochs, batch)
    finally:
        torch.set_num_threads(threads)


def _fit(
    network: JudgeNetwork, pictures: Tensor, labels: Tensor, epochs: int, batch: int
) -> JudgeNetwork:
    n = len(labels)
    steps = epochs * (n // batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(n)[: n // batch * batch]
        for chosen in order.split(batch):
            size = torch.randint(len(pictures), (batch,))
            x = _distort(pictures[size, chosen])
            loss = F.cross_entropy(network(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.requires_grad_(False).eval()


def _distort(x: Tensor) -> Tensor:
    """Turn by up to 0.15 rad, scale by up to 8 %, shift by up to one pixel: (n, 1, 16, 16)."""
    n = len(x)
    draw = torch.rand(5, n) * 2 - 1
    angle, across, down = 0.15 * draw[0], 1 + 0.08 * draw[1], 1 + 0.08 * draw[2]
    shift = draw[3:] * (2 / _SIDE)
    theta = torch.stack(
        (
            torch.stack((across * angle.cos(), -down * angle.sin(), shift[0]), dim=1),
            torch.stack((across * angle.sin(), down * angle.cos(), shift[1]), dim=1),
        ),
        dim=1,
    )
    grid = F.affine_grid(theta, [n, 1, _SIDE, _SIDE], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def measure(judge: DigitJudge, side: int) -> tuple[float, float]:
    """Accuracy and share of confident judgements on the test digits at `side` pixels."""
    from visgen.data import open_data

    data = open_data(f"digits:{side}")
    indices = data.split("test")
    top, chosen = judge.extract(data.images(indices)).max(dim=1)
    labels = data.labels(indices)
    if labels is None:
        raise ValueError("digits without labels cannot measure a classifier.")
    accuracy = (chosen == labels).double().mean()
    return float(accuracy), float((top > CONFIDENT).double().mean())


def main(arguments: list[str] | None = None) -> None:
    """Train the judge and write its weights and its card."""
    import safetensors.torch

    parser = argparse.ArgumentParser(prog="python -m visgen_bench.extractors.judge")
    parser.add_argument("--out", type=Path, default=_FOLDER, help="folder for the two files")
    parser.add_argument("--seed", type=int, default=_SEED)
    parser.add_argument("--epochs", type=int, default=30)
    chosen = parser.parse_args(arguments)
    network = train_judge(chosen.seed, chosen.epochs)
    figures = [measure(DigitJudge(network=network), side) for side in (8, 16, 32)]
    data = safetensors.torch.save(dict(network.state_dict()))
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / _WEIGHTS).write_bytes(data)
    text = (
        "# Written by python -m visgen_bench.extractors.judge.\n"
        "# Figures: the worst of 8, 16 and 32 pixels, on the 360 test digits.\n"
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n'
        f"seed = {chosen.seed}\n"
        f"accuracy = {min(accuracy for accuracy, _ in figures):.6f}\n"
        f"confident = {min(confident for _, confident in figures):.6f}\n"
    )
    (chosen.out / _CARD).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
