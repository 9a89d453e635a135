"""Train cells: recipe in, weights and curves out; a kill changes nothing, NaN ends it."""

import signal
from pathlib import Path

from visgen_results.rows import to_rows
from visgen_results.store import Store

RECIPE = {"objective": "'nonsaturating'", "steps": 4, "batch": 4, "ema": 0.9}


def train(model: str = "dcgan-digits8-tiny", **recipe: object) -> str:
    fields = ", ".join(f"{key} = {value}" for key, value in {**RECIPE, **recipe}.items())
    return (
        f'[[cell]]\nkind = "train"\nmodel = "{model}"\ndata = "digits:8"\n'
        f"log_every = 1\ncheckpoint_every = 2\nrecipe = {{ {fields} }}\n"
    )


QUALITY = (
    '[[cell]]\nkind = "quality"\nmodel = "dcgan-digits8-tiny"\ndata = "digits:8"\n'
    'weights = "train:dcgan-digits8-tiny"\nsamples = 8\nmetrics = ["copy_share"]\n'
)

# DCGAN that waits at a pipe in the generator's fourth training call.
BLOCKING = """
import os
from dataclasses import dataclass
from visgen.baselines.dcgan import DCGANConfig

@dataclass(frozen=True, kw_only=True)
class BlockingConfig(DCGANConfig):
    def build(self, attention=None):
        model, calls = super().build(attention), []

        def wait(module, inputs):
            if module.training:
                calls.append(1)
                if len(calls) == 7 and os.path.exists({pipe!r}):
                    open({pipe!r}, "rb").read()

        model.generator.register_forward_pre_hook(wait)
        return model

PRESETS = {{"blocking": BlockingConfig(bottom=2, doublings=2, width=8, latent=8)}}
"""


def rows(out: Path, table: str) -> list[dict]:
    return sorted(to_rows(Store(out).read(table)), key=lambda row: row["run_id"])


def test_training_leaves_weights_curves_and_sizes(bench) -> None:
    bench.run(train(), in_process=True)
    (run,) = rows(bench.out, "runs")
    assert run["status"] == "ok"
    weights = bench.out / run["artifacts_path"] / "weights.safetensors"
    from visgen.checkpoints import sha256_of

    assert run["weights_sha256"] == sha256_of(weights)
    curve = [r for r in rows(bench.out, "measurements") if r["metric"] == "loss"]
    steps = [r["iter"] for r in curve if r["phase"] == "generator"]
    assert steps == [1, 2, 3, 4]
    assert {r["phase"] for r in curve} == {"generator", "discriminator"}
    parts = {r["phase"] for r in rows(bench.out, "metrics") if r["metric"] == "params"}
    assert parts == {"generator", "discriminator"}
    assert not list(bench.out.glob("state/*/*"))


def test_a_quality_cell_scores_what_its_train_cell_made(bench) -> None:
    summary = bench.run(train() + QUALITY, in_process=True)
    assert summary.exit_code == 0
    trained, scored = rows(bench.out, "runs")
    assert scored["weights_sha256"] == trained["weights_sha256"]
    assert scored["weights"] == f"train:{trained['cell_key']}"
    # Weights that are trained again make the score stale.
    bench.run(train(), in_process=True, rerun="all")
    plan = bench.plan(train() + QUALITY)
    assert [cell.action for cell in plan.cells] == ["done", "done"]
    assert plan.cells[1].stale is None, "training is exact: the same weights came out"


def test_a_score_is_stale_when_its_weights_are_others_now(bench) -> None:
    bench.run(train() + QUALITY, in_process=True)
    store = Store(bench.out)
    (trained, _) = rows(bench.out, "runs")
    from visgen_results.store import new_run_id

    newer = {**trained, "run_id": new_run_id(), "weights_sha256": "0" * 64}
    store.append("runs", [newer], kind="train", run_id=newer["run_id"])
    plan = bench.plan(train() + QUALITY)
    assert plan.cells[1].stale == "its weights were trained again since"
    assert bench.plan(train() + QUALITY, rerun="stale").cells[1].action == "run"


def test_a_failed_training_skips_what_needs_it(bench) -> None:
    summary = bench.run(train(lr_g=1e30, lr_d=1e30, clip=1e30) + QUALITY, in_process=True)
    trained, scored = rows(bench.out, "runs")
    assert (trained["status"], scored["status"]) == ("invalid", "skipped")
    assert "train cell ended as invalid" in scored["invalid_reason"]
    assert summary.exit_code == 1


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_good_weights(bench) -> None:
    text = train(lr_g=1e30, lr_d=1e30, clip=1e30, steps=400)
    bench.run(text, in_process=True)
    (run,) = rows(bench.out, "runs")
    assert run["status"] == "invalid"
    assert "not finite" in run["invalid_reason"] or "step" in run["invalid_reason"]
    nulls = [r for r in rows(bench.out, "metrics") if r["value"] is None]
    assert all(r["reason"] for r in nulls)


def test_training_that_was_killed_ends_with_the_same_weights(bench) -> None:
    file = bench.folder / "blocking.py"
    file.write_text(BLOCKING.format(pipe=str(bench.pipe)))
    text = train("blocking")
    import os

    thread = bench.when_blocked(lambda pid: os.kill(pid, signal.SIGKILL))
    bench.run(text, include=(file,))
    thread.join()
    bench.pipe.unlink()
    bench.run(text, include=(file,))
    killed, resumed = rows(bench.out, "runs")
    assert (killed["status"], killed["signal"]) == ("crash", signal.SIGKILL)
    assert resumed["status"] == "ok"
    logged = [
        r["iter"]
        for r in rows(bench.out, "measurements")
        if r["run_id"] == resumed["run_id"] and r["metric"] == "loss" and r["phase"] == "generator"
    ]
    assert logged == [3, 4], "the second attempt began where the checkpoint was"
    bench.run(text, include=(file,), rerun="all")
    straight = rows(bench.out, "runs")[-1]
    assert straight["weights_sha256"] == resumed["weights_sha256"]
