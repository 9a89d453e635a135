import subprocess
import sys


def test_metrics_import_no_package_they_may_never_need() -> None:
    heavy = "torchmetrics torchvision torch_fidelity sklearn scipy pandas transformers timm prdc"
    code = (
        "import sys\n"
        "import visgen_bench.metrics.evaluation, visgen_bench.extractors.judge\n"
        "import visgen_bench.extractors.lite0, visgen_bench.extractors.inception\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
