"""Time on a device: CUDA events where there are any, the wall clock elsewhere."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Mark = torch.cuda.Event | float


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: their median and the quartiles around it."""

    median: float
    low: float
    high: float


def timing(values: Sequence[float]) -> Timing:
    """Median and quartiles of two or more runs."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), low, high)


def mark(device: torch.device) -> Mark:
    """A moment in the device's stream of work; on CUDA nothing waits for it."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def between(start: Mark, end: Mark) -> float:
    """Seconds from one mark to a later one; on CUDA it waits for the later one."""
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return start.elapsed_time(end) / 1000


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device idle before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = mark(device)
    run()
    return between(start, mark(device))
