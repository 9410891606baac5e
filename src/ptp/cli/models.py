"""`ptp models`: which families can be pruned, and which cannot."""

import json
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..adapters import ADAPTERS, REFUSED


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """List the model families: what their pictures are cut into, what token saliency is read from, and who is refused."""
    if as_json:
        print(json.dumps(listed(), indent=1))
        return
    console = Console()
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for head in ("Family", "model_type", "Regions", "Saliency"):
        table.add_column(head)
    for adapter in ADAPTERS:
        table.add_row(adapter.family, ", ".join(adapter.model_types), adapter.regions, adapter.saliency)
    console.print(table, markup=False)
    for line in (
        *(f"{adapter.family}: {adapter.limits}" for adapter in ADAPTERS if adapter.limits),
        "Saliency: the attention that [CLS] pays a patch; or that it receives from all patches, where there is no [CLS].",
        "All take several pictures per prompt, padded batches, text-only rows, several turns on one KV cache, any attention.",
        "Text models: any with input_layernorm, q_proj and k_proj (or one qkv_proj) and rotary positions, whatever its name; "
        "that it attends by these alone is checked on attaching. Sliding windows are refused, but for Gemma 3's and Gemma 4's.",
        "Checkpoints of InternVL in its authors' format: ptp convert. Another family: docs/add_a_model.md.",
        "",
        "Refused, with the reason:",
        *(f"{', '.join(types)}: {reason}." for reason, types in _reasons().items()),
    ):
        console.print(line, highlight=False, markup=False)


def listed() -> dict[str, Any]:
    """What `ptp models` lists: "families", each with its model types, tiling, saliency and limits; "refused", with reasons."""
    families = [
        {
            "family": adapter.family,
            "model_types": list(adapter.model_types),
            "tiling": adapter.regions,
            "saliency": adapter.saliency,
            "limits": adapter.limits,
        }
        for adapter in ADAPTERS
    ]
    refused = [{"model_type": model_type, "reason": reason} for model_type, reason in REFUSED.items()]
    return {"families": families, "refused": refused}


def _reasons() -> dict[str, list[str]]:
    """The model types of each reason."""
    found: dict[str, list[str]] = {}
    for model_type, reason in REFUSED.items():
        found.setdefault(reason, []).append(model_type)
    return found
