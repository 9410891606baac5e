"""The HTML page of a run: pictures with their overlays, answers, times and sizes, settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
from PIL import Image

from ..runtime import PrefillTrace, Trace
from .overlay import overlay_uris


@dataclass(frozen=True)
class Answer:
    """One question with its answers and costs: a row of the page's table.

    Attributes:
        question, full, pruned: Texts; `full` is the answer with all visual tokens.
        keep_ratio: Share kept.
        visual_tokens, cache_bytes: (before, after).
        average_tokens: Visual tokens after, averaged over the language model's layers.
        prefill: (before, after) seconds of the language model's prefill.
        first_token: (before, after) seconds from the pixels to the first token.
    """

    question: str
    full: str
    pruned: str
    keep_ratio: float
    visual_tokens: tuple[int, int]
    average_tokens: float
    cache_bytes: tuple[int, int]
    prefill: tuple[float, float]
    first_token: tuple[float, float]


@dataclass
class Page:
    """Everything a page shows."""

    title: str
    answers: list[Answer] = field(default_factory=list)
    traces: list[tuple[str, Sequence[Image.Image], Trace | PrefillTrace]] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> None:
    """Write one self-contained HTML file; all text is escaped, nothing is loaded from anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("ptp.report").joinpath("page.html.j2").read_text("utf-8"))
    sections = [
        {
            "heading": heading,
            "summary": str(trace).split("\n")[0],
            "pictures": [
                {"panels": overlay_uris(picture, image), "image": image}
                for picture, image in zip(pictures, trace.images, strict=True)
            ],
        }
        for heading, pictures, trace in page.traces
    ]
    text = template.render(page=page, sections=sections)
    path.write_text(text, encoding="utf-8")
