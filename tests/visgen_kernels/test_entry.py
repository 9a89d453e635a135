"""The call: what it refuses, and which implementation it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    ImplementationUnavailable,
    RelativePosition2d,
    Windows,
    attention,
    resolve,
    unsupported,
)

Q = torch.zeros(2, 6, 3, 4)
PACKED = torch.zeros(2, 6, 3, 2, 4)
TABLE = torch.zeros(15, 2)


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        ((Q, Q), {}, "both, or neither"),
        ((Q,), {}, "packed as"),
        ((torch.zeros(2, 6, 4, 2, 4),), {}, "packed as"),
        ((Q, Q[..., :3], Q), {}, "do not fit"),
        ((Q, Q[:, :, :2], Q), {}, "do not fit"),
        ((Q, Q[:, :5], Q), {}, "do not fit"),
        ((Q[0], Q[0], Q[0]), {}, "at least 4"),
        ((Q, Q.double(), Q), {}, "share dtype"),
        ((Q.int(), Q.int(), Q.int()), {}, "floating-point"),
        ((Q.transpose(-1, -2),) * 3, {}, r"q.contiguous\(\)"),
        ((PACKED,), {"layout": Windows(2, 3)}, "got a grid"),
        ((PACKED,), {"key_lengths": torch.tensor([1])}, r"\(2,\)"),
        ((PACKED,), {"key_bias": torch.zeros(2, 6)}, r"\(2, 6, 2\)"),
        ((PACKED,), {"bias": RelativePosition2d(TABLE, (3, 3))}, "9 queries"),
        ((PACKED,), {"bias": RelativePosition2d(TABLE[1:], (2, 3))}, r"\(15, 2\)"),
        ((PACKED,), {"dropout": 1.0, "seed": torch.tensor([1])}, "below 1"),
        ((PACKED,), {"dropout": 0.1}, "wants seed"),
        ((PACKED,), {"dropout": 0.1, "seed": torch.tensor([1.0])}, "int64"),
        ((PACKED,), {"implementation": "chunkd"}, 'nearest: "chunked"'),
        ((PACKED,), {"implementation": "zzz"}, "there are triton"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    tensors: tuple[Tensor, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        attention(*tensors, **options)


def test_sequences_of_queries_and_keys_must_be_as_many() -> None:
    q, k = torch.zeros(1, 4, 4, 1, 2), torch.zeros(1, 4, 8, 1, 2)
    with pytest.raises(ValueError, match="must be equal"):
        attention(q, k, k, layout=Windows(4, 4))


def test_rule_that_picks_an_implementation() -> None:
    assert resolve("cpu") == "chunked"
    assert resolve(torch.device("cpu"), dtype=torch.float64) == "chunked"
    assert resolve("meta") == "reference"
    assert resolve("cuda") == "triton"
    assert resolve("cuda:1", dtype=torch.bfloat16) == "triton"
    assert resolve("cuda", dtype=torch.float64) == "chunked"
    assert resolve("mps") == "chunked"


def test_none_means_the_rule() -> None:
    qkv = torch.randn(2, 6, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(qkv), attention(qkv, implementation="chunked"))


def test_triton_without_a_device_says_what_to_use() -> None:
    with pytest.raises(ImplementationUnavailable, match='on cpu; use "chunked"'):
        attention(PACKED, implementation="triton")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": torch.float64}, "float32, bfloat16 and float16, got torch.float64"),
        ({"head_dims": (257, 64)}, "up to 256, got 257"),
        ({"head_dims": (64, 300)}, "up to 256, got 300"),
        ({"device": "mps"}, "are on mps"),
    ],
)
def test_triton_says_what_it_cannot_do(options: dict[str, Any], words: str) -> None:
    reason = unsupported("triton", **{"device": "cuda", **options})
    assert reason is not None
    assert words in reason
    assert '"chunked"' in reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 0.1, "seed": torch.tensor([1])}, "own dropout mask"),
        ({"return_lse": True}, "does not return lse"),
    ],
)
def test_sdpa_says_what_it_cannot_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ImplementationUnavailable, match=words):
        attention(PACKED, implementation="sdpa", **options)


def test_reasons_can_be_asked_for_beforehand() -> None:
    everything = {"second_derivative": True, "dropout": 0.5, "return_lse": True}
    assert unsupported("chunked", device="cpu", **everything) is None
    assert unsupported("reference", device="cpu", second_derivative=True) is None
    assert unsupported("triton", device="cuda", **everything) is None
    assert unsupported("sdpa", device="cpu") is None
    assert "second derivative" in str(unsupported("sdpa", device="cpu", second_derivative=True))
    with pytest.raises(ValueError, match="unknown attention implementation"):
        unsupported("flash", device="cpu")


def test_scale_defaults_to_the_inverse_root_of_the_head_dimension() -> None:
    qkv = torch.randn(1, 5, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(qkv), attention(qkv, scale=0.25))
