"""tuned.json: what `ptp tune` found, as a file that other commands and `ptp.load_pruner` take."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..methods.parsing import parse_variant
from ..pruner import Pruner
from ..selection import check_keep_ratio

FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """The settings that were found, and what they hold for.

    Attributes:
        name: Method and settings, as `--methods` takes them. keep_ratio: What it is told.
        model: The model's name and a digest of its weights. shape: Family, layers and parameters.
        proven: Whether the bound that was asked for was met. max_change: That bound.
        data: Everything in the file.
    """

    name: str
    keep_ratio: float
    model: str
    shape: dict[str, Any]
    proven: bool
    max_change: float
    data: dict[str, Any]

    def pruner(self) -> Pruner:
        """The method, ready to use; the trace keeps its score maps, as everywhere."""
        return replace(parse_variant(self.name).pruner(self.keep_ratio), record_scores=True)

    def doubts(self, model: str | None = None, shape: dict[str, Any] | None = None) -> list[str]:
        """What speaks against using it on a model, a line each.

        Args:
            model: Its name with a digest, as the file has it. shape: As `shape_of`.
        """
        found = []
        other = None
        if model is not None and _digest(model) != _digest(self.model):
            other = model
        if shape is not None and shape != self.shape:
            other = model or "one of type {model_type} with {layers} layers and {parameters:,} parameters".format(**shape)
        if other is not None:
            found.append(f"These settings were tuned on {self.model}, not on {other}: what was measured need not hold here.")
        if not self.proven:
            found.append(
                f"These settings were not shown to change at most {100 * self.max_change:g} % of the answers: the data did not "
                "suffice, or no setting did."
            )
        return found


def _digest(model: str) -> str:
    """The part of a name that knows the weights; the name itself where it has none."""
    return model.rsplit(" ", 1)[-1]


def shape_of(model: Any) -> dict[str, Any]:
    """What can be seen of a loaded model: its family, its layers and its size."""
    text = model.config.get_text_config()
    size = sum(parameter.numel() for parameter in model.parameters())
    return {"model_type": model.config.model_type, "layers": text.num_hidden_layers, "parameters": size}


def read_tuned(path: str | Path) -> Tuned:
    """Read tuned.json.

    Raises:
        ValueError: it does not exist, is something else, or names what this version does not have.
    """
    path = Path(path)
    problem = f"{str(path)!r} is not a file of `ptp tune`"
    try:
        data = json.loads(path.read_text())
        if data["ptp_tuned"] != FORMAT:
            raise ValueError(f"{str(path)!r} has format {data['ptp_tuned']!r}, this version reads {FORMAT}. Tune again.")
        chosen = data["pruner"]
        tuned = Tuned(
            str(chosen["name"]), float(chosen["keep_ratio"]), str(data["model"]), dict(data["shape"]),
            bool(data["proven"]), float(data["max_change"]), data,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"Settings {str(path)!r} cannot be read ({error.strerror}). Check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{problem}. Make one with: ptp tune --data ... --out tuned.json") from error
    try:
        check_keep_ratio(tuned.keep_ratio)
        parse_variant(tuned.name)
    except ValueError as error:
        made = data.get("about", {}).get("versions", {}).get("ptp", "another version")
        raise ValueError(f"{str(path)!r} was made by ptp {made} and does not fit this version: {error} Tune again.") from error
    return tuned


def load_pruner(path: str | Path, model: Any | None = None) -> Pruner:
    """The pruner that `ptp tune` found.

    Args:
        path: Of the tuned.json.
        model: The model that it is for; a warning says so where it was tuned on one of another family or size. (Weights are
            compared by the commands, which know the checkpoint.)

    Raises:
        ValueError: the file does not exist, is something else, or names what this version does not have.
    """
    tuned = read_tuned(path)
    for line in tuned.doubts(shape=None if model is None else shape_of(model)):
        warnings.warn(line, stacklevel=2)
    return tuned.pruner()
