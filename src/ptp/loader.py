"""Loading a model with its processor, with torchvision and without it."""

import importlib
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # at the top, 5.16 wants torchvision for it
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from .adapters import check_model_type
from .tiny import WEIGHTS

if TYPE_CHECKING:

    class GeneratingModel(PreTrainedModel):
        """What `load` returns, to a type checker: transformers mixes `generate` in further down."""

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


NO_VIDEOS = SimpleNamespace(slice_mode=False, downsample_mode="16x")
"""Stands for the video half of a processor that looks at it while it is built (MiniCPM-V)."""


@cache
def pictures_only(kind: type[ProcessorMixin]) -> Any:
    """A processor class without its video half, which cannot be built without torchvision: pass None or `NO_VIDEOS`."""

    class PicturesOnly(kind):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and (argument is None or argument is NO_VIDEOS):
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = kind.__name__
    return PicturesOnly


@cache
def processor_class(name: str) -> Any:
    """A processor class of transformers. Pixtral's is to be had without torchvision, too: its module imports it for one
    function that the module for PIL has as well."""
    if name != "PixtralProcessor" or is_torchvision_available():
        return getattr(transformers, name)
    from transformers.models.pixtral import image_processing_pil_pixtral

    wanted = "transformers.models.pixtral.image_processing_pixtral"
    sys.modules[wanted] = image_processing_pil_pixtral
    try:
        return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[wanted]


def load(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> "tuple[GeneratingModel, Any]":
    """Load a model, ready to generate, and its processor.

    Args:
        name_or_path: A checkpoint directory or hub id in the Hugging Face format; None is the embedded `ptp-tiny`.
        device: Where the model goes, as "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "bfloat16", "float16" or a torch dtype; None is float32 on the CPU, bfloat16 elsewhere.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.

    Returns:
        (model, processor). Code inside a checkpoint is never run.

    Raises:
        UnsupportedModelError: the model's family is not supported.
        ValueError: unknown device or dtype, or a checkpoint that is missing or incomplete.
    """
    device = parse_device(device)
    dtype = parse_dtype(dtype, device)
    path = str(WEIGHTS if name_or_path is None else name_or_path)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{_model_problem(path)} ({_first_line(error)})") from error
    check_model_type(config.model_type)
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attn_implementation)
        processor = load_processor(path)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ValueError(f"{_model_problem(path)} ({_first_line(error)})") from error
    return cast("GeneratingModel", model.eval().to(device)), processor


def load_processor(path: str) -> Any:
    """The checkpoint's own processor; where torchvision is absent, the same one without its video half."""
    name = PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(path).model_type]
    name = ProcessorMixin.get_processor_dict(path)[0].get("processor_class", name)  # Pixtral 12B is a llava with another one
    kind = processor_class(name)
    video = "video_processor" in kind.get_attributes()
    if is_torchvision_available() or not (video or name == "PixtralProcessor"):
        return AutoProcessor.from_pretrained(path)
    settings, _ = kind.get_processor_dict(path)
    wanted = set(inspect.signature(kind.__init__).parameters) - set(kind.get_attributes())
    tokenizer = AutoTokenizer.from_pretrained(path)
    parts = {"image_processor": AutoImageProcessor.from_pretrained(path), "tokenizer": tokenizer}
    parts |= {"video_processor": NO_VIDEOS if name == "MiniCPMV4_6Processor" else None} if video else {}
    if "feature_extractor" in kind.get_attributes():  # of models that hear, too
        parts["feature_extractor"] = AutoFeatureExtractor.from_pretrained(path)
    settings = {"chat_template": tokenizer.chat_template} | {key: value for key, value in settings.items() if key in wanted}
    return pictures_only(kind)(**parts, **settings)


def save_internvl_processor(image_processor: Any, tokenizer: Any, tokens_per_tile: int, directory: Path) -> None:
    """Write an InternVL's processor, so that `load_processor` reads it with torchvision and without it."""
    tokenizer.save_pretrained(directory)
    image_processor.save_pretrained(directory)
    # What AutoProcessor wants where torchvision is there; its own video half cannot be built without it.
    size = {"height": image_processor.size["height"], "width": image_processor.size["width"]}
    colors = {"image_mean": list(image_processor.image_mean), "image_std": list(image_processor.image_std)}
    about = {"processor_class": "InternVLProcessor", "image_seq_length": tokens_per_tile}
    (directory / "processor_config.json").write_text(json.dumps(about, indent=2) + "\n")
    video = {"video_processor_type": "InternVLVideoProcessor", "size": size} | colors
    (directory / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


def parse_device(device: str | torch.device) -> torch.device:
    """A torch device that exists on this machine; ValueError otherwise."""
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps, got {str(device)!r}. Choose one of these.") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (parsed.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(parsed.type, False):
        here = ", ".join(kind for kind in ("cpu", "cuda", "mps") if present[kind] and kind != parsed.type)
        raise ValueError(f"device {str(device)!r} is not there. Choose one of this machine: {here}.")
    return parsed


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """A torch dtype from its name; None is float32 on the CPU (several times faster there) and bfloat16 elsewhere."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}. Choose one of these.")
    return DTYPES[dtype]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _model_problem(path: str) -> str:
    """Say what is wrong with a model path, as precisely as looking at it allows."""
    directory = Path(path)
    if not directory.exists():
        return f"Model {path!r} is neither a directory here nor a checkpoint that could be fetched. Check the spelling."
    needed = ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
    missing = [name for name in needed if not (directory / name).exists()]
    if not any(directory.glob("*.safetensors")):
        missing.append("*.safetensors")
    index = directory / "model.safetensors.index.json"
    if index.exists():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        missing += sorted(name for name in shards if not (directory / name).exists())
    if missing:
        return f"Model directory {path!r} is incomplete: {', '.join(missing)} missing. Download the whole checkpoint."
    return f"Model {path!r} could not be loaded."
