"""What the page shows, as HTML. Every text in it is escaped."""

import base64
import functools
import io
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from PIL import Image

from ..methods import METHODS
from ..methods.parsing import settings_of
from ..report.overlay import overlay_uris
from ..runtime import PrefillTrace
from .ask import Row, Turn
from .uploads import MAX_BYTES

PREVIEW, SMALL = 720, 160
"""Longest side in pixels of the picture that is shown, and of a small one."""
TYPES = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff"
CAPTIONS = {
    "Kept tokens": "What the kept tokens show stays as it is; the rest is dimmed.",
    "Tile budgets": "Kept / all visual tokens of each tile.",
    "Region saliency": "How salient each tile is.",
    "Token saliency": "How much the vision encoder attends to each token; bright is much.",
    "Instruction": "What each token has to do with the question; bright is much.",
    "Fused": "What the tokens are chosen by.",
    "Novelty": "How little each token is like better ones beside it.",
}


@functools.cache
def _parts() -> Any:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resources.files("ptp.ui").joinpath("parts.html.j2").read_text("utf-8")).module


def _part(name: str, *values: Any) -> str:
    """Fill a part in. Gradio takes HTML for a template of `${...}` and `{{...}}`: neither is left in it."""
    text = str(getattr(_parts(), name)(*values)).strip()
    return text.replace("${", "&#36;{").replace("{{", "&#123;&#123;").replace("@children", "&#64;children")


def head_html(model: str) -> str:
    """The page's heading, with the model's name."""
    return _part("head", model)


def talk_html(turns: Sequence[Turn], running: bool = False) -> str:
    """The conversation, the full and the pruned answers side by side; `running`: the last is still being written."""
    return _part("talk", turns, running)


def figures_html(turn: Turn) -> str:
    """Visual tokens, time to first token and KV cache of a turn, full and pruned; empty before the pruned answer begins."""
    if turn.full.first is None or turn.pruned.first is None:
        return ""
    measures = []
    if turn.trace is not None and turn.trace.visual_tokens[0]:
        before, after = turn.trace.visual_tokens
        kept = f"{100 * after / before:.3g} % kept"
        measures.append(_measure("Visual tokens", before, after, f"{before:,}", f"{after:,}", kept))
    first, second = turn.full.first, turn.pruned.first
    faster = _times(first, second, "faster", "slower")
    measures.append(_measure("Time to first token", first, second, _ms(first), _ms(second), faster))
    full, pruned = turn.full.cache_bytes, turn.pruned.cache_bytes
    smaller = _times(full, pruned, "smaller", "larger")
    measures.append(_measure("KV cache", full, pruned, _bytes(full), _bytes(pruned), smaller))
    summary = "; ".join(f"{m['title']}: {m['before']} to {m['after']}, {m['ratio']}" for m in measures)
    runs = "once" if turn.pruned.runs == 1 else f"{turn.pruned.runs} times (the median is shown)"
    note = f"All tokens → pruned. Time to first token is measured {runs} each, on this machine: "
    if turn.held:
        note += "prefill of the new words on the held KV cache. The picture is not read again: what was kept stays kept."
    else:
        note += "vision encoder (the same in both), selection and prefill."
    return _part("figures", measures, summary, note)


def _measure(title: str, before: float, after: float, shown: str, then: str, ratio: str) -> dict[str, Any]:
    most = max(before, after) or 1
    widths = [round(100 * value / most, 1) for value in (before, after)]
    return {"title": title, "before": shown, "after": then, "ratio": ratio, "worse": after > before, "widths": widths}


def _times(before: float, after: float, less: str, more: str) -> str:
    if not before or not after:
        return "–"
    ratio = before / after
    if 0.95 < ratio < 1.05:
        return "as before"
    return f"{ratio:.2g} x {less}" if ratio > 1 else f"{1 / ratio:.2g} x {more}"


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} GiB"


def views_html(trace: PrefillTrace | None, picture: Image.Image) -> str:
    """What was kept over the picture, heat maps by tab, tile budgets, the instruction that was read."""
    if trace is None or not trace.images:
        return ""
    image = trace.images[0]
    panels = []
    for panel in overlay_uris(picture, image):
        title = str(panel["title"])
        title = title[:1].upper() + title[1:]
        panels.append({**panel, "title": title, "caption": CAPTIONS.get(title, "")})
    return _part("views", panels, str(image), image.instruction, f"{trace.average_tokens:,.0f}")


def compared_html(rows: Sequence[Row], kept: Sequence[str], running: bool = False) -> str:
    """The table of a comparison.

    Args:
        kept: For each of the rows that are over, `kept_uri`.
    """
    reference = rows[0].reply
    shown = []
    for number, row in enumerate(rows):
        reply, trace = row.reply, row.reply.trace
        total = next((r.reply.trace.visual_tokens[0] for r in rows if r.reply.trace is not None), None)
        count = trace.visual_tokens[1] if trace is not None else total
        shown.append(
            {
                "method": row.method,
                "error": row.error,
                "text": reply.text,
                "done": reply.done,
                "differs": reply.done and reference.done and reply.text != reference.text,
                "tokens": "–" if count is None else f"{count:,}",
                "average": f"{trace.average_tokens:,.0f}" if trace is not None else "–" if count is None else f"{count:,}",
                "first": "–" if reply.first is None else _ms(reply.first),
                "cache": _bytes(reply.cache_bytes) if reply.cache_bytes else "–",
                "kept": kept[number] if number < len(kept) else "",
            }
        )
    return _part("compared", shown, running)


def kept_uri(row: Row, picture: Image.Image) -> str:
    """What a method kept, over the picture, as a data URI; empty where nothing was pruned."""
    trace = row.reply.trace
    if trace is None or not trace.images:
        return ""
    panels = overlay_uris(picture, trace.images[0])
    return str(next(panel["main"] for panel in panels if panel["title"] == "Kept tokens"))


def error_html(text: str) -> str:
    """A sentence that says what went wrong; empty for none."""
    return _part("error", text)


def preview_html(picture: Image.Image, name: str) -> str:
    """The picture as the model gets it: upright, without transparency."""
    return _part("preview", picture_uri(picture, PREVIEW), name, picture.width, picture.height)


def picture_uri(picture: Image.Image, side: int) -> str:
    """A picture as a JPEG data URI of at most `side` pixels on its longer side."""
    shown, buffer = picture.copy(), io.BytesIO()
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    shown.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def settings_html(method: str) -> str:
    """A method's settings and their defaults, as they are written."""
    default = METHODS[method]()
    return _part("settings", method, [(name, _written(getattr(default, name))) for name in settings_of(method)])


def _written(value: Any) -> str:
    """A setting's value by the words of `--method`."""
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def picker_html(demos: dict[str, Image.Image]) -> str:
    """Where a picture comes from: a file, the camera, or one of the demo's."""
    shown = [(name, picture_uri(picture, SMALL)) for name, picture in demos.items()]
    return _part("picker", shown, MAX_BYTES // 1_000_000, TYPES)
