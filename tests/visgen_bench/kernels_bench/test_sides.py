"""Every way over a layer gives what the definition gives, in all directions that it has."""

from collections.abc import Callable

import pytest
import torch

from visgen_bench.kernels_bench.accuracy import truth
from visgen_bench.kernels_bench.calls import prepare
from visgen_bench.kernels_bench.other_peers import compiled_function, flex, mask_mod, score_mod
from visgen_bench.kernels_bench.problem import Problem
from visgen_bench.kernels_bench.sides import make_side
from visgen_kernels.shapes import Shape

GENERAL = ("chunked", "eager", "sdpa", "sdpa-copied", "sdpa-math")
LAYERS = (
    "bias", "axis", "part", "key bias", "key bias of windows", "causal", "causal over frames",
    "window", "cross", "blocks", "blocks of a map", "block list", "shifted",
)  # fmt: skip
CASES = [(name, id) for id in LAYERS for name in GENERAL]
CASES += [("sdpa-augmented", "key bias"), ("sdpa-augmented", "key bias of windows")]
CASES += [("sdpa-unfolded", "blocks"), ("sdpa-unfolded", "blocks of a map")]
TWICE = ("chunked", "eager", "sdpa-math")


Layers = dict[str, Shape]


@pytest.fixture
def problem(layers: Layers) -> Callable[[str], Problem]:
    return lambda id: Problem(layers[id], dtype=torch.float64, seed=3)


@pytest.mark.parametrize(("name", "id"), CASES)
def test_a_side_agrees_with_the_definition(
    name: str, id: str, problem: Callable[[str], Problem]
) -> None:
    made = problem(id)
    side = make_side(name, made)
    directions = ["forward", "backward", *(["double_backward"] if name in TWICE else [])]
    for direction in directions:
        found = truth(made, direction).compare(prepare(side, direction).results())
        assert found
        for tensor, error in found.items():
            assert error.largest < 1e-12, (direction, tensor, error)


def test_nothing_of_the_gradients_is_left_uncompared(problem: Callable[[str], Problem]) -> None:
    made = problem("bias")
    found = truth(made, "double_backward").compare(
        prepare(make_side("chunked", made), "double_backward").results()
    )
    assert set(found) == {"dd qkv", "dd table", "d grad"}


@pytest.mark.parametrize("id", ["bias", "causal", "key bias", "blocks"])
def test_the_kernel_alone_computes_the_same_numbers(
    id: str, problem: Callable[[str], Problem]
) -> None:
    made = problem(id)
    side = make_side("sdpa-kernel", made)
    with torch.no_grad():
        alone, whole = side.forward(), make_side("sdpa", made).forward()
    assert not side.whole
    torch.testing.assert_close(made.join(alone), whole, rtol=0, atol=1e-13)
    assert all(leaf.is_contiguous() for leaf in side.leaves.values())
    gradients = prepare(side, "backward").results()
    assert set(gradients) == {f"d {name}" for name in side.leaves}


def test_all_layers_are_tried(layers: Layers) -> None:
    assert set(LAYERS) == set(layers)


@pytest.mark.parametrize("id", LAYERS)
def test_flex_attention_is_told_the_same_mask_and_biases(id: str, layers: Layers) -> None:
    made = Problem(layers[id], dtype=torch.float64, seed=3)
    q, k, v = made.heads()
    z, h, n_q, n_k = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    b, head = torch.arange(z).view(-1, 1, 1, 1), torch.arange(h).view(-1, 1, 1)
    i, j = torch.arange(n_q).view(-1, 1), torch.arange(n_k)
    scores = (q @ k.mT) * made.scale
    hides, changes = mask_mod(made), score_mod(made)
    if changes is not None:
        scores = changes(scores, b, head, i, j)
    if hides is not None:
        scores = scores.masked_fill(~hides(b, head, i, j), -torch.inf)
    out = made.join(scores.softmax(-1) @ v)
    torch.testing.assert_close(out, make_side("eager", made).forward(), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_with_them(layers: Layers) -> None:
    made = Problem(layers["shifted"], seed=3)
    for leaf in made.leaves.values():
        leaf.requires_grad_(False)  # it has no backward pass on a CPU
    out = flex(made, compiled=False)()
    torch.testing.assert_close(out, make_side("eager", made).forward(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("id", ["bias", "key bias", "cross", "shifted", "causal"])
def test_compiled_sdpa_is_one_graph(id: str, problem: Callable[[str], Problem]) -> None:
    made = problem(id)
    with torch.no_grad():
        whole = torch.compile(
            compiled_function(made), dynamic=False, backend="eager", fullgraph=True
        )
        torch.testing.assert_close(whole(), make_side("sdpa", made).forward())


def test_distances_find_the_nearest_code(codes: Shape) -> None:
    made = Problem(codes, dtype=torch.float64)
    found = make_side("distances", made).forward()
    expected = torch.cdist(made.leaves["q"], made.leaves["k"]).argmin(1)
    assert torch.equal(found, expected)


def test_content_follows_from_the_seed(layers: Layers) -> None:
    shape = layers["bias"]
    one, same, other = (Problem(shape, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.leaves["qkv"], same.leaves["qkv"])
    assert not torch.equal(one.leaves["qkv"], other.leaves["qkv"])
    assert float(one.leaves["qkv"].detach().abs().min()) > 0
