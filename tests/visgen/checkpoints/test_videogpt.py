"""Released checkpoints of VideoGPT: names, shapes, and what the released code computes with them.

The key lists are typed from the published layout, the values are filled in by a formula, and the
results that are compared with were computed by the released code.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.checkpoints import CheckpointError
from visgen.checkpoints.videogpt import prior_from_released, vqvae_from_released
from visgen.models.prior import Prior, PriorConfig
from visgen.models.vqvae import VQVAE, VQVAEConfig, perplexity

Shapes = dict[str, tuple[int, ...]]
TINY = VQVAEConfig(
    frames=8,
    size=(16, 16),
    downsample=(4, 2, 2),
    width=12,
    inner_width=6,
    residual_layers=1,
    code_dim=6,
    codes=16,
)
PRIOR = PriorConfig(
    grid=(2, 8, 8), code_dim=6, codes=16, width=24, layers=2, legacy_norm=True, frame_size=16
)


def norm3d(prefix: str, width: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (width,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def vqvae_shapes(c: int, d: int, k: int, layers: int, convs: int) -> Shapes:
    """All keys of a VQ-VAE's checkpoint."""
    shapes: Shapes = {}
    for i in range(convs):
        shapes[f"encoder.convs.{i}.conv.weight"] = (c, 3 if i == 0 else c, 4, 4, 4)
        shapes[f"encoder.convs.{i}.conv.bias"] = (c,)
        out = 3 if i == convs - 1 else c
        shapes[f"decoder.convts.{i}.convt.weight"] = (c, out, 4, 4, 4)
        shapes[f"decoder.convts.{i}.convt.bias"] = (out,)
    shapes |= {
        "encoder.conv_last.conv.weight": (c, c, 3, 3, 3),
        "encoder.conv_last.conv.bias": (c,),
    }
    for side in ("encoder", "decoder"):
        for r in range(layers):
            block = f"{side}.res_stack.{r}.block"
            shapes |= norm3d(f"{block}.0", c) | norm3d(f"{block}.3", c // 2)
            shapes |= norm3d(f"{block}.6", c)
            shapes[f"{block}.2.conv.weight"] = (c // 2, c, 3, 3, 3)
            shapes[f"{block}.5.conv.weight"] = (c, c // 2, 1, 1, 1)
            for axis in "wht":
                for w in ("w_qs", "w_ks", "w_vs", "fc"):
                    shapes[f"{block}.8.attn_{axis}.{w}.weight"] = (c, c)
                shapes[f"{block}.8.attn_{axis}.fc.bias"] = (c,)
        shapes |= norm3d(f"{side}.res_stack.{layers}", c)
    shapes |= {"pre_vq_conv.conv.weight": (d, c, 1, 1, 1), "pre_vq_conv.conv.bias": (d,)}
    shapes |= {"post_vq_conv.conv.weight": (c, d, 1, 1, 1), "post_vq_conv.conv.bias": (c,)}
    return shapes | {"codebook.embeddings": (k, d), "codebook.N": (k,), "codebook.z_avg": (k, d)}


def prior_shapes(
    e: int,
    d: int,
    k: int,
    layers: int,
    grid: tuple[int, int, int],
    classes: int,
    frames: int,
    r: int,
) -> Shapes:
    """All keys of a prior's checkpoint, without those of its VQ-VAE."""
    shapes: Shapes = {"fc_in.weight": (e, d), "fc_out.weight": (k, e)}
    shapes["attn_stack.right_shift.sos"] = (e,)
    shapes |= {f"attn_stack.pos_embd.emb.d_{i}": (n, e // 3) for i, n in enumerate(grid)}

    def norm(prefix: str) -> Shapes:
        if classes:
            return {f"{prefix}.w.weight": (e, classes), f"{prefix}.wb.weight": (e, classes)}
        return {f"{prefix}.g": (e,), f"{prefix}.b": (e,)}

    for b in range(layers):
        block = f"attn_stack.attn_nets.{b}"
        shapes |= norm(f"{block}.pre_attn_norm") | norm(f"{block}.pre_fc_norm")
        shapes |= {f"{block}.attn.{w}.weight": (e, e) for w in ("w_qs", "w_ks", "w_vs", "fc")}
        shapes[f"{block}.attn.fc.bias"] = (e,)
        shapes[f"{block}.attn.attn.mask"] = (math.prod(grid), math.prod(grid))
        if frames:
            shapes |= norm(f"{block}.pre_enc_norm")
            cross = f"{block}.enc_attn"
            shapes |= {f"{cross}.w_qs.weight": (e, e), f"{cross}.w_ks.weight": (e, 240)}
            shapes |= {f"{cross}.w_vs.weight": (240, 240), f"{cross}.fc.weight": (e, 240)}
            shapes[f"{cross}.fc.bias"] = (e,)
        shapes |= {f"{block}.fc_block.0.weight": (4 * e, e), f"{block}.fc_block.0.bias": (4 * e,)}
        shapes |= {f"{block}.fc_block.2.weight": (e, 4 * e), f"{block}.fc_block.2.bias": (e,)}
    shapes |= norm("norm")
    return shapes | (frame_shapes(frames, r) if frames else {})


def frame_shapes(frames: int, r: int) -> Shapes:
    shapes: Shapes = {f"cond_pos_embd.emb.d_{i}": (n, 80) for i, n in enumerate((frames, r, r))}

    def layer(prefix: str, conv: str, norm: str, before: int, width: int, kernel: int) -> Shapes:
        found: Shapes = {f"{prefix}.{conv}.weight": (width, before, kernel, kernel, kernel)}
        return found | {f"{prefix}.{norm}.norm.norm.{n}": (width,) for n in ("weight", "bias")}

    shapes |= layer("resnet.stem", "0", "1", 3, 64, 3)
    before = 64
    for group, (depth, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 240), strict=True), start=1
    ):
        for number in range(depth):
            name = "start_block" if number == 0 else f"blocks.{number - 1}"
            block = f"resnet.group{group}.{name}"
            if number == 0:
                shapes |= layer(block, "proj_conv", "proj_bnr", before, width, 1)
            shapes |= layer(block, "conv1", "bnr1", before, width, 3)
            shapes |= layer(block, "conv2", "bnr2", width, width, 3)
            before = width
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Values by the published formula, from the place of a key in the sorted list of names."""
    counted = sorted(k for k in shapes if not k.endswith((".mask", "num_batches_tracked")))
    state = {k: torch.zeros(shape) for k, shape in shapes.items() if k not in counted}
    for number, key in enumerate(counted):
        shape = shapes[key]
        j = torch.arange(math.prod(shape), dtype=torch.float64)
        u = ((7919 * j + 104729 * (number + 1)) % 10007) / 10007 * 2 - 1
        if key == "codebook.N":
            value = torch.ones_like(u)
        elif key.endswith("running_var"):
            value = 1 + u / 2
        elif len(shape) == 1:
            value = 0.1 * u + (1.0 if key.endswith((".weight", ".g")) else 0.0)
        elif key.startswith("codebook."):
            value = u / 2
        else:
            value = u * math.sqrt(3 * shape[0] / u.numel())
        state[key] = value.view(shape).float()
    return state


def load(model: VQVAE | Prior, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    model.load_state_dict(state)


def video() -> Tensor:
    j = torch.arange(2 * 3 * 8 * 16 * 16, dtype=torch.float64)
    return (0.5 * torch.sin(0.013 * j)).float().view(2, 3, 8, 16, 16)


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    model = TINY.build()
    load(model, vqvae_from_released(filled(vqvae_shapes(12, 6, 16, 1, 2))))
    return model


def first(x: Tensor, count: int = 4) -> Tensor:
    return x.detach().contiguous().flatten()[:count]


def about(x: Tensor, values: float | list[float], atol: float = 1e-4) -> None:
    torch.testing.assert_close(x, torch.tensor(values), rtol=0, atol=atol)


def moments(x: Tensor, mean: float, std: float) -> None:
    about(torch.stack([x.mean(), x.std()]).detach(), [mean, std])


def test_checkpoints_have_as_many_keys_as_published_ones() -> None:
    assert len(vqvae_shapes(240, 256, 2048, 4, 2)) == 283
    tiny = vqvae_shapes(12, 6, 16, 1, 2)
    assert len([k for k in tiny if not k.endswith("num_batches_tracked")]) == 83
    for classes, frames, count in ((0, 0, 34), (5, 0, 34), (0, 1, 162)):
        shapes = prior_shapes(24, 6, 16, 2, (2, 8, 8), classes, frames, 4)
        assert len([k for k in shapes if not k.endswith(".mask")]) == count


def test_published_vqvae_fits_its_preset() -> None:
    with torch.device("meta"):
        state = {k: torch.empty(shape) for k, shape in vqvae_shapes(240, 256, 2048, 4, 2).items()}
        model = VQVAEConfig().build()
    own = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in vqvae_from_released(state).items()} == own


@torch.no_grad()
def test_vqvae_computes_what_the_released_code_computes(vqvae: VQVAE) -> None:
    x = video()
    moments(vqvae.encoder(x, None), 0.073018, 0.096223)
    z = vqvae.vectors(x)
    moments(z, -0.024502, 0.219325)
    about(first(z.movedim(-1, 1)), [-0.28577, -0.26607, -0.30343, -0.28112])
    codes = vqvae.encode(x)
    assert first(codes, 16).tolist() == [15, 7, 11, 11, 11, 11, 11, 7, 11, 7, 11, 7, 7, 3, 11, 7]
    assert abs(int(codes.sum()) - 2316) <= 15  # one code may flip: the smallest margin is 4.8e-7
    assert len(codes.unique()) == 4
    reconstruction = vqvae.decode(codes)
    moments(reconstruction, 0.017702, 0.104059)
    about(first(reconstruction), [0.04499, 0.0285, 0.09072, 0.02896])
    e = vqvae.embed(codes)
    about(F.mse_loss(reconstruction, x) / 0.06, 2.273422)
    about(0.25 * F.mse_loss(z, e), 0.019287)
    about(perplexity(codes, 16), 3.04040)


@torch.no_grad()
@pytest.mark.parametrize(
    ("classes", "frames", "mean", "std", "start", "nats"),
    [
        (0, 0, 0.307442, 0.661751, [1.4551, 1.45271, 1.45032, 1.23792], 2.969471),
        (5, 0, 0.411754, 0.665624, [0.78213, 0.75662, 0.73111, 1.24458], 2.834664),
        (0, 1, -0.144013, 1.005339, [-1.25671, -1.25755, -0.97876, -0.9796], 2.827507),
    ],
)
def test_prior_computes_what_the_released_code_computes(
    vqvae: VQVAE,
    classes: int,
    frames: int,
    mean: float,
    std: float,
    start: list[float],
    nats: float,
) -> None:
    x = video()
    codes = vqvae.encode(x)
    config = PriorConfig(**{**vars(PRIOR), "classes": classes, "frames": frames})
    prior = config.build()
    load(
        prior,
        prior_from_released(filled(prior_shapes(24, 6, 16, 2, (2, 8, 8), classes, frames, 4))),
    )
    if frames:
        assert prior.frame_encoder is not None
        moments(prior.frame_encoder(x[:, :, :1]), 1.535770, 1.174542)
    seen = prior.look(
        2,
        labels=torch.tensor([1, 4]) if classes else None,
        frames=x[:, :, :frames] if frames else None,
    )
    logits = prior(vqvae.embed(codes), seen)
    moments(logits, mean, std)
    about(first(logits), start)
    about(F.cross_entropy(logits.flatten(0, 1), codes.flatten()), nats)


def test_strange_and_missing_keys_are_named() -> None:
    state = filled(vqvae_shapes(12, 6, 16, 1, 2))
    with pytest.raises(CheckpointError, match=r"encoder\.extra is no tensor"):
        vqvae_from_released({**state, "encoder.extra": torch.zeros(1)})
    lacking = {k: v for k, v in state.items() if not k.endswith("8.attn_h.w_ks.weight")}
    with pytest.raises(CheckpointError, match=r"axial: attn_h\.w_ks\.weight is missing"):
        vqvae_from_released(lacking)
    prior = filled(prior_shapes(24, 6, 16, 2, (2, 8, 8), 0, 0, 4))
    with pytest.raises(CheckpointError, match=r"head\.weight is no tensor"):
        prior_from_released({**prior, "head.weight": torch.zeros(1)})
    prior.pop("attn_stack.attn_nets.1.attn.w_vs.weight")
    with pytest.raises(CheckpointError, match=r"attn_nets\.1\.attn has no w_vs"):
        prior_from_released(prior)
