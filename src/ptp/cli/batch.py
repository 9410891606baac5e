"""`ptp batch`: a file of questions answered by a pool of workers, pruned."""

import contextlib
import dataclasses
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..methods.parsing import parse_variant
from . import INTERRUPTED, stop
from .options import build_pruner, model_identity

MISSING = "ptp batch needs Ray Data. Install it with: pip install 'pyramid-token-pruning[ray]'"


def batch(
    data: Annotated[Path, typer.Argument(help="Parquet with columns image (a path, bytes, or several), question, perhaps id.")],
    out: Annotated[Path, typer.Option(help="Folder of answers; the same command goes on where it was stopped.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id; default: the embedded ptp-tiny.")] = None,
    method: Annotated[str, typer.Option(help="Pruning method; fastv:prune_layer=1 sets a setting.")] = "pyramid",
    keep: Annotated[float, typer.Option(help="Share of visual tokens kept, in (0, 1].")] = 0.5,
    alpha: Annotated[float | None, typer.Option(help="Weight of the instruction, in [0, 1].")] = None,
    prune_layer: Annotated[int | None, typer.Option(help="Layer at whose input tokens leave; 0 = before the LLM.")] = None,
    region: Annotated[str | None, typer.Option(help="Source of the tile saliency.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Workers, each with a model of its own.")] = 1,
    engine: Annotated[str, typer.Option(help="transformers, or vllm with the plugin.")] = "transformers",
    engine_args: Annotated[str, typer.Option(help="Arguments of vllm.LLM as JSON: '{\"max_model_len\": 4096}'.")] = "{}",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered together; default: 8, or vLLM's own choice.")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows in a file of answers: what a kill can cost a worker.")] = 64,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs of a worker; 0.5 lets two share one.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; default: cuda where workers have GPUs.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker.")] = 1,
) -> None:
    """Answer a parquet file of questions about pictures, pruned, on this machine or on the Ray cluster of RAY_ADDRESS."""
    flags: dict[str, Any] = {"alpha": alpha, "prune_layer": prune_layer, "region": region}
    pruner = dataclasses.replace(build_pruner(method, keep_ratio=keep, **flags), record_scores=False)
    name = parse_variant(method).method
    arguments = _engine_arguments(engine_args, engine)
    device = _device(device, gpus_per_worker)
    from ..serving.ray import engines
    from ..serving.ray.job import ENGINES, Job, identity, only_one, open_folder

    if engine not in ENGINES:
        raise ValueError(f"--engine must be one of {', '.join(ENGINES)}, got {engine!r}. Choose one of these.")
    about = identity(data)
    settings: dict[str, Any] = {"model": model_identity(model), "method": name, **dataclasses.asdict(pruner)}
    settings |= {"engine": engine, "engine_args": arguments, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    settings |= {"device": device, "dtype": dtype}
    del settings["record_scores"]
    versions = engines.versions(engine)
    job = Job(
        data.absolute(), out.absolute(), about["rows"], shard_rows, _where(model), name, pruner, engine, arguments,
        max_new_tokens, batch_size, device, dtype, threads, workers, settings, versions,
    )  # fmt: skip
    if engine == "vllm":
        engines.vllm_arguments(job)  # a method that decides inside the language model is refused before anything is made
    if importlib.util.find_spec("ray") is None:
        raise ValueError(MISSING)
    open_folder(out, {"data": about, "settings": settings, "shard_rows": shard_rows, "versions": versions})
    with only_one(out):
        _work(job, out, gpus_per_worker)


def _work(job: Any, out: Path, gpus_per_worker: float) -> None:
    from ..serving.ray import driver, shards

    console = Console()
    shards.prepare(job.out)
    left = sum(job.size(shard) for shard in shards.unfinished(job))
    if 0 < left < job.rows:
        console.print(f"{job.rows - left:,} of {job.rows:,} rows are finished; going on.", highlight=False)
    try:
        if left:
            bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            shown = Progress(*bars, console=console, transient=True)
            say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
            with driver.connected(job.workers, gpus_per_worker, say), shown as progress, _listening() as stop_if_asked:
                bar = progress.add_task("Rows", total=job.rows, completed=job.rows - left)

                def advance(rows: int) -> None:
                    progress.advance(bar, rows)
                    stop_if_asked()

                driver.run(job, gpus_per_worker, advance)
    except KeyboardInterrupt:
        done = job.rows - sum(job.size(shard) for shard in shards.unfinished(job))
        stop(f"interrupted: {done:,} of {job.rows:,} rows are finished. The same command goes on.", INTERRUPTED)
    bad, first = shards.count_errors(job.out)
    console.print(f"{job.rows - bad:,} of {job.rows:,} rows are answered: {out / shards.PARTS}", highlight=False, markup=False)
    if bad:
        told = f"{bad:,} rows were bad, the first: {first}. All reasons are in {out / shards.ERRORS}"
        console.print(told, highlight=False, markup=False)


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], None]]:
    """Hear Ctrl-C, even where Ray, in the middle of something, catches its exception: what is yielded raises it again."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    def stop_if_asked() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop_if_asked
    finally:
        signal.signal(signal.SIGINT, before)


def _engine_arguments(text: str, engine: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ValueError(
            f"--engine-args must be an object of JSON, got {text!r}. Try '{{\"max_model_len\": 4096}}'."
        ) from error
    if found and engine != "vllm":
        raise ValueError("--engine-args are vLLM's. Leave them out, or add --engine vllm.")
    return found


def _device(device: str | None, gpus_per_worker: float) -> str:
    """Where a worker's model is: Ray shows a worker the GPUs that were asked for, and no others."""
    chosen = device or ("cuda" if gpus_per_worker else "cpu")
    if chosen.startswith("cuda:"):
        raise ValueError(f"Ray chooses which GPU a worker has, got --device {chosen}. Write cuda.")
    if chosen == "cuda" and not gpus_per_worker:
        raise ValueError("--device cuda needs GPUs for the workers. Add --gpus-per-worker 1.")
    if chosen != "cuda" and gpus_per_worker:
        raise ValueError(f"--gpus-per-worker does not go with --device {chosen}. Leave one of them out.")
    return chosen


def _where(model: str | None) -> str | None:
    """A directory's whole path: workers stand elsewhere. A hub id as it is."""
    return str(Path(model).absolute()) if model is not None and Path(model).is_dir() else model
