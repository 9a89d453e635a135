"""Chunked attention equals the dense definition, forward and in both derivatives, in float64."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    Axis,
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    RelativePosition2d,
    SameGroup,
    SlidingWindow,
    Windows,
    attention,
)

problem = importlib.import_module("visgen_kernels.attention.problem")
entry = importlib.import_module("visgen_kernels.attention.entry")
fused_cpu = importlib.import_module("visgen_kernels.attention.fused_cpu")
chunked = importlib.import_module("visgen_kernels.attention.chunked")
chunked_double = importlib.import_module("visgen_kernels.attention.chunked_double")

# Scores in a chunk: everything at once, some rows at a time, one small tile at a time.
CHUNKS = (512 * 1024, 400, 40)
# Scores of the longest call that is not walked over.
SINGLES = (0, 128 * 1024)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    shapes: tuple[tuple[int, ...], ...]  # q, k, v; or packed qkv
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None  # of a relative position bias
    key_bias: bool = False

    def run(self, implementation: str) -> list[Tensor]:
        """Output, lse, gradients, and gradients of the gradients for random cotangents."""
        inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(self.shapes)]
        options, leaves = dict(self.options), list(inputs)
        if self.size is not None:
            rows = (2 * self.size[0] - 1) * (2 * self.size[1] - 1)
            table = draw(rows, self.shapes[0][-2], seed=5).requires_grad_()
            options["bias"] = RelativePosition2d(table, self.size)
            leaves.append(table)
        if self.key_bias:
            shape = (
                self.shapes[1]
                if len(self.shapes) == 3
                else self.shapes[0][:-3] + self.shapes[0][-2:]
            )
            options["key_bias"] = draw(*shape[:-1], seed=6).requires_grad_()
            leaves.append(options["key_bias"])
        out, lse = attention(*inputs, **options, implementation=implementation, return_lse=True)
        grad = draw(*out.shape, seed=7).requires_grad_()
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        cotangents = [draw(*x.shape, seed=8 + i) for i, x in enumerate(first)]
        second = torch.autograd.grad(first, [grad, *leaves], cotangents)
        return [x.detach() for x in (out, lse, *first, *second)]


def separate(n_q: int, n_k: int, batch: int = 2) -> tuple[tuple[int, ...], ...]:
    return (batch, n_q, 3, 4), (batch, n_k, 3, 4), (batch, n_k, 3, 5)


SEED = torch.tensor([123456789012])
LENGTHS = torch.tensor([0, 5])
MASKS = [Full(), Causal(), Causal(3), SlidingWindow(2, 1), Blocks1d(4)]
CASES = [
    *(
        Case(f"{mask} {n_q}x{n_k}", separate(n_q, n_k), {"mask": mask})
        for mask in MASKS
        for n_q, n_k in [(12, 12), (7, 13), (13, 7)]
    ),
    *(
        Case(
            f"{mask} lengths", separate(12, 12), {"mask": mask, "key_lengths": torch.tensor([0, 5])}
        )
        for mask in MASKS
    ),
    *(Case(f"{mask} key bias", separate(9, 12), {"mask": mask}, key_bias=True) for mask in MASKS),
    *(
        Case(f"{mask} dropout", separate(11, 13), {"mask": mask, "dropout": 0.3, "seed": SEED})
        for mask in MASKS
    ),
    *(
        Case(f"{mask} bias, batch {batch}", ((batch, 12, 3, 2, 4),), {"mask": mask}, (4, 3))
        for mask in [*MASKS, Blocks2d((4, 3), (2, 2), (1, 1))]
        for batch in (1, 4)
    ),
    Case("packed", ((3, 10, 3, 2, 4),)),
    Case("packed, one sequence", ((1, 10, 3, 3, 4),)),
    Case("one token", ((2, 1, 3, 2, 4),)),
    Case(
        "everything at once",
        ((2, 12, 3, 2, 4),),
        {
            "mask": Causal(),
            "key_lengths": torch.tensor([5, 12]),
            "dropout": 0.2,
            "seed": SEED,
            "scale": 0.3,
        },
        (3, 4),
        key_bias=True,
    ),
    Case("windows", ((2, 8, 6, 3, 2, 4),), {"layout": Windows(4, 3)}, (4, 3)),
    Case("axis 1", ((2, 5, 6, 3, 2, 4),), {"layout": Axis(1), "mask": Causal()}, key_bias=True),
    Case("axis 2", ((2, 5, 6, 3, 2, 4),), {"layout": Axis(2)}),
    Case("axis 2 of 3", ((2, 3, 4, 6, 3, 2, 4),), {"layout": Axis(2)}),
    Case(
        "axis 2 of 3, other keys",
        ((2, 3, 4, 6, 2, 4), (2, 3, 5, 6, 2, 4), (2, 3, 5, 6, 2, 3)),
        {"layout": Axis(2), "key_lengths": torch.tensor([2, 5])},
    ),
    Case("blocks2d", ((1, 30, 3, 2, 4),), {"mask": Blocks2d((5, 6), (2, 4), (1, 2))}),
    Case("block list", ((2, 32, 3, 2, 4),), {"mask": BlockList.strided(2, 4, 4, block=4)}, (4, 8)),
    *(
        Case(
            f"groups, batch {batch}",
            ((batch, 8, 6, 3, 3, 4),),
            {"layout": Windows(4, 3), "mask": SameGroup.shifted((8, 6), (4, 3), (1, 2)), **options},
            (4, 3),
            key_bias=not options,
        )
        for batch in (1, 3)
        for options in (
            {},
            {"key_lengths": LENGTHS[:batch] if batch < 3 else torch.tensor([12, 0, 5])},
            {"dropout": 0.3, "seed": SEED},
        )
    ),
    Case(
        "block list with empty rows",
        ((2, 6, 3, 2, 4),),
        {"mask": BlockList(torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 0]), block=2)},
    ),
]


def keep_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are kept even where the fused kernel would do without them."""
    keeps = entry.keeps_weights
    monkeypatch.setattr(entry, "keeps_weights", lambda *sizes, **_: keeps(*sizes, fused=False))


def walked(case: Case) -> bool:
    """Has the mask several tiles, or a query no key?"""
    mask, lengths = case.options.get("mask", Full()), case.options.get("key_lengths")
    if isinstance(mask, Blocks1d | Blocks2d | BlockList) or (lengths is not None and 0 in lengths):
        return True
    return not isinstance(mask, Full) and case.name.endswith("13x7")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("scores", CHUNKS)
def test_chunked_equals_the_definition_in_both_derivatives(
    case: Case, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "CHUNK_SCORES", scores)
    monkeypatch.setattr(problem, "SINGLE_SCORES", 0)
    expected, got = case.run("reference"), case.run("chunked")
    for theirs, ours in zip(expected, got, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_calls_without_a_walk_equal_the_definition_in_both_derivatives(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_always(monkeypatch)
    walks = []

    class Walk(problem.Problem):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            walks.append(case.name)
            super().__init__(*arguments, **options)

    for module in (chunked, chunked_double):
        monkeypatch.setattr(module, "Problem", Walk)
    expected, got = case.run("reference"), case.run("chunked")
    for theirs, ours in zip(expected, got, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert bool(walks) == walked(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("scores", [64 * 1024, 300])
def test_heads_taken_apart_equal_the_definition_in_both_derivatives(
    case: Case, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "SINGLE_SCORES", 0)
    monkeypatch.setattr(problem, "_HEAD_PRODUCT", 0)
    monkeypatch.setattr(problem, "_HEAD_SCORES", scores)
    expected, got = case.run("reference"), case.run("chunked")
    for theirs, ours in zip(expected, got, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("scores", "inputs", "call"),
    [(512 * 1024, 4 * 1024 * 1024, 0), (400, 100, 0), (512 * 1024, 4 * 1024 * 1024, 16 * 1024)],
)
def test_fused_kernel_equals_the_definition_in_both_derivatives(
    case: Case, scores: int, inputs: int, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = case.shapes
    if len(shapes) == 3:  # the kernel wants equal head dimensions
        shapes = (shapes[0], shapes[1], (*shapes[2][:-1], shapes[1][-1]))
    case = Case(case.name, shapes, case.options, case.size, case.key_bias)
    expected = case.run("reference")
    monkeypatch.setattr(problem, "CHUNK_SCORES", scores)
    monkeypatch.setattr(problem, "_LEAST_CALL_SCORES", call)
    monkeypatch.setattr(fused_cpu, "CHUNK_SCORES", scores)
    monkeypatch.setattr(fused_cpu, "_COPIED_INPUTS", inputs)
    monkeypatch.setattr(fused_cpu, "LEAST_COPIED_SCORES", 0)
    monkeypatch.setattr(entry, "keeps_weights", lambda *_, **__: False)
    got = case.run("chunked")
    for theirs, ours in zip(expected, got, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("grid", "calls"),
    [
        ((4, 8, 8), 0),  # 32 runs of 8 sequences that lie together: handfuls of scores
        ((4, 8, 256), 8),  # and of 256: one call each, without a copy
    ],
)
def test_fused_kernel_is_not_called_for_handfuls(grid: tuple[int, ...], calls: int) -> None:
    packed = torch.randn(2, *grid, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.profiler.profile() as profile:
        attention(packed, layout=Axis(2))
    names = [event.name for event in profile.events() or ()]
    assert sum("flash_attention_for_cpu" in name for name in names) == calls


@pytest.mark.parametrize("scores", CHUNKS)
def test_weights_that_are_kept_and_computed_again_give_the_same(
    scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("", ((3, 12, 3, 2, 4),), {"mask": Causal(), "dropout": 0.2, "seed": SEED}, (3, 4))
    monkeypatch.setattr(problem, "CHUNK_SCORES", scores)
    monkeypatch.setattr(problem, "SINGLE_SCORES", 0)
    results = []
    for factor in (0, 100):
        monkeypatch.setattr(problem, "_KEPT_PER_INPUT", factor)
        results.append(case.run("chunked"))
    for again, kept in zip(*results, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-10, atol=1e-12)


def test_two_runs_give_the_same_bits() -> None:
    qkv = draw(4, 49, 3, 2, 8).float().requires_grad_()
    table = draw(13 * 13, 2, seed=1).float().requires_grad_()

    def run():
        out = attention(qkv, bias=RelativePosition2d(table, (7, 7)))
        first = torch.autograd.grad(out.sin().sum(), [qkv, table], create_graph=True)
        return out, *first, *torch.autograd.grad(first[0].cos().sum(), [qkv, table])

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("rows", [1, 3])
def test_permuted_samples_and_heads_permute_the_output(rows: int) -> None:
    q, k, v = draw(4, 9, 3, 4), draw(4, 11, 3, 4, seed=1), draw(4, 11, 3, 6, seed=2)
    samples, heads = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    out = attention(q, k, v, mask=Causal(rows))
    permuted = attention(*(x[samples][:, :, heads] for x in (q, k, v)), mask=Causal(rows))
    torch.testing.assert_close(permuted, out[samples][:, :, heads])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    qkv = draw(5, 16, 3, 2, 8).float()
    together = attention(qkv)
    alone = torch.cat([attention(x[None]) for x in qkv])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_query_that_sees_nothing_gives_zero_and_minus_infinity(implementation: str | None) -> None:
    q = draw(2, 3, 1, 4).requires_grad_()
    out, lse = attention(
        q, q, q, key_lengths=torch.tensor([0, 2]), implementation=implementation, return_lse=True
    )
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert (lse[0] == -torch.inf).all()
    assert lse[1].isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("scores", "single", "kept"),
    [*((scores, 0, False) for scores in CHUNKS), *((CHUNKS[0], n, True) for n in SINGLES)],
)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"key_lengths": torch.tensor([5, 5])}, slice(5, None)),
        ({"mask": Causal()}, slice(7, None)),
        ({"mask": SlidingWindow(2)}, slice(7, None)),
        ({"mask": Blocks1d(2)}, slice(7, None)),
    ],
)
def test_what_a_hidden_key_holds_has_no_influence(
    options: dict[str, Any],
    hidden: slice,
    broken: float,
    scores: int,
    single: int,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(problem, "CHUNK_SCORES", scores)
    monkeypatch.setattr(problem, "SINGLE_SCORES", single)
    if kept:
        keep_always(monkeypatch)
    q, k, v = draw(2, 12, 2, 4), draw(2, 12, 2, 4, seed=1), draw(2, 12, 2, 4, seed=2)
    rows = slice(0, 5)  # none of them sees a hidden key
    outputs, gradients = [], []
    for value in (0.0, broken):
        leaves = [q.clone().requires_grad_(), k.clone(), v.clone()]
        for x in leaves[1:]:
            x[:, hidden] = value
        out = attention(*leaves, **options)
        outputs.append(out.detach()[:, rows])
        gradients.append(torch.autograd.grad(out[:, rows].sum(), leaves[0])[0][:, rows])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_key_bias_of_minus_infinity_hides_a_broken_key() -> None:
    q, k, v = draw(1, 6, 2, 4), draw(1, 6, 2, 4, seed=1), draw(1, 6, 2, 4, seed=2)
    key_bias = torch.zeros(1, 6, 2).double()
    key_bias[:, 4] = -torch.inf
    kept = [0, 1, 2, 3, 5]
    expected = attention(q, k[:, kept], v[:, kept])
    k[:, 4], v[:, 4] = torch.nan, torch.inf
    torch.testing.assert_close(attention(q, k, v, key_bias=key_bias), expected)


def test_a_key_that_is_seen_and_broken_is_not_hushed_up() -> None:
    q = draw(1, 6, 1, 4)
    v = q.clone()
    v[:, 3] = torch.nan
    out = attention(q, q, v, mask=Causal())
    assert out[:, :3].isfinite().all()
    assert out[:, 3:].isnan().all()


def test_l2_attention_is_dot_attention_with_a_key_bias() -> None:
    q, k, v = draw(2, 7, 2, 4), draw(2, 9, 2, 4, seed=1), draw(2, 9, 2, 3, seed=2)
    distance = (q[:, :, None] - k[:, None]).square().sum(-1)  # (b, n_q, n_k, h)
    expected = torch.einsum("bijh,bjhd->bihd", (-0.3 * distance).softmax(2), v)
    out = attention(q, k, v, scale=0.6, key_bias=-0.3 * k.square().sum(-1))
    torch.testing.assert_close(out, expected)


def test_logits_times_a_thousand_give_one_hot_weights() -> None:
    q = torch.eye(4).double()[None, :, None] * 1000
    v = draw(1, 4, 1, 4)
    torch.testing.assert_close(attention(q, q, v), v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [4, 24, 72])
def test_error_is_that_of_the_dtype_in_output_and_gradients(
    dtype: torch.dtype, head_dim: int
) -> None:
    qkv = draw(2, 33, 3, 2, head_dim).to(dtype)
    grad = draw(2, 33, 2, head_dim, seed=1).to(dtype)
    results = []
    for x in (qkv.double().requires_grad_(), qkv.clone().requires_grad_()):
        out = attention(x)
        (gradient,) = torch.autograd.grad(out, x, grad.to(out.dtype))
        assert out.dtype == x.dtype
        assert gradient.dtype == x.dtype
        results.append((out.detach().double(), gradient.double()))
    # Computed in float32, so that what is left is rounding the result to its dtype.
    tolerance = {torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    for exact, ours in zip(*results, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, ::2],  # every other token
        lambda x: torch.cat([x, x], dim=-1)[..., :8],  # rows further apart
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.nn.functional.pad(x.flatten(), (1, 0))[1:].view(x.shape),  # misaligned
        lambda x: x[:1].expand(3, -1, -1, -1, -1),  # stride 0
    ],
)
def test_strides_do_not_matter(change: Callable[[Tensor], Tensor]) -> None:
    qkv = change(draw(3, 10, 3, 2, 8))
    torch.testing.assert_close(attention(qkv), attention(qkv.contiguous()))
    q, k, v = qkv.unbind(2)
    torch.testing.assert_close(attention(q, k, v), attention(qkv.contiguous()))


def test_expanded_gradient_is_taken() -> None:
    qkv = draw(2, 10, 3, 2, 8).requires_grad_()
    (summed,) = torch.autograd.grad(attention(qkv).sum(), qkv)
    (ones,) = torch.autograd.grad(attention(qkv), qkv, torch.ones(2, 10, 2, 8).double())
    assert torch.equal(summed, ones)


def test_poisoned_memory_does_not_show_through() -> None:
    # Fresh arrays are filled with NaN in this mode: whatever is not written would be seen.
    torch.use_deterministic_algorithms(True)
    try:
        for case in CASES:
            assert not any(x.isnan().any() for x in case.run("chunked")), case.name
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("n_q", [0, 3])
@pytest.mark.parametrize("n_k", [0, 3])
@pytest.mark.parametrize("batch", [0, 2])
def test_empty_sizes_give_empty_or_zero_results(batch: int, n_q: int, n_k: int) -> None:
    q = draw(batch, n_q, 2, 4).requires_grad_()
    k = draw(batch, n_k, 2, 4).requires_grad_()
    out = attention(q, k, k)
    gradients = torch.autograd.grad(out.sum(), [q, k])
    assert out.shape == q.shape
    if not n_k:
        assert torch.equal(out, torch.zeros_like(out))
    assert [g.shape for g in gradients] == [q.shape, k.shape]
    assert all(g.isfinite().all() for g in gradients)


def test_nothing_is_saved_without_autograd() -> None:
    qkv = draw(2, 16, 3, 2, 8).requires_grad_()
    with torch.no_grad():
        assert attention(qkv).grad_fn is None
    assert attention(qkv.detach()).grad_fn is None


def saved_elements(n: int, head_dim: int) -> int:
    """Numbers that autograd holds between forward and backward."""
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    qkv = torch.zeros(1, n, 3, 1, head_dim).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attention(qkv)
    return sum(sizes)


def test_what_is_saved_is_linear_in_the_tokens() -> None:
    # q, k, v, the output, and the weights where they are no more than twice q, k and v, else one
    # number a row.
    assert saved_elements(4096, 8) == 4096 * (8 * 4 + 1)
    assert saved_elements(2048, 8) == 2048 * (8 * 4 + 1)
    assert saved_elements(600, 8) == 600 * 8 * 4 + 600 * 600  # one chunk holds them
    assert saved_elements(1024, 64) == 1024 * (64 * 4 + 1)
