"""Every metric's name, label, unit and direction, in one table.

A number without an entry here cannot be written to `metrics`. Raw series (`measurements`) may carry
any lower-case name, because training curves are named by the objective that makes them.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """What a metric is. `higher_is_better` is None where neither direction is better.

    `other_units` lists units a row may carry instead of `unit` (throughput counts what the task
    makes). `proxy` marks numbers that only compare inside one table, never with published ones;
    `exact` marks counts, which have no interval because nothing is estimated.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    description: str
    other_units: tuple[str, ...] = ()
    proxy: bool = False
    exact: bool = False


class UnknownMetric(ValueError):
    """A metric name that is in no table."""


UP, DOWN, NEITHER = True, False, None

_QUALITY = (
    MetricInfo("fid", "FID", "1", DOWN, "Frechet distance of 2015 Inception pool3 features"),
    MetricInfo("kid", "KID", "1", DOWN, "kernel distance (MMD^2) of 2015 Inception features"),
    MetricInfo("isc", "IS", "1", UP, "Inception Score: exp of mean KL(p(y|x) || p(y))"),
    MetricInfo(
        "fd_lite0",
        "FD-lite0",
        "1",
        DOWN,
        "Frechet distance of EfficientNet-Lite0 features",
        proxy=True,
    ),
    MetricInfo(
        "kid_lite0",
        "KD-lite0",
        "1",
        DOWN,
        "kernel distance of EfficientNet-Lite0 features",
        proxy=True,
    ),
    MetricInfo("precision", "precision", "1", UP, "share of samples inside the real manifold"),
    MetricInfo("recall", "recall", "1", UP, "share of real images inside the samples' manifold"),
    MetricInfo("density", "density", "1", UP, "real balls that hold a sample, averaged, over k"),
    MetricInfo("coverage", "coverage", "1", UP, "share of real balls that hold a sample"),
    MetricInfo("digit_classes", "digit classes", "1", UP, "digits with at least 2 % of samples"),
    MetricInfo("digit_confident", "confident digits", "1", UP, "share classified above 0.9"),
    MetricInfo("copy_share", "copies", "1", DOWN, "share of samples too close to a training image"),
    MetricInfo("bits_per_dim", "bits/dim", "bit", DOWN, "negative log2 likelihood per value"),
    MetricInfo("bpd_bound", "bits/dim (bound)", "bit", DOWN, "upper bound on bits per value"),
    MetricInfo("top1", "top-1", "1", UP, "share of right first answers"),
    MetricInfo("cider_d", "CIDEr-D", "1", UP, "caption consensus over tf-idf n-grams"),
    MetricInfo("tuple_f1", "tuple F1", "1", UP, "F1 of the facts named in a caption"),
)

# Of clips. Which way of preparing them an FVD goes by is in its name and its protocol's id.
_VIDEO = (
    MetricInfo("fvd", "FVD", "1", DOWN, "Frechet distance of I3D-Kinetics-400 logits"),
    MetricInfo("fvd_videogpt", "FVD (VideoGPT)", "1", DOWN, "FVD as VideoGPT's code computes it"),
    MetricInfo(
        "fvd_styleganv", "FVD (StyleGAN-V)", "1", DOWN, "FVD as StyleGAN-V's code computes it"
    ),
    MetricInfo("fvd_cdfvd", "FVD (cd-fvd)", "1", DOWN, "FVD as the package cd-fvd computes it"),
    MetricInfo("r_fvd", "R-FVD", "1", DOWN, "FVD of a tokenizer's reconstructions, VideoGPT's way"),
    MetricInfo(
        "fvd_star",
        "FVD to reconstructions",
        "1",
        DOWN,
        "VideoGPT's FVD*: between samples and a tokenizer's reconstructions of real clips",
    ),
    MetricInfo(
        "fvd_lite0_frames",
        "FD-lite0 clips",
        "1",
        DOWN,
        "Frechet distance of EfficientNet-Lite0 features of frames and of their change",
        proxy=True,
    ),
    MetricInfo(
        "r_fvd_lite0_frames",
        "R-FD-lite0 clips",
        "1",
        DOWN,
        "the same between a tokenizer's reconstructions and the real clips",
        proxy=True,
    ),
    MetricInfo(
        "fvd_star_lite0_frames",
        "FD-lite0 clips to reconstructions",
        "1",
        DOWN,
        "the same between samples and a tokenizer's reconstructions of real clips",
        proxy=True,
    ),
    MetricInfo("fid_frames", "FID of frames", "1", DOWN, "FID over every frame of the clips"),
    MetricInfo(
        "fd_lite0_frames",
        "FD-lite0 frames",
        "1",
        DOWN,
        "Frechet distance of EfficientNet-Lite0 features over every frame",
        proxy=True,
    ),
    MetricInfo("isc_video", "IS (C3D)", "1", UP, "Inception Score from C3D's UCF-101 classes"),
    MetricInfo("psnr", "PSNR", "dB", UP, "peak signal to noise ratio of predicted frames"),
    MetricInfo("ssim", "SSIM", "1", UP, "structural similarity of predicted frames"),
    MetricInfo(
        "psnr_reconstruction",
        "PSNR of reconstructions",
        "dB",
        UP,
        "peak signal to noise ratio of a tokenizer's reconstructions",
    ),
    MetricInfo(
        "ssim_reconstruction",
        "SSIM of reconstructions",
        "1",
        UP,
        "structural similarity of a tokenizer's reconstructions",
    ),
    MetricInfo(
        "diversity",
        "diversity",
        "1",
        NEITHER,
        "mean difference of two draws under one condition, 0..255",
    ),
    MetricInfo(
        "flicker", "flicker", "1", NEITHER, "mean difference of successive frames, 0..255; ours"
    ),
    MetricInfo("action_accuracy", "actions obeyed", "1", UP, "share of clips that do as told"),
    MetricInfo("class_obeyed", "class obeyed", "1", UP, "share of clips of the class asked for"),
    MetricInfo(
        "caption_obeyed", "caption obeyed", "1", UP, "share of clips that show what they are told"
    ),
    MetricInfo(
        "class_obeyed_reconstruction",
        "class in reconstructions",
        "1",
        UP,
        "share of a tokenizer's reconstructions of the class of the real clip",
    ),
    MetricInfo(
        "caption_obeyed_reconstruction",
        "caption in reconstructions",
        "1",
        UP,
        "share of a tokenizer's reconstructions that show what the real clip is said to",
    ),
    MetricInfo(
        "action_accuracy_reconstruction",
        "actions in reconstructions",
        "1",
        UP,
        "share of steps of a tokenizer's reconstructions that go as the real clip's",
    ),
    MetricInfo("nats_per_code", "nats/code", "nat", DOWN, "negative log likelihood per code"),
    MetricInfo(
        "code_share",
        "nats/code over entropy",
        "1",
        DOWN,
        "negative log likelihood per code over the entropy of the codes' frequencies",
    ),
    MetricInfo(
        "code_entropy",
        "entropy of codes",
        "nat",
        NEITHER,
        "of the codes' frequencies in real clips",
    ),
    MetricInfo("code_usage", "code usage", "1", UP, "share of the codebook that is used"),
    MetricInfo(
        "variance_left",
        "variance left",
        "1",
        DOWN,
        "squared error of a tokenizer's reconstructions over the variance of the real clips",
    ),
)

_PERFORMANCE = (
    MetricInfo(
        "throughput",
        "throughput",
        "img/s",
        UP,
        "samples per second of wall time, steady state",
        other_units=("clips/s", "clip/s", "frame/s", "token/s", "step/s", "1/s"),
    ),
    MetricInfo("latency", "latency", "s", DOWN, "time of one call"),
    MetricInfo("clip_seconds", "time per clip", "s", DOWN, "of steady throughput"),
    MetricInfo("frame_rate", "frame rate", "frame/s", UP, "frames drawn per second"),
    MetricInfo("token_rate", "code rate", "token/s", UP, "codes drawn per second"),
    MetricInfo("mem_cache", "key and value cache", "B", DOWN, "of the batch that is drawn"),
    MetricInfo(
        "first_frame",
        "first frame",
        "s",
        DOWN,
        "time to a preview: the first latent step drawn and decoded",
    ),
    MetricInfo("mem_alloc_peak", "peak allocated", "B", DOWN, "live tensors on the device, peak"),
    MetricInfo("mem_reserved_peak", "peak reserved", "B", DOWN, "allocator segments, peak"),
    MetricInfo("mem_device_used_peak", "peak used on device", "B", DOWN, "all users, peak"),
    MetricInfo("mem_process_used_peak", "peak used by process", "B", DOWN, "own process, peak"),
    MetricInfo("mem_host_peak", "peak host memory", "B", DOWN, "resident set of the worker, peak"),
    MetricInfo(
        "mem_params", "parameters in memory", "B", DOWN, "bytes of all parameters", exact=True
    ),
    MetricInfo("mem_buffers", "buffers in memory", "B", DOWN, "bytes of all buffers", exact=True),
    MetricInfo(
        "flops",
        "FLOPs",
        "FLOP",
        NEITHER,
        "multiply and add counted as 2, visible pairs",
        exact=True,
    ),
    MetricInfo(
        "flops_dense", "FLOPs (dense)", "FLOP", NEITHER, "as if every pair were visible", exact=True
    ),
    MetricInfo("mfu", "MFU", "1", UP, "share of the device's dense peak, from `flops`"),
    MetricInfo(
        "params",
        "parameters",
        "1",
        NEITHER,
        "trainable values; the phase names the part",
        exact=True,
    ),
    MetricInfo("energy_j", "energy", "J", DOWN, "energy of the device over the window"),
    MetricInfo("energy_j_per_sample", "energy per sample", "J", DOWN, "device energy per sample"),
    MetricInfo("power_w_mean", "mean power", "W", DOWN, "mean power of the device"),
    MetricInfo("power_w_idle", "idle power", "W", DOWN, "power of the device before load"),
    MetricInfo(
        "outlier_frac", "outliers", "1", DOWN, "share of times beyond 1.5 IQR; all are kept"
    ),
    MetricInfo("process_start", "process start", "s", DOWN, "time until a worker can begin"),
    MetricInfo("model_build", "model build", "s", DOWN, "time to construct the model"),
    MetricInfo("to_device", "move to device", "s", DOWN, "time to move weights to the device"),
    MetricInfo("compile_time", "compile", "s", DOWN, "first compiled call minus the second"),
    MetricInfo("first_call", "first call", "s", DOWN, "time of the very first call"),
    MetricInfo("warmup", "warm-up", "s", NEITHER, "time until times settled"),
    MetricInfo("bs_found", "largest batch", "1", UP, "largest batch that fits"),
)

_TRAINING = (
    MetricInfo("train_steps", "steps", "1", NEITHER, "optimiser steps done"),
    MetricInfo("train_seconds", "training time", "s", NEITHER, "wall time spent in training"),
    MetricInfo("loss", "loss", "1", DOWN, "training objective"),
    MetricInfo("d_loss", "D loss", "1", NEITHER, "discriminator's objective"),
    MetricInfo("g_loss", "G loss", "1", NEITHER, "generator's objective"),
    MetricInfo("gradient_norm", "gradient norm", "1", NEITHER, "norm before clipping"),
    MetricInfo("learning_rate", "learning rate", "1", NEITHER, "step size in use"),
)

# Signs that a cell's input or output is not as it should be: rows that are there only if seen, with
# what is wrong in `reason`.
_FAULTS = (
    MetricInfo(
        "broken_files",
        "broken files",
        "1",
        DOWN,
        "files of a data set that could not be used; `metric_opts` names them",
        exact=True,
    ),
    MetricInfo(
        "short_files",
        "short files",
        "1",
        DOWN,
        "videos with fewer frames than a clip needs, left out; `metric_opts` names them",
        exact=True,
    ),
    MetricInfo(
        "uneven_files",
        "uneven files",
        "1",
        DOWN,
        "videos whose frames are unevenly far apart in time; `metric_opts` names them",
        exact=True,
    ),
    MetricInfo(
        "repeated_samples",
        "repeated samples",
        "1",
        DOWN,
        "samples that are the same picture as an earlier one",
        exact=True,
    ),
    MetricInfo(
        "redraw_difference",
        "difference when drawn again",
        "1",
        DOWN,
        "of the same seeds, as a share of the difference between samples; 0 = seeds decide all",
    ),
)

# Of one kernel on one target. `phase` says of what: `code` is the whole machine code, `interior`
# and `boundary` are its main loops, `interior/fma` is a pipe in one, `h100-sxm` is a device,
# `h100-sxm/mma` a limit of it. What a model says carries predicted=true.
_KERNELS = (
    MetricInfo("registers", "registers", "1", NEITHER, "registers of a thread", exact=True),
    MetricInfo(
        "stack", "stack", "B", DOWN, "local memory of a thread; above 0: spills", exact=True
    ),
    MetricInfo("spilled_registers", "spilled registers", "1", DOWN, "as AMD says it", exact=True),
    MetricInfo(
        "local_accesses", "local accesses", "1", DOWN, "loads and stores of spills", exact=True
    ),
    MetricInfo("shared_memory", "shared memory", "B", NEITHER, "of one block", exact=True),
    MetricInfo(
        "shared_memory_free", "shared memory left", "B", UP, "below 0: does not fit", exact=True
    ),
    MetricInfo("resident_blocks", "resident blocks", "1", UP, "of one multiprocessor", exact=True),
    MetricInfo(
        "occupancy", "occupancy", "1", UP, "resident warps of the most that fit", exact=True
    ),
    MetricInfo("instructions", "instructions", "1", DOWN, "one warp's, each once", exact=True),
    MetricInfo(
        "matrix_instructions", "matrix instructions", "1", NEITHER, "one warp's", exact=True
    ),
    MetricInfo("exp_instructions", "exponentials", "1", NEITHER, "one warp's", exact=True),
    MetricInfo("atomics", "atomics", "1", DOWN, "0: sums have a fixed order", exact=True),
    MetricInfo(
        "bulk_copies", "bulk copies", "1", NEITHER, "by the tensor memory accelerator", exact=True
    ),
    MetricInfo(
        "wide_share",
        "wide loads",
        "1",
        UP,
        "of bytes of q, k, v and the like (phase code: loaded, code/stores: stored), the share in "
        "accesses as wide as their strides allow",
        exact=True,
    ),
    MetricInfo(
        "instructions_per_score", "instructions/score", "1", DOWN, "lanes', of a loop", exact=True
    ),
    MetricInfo("exp_per_score", "exp/score", "1", DOWN, "above 1.1: repeated work", exact=True),
    MetricInfo(
        "repeated_work",
        "repeated work",
        "1",
        DOWN,
        "matrix FLOPs of a loop over needed",
        exact=True,
    ),
    MetricInfo("programs", "programs", "1", NEITHER, "size of the grid", exact=True),
    MetricInfo("passes", "passes", "1", NEITHER, "of a program through a loop, mean", exact=True),
    MetricInfo("bytes_least", "least bytes", "B", NEITHER, "every tensor moved once", exact=True),
    MetricInfo("exp_least", "least exponentials", "1", NEITHER, "one a visible score", exact=True),
    MetricInfo("cycles_per_pass", "cycles/pass", "cycle", DOWN, "issue model, of one block"),
    MetricInfo("floor_time", "floor", "s", DOWN, "what the binding limit takes"),
    MetricInfo("predicted_time", "predicted", "s", DOWN, "model of the kernel's time"),
    MetricInfo("waves", "waves", "1", NEITHER, "fillings of the device"),
    MetricInfo("tail", "tail", "1", DOWN, "share of places of the waves left empty"),
)

# Of one attention call that was timed, and of what attention is worth to a model. `phase` names the
# tensor of an error, the ceiling of a share, the side that a speed-up is over.
_KERNEL_RUNS = (
    MetricInfo("mem_extra_peak", "extra memory", "B", DOWN, "peak above what was there before"),
    MetricInfo(
        "flops_executed",
        "FLOPs executed",
        "FLOP",
        NEITHER,
        "with padding and recomputation",
        exact=True,
    ),
    MetricInfo("flop_rate", "FLOP/s", "FLOP/s", UP, "FLOPs of visible pairs over the median time"),
    MetricInfo("byte_rate", "B/s", "B/s", UP, "least bytes over the median time"),
    MetricInfo("ceiling_share", "share of ceiling", "1", UP, "the ceiling's time over the median"),
    MetricInfo("speedup", "speed-up", "1", UP, "the other side's time over this one's, paired"),
    MetricInfo("error_max", "largest error", "1", DOWN, "max |x - float64|"),
    MetricInfo("error_frobenius", "relative error", "1", DOWN, "Frobenius norms, over float64's"),
    MetricInfo("error_ratio", "error ratio", "1", DOWN, "over the definition's in the same dtype"),
    MetricInfo(
        "deterministic", "deterministic", "1", UP, "1 = two runs gave the same bits", exact=True
    ),
    MetricInfo("attention_share", "attention's share", "1", NEITHER, "of the time of a phase"),
    MetricInfo(
        "attention_memory_share",
        "attention's share of the peak",
        "1",
        NEITHER,
        "bytes that attention's operators had allocated when memory was highest",
    ),
    MetricInfo("attention_calls", "attention calls", "1", NEITHER, "of one phase", exact=True),
    MetricInfo("kernel_speedup", "kernel's speed-up", "1", UP, "of ours over this attention's"),
    MetricInfo("gain_predicted", "gain predicted", "1", UP, "Amdahl, of ours over this one"),
    MetricInfo("gain_observed", "gain observed", "1", UP, "of ours over this one, end to end"),
)

_NOT_QUALITY = (*_PERFORMANCE, *_TRAINING, *_FAULTS, *_KERNELS, *_KERNEL_RUNS)
METRICS: dict[str, MetricInfo] = {m.name: m for m in (*_QUALITY, *_VIDEO, *_NOT_QUALITY)}
QUALITY = tuple(m.name for m in (*_QUALITY, *_VIDEO))
NOT_QUALITY = frozenset(m.name for m in _NOT_QUALITY)
FAULTS = tuple(m.name for m in _FAULTS)

GATE_PREFIX = "gate_"


def add(metric: MetricInfo) -> None:
    """Enter a plug-in's metric; raises `ValueError` if the name already means another one."""
    known = METRICS.get(metric.name)
    if known is not None and known != metric:
        raise ValueError(
            f"metric {metric.name!r} is already {known.label!r} ({known.description}); "
            "give the plug-in's metric its own name."
        )
    METRICS[metric.name] = metric


def info(name: str) -> MetricInfo:
    """The entry of a metric; `gate_NAME` is 1 (passed) or 0. Raises `UnknownMetric`."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith(GATE_PREFIX) and len(name) > len(GATE_PREFIX):
        gate = name.removeprefix(GATE_PREFIX)
        return MetricInfo(name, f"gate: {gate.replace('_', ' ')}", "1", UP, f"1 = {gate} passed")
    near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
    raise UnknownMetric(
        f"unknown metric {name!r}; nearest: {near[0]!r} (see visgen_results.metrics)"
    )


def describe(name: str) -> MetricInfo:
    """As `info`, for readers: a name from another version or plug-in is shown as it is."""
    try:
        return info(name)
    except UnknownMetric:
        return MetricInfo(name, name, "", NEITHER, "not in this version's table")
