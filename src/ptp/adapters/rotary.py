"""Rotary positions of packed vision encoders."""

import inspect

import torch
from torch import Tensor, nn


def vision_rotary(module: nn.Module, states: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions of patches.

    Args:
        module: `rotary_pos_emb` of a Qwen-VL or GLM-V encoder.
        states: Whatever has the dtype and device to answer in. places: (patches, 2) int64, (row, column) of each patch.

    Returns:
        (cos, sin), (patches, D) each.

    Source: transformers. From 5.17 on the module makes both of (states, places); until then it made, of the places alone,
    the (patches, D / 2) angles that the encoder doubled.
    """
    if len(inspect.signature(module.forward).parameters) == 2:
        return module(states, places)
    angles = torch.cat([module(places)] * 2, dim=-1)
    return angles.cos(), angles.sin()
