"""The call: what it refuses, and which implementation it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    Causal,
    ImplementationUnavailable,
    RelativePosition2d,
    SlidingWindow,
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
    assert resolve(torch.device("cpu"), second_derivative=True) == "chunked"
    assert resolve("meta") == "reference"
    assert resolve("cuda") == "sdpa"
    assert resolve("cuda:1", mask=Causal()) == "sdpa"
    assert resolve("cuda", second_derivative=True) == "chunked"
    assert resolve("cuda", mask=Causal(2)) == "chunked"
    assert resolve("cuda", mask=SlidingWindow(3)) == "chunked"
    assert resolve("cuda", bias=True) == "chunked"
    assert resolve("cuda", key_lengths=True) == "chunked"
    assert resolve("cuda", key_bias=True) == "chunked"
    assert resolve("cuda", dropout=0.1) == "chunked"


def test_none_means_the_rule() -> None:
    qkv = torch.randn(2, 6, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(qkv), attention(qkv, implementation="chunked"))


def test_triton_is_named_as_missing() -> None:
    with pytest.raises(ImplementationUnavailable, match="not there yet"):
        attention(PACKED, implementation="triton")


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
    assert unsupported("chunked", second_derivative=True, dropout=0.5, return_lse=True) is None
    assert unsupported("reference", second_derivative=True) is None
    assert unsupported("sdpa") is None
    assert "second derivative" in str(unsupported("sdpa", second_derivative=True))
    assert "not there yet" in str(unsupported("triton"))
    with pytest.raises(ValueError, match="unknown attention implementation"):
        unsupported("flash")


def test_scale_defaults_to_the_inverse_root_of_the_head_dimension() -> None:
    qkv = torch.randn(1, 5, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(qkv), attention(qkv, scale=0.25))
