"""What is released: one version, a quick import, a library without extras, files that name each other rightly."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import ptp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEMO_PICTURE = ROOT / "src/ptp/tiny/demo_pictures/coffee_1.jpg"


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, timeout=170)


def test_the_version_is_said_once():
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "src/ptp/__init__.py"}
    shown = python(
        "import sys; from ptp.cli import main; sys.argv = ['ptp', '--version']; main(); print('torch' in sys.modules)"
    )
    assert shown.stdout.splitlines() == [f"ptp {ptp.__version__}", "False"], shown.stderr
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest and newest[1] == ptp.__version__ == str(cited["version"])


def test_the_typed_example_runs():
    """`make lint` checks its types; the wheel carries the marker that lets others' checkers read them."""
    assert "tests/example_of_use.py" in PROJECT["tool"]["mypy"]["files"] and (ROOT / "src/ptp/py.typed").exists()
    result = subprocess.run([sys.executable, ROOT / "tests/example_of_use.py"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "(0, 0)\n", result.stderr


def test_importing_takes_less_than_a_tenth_of_a_second():
    timed = (
        "import time; start = time.perf_counter(); import ptp, sys; print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    runs = [python(timed).stdout.split() for _ in range(5)]
    assert min(float(seconds) for seconds, _ in runs) < 0.1 and {heavy for _, heavy in runs} == {"False"}


WITHOUT_EXTRAS = """
import sys
for name in ("scipy", "matplotlib", "gradio", "pyarrow", "sentencepiece"):
    sys.modules[name] = None  # as if it were not installed
sys.argv = ["ptp", *sys.argv[1:]]
import ptp.cli
ptp.cli.main()
"""


def test_run_draws_its_page_without_extras(tmp_path):
    asked = ["run", str(DEMO_PICTURE), "-q", "What is on the yellow circle?", "--html", "out.html", "--overlay", "out.png"]
    result = python(WITHOUT_EXTRAS, *asked, cwd=tmp_path)
    assert result.returncode == 0 and "208 -> 104 visual tokens" in result.stdout, result.stderr
    assert (tmp_path / "out.html").stat().st_size > 100_000 and (tmp_path / "out.png").exists()


@pytest.mark.parametrize("command", [["eval", "--samples", "2"], ["bench", "--out", "out.json"]])
def test_what_needs_an_extra_names_it_in_one_line(tmp_path, command):
    result = python(WITHOUT_EXTRAS, *command, cwd=tmp_path)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and len(lines) == 1 and not list(tmp_path.iterdir()), result.stderr
    assert "needs" in lines[0] and "matplotlib" in lines[0] and "pip install 'pyramid-token-pruning[eval]'" in lines[0]


def test_every_extra_that_is_named_exists():
    named = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for extras in re.findall(r"(?:pyramid-token-pruning|'\.)\[([\w,]+)\]", path.read_text()):
            named |= set(extras.split(","))
    assert named and named <= set(PROJECT["project"]["optional-dependencies"])


WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())


def runs(workflow: dict) -> list[str]:
    """Every command of a workflow, a line for each value of the matrix that it names."""
    found = []
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for command in (step["run"] for step in job["steps"] if "run" in step):
            names = re.findall(r"\$\{\{ matrix\.(\w+) \}\}", command)
            values = [(name, value) for name in names for value in matrix[name]]
            found += [command.replace(f"${{{{ matrix.{name} }}}}", value) for name, value in values] or [command]
    return found


def test_workflows_run_what_the_makefile_has():
    assert set(WORKFLOWS) == {"tests.yml", "publish.yml"}
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}, "a job that needs more says so itself"
        made = [target for command in runs(workflow) for target in re.findall(r"^make (\S+)", command)]
        assert made and set(made) <= TARGETS
    in_ci = re.findall(r"^make (\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert set(in_ci) <= {target for command in runs(WORKFLOWS["tests.yml"]) for target in re.findall(r"make (\S+)", command)}


def test_the_workflow_tests_every_python_that_the_package_takes():
    pythons = WORKFLOWS["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"] and PROJECT["project"]["requires-python"] == f">={pythons[0]}"


def test_a_tag_publishes_what_was_checked_without_a_token():
    jobs = WORKFLOWS["publish.yml"]["jobs"]
    assert WORKFLOWS["publish.yml"][True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    assert "make release-check PYTHON=python" in [step.get("run") for step in jobs["build"]["steps"]]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["steps"][-1] == {"uses": "pypa/gh-action-pypi-publish@release/v1"}
    (same,) = (step["run"] for step in jobs["build"]["steps"] if "GITHUB_REF_NAME" in step.get("run", ""))
    for tag, code in ((f"v{ptp.__version__}", 0), ("v9.9.9", 1)):
        assert (
            subprocess.run(["bash", "-c", same], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}).returncode
            == code
        )
