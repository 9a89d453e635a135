import dataclasses

import pytest
import torch
from torch import Tensor, nn

from visgen.catalogue import find
from visgen.objectives.gan import GanRecipe
from visgen.seeds import Draws, sample_seeds
from visgen_bench.cell import PerformanceCell
from visgen_bench.cells.workload import (
    build_workload,
    is_convolutional,
    recipe_of,
    refuse_impossible,
    shape_only_call,
    step_update,
    synthetic_images,
)
from visgen_bench.context import Unavailable
from visgen_bench.measure.flops import count_flops
from visgen_bench.measure.memory import PeakMeter

TINY = ("transgan-digits8-tiny", "dcgan-digits8-tiny")


class Zeros(Draws):
    """Draws that cost nothing; the count does not depend on values."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(len(self.seeds), *shape)

    def fork(self, name: str) -> Draws:
        return Zeros(self.seeds, f"{self.stream}/{name}", self.step)


def cell(**fields: object) -> PerformanceCell:
    return PerformanceCell(**{"model": TINY[0], "batch": 3, **fields})  # type: ignore[arg-type]


def test_sampling_gives_the_cells_pictures_and_ranks_share_them_out():
    model = find(TINY[0]).build()
    alone = build_workload(cell(batch=6, seed=5), find(TINY[0]), model, "cpu").call()
    two = [
        build_workload(cell(seed=5), find(TINY[0]), model, "cpu", rank, 2).call() for rank in (0, 1)
    ]
    assert isinstance(alone, torch.Tensor)
    assert alone.dtype == torch.uint8
    assert alone.shape == (6, 3, 8, 8)
    shared = torch.stack(two, dim=1).flatten(0, 1).int()  # type: ignore[arg-type]
    assert ((shared - alone.int()).abs() <= 1).all()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("phase", ["d_step", "g_step"])
def test_a_step_changes_its_part_and_no_other(name: str, phase: str):
    model = find(name).build()
    part = {"d_step": "discriminator", "g_step": "generator"}[phase]
    before = {n: [p.detach().clone() for p in m.parameters()] for n, m in model.networks().items()}
    build_workload(cell(model=name, phase=phase), find(name), model, "cpu").call()
    for other, network in model.networks().items():
        pairs = zip(network.parameters(), before[other], strict=True)
        assert any(not torch.equal(new, old) for new, old in pairs) == (other == part)


def test_a_metered_step_has_peaks_of_its_forward_backward_and_optimiser():
    model = find(TINY[1]).build()
    work = build_workload(cell(model=TINY[1], phase="d_step"), find(TINY[1]), model, "cpu")
    with PeakMeter("cpu") as meter:
        work.metered(meter)
    assert list(meter.peaks()) == ["fwd", "bwd", "opt", "total"]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("phase", ["sample", "d_step", "g_step"])
def test_the_count_on_meta_is_the_count_of_the_same_work_on_a_cpu(name: str, phase: str):
    asked = cell(model=name, phase=phase, attention="chunked" if name == TINY[0] else None)
    on_meta = count_flops(shape_only_call(asked, find(name)))
    model = find(name).build(attention=asked.attention)
    if phase == "sample":
        real = count_flops(build_workload(asked, find(name), model, "cpu").call)
    else:
        update, _ = step_update(asked, find(name), model)
        for part, network in model.networks().items():
            network.requires_grad_(part == update.part)
        images = synthetic_images(3, model.image_size, 0)
        draws = Zeros(sample_seeds(0, torch.arange(3)), "count")
        batch = images if update.reads_data else None
        real = count_flops(lambda: update.loss(batch, draws)["loss"].backward())
    assert on_meta.flops == real.flops > 0
    assert on_meta.flops_dense == on_meta.flops  # every pair is visible in these models


def test_the_penalty_makes_a_d_step_dearer_than_the_same_step_under_hinge():
    plain = GanRecipe(objective="hinge", steps=1, batch=1)
    config = find(TINY[0])
    hinge = count_flops(shape_only_call(cell(phase="d_step", recipe=plain), config)).flops
    assert count_flops(shape_only_call(cell(phase="d_step"), config)).flops > 1.3 * hinge


def test_the_cells_batch_replaces_the_recipes_and_nothing_is_accumulated():
    given = GanRecipe(objective="hinge", steps=9, batch=64, g_batch=128, accumulate_d=4, r1=0.1)
    found = recipe_of(cell(phase="d_step", recipe=given), find(TINY[0]))
    assert found == dataclasses.replace(given, batch=3, g_batch=3, accumulate_d=1)
    assert recipe_of(cell(phase="d_step"), find(TINY[0])).objective == "wgangp-eps"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"phase": "d_step", "compile": True}, "differentiates twice"),
        ({"phase": "d_step", "devices": 2}, "data-parallel"),
        ({"phase": "g_step", "dtype": "fp16"}, "use bf16"),
        ({"memory_format": "channels_last"}, "channels_last lays out convolution weights"),
        ({"device": "cuda"}, "CUDA"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_reason(fields: dict, words: str):
    if "device" in fields and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(Unavailable, match=words):
        refuse_impossible(cell(**fields), find(TINY[0]))


def test_compiling_on_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="C\\+\\+ compiler"):
        refuse_impossible(cell(compile=True), find(TINY[0]))


def test_channels_last_is_for_convolutional_networks():
    refuse_impossible(cell(model=TINY[1], memory_format="channels_last"), find(TINY[1]))
    assert is_convolutional(nn.Conv2d(4, 4, 3))
    assert not is_convolutional(nn.Conv2d(64, 3, 1))


def test_real_images_and_other_generators_without_a_network_are_refused():
    from visgen.baselines.statistical import PRESETS

    with pytest.raises(Unavailable, match="no network"):
        refuse_impossible(cell(model="real-images"), PRESETS["real-images"])
