"""torchvision beside the environment, so that one run can test with it and without it."""

import sys
from pathlib import Path

TORCHVISION = Path(sys.prefix) / "torchvision-for-tests"
"""Where the Makefile puts it."""
IMPORTABLE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
for name in ("nms", "qnms") if torch.version.cuda is None else ():
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""Begins a script whose first argument is `TORCHVISION`. Next to a CPU torch, torchvision's wheel lacks its compiled operators;
nothing in the scripts calls them: declared, it imports."""
