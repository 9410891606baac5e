"""InternVL2 from its authors' format, which needs code of the checkpoint's own, to the Hugging Face format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from ..loader import save_internvl_processor
from .config import convert_config, generation_settings
from .tokenizer import convert_processor
from .weights import convert_weights, read_weights

__all__ = ["convert"]


def convert(source: str | Path, target: str | Path, advance: Callable[[str], None] = lambda step: None) -> None:
    """Write a checkpoint that `ptp.load` and transformers load, from one in the authors' format.

    Nothing of the checkpoint is run: its Python files are not looked at, weights are read as safetensors or with torch's
    weights_only.

    Args:
        source: Directory with config.json, weights (*.safetensors or pytorch_model*.bin) and the tokenizer's files.
        target: Directory to write; it must not exist, or be empty.
        advance: Told what comes next.

    Raises:
        ValueError: `source` is not such a checkpoint, or holds something that is not known: nothing is written then.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"OUTPUT_DIR must be new or empty, got {str(target)!r}. Choose another directory.")
    original = _read_config(source)
    advance("Tokenizer")
    processor = convert_processor(source, original)
    config = convert_config(original, processor.image_token_id, processor.image_seq_length)
    advance("Weights")
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    weights = convert_weights(read_weights(source), model, original)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.generation_config.update(**generation_settings(original, processor.tokenizer))
    advance("Writing")
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    save_internvl_processor(processor.image_processor, processor.tokenizer, config.image_seq_length, target)


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise ValueError(f"INPUT_DIR must hold a checkpoint, and {str(path)!r} is not there. Download the whole checkpoint.")
    try:
        original = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}). Download it again.") from error
    if original.get("model_type") != "internvl_chat":
        raise ValueError(
            f"INPUT_DIR must hold an InternVL checkpoint in its authors' format (model_type internvl_chat), got model_type "
            f"{original.get('model_type')!r}. Checkpoints in the Hugging Face format need no conversion."
        )
    missing = [name for name in ("vision_config", "llm_config") if not isinstance(original.get(name), dict)]
    if missing:
        raise ValueError(f"{str(path)!r} must have {' and '.join(missing)}, and has not. Download it again.")
    return original
