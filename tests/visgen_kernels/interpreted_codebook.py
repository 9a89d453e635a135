"""Runs the codebook kernel in Triton's interpreter and prints what it chose, judged, as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernel.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from visgen_kernels.codebook import nearest_code
from visgen_kernels.codebook_kernel import nearest_launch

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def draw(*shape: int, of: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(of))


def whole(high: int, *shape: int, of: int = 0) -> Tensor:
    """Integers -high .. high as float32."""
    generator = torch.Generator().manual_seed(of)
    return torch.randint(-high, high + 1, shape, generator=generator).float()


def distances(vectors: Tensor, codes: Tensor) -> Tensor:
    return (vectors.double()[..., None, :] - codes.double()).square().sum(-1)


def judged(vectors: Tensor, codes: Tensor, **options: Any) -> dict[str, Any]:
    """How far the chosen code is from the nearest, in units of what is allowed."""
    found = nearest_code(vectors, codes, implementation="triton", **options)
    every = distances(vectors, codes)
    least, first = every.min(-1)
    chosen = every.gather(-1, found[..., None])[..., 0]
    return {
        "excess": float(((chosen - least) / (least * 1e-5 + 1e-6)).max()),
        "same_as_exact": bool(torch.equal(found, first)),
        "dtype": str(found.dtype),
    }


def drawn() -> dict[str, Any]:
    sizes = ((1, 1, 1), (5, 3, 8), (130, 129, 24), (3, 300, 60), (2, 7, 256), (1, 40, 33))
    results = {f"{m} x {k} x {d}": judged(draw(m, d), draw(k, d, of=1)) for m, k, d in sizes}
    for name, dtype in HALVES.items():
        results[name] = judged(draw(20, 60).to(dtype), draw(140, 60, of=1).to(dtype))
        results[f"{name} vectors"] = judged(draw(20, 60).to(dtype), draw(140, 60, of=1))
        results[f"{name} codes"] = judged(draw(20, 60), draw(140, 60, of=1).to(dtype))
    results["ieee"] = judged(draw(70, 24), draw(70, 24, of=1), precision="ieee")
    results["axes"] = judged(draw(2, 3, 4, 10), draw(9, 10, of=1))
    results["columns last but strided"] = judged(draw(10, 30).mT, draw(9, 10, of=1))
    results["rows apart"] = judged(draw(30, 3, 24)[:, 1], draw(20, 2, 24, of=1)[:, 1])
    results["a base that is not aligned"] = judged(draw(241)[1:].view(10, 24), draw(20, 24, of=1))
    return results


def integers() -> dict[str, bool]:
    """Exact, ties included: of equal distances the lowest index."""
    results = {}
    for name, dtype in {"fp32": torch.float32, **HALVES}.items():
        vectors, codes = whole(3, 140, 5).to(dtype), whole(3, 150, 5, of=1).to(dtype)
        codes[100:] = codes[:50]  # duplicates
        results[name] = judged(vectors, codes)["same_as_exact"]
    same = torch.ones(40, 4)
    results["all equal"] = not nearest_code(same, same, implementation="triton").any()
    zeros = torch.zeros(300, 4)  # scores 0 and -0
    results["zeros"] = not nearest_code(zeros, -zeros, implementation="triton").any()
    return results


def shared() -> dict[str, bool]:
    """Programs that share the codes find what one alone finds, ties included."""
    vectors, codes = whole(2, 20, 6), whole(2, 700, 6, of=1)
    half = codes.square().sum(-1) * 0.5
    results = {}
    alone = None
    for multiprocessors in (1, 3, 100):
        best, launch = nearest_launch(
            vectors, codes, half, target="sm_90", precision="ieee", multiprocessors=multiprocessors
        )
        best.fill_(-1)  # every element has to be written
        launch.run()
        found = best.amin(0) & 0xFFFFFFFF
        alone = found if alone is None else alone
        results[f"{best.shape[0]} programs"] = bool(torch.equal(found, alone))
    results["exact"] = bool(torch.equal(alone, distances(vectors, codes).argmin(-1)))
    return results


def tiles() -> dict[str, bool]:
    """Every tile of every target finds the same."""
    vectors, codes = whole(3, 5, 40), whole(3, 200, 40, of=1)
    exact, results = distances(vectors, codes).argmin(-1), {}
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        for dtype in (torch.float32, torch.float16):
            given = vectors.to(dtype), codes.to(dtype)
            half = given[1].float().square().sum(-1) * 0.5
            best, launch = nearest_launch(
                *given, half, target=target, precision="ieee", multiprocessors=1
            )
            launch.run()
            results[f"{target} {dtype}"] = bool(torch.equal(best.amin(0) & 0xFFFFFFFF, exact))
    return results


def broken() -> dict[str, bool]:
    """A code that is not finite is never chosen."""
    vectors, codes = draw(30, 8), draw(20, 8, of=1)
    wanted = distances(vectors, codes)
    codes[3, 2], codes[7], codes[11, 0] = torch.nan, torch.inf, -torch.inf
    wanted[:, [3, 7, 11]] = torch.inf
    found = nearest_code(vectors, codes, implementation="triton")
    nowhere = nearest_code(vectors, torch.full((4, 8), torch.nan), implementation="triton")
    return {
        "others_are": bool(torch.equal(found, wanted.argmin(-1))),
        "none_left": not nowhere.any(),
        "no_vectors": nearest_code(vectors[:0], codes, implementation="triton").shape == (0,),
    }


if __name__ == "__main__":
    results = {
        "drawn": drawn(),
        "integers": integers(),
        "shared": shared(),
        "tiles": tiles(),
        "broken": broken(),
    }
    json.dump(results, sys.stdout)
