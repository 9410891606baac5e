"""The table, the plot and the file of what tuning found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcome import Line, proposed
from .tuned import FORMAT

HEADS = ["method", "tokens", "keep", "kept", "changed", "at most", "KL", "first token ms", "speed-up", ""]


def overview(found: Sequence[Line]) -> list[list[str]]:
    """Lines of text, headings first."""
    best = proposed(found)
    return [HEADS, *(_line(line, line is best) for line in found)]


def _line(line: Line, best: bool) -> list[str]:
    first = "" if line.first_token is None else f"{1000 * line.first_token:.3g}"
    faster = "" if line.speed_up is None else f"{line.speed_up:.2f}x"
    mark = "chosen" if best and line.proven else "best, not proven" if best else "proven" if line.proven else ""
    return [
        line.name, f"{100 * line.share:g} %", f"{line.keep_ratio:.3g}", f"{100 * line.kept:.1f} %",
        f"{line.changed} / {line.questions}", f"{100 * line.bound:.2g} %", f"{line.kl:.4f}", first, faster, mark,
    ]  # fmt: skip


def contents(
    found: Sequence[Line], about: dict[str, Any], model: str, shape: dict[str, Any], max_change: float, more: dict[str, Any]
) -> dict[str, Any]:
    """What stands in tuned.json.

    Args:
        about: Provenance. model: Its name and digest. more: Whatever else belongs in it (data, signals, those left out).
    """
    best = proposed(found)
    return {
        "ptp_tuned": FORMAT,
        "model": model,
        "shape": shape,
        "pruner": {"name": best.name, "keep_ratio": best.keep_ratio, "share": best.share},
        "proven": best.proven,
        "max_change": max_change,
        "bound": {"value": best.bound, "name": best.bound_name, "confidence": 0.95, "sided": "one",
                  "questions": best.questions, "pictures": best.pictures, "changed": best.changed},
        **more,
        "trade_offs": [line.to_dict() for line in found],
        "about": about,
    }  # fmt: skip


def plot(found: Sequence[Line], max_change: float, path: Path) -> None:
    """Changed answers, with their bounds, against the measured time to the first token (tokens, where no clock ran), as PNG."""
    from matplotlib.figure import Figure

    clocked = all(line.first_token is not None for line in found)
    place = [1000 * (line.first_token or 0.0) if clocked else 100 * line.share for line in found]
    changed = [100 * line.changed / line.questions for line in found]
    above = [100 * line.bound - seen for line, seen in zip(found, changed, strict=True)]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(place, changed, [[0.0] * len(found), above], fmt="o", color="C0", capsize=3, label="with the bound of 95 %")
    axes.axhline(100 * max_change, color="0.6", linestyle="--", label=f"at most {100 * max_change:g} %")
    best = proposed(found)
    spot = found.index(best)
    axes.plot(place[spot], changed[spot], "*", color="C3", markersize=15, label="chosen" if best.proven else "best, not proven")
    for x, y, line in zip(place, changed, found, strict=True):
        axes.annotate(f"{100 * line.share:g} %  {line.name}", (x, y), (5, 4), textcoords="offset points", fontsize=7)
    if clocked and found[0].full_first_token is not None:
        axes.axvline(1000 * found[0].full_first_token, color="0.8", label="all tokens")
    axes.set(xlabel="time to the first token (ms)" if clocked else "tokens (%)", ylabel="answers that changed (%)")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=-0.1)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, format="png", dpi=120)
