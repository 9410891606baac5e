"""Which of lmms-eval's tasks belong together: the paper's benchmarks, and those that tell methods apart. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, as lmms-eval has it.

    Attributes:
        name: As papers call it.
        task: lmms-eval's.
        metrics: Of that task; summed where there are several. Empty: the first that lmms-eval gives.
        judge: Whether its answers are scored by a judge, a large model behind an interface that costs money.
        note: What a reader of its numbers should know.
    """

    name: str
    task: str
    metrics: tuple[str, ...] = ()
    judge: bool = False
    note: str = ""


PAPER = (
    Benchmark("VizWiz", "vizwiz_vqa_val", ("exact_match",)),
    Benchmark("POPE", "pope", ("pope_accuracy",)),
    Benchmark("GQA", "gqa", ("exact_match",)),
    Benchmark("AI2D", "ai2d", ("exact_match",)),
    Benchmark("MM-Vet", "mmvet", ("gpt_eval_score",), judge=True),
    Benchmark("SEED", "seedbench", ("seed_image",), note="the questions about pictures; those about videos are asked, too"),
    Benchmark("MME", "mme", ("mme_perception_score", "mme_cognition_score"), note="perception and cognition, summed"),
    Benchmark("MMBench", "mmbench_en_dev_static", ("gpt_eval_score",), note="English, dev; letters read by rule, no judge"),
    Benchmark("MMStar", "mmstar", ("average",)),
    Benchmark("RealWorldQA", "realworldqa", ("exact_match",)),
    Benchmark("TextVQA", "textvqa_val", ("exact_match",), note="probably one of the paper's thirteen"),
)
"""Ten of the thirteen of arXiv 2509.15704 are known by name, TextVQA is probable, two are unknown. The paper's table was not to
be had: of its numbers only a list is public that names neither model nor keep ratio, so none are compared with here."""

TELLING = (
    Benchmark("OCRBench", "ocrbench", ("ocrbench_accuracy",)),
    Benchmark("DocVQA", "docvqa_val", ("anls",)),
    Benchmark("ChartQA", "chartqa", ("relaxed_overall",)),
    Benchmark("InfoVQA", "infovqa_val", ("anls",)),
    Benchmark("RefCOCO", "refcoco_bbox_rec_val", ("refcoco_ACC@0.5",), note="needs pycocotools and pycocoevalcap"),
)
"""Where small evidence decides, and careless pruning shows."""

SUITES = {"paper": PAPER, "telling": TELLING}
PUBLISHED: dict[tuple[str, str, float], tuple[float, str]] = {}
"""(benchmark, method as it is written here, keep ratio): a number of the paper, and where it stands. None is known."""


def benchmarks(text: str) -> list[Benchmark]:
    """Suites and tasks of lmms-eval by their names, comma-separated, each benchmark once.

    Raises:
        ValueError: a name is empty.
    """
    found: dict[str, Benchmark] = {}
    for name in (part.strip() for part in text.split(",")):
        if not name:
            raise ValueError(f"--suite must be {', '.join(SUITES)}, or tasks of lmms-eval, comma-separated, got {text!r}.")
        for one in SUITES.get(name, (known(name),)):
            found.setdefault(one.task, one)
    return list(found.values())


def known(task: str) -> Benchmark:
    """The benchmark of a task; one without metrics where no suite has it."""
    every = {one.task: one for suite in SUITES.values() for one in suite}
    return every.get(task, Benchmark(task, task))
