"""The codebook: nearest codes by kernel and on a CPU, and the sums that move the codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from visgen_kernels import DENSE_FLOPS, ImplementationUnavailable, code_sums, codebook, nearest_code
from visgen_kernels.codebook_kernel import Tile, code_splits, default_precision, precisions

OPERATOR = torch.ops.visgen.nearest_code.default


def draw(*shape: int, of: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(of)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def distances(vectors: Tensor, codes: Tensor) -> Tensor:
    return (vectors.double()[..., None, :] - codes.double()).square().sum(-1)


def excess(vectors: Tensor, codes: Tensor, found: Tensor) -> float:
    """By how much chosen codes are farther than the nearest, in units of what is allowed."""
    every = distances(vectors, codes)
    chosen, least = every.gather(-1, found[..., None])[..., 0], every.amin(-1)
    return float(((chosen - least) / (least * 1e-5 + 1e-6)).max())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_codebook.py` printed."""
    script = Path(__file__).with_name("interpreted_codebook.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_kernel_chooses_the_nearest_code(interpreted) -> None:
    for name, found in interpreted["drawn"].items():
        assert found["excess"] <= 1, (name, found)
        assert found["dtype"] == "torch.int64", name


@pytest.mark.parametrize("part", ["integers", "shared", "tiles", "broken"])
def test_the_kernel_is_exact_on(interpreted, part: str) -> None:
    assert interpreted[part]
    assert all(interpreted[part].values()), interpreted[part]


@st.composite
def problems(draw_from: st.DrawFn) -> dict[str, Any]:
    halves = [torch.float16, torch.bfloat16]
    return {
        "m": draw_from(st.sampled_from([1, 2, 63, 64, 65, 300])),
        "k": draw_from(st.sampled_from([1, 2, 17, 600])),
        "d": draw_from(st.sampled_from([1, 3, 16, 60])),
        "dtype": draw_from(st.sampled_from([torch.float32, torch.float64, *halves])),
        "code_dtype": draw_from(st.sampled_from([torch.float32, torch.float64, *halves])),
        "whole": draw_from(st.booleans()),
        "number": draw_from(st.integers(0, 2**16)),
    }


@seed(20261)
@settings(max_examples=80, deadline=None, database=None)
@given(problems())
def test_the_cpu_route_chooses_the_nearest_code(problem: dict[str, Any]) -> None:
    number, m, k, d = (problem[name] for name in ("number", "m", "k", "d"))
    vectors, codes = draw(m, d, of=number), draw(k, d, of=number + 1)
    if problem["whole"]:
        vectors, codes = vectors.mul(2).round(), codes.mul(2).round()
        codes[k // 2 :] = codes[: k - k // 2].clone()  # each code twice
    vectors, codes = vectors.to(problem["dtype"]), codes.to(problem["code_dtype"])
    found, of_found = nearest_code(vectors, codes, return_distances=True)
    assert found.dtype == torch.int64
    assert excess(vectors, codes, found) <= 1
    if problem["whole"]:
        assert torch.equal(found, distances(vectors, codes).argmin(-1))
    wanted = distances(vectors, codes).gather(-1, found[:, None])[:, 0]
    torch.testing.assert_close(of_found.double(), wanted, rtol=1e-5, atol=1e-6)
    reference = nearest_code(vectors, codes, implementation="reference")
    assert excess(vectors, codes, reference) <= 1


def test_vectors_may_have_any_axes_and_strides() -> None:
    video = draw(2, 5, 3, 4, 4)  # channels first
    vectors, codes = video.movedim(1, -1), draw(9, 5, of=1)
    found = nearest_code(vectors, codes)
    assert found.shape == (2, 3, 4, 4)
    assert torch.equal(found, distances(vectors, codes).argmin(-1))
    assert nearest_code(vectors[:0], codes).shape == (0, 3, 4, 4)
    assert nearest_code(draw(5), codes).shape == ()


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_a_code_that_is_not_finite_is_never_chosen(implementation: str) -> None:
    vectors, codes = draw(30, 8), draw(20, 8, of=1)
    wanted = distances(vectors, codes)
    codes[3, 2], codes[7], codes[11, 0] = torch.nan, torch.inf, -torch.inf
    wanted[:, [3, 7, 11]] = torch.inf
    found = nearest_code(vectors, codes, implementation=implementation)
    assert torch.equal(found, wanted.argmin(-1))


class Sizes(TorchDispatchMode):
    """Numbers of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def test_neither_distances_nor_one_hot_rows_of_all_exist() -> None:
    m, k, d = 16384, 1024, 8
    vectors, codes = draw(m, d), draw(k, d, of=1)
    with Sizes() as sizes:
        found = codebook._nearest_chunked(vectors, codes, "")
    assert sizes.largest <= 2**19 < m * k // 16
    with Sizes() as sizes:
        code_sums(vectors, found, k)
    assert sizes.largest <= m * d


def test_opcheck() -> None:
    torch.library.opcheck(OPERATOR, (draw(2, 7, 5), draw(9, 5, of=1), "", "chunked"))


def test_compile_traces_both_without_a_break() -> None:
    def call(vectors: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        found, of_found = nearest_code(vectors, codes, return_distances=True)
        return (found, of_found, *code_sums(vectors, found, codes.shape[0]))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    tensors = draw(2, 70, 5), draw(9, 5, of=1)
    for ours, theirs in zip(compiled(*tensors), call(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("implementation", [None, "triton", "chunked", "reference"])
def test_meta_gives_shapes_and_flops(implementation: str | None) -> None:
    vectors, codes = torch.empty(2, 7, 5, device="meta"), torch.empty(9, 5, device="meta")
    for mapping in (None, DENSE_FLOPS):
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            found = nearest_code(vectors, codes, implementation=implementation)
        assert counter.get_total_flops() == 2 * 14 * 9 * 5
    counts, sums = code_sums(vectors, found, 9)
    assert [x.shape for x in (found, counts, sums)] == [(2, 7), (9,), (9, 5)]


def test_distances_are_differentiable_and_indices_are_not() -> None:
    vectors = draw(6, 3, dtype=torch.float64).requires_grad_()
    codes = draw(4, 3, of=1, dtype=torch.float64).requires_grad_()
    assert not nearest_code(vectors, codes).requires_grad

    def call(vectors: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(vectors, codes, return_distances=True)[1]

    assert torch.autograd.gradcheck(call, (vectors, codes))


@pytest.mark.parametrize("kind", ["even", "all in one", "few", "one each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_of_whole_numbers_are_exact(kind: str, dtype: torch.dtype) -> None:
    m, k = 1000, 70
    vectors = draw(m, 6).mul(3).round().to(dtype)
    indices = torch.randint(0, k, (m,), generator=torch.Generator().manual_seed(1))
    if kind == "all in one":
        indices[:] = 13
    elif kind == "few":
        indices[indices > 3] = 69
    elif kind == "one each":
        vectors, indices = vectors[:k], torch.arange(k).flip(0)
    counts, sums = code_sums(vectors, indices, k)
    one_hot = torch.nn.functional.one_hot(indices, k).double()
    assert counts.dtype == torch.int64
    assert torch.equal(counts, one_hot.sum(0).long())
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(sums.double(), one_hot.T @ vectors.double())


def test_sums_of_a_collapsed_codebook_lose_little() -> None:
    vectors = draw(20_000, 4).add(1)
    counts, sums = code_sums(vectors, torch.zeros(20_000, dtype=torch.int32), 3)
    assert counts.tolist() == [20_000, 0, 0]
    exact = vectors.double().sum(0)
    # Added one after another 20,000 numbers lose up to 1e-4 of their sum, in two levels 1e-6.
    torch.testing.assert_close(sums[0].double(), exact, rtol=2e-6, atol=0)


def test_sums_repeat_to_the_bit_and_take_any_axes() -> None:
    vectors = draw(2, 5, 9, 8).movedim(1, -1)
    indices = torch.randint(0, 4, (2, 9, 8), generator=torch.Generator().manual_seed(1))
    first, again = (code_sums(vectors, indices, 4) for _ in range(2))
    flat = code_sums(vectors.reshape(-1, 5), indices.view(-1), 4)
    for other in (again, flat):
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
    assert not code_sums(vectors[:0], indices[:0], 4)[1].any()
    assert not code_sums(vectors.clone().requires_grad_(), indices, 4)[1].requires_grad


def test_a_step_of_the_moving_averages_by_hand() -> None:
    # videogpt.md's worked example: decay 0.99, N = 10 and sums = 10 codes before.
    codes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    rows = torch.tensor([[0.1, 0.2], [0.9, 0.8], [1.2, 1.1], [-0.7, 0.9]])
    found = nearest_code(rows, codes)
    assert found.tolist() == [0, 1, 1, 2]
    counts, sums = code_sums(rows, found, 3)
    n = 0.99 * torch.full((3,), 10.0) + 0.01 * counts
    averages = 0.99 * 10 * codes + 0.01 * sums
    weights = (n + 1e-7) / (n.sum() + 3e-7) * n.sum()
    torch.testing.assert_close(n, torch.tensor([9.91, 9.92, 9.91]))
    expected = [[0.000101, 0.000202], [1.000101, 0.999899], [-0.999697, 0.999899]]
    torch.testing.assert_close(
        averages / weights[:, None], torch.tensor(expected), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("vectors", "codes", "multiprocessors", "expected"),
    [
        (32_768, 2048, 132, 1),
        (1024, 2048, 132, 16),  # 8 tiles of vectors; no program gets less than a tile of codes
        (1024, 8192, 132, 16),
        (1, 100, 132, 1),
        (0, 2048, 132, 16),
    ],
)
def test_codes_are_shared_where_vectors_are_few(
    vectors: int, codes: int, multiprocessors: int, expected: int
) -> None:
    assert code_splits(vectors, codes, Tile(128, 128, 32, 8, 3), multiprocessors) == expected


def test_the_default_precision_is_one_that_the_target_has() -> None:
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert default_precision(target) in precisions(target)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "widths": ((draw(3, 5), draw(4, 6)), {}, r"\(3, 5\) and \(4, 6\)"),
    "no codes": ((draw(3, 5), draw(0, 5)), {}, "at least one code"),
    "axes": ((draw(3, 5), draw(5)), {}, r"the codebook is \(k, d\)"),
    "dtype": ((torch.zeros(3, 5, dtype=torch.int64), draw(4, 5)), {}, "float64, float32"),
    "devices": ((draw(3, 5), torch.empty(4, 5, device="meta")), {}, "one device; got cpu and meta"),
    "implementation": ((draw(3, 5), draw(4, 5)), {"implementation": "sdpa"}, "there are triton"),
    "precision": ((draw(3, 5), draw(4, 5)), {"precision": "bf16"}, '"ieee" and "tf32"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    tensors, options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        nearest_code(*tensors, **options)


def test_triton_without_a_device_is_refused_with_the_alternative() -> None:
    with pytest.raises(ImplementationUnavailable, match=r'CUDA or ROCm device .* use "chunked"'):
        nearest_code(draw(3, 5), draw(4, 5), implementation="triton")


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_without_a_code_is_named(index: int) -> None:
    with pytest.raises(ValueError, match=r"run from .* there are 4 codes, 0 to 3"):
        code_sums(draw(3, 5), torch.tensor([0, index, 2]), 4)


def test_indices_of_another_shape_or_dtype_are_named() -> None:
    for indices in (torch.zeros(4, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ValueError, match="one int64 or int32 for each vector"):
            code_sums(draw(3, 5), indices, 4)
