"""lmms-eval's benchmarks: our model among its models, and the suites of `ptp eval --suite`. Its package is an extra."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval finds by the entry point `ptp` of its group: `lmms-eval --model ptp` is `model.PtpModel`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="ptp", chat_class_path="ptp.evaluation.lmms.model.PtpModel")
