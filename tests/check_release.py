"""What is to be released, looked at and tried: `python tests/check_release.py dist` (`make release-check` builds it first).

The wheel is installed into an empty environment, without any extra, and used from an empty directory.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/ptp"
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "constraints.txt", "pyproject.toml", ".gitignore"}
"""What the sdist has beside the package; hatch adds .gitignore."""
LARGEST = 12_000_000
"""Bytes of the wheel: the embedded weights take 7.6 MB of it."""


def main(dist: Path) -> None:
    """Check the one wheel and the one sdist of a directory."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    version = version_of(PACKAGE / "__init__.py")
    require(f"-{version}-" in wheel.name and sdist.name.endswith(f"-{version}.tar.gz"), f"names of version {version}: {wheel}")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        use(wheel.resolve(), Path(folder), version)
    print(
        f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) and {sdist.name} ({sdist.stat().st_size / 1e6:.1f} MB) are fine."
    )


def version_of(path: Path) -> str:
    (version,) = re.findall(r'^__version__ = "(.*)"$', path.read_text(), re.MULTILINE)
    return version


def require(right: bool, what: str) -> None:
    if not right:
        sys.exit(f"Wrong release: {what}")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Both have what git tracks under src/ptp, and nothing that it does not track."""
    listed = subprocess.run(["git", "ls-files", "src/ptp"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    tracked = {path.removeprefix("src/") for path in listed}
    for needed in (
        "ptp/tiny/weights/model.safetensors",
        "ptp/tiny/photos/README.md",
        "ptp/py.typed",
        "ptp/report/page.html.j2",
    ):
        require(needed in tracked, f"{needed} is not tracked by git")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = {name for name in names if ".dist-info/" in name}
        (metadata,) = (archive.read(name).decode() for name in about if name.endswith("/METADATA"))
    require(names - about == tracked, f"the wheel has not what git has: {sorted((names - about) ^ tracked)}")
    require(any(name.endswith("/licenses/LICENSE") for name in about), "the wheel has no LICENSE")
    require(wheel.stat().st_size < LARGEST, f"the wheel has {wheel.stat().st_size} bytes")
    needs = {re.split(r"[^\w-]", line)[1] for line in re.findall(r"^Requires-Dist(: [^;]*)$", metadata, re.MULTILINE) if line}
    require(not needs & {"scipy", "matplotlib", "gradio", "pyarrow"}, f"the core asks for {sorted(needs)}")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    require(found == BESIDE | set(listed), f"the sdist has not what it should: {sorted(found ^ (BESIDE | set(listed)))}")


def use(wheel: Path, folder: Path, version: str) -> None:
    """Install the wheel into an empty environment and run it, from an empty directory, without a network."""
    venv.create(folder / "environment", with_pip=True)
    binaries, here = folder / "environment" / "bin", folder / "here"
    here.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    pinned = [str(binaries / "pip"), "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    for wanted in ("torch", str(wheel)):
        subprocess.run([*pinned, wanted], check=True, env=outside)
    offline = outside | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run([str(binaries / command[0]), *command[1:]], cwd=here, env=offline, capture_output=True, text=True)
        require(done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    require(run("ptp", "--version") == f"ptp {version}\n", "ptp --version")
    import_alone = "import ptp; model, processor = ptp.load(); print(ptp.__file__, type(model).__name__)"
    loaded = run("python", "-c", import_alone)
    require("site-packages" in loaded and "InternVLForConditionalGeneration" in loaded, f"ptp.load() gave {loaded}")
    picture = here / "picture.jpg"
    shutil.copy(PACKAGE / "tiny/demo_pictures/coffee_1.jpg", picture)
    shown = run("ptp", "run", picture.name, "-q", "What is on the yellow circle?", "--keep", "0.5")
    require("208 -> 104" in shown, f"ptp run printed {shown}")
    shown = run("ptp", "demo")
    require("20 % of tokens 9/9" in shown and (here / "demo.html").stat().st_size > 100_000, f"ptp demo printed {shown}")
    require("pip install 'pyramid-token-pruning[eval]'" in run("ptp", "eval", code=2), "ptp eval names no extra")
    require({path.name for path in here.iterdir()} == {"picture.jpg", "demo.html"}, "something else was written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
