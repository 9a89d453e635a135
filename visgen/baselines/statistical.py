"""Reference generators: what simple statistics of the training images reach, or fail to.

    real-images         training pictures themselves: the floor of every metric
    independent-pixels  every pixel from its own training distribution: no structure between pixels
    pca20-gaussian      mean + 20 principal components with Gaussian scores: second-order structure

A model is worth its training only if it beats the last two and comes near the first. These are
fitted, not built: `config.fit(images)` sees the training images once, and nothing is learned by
gradient. n images, c = 3 channels, h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.seeds import integers, normal, permutation, sample_seeds
from visgen.tasks import refuse_condition

_LARGEST_SIDE = 8192  # of the matrix whose eigenvectors are sought; 8192^2 float64 are 512 MB


def real_subset(indices: Tensor, run_seed: int, n: int) -> Tensor:
    """Pick `n` different of `indices` by a seeded permutation: int64 (n,).

    Floors are taken from it: `data.images(real_subset(data.split("train"), seed, 1000))`. It picks
    what `RealImages` fitted with this `run_seed` draws for the first `n` samples of that run.

    Raises:
        ValueError: if there are fewer than `n`.
    """
    if not 0 <= n <= len(indices):
        raise ValueError(
            f"{n} different images were asked for, but there are {len(indices)}; ask for at most "
            f"{len(indices)}."
        )
    return indices[_order(run_seed, len(indices))[:n]]


def _order(run_seed: int, count: int) -> Tensor:
    return permutation(run_seed, "real-images", count)


@dataclass(frozen=True, kw_only=True)
class RealImagesConfig:
    """Training images as if they were generated."""

    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "image-generation"
    image_size: ClassVar[None] = None  # the data's

    def fit(self, images: Tensor, *, run_seed: int = 0) -> RealImages:
        """Keep uint8 (n, 3, h, w); `run_seed` is the run whose samples shall not repeat."""
        _check(images)
        return RealImages(images, run_seed)


class RealImages(nn.Module):
    """Draws training images: without replacement in the run it was fitted for.

    A sample's seed is looked up among the seeds of the run's first n samples; sample i gets image
    i of a permutation seeded by the run. Any other seed (a later sample, another run) is hashed
    to an image, so repeats are possible there. Both depend on the seed alone.
    """

    images: Tensor
    known_seeds: Tensor
    known_images: Tensor

    def __init__(self, images: Tensor, run_seed: int) -> None:
        super().__init__()
        self.image_size = (images.shape[2], images.shape[3])
        ordered, place = sample_seeds(run_seed, torch.arange(len(images))).sort()
        self.register_buffer("images", images)
        self.register_buffer("known_seeds", ordered)
        self.register_buffer("known_images", _order(run_seed, len(images))[place])

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Pictures for seeds int64 (n,): uint8 (n, 3, h, w)."""
        refuse_condition("real-images", condition)
        seeds = seeds.to(self.images.device)
        place = torch.searchsorted(self.known_seeds, seeds).clamp(max=len(self.images) - 1)
        hashed = integers(seeds, "real-images", 0, len(self.images), ())
        known = self.known_seeds[place] == seeds
        return self.images[torch.where(known, self.known_images[place], hashed)]


@dataclass(frozen=True, kw_only=True)
class IndependentPixelsConfig:
    """Pixels drawn at `draw_size` (rows, columns) and brought to the images' size.

    None, or a size that is not below the images' own, draws at the images' own.
    """

    draw_size: tuple[int, int] | None = (8, 8)
    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "image-generation"
    image_size: ClassVar[None] = None  # the data's

    def fit(self, images: Tensor, *, run_seed: int = 0) -> IndependentPixels:
        """Keep the training values of every pixel of uint8 (n, 3, h, w); `run_seed` is not used.

        Larger images are brought down to `draw_size` by the least-squares inverse of the
        upsampling, which gives upsampled digits their 8x8 values back (to a rounding error).
        """
        del run_seed
        _check(images)
        size = (images.shape[2], images.shape[3])
        drawn = self.draw_size
        if drawn is None or drawn[0] >= size[0] or drawn[1] >= size[1]:
            drawn = size
        return IndependentPixels(_undo_upsampling(images, drawn), size)


class IndependentPixels(nn.Module):
    """Each pixel takes its colour from a training image of its own choice.

    The three channels of a pixel stay together, so grey sets give grey pictures.
    """

    values: Tensor

    def __init__(self, values: Tensor, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("values", values)  # float32 (n, 3, rows, columns), 0..255

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Pictures for seeds int64 (n,): uint8 (n, 3, h, w)."""
        refuse_condition("independent-pixels", condition)
        count, channels, rows, columns = self.values.shape
        seeds = seeds.to(self.values.device)
        chosen = integers(seeds, "independent-pixels", 0, count, (1, rows, columns))
        drawn = self.values.gather(0, chosen.expand(-1, channels, -1, -1))
        return _round(_upsample(drawn.double(), self.image_size))


@dataclass(frozen=True, kw_only=True)
class PCAGaussianConfig:
    """A Gaussian along the first principal components of the images."""

    components: int = 20
    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "image-generation"
    image_size: ClassVar[None] = None  # the data's

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"components={self.components}; at least 1 is needed.")

    @property
    def least_images(self) -> int:
        """Images that `fit` needs: n of them span n - 1 components."""
        return self.components + 1

    def fit(self, images: Tensor, *, run_seed: int = 0) -> PCAGaussian:
        """Take mean and components of uint8 (n, 3, h, w) in float64; `run_seed` is not used.

        Raises:
            ValueError: fewer than components + 1 images or values, or too many of both.
        """
        del run_seed
        _check(images)
        grey = bool((images == images[:, :1]).all())
        kept = images[:, :1] if grey else images
        count, values = len(images), kept[0].numel()
        if min(count - 1, values) < self.components:
            raise ValueError(
                f"{count} images of {values} values have at most {min(count - 1, values)} "
                f"components; {self.components} were asked for."
            )
        if min(count, values) > _LARGEST_SIDE:
            raise ValueError(
                f"{count} images of {values} values are too many for an exact decomposition; fit "
                f"at most {_LARGEST_SIDE} images (real_subset picks them) or smaller ones."
            )
        mean, axes, deviations = principal_components(kept.flatten(1).double(), self.components)
        return PCAGaussian(mean, axes * deviations[:, None], tuple(kept.shape[1:]))


class PCAGaussian(nn.Module):
    """mean + sum_k z_k s_k u_k, z normal, s_k the standard deviation along component u_k."""

    mean: Tensor
    axes: Tensor

    def __init__(self, mean: Tensor, axes: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_size = (shape[1], shape[2])
        self.shape = shape
        self.register_buffer("mean", mean)  # float64 (c h w,)
        self.register_buffer("axes", axes)  # float64 (components, c h w): s_k u_k

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained by gradient."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Pictures for seeds int64 (n,): uint8 (n, 3, h, w), clipped and rounded."""
        refuse_condition("pca-gaussian", condition)
        images = _round(self.unclipped(seeds)).view(-1, *self.shape)
        return images.expand(-1, 3, -1, -1).contiguous()

    def unclipped(self, seeds: Tensor) -> Tensor:
        """The Gaussian itself: float64 (n, c h w), with c 1 for sets that are grey throughout."""
        scores = normal(seeds.to(self.mean.device), "pca-gaussian", (len(self.axes),))
        return self.mean + scores.double() @ self.axes


def principal_components(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), the first `count` components (count, d) and the deviations along them (count,).

    `rows` is float64 (n, d); variances divide by n - 1. Eigenvectors are taken on the smaller side
    of the centred matrix, and each component's largest entry is made positive, so that every
    machine gives the same ones.
    """
    mean = rows.mean(dim=0)
    centred = rows - mean
    wide = rows.shape[1] > rows.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    axes = F.normalize(vectors.T @ centred if wide else vectors.T, dim=1)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return mean, axes * largest.sign(), (values.clamp(min=0) / (len(rows) - 1)).sqrt()


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; a reference generator is "
            "fitted to uint8 (n, 3, h, w) with n of 1 or more."
        )


def _upsample(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Half-pixel bilinear with edge clamp, as the digits are brought to 16 and 32 pixels."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _undo_upsampling(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Float32 (n, 3, *size), 0..255, whose upsampling is nearest to uint8 `images`."""
    if images.shape[-2:] == size:
        return images.float()
    rows, columns = (
        torch.linalg.pinv(_upsampling_matrix(large, small))
        for large, small in zip(images.shape[-2:], size, strict=True)
    )
    return (rows.float() @ images.float() @ columns.T.float()).clamp(0, 255)


def _upsampling_matrix(large: int, small: int) -> Tensor:
    unit = torch.eye(small, dtype=torch.float64)[:, None, :]  # (small, 1, small)
    return F.interpolate(unit, size=large, mode="linear", align_corners=False)[:, 0].T


def _round(values: Tensor) -> Tensor:
    return (values.clamp(0, 255) + 0.5).floor().clamp(0, 255).to(torch.uint8)


PRESETS = {
    "real-images": RealImagesConfig(),
    "independent-pixels": IndependentPixelsConfig(),
    "pca20-gaussian": PCAGaussianConfig(),
}
