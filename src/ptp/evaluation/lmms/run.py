"""Running lmms-eval's tasks in this process, on a model that is loaded once. lmms-eval is imported when it is first needed."""

import argparse
import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...pruner import Pruner
from .suites import Benchmark

MISSING = "The benchmarks run in lmms-eval. Install it with: pip install 'pyramid-token-pruning[lmms]'"
RESAMPLES = 1000
"""Of lmms-eval's bootstrap for the standard errors that it gives; with its own 100,000 POPE's scoring takes half a minute."""


class Bench:
    """lmms-eval around one model.

    Args:
        include: A directory of task descriptions of one's own.
        limit: Questions of each task at most.
        folder: Where tasks may write what they would submit.

    Raises:
        ValueError: lmms-eval is not installed.
    """

    def __init__(
        self, model: Any, processor: Any, include: Path | None, limit: int | None, batch_size: int, folder: Path
    ) -> None:
        try:
            import lmms_eval
            from lmms_eval.tasks import TaskManager
            from loguru import logger
        except ImportError as error:
            raise ValueError(f"{MISSING} ({error})") from error
        from .model import PtpModel

        class Kept(PtpModel):
            """It stays loaded from task to task: lmms-eval would let go of it after each."""

            def clean(self) -> None:
                self.task_dict.clear()

        logger.remove()  # what goes wrong comes out as an exception
        self.version = getattr(lmms_eval, "__version__", None) or _version("lmms-eval")
        self.limit, self.folder, self.model = limit, folder, Kept.of(model, processor, batch_size)
        paths = str(include) if include else None
        self.tasks = TaskManager("ERROR", include_path=paths, model_name="ptp")

    def check(self, benchmark: Benchmark) -> None:
        """Raise ValueError unless lmms-eval has the task."""
        if benchmark.task not in self.tasks.all_tasks:
            raise ValueError(f"lmms-eval has no task {benchmark.task!r}. `lmms-eval tasks` lists what it has; check --suite.")

    def run(self, benchmark: Benchmark, pruner: Pruner | None, advance: Callable[[int], None]) -> dict[str, Any]:
        """Score one benchmark.

        Args:
            pruner: None prunes nothing.
            advance: Called with the number of questions after each batch.

        Returns:
            "score" (in lmms-eval's own scale), "metrics" (all that it gives), "spent" (as `model.Spent`), "config" and
            "versions" (what repeats it).

        Raises:
            ValueError: the task gives no such metric.
        """
        from lmms_eval.evaluator import simple_evaluate

        lent = self.model
        lent.pruner, lent.advance = pruner, advance
        lent.spent.clear()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # tasks print, and draw bars
            results = simple_evaluate(
                model=lent,
                tasks=[benchmark.task],
                limit=self.limit,
                task_manager=self.tasks,
                batch_size=lent.batch_size,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                cli_args=argparse.Namespace(output_path=str(self.folder), process_with_media=False),
                verbosity="ERROR",
            )
        metrics = {name: value for name, value in results["results"][benchmark.task].items() if _number(value)}
        plain = json.loads(json.dumps(results["configs"].get(benchmark.task, {}), default=str))
        return {
            "score": score(benchmark, metrics),
            "metrics": metrics,
            "spent": asdict(lent.spent[benchmark.task]),
            "config": plain,
            "versions": {"lmms-eval": self.version, "task": results["versions"].get(benchmark.task)},
        }


def score(benchmark: Benchmark, metrics: dict[str, float]) -> float:
    """A benchmark's score: its metrics, summed, whatever filter lmms-eval applied.

    Raises:
        ValueError: one is not there.
    """
    found = {name.split(",")[0]: value for name, value in reversed(metrics.items()) if "_stderr" not in name}
    wanted = benchmark.metrics or tuple(found)[-1:]
    missing = [name for name in wanted if name not in found]
    if missing or not wanted:
        raise ValueError(f"Task {benchmark.task!r} gives {', '.join(found) or 'no number'}, not {', '.join(missing)}.")
    return sum(found[name] for name in wanted)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
