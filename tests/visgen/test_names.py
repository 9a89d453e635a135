"""Thirty slips and wrong guesses, with what a reader would take them for; nothing is guessed."""

import pytest

from visgen.names import close, hint, hint_or_list

MODELS = (
    "transgan-cifar10", "transgan-stl10", "transgan-digits8-tiny", "transgan-digits16-tiny",
    "dcgan-cifar10", "dcgan-stl10", "dcgan-digits8-tiny", "real-images", "independent-pixels",
    "pca20-gaussian",
)  # fmt: skip
METRICS = (
    "fid", "kid", "isc", "fd_lite0", "kid_lite0", "precision", "recall", "density", "coverage",
    "digit_classes", "digit_confident", "copy_share",
)  # fmt: skip
DATA = ("digits:8", "digits:16", "digits:32", "folder:PATH", "cifar10", "stl10", "stl10:48")
SUITES = ("all", "images", "learn", "quick", "published/transgan")
KEYS = (
    "attention", "batch", "checkpoint_every", "chunk", "compile", "data", "device", "dtype",
    "images", "kind", "log_every", "memory_format", "metrics", "model", "phase", "recipe",
    "samples", "seed", "split", "threads", "timeout_s", "weights",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "known", "meant"),
    [
        ("transgan-digit8-tiny", MODELS, "transgan-digits8-tiny"),
        ("transgan-cifar", MODELS, "transgan-cifar10"),
        ("transgan_cifar10", MODELS, "transgan-cifar10"),
        ("DCGAN-CIFAR10", MODELS, "dcgan-cifar10"),
        ("pca", MODELS, "pca20-gaussian"),
        ("gaussian", MODELS, "pca20-gaussian"),
        ("real", MODELS, "real-images"),
        ("FID", METRICS, "fid"),
        ("fid50k", METRICS, "fid"),
        ("fd-lite0", METRICS, "fd_lite0"),
        ("kd_lite0", METRICS, "kid_lite0"),
        ("prec", METRICS, "precision"),
        ("rec", METRICS, "recall"),
        ("is", METRICS, "isc"),
        ("digits8", DATA, "digits:8"),
        ("cifar-10", DATA, "cifar10"),
        ("stl-10", DATA, "stl10"),
        ("quik", SUITES, "quick"),
        ("image", SUITES, "images"),
        ("transgan", SUITES, "published/transgan"),
        ("batch_size", KEYS, "batch"),
        ("n_samples", KEYS, "samples"),
        ("smaples", KEYS, "samples"),
        ("seeds", KEYS, "seed"),
        ("dataset", KEYS, "data"),
        ("checkpoint", KEYS, "checkpoint_every"),
    ],
)
def test_what_was_meant_comes_alone(given: str, known: tuple[str, ...], meant: str) -> None:
    assert close(given, known) == (meant,)
    assert hint(given, known) == f'; nearest: "{meant}"'


@pytest.mark.parametrize(
    ("given", "known"),
    [
        *((name, MODELS) for name in ("stylegan2", "ddpm", "vit", "gpt2", "noise", "x")),
        *((name, METRICS) for name in ("lpips", "clip", "psnr", "fvd")),
        *((name, DATA) for name in ("mnist", "imagenet", "lsun")),
        *((name, SUITES) for name in ("fast", "train")),
        *((name, KEYS) for name in ("gpu", "lr", "precision")),
    ],
)
def test_what_is_like_nothing_gets_no_suggestion(given: str, known: tuple[str, ...]) -> None:
    assert close(given, known) == ()
    assert hint(given, known) == ""
    assert hint_or_list(given, known) == f"; there are {', '.join(known)}"


def test_several_that_fit_are_all_named() -> None:
    assert close("transgan", MODELS) == MODELS[:3]
    assert close("cifar10", MODELS) == ("transgan-cifar10", "dcgan-cifar10")
    assert close("digits", DATA) == DATA[:3]
    assert hint("cifar10", MODELS) == '; nearest: "transgan-cifar10", "dcgan-cifar10"'


def test_nothing_is_known() -> None:
    assert close("a", ()) == ()
    assert hint_or_list("a", ()) == "; there are none"
