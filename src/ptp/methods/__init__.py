"""Pruning methods by name."""

from ..pruner import Pruner
from .cdpruner import CDPruner
from .cdpruner_picture import CDPrunerPicture
from .dart import DARTPruner
from .deft import DeFTPruner
from .divprune import DivPrunePruner
from .fastervlm import FasterVLMPruner
from .fastv import FastVPruner
from .globalcom2 import GlobalCom2Pruner
from .hiprune import HiPrunePruner
from .hired import HiREDPruner
from .prumerge import PruMergePruner
from .pyramid import PyramidPruner
from .pyramiddrop import PyramidDropPruner
from .random import RandomPruner
from .sparsevlm import SparseVLMPruner
from .uniform_grid import UniformGridPruner
from .visionzip import VisionZipPruner
from .vispruner import VisPruner

METHODS: dict[str, type[Pruner]] = {
    "pyramid": PyramidPruner,
    "random": RandomPruner,
    "uniform_grid": UniformGridPruner,
    "visionzip": VisionZipPruner,
    "fastervlm": FasterVLMPruner,
    "vispruner": VisPruner,
    "hired": HiREDPruner,
    "hiprune": HiPrunePruner,
    "globalcom2": GlobalCom2Pruner,
    "divprune": DivPrunePruner,
    "dart": DARTPruner,
    "fastv": FastVPruner,
    "pyramiddrop": PyramidDropPruner,
    "sparsevlm": SparseVLMPruner,
    "cdpruner": CDPruner,
    "cdpruner_picture": CDPrunerPicture,
    "deft": DeFTPruner,
    "prumerge": PruMergePruner,
}

__all__ = ["METHODS", "PyramidPruner", "RandomPruner"]
