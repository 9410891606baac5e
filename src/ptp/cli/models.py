"""`ptp models`: which families can be pruned."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..adapters import ADAPTERS


def models() -> None:
    """List the model families: what their pictures are cut into, and what token saliency is read from."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for head in ("Family", "model_type", "Regions", "Saliency"):
        table.add_column(head)
    for adapter in ADAPTERS:
        table.add_row(adapter.family, ", ".join(adapter.model_types), adapter.regions, adapter.saliency)
    console = Console()
    console.print(table, markup=False)
    for line in (
        "Saliency: the attention that [CLS] pays a patch; or that it receives from all patches, where there is no [CLS].",
        "All take several pictures per prompt, padded batches, text-only rows, several turns on one KV cache, any attention.",
        "Text models: any with input_layernorm, q_proj and k_proj (or one qkv_proj) and rotary positions, whatever its name; "
        "that it attends by these alone is checked on attaching. Sliding windows are refused, but for Gemma 3's.",
        "Checkpoints of InternVL in its authors' format: ptp convert. Another family: docs/add_a_model.md.",
    ):
        console.print(line, highlight=False, markup=False)
    for adapter in ADAPTERS:
        if adapter.limits:
            console.print(f"{adapter.family}: {adapter.limits}", highlight=False, markup=False)
