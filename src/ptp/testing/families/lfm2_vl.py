"""LFM2-VL, small and of real size: short convolutions between the layers that attend."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration
from transformers.image_utils import make_flat_list_of_images
from transformers.models.lfm2_vl.processing_lfm2_vl import Lfm2VlProcessor

from ..family import Family, Scale, token_id, tokenizer

MARKERS = (
    "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
    *(f"<|img_row_{r}_col_{c}|>" for r in range(1, 11) for c in range(1, 10 // r + 1)),
)  # fmt: skip


def config(scale: Scale) -> Lfm2VlConfig:
    """Every third layer attends, later every other one; small: every other one, the first one, too, so that every method finds
    attention in the layer where it reads it."""
    attends = (2, 5, 8, 10) if scale.real else (0, 2)
    kinds = ["full_attention" if n in attends else "conv" for n in range(scale.text["num_hidden_layers"])]
    text = scale.language("lfm2", layer_types=kinds, block_auto_adjust_ff_dim=False, tie_word_embeddings=False)
    patch, patches = (16, 256) if scale.real else (8, 16)
    vision = scale.vision() | dict(
        model_type="siglip2_vision_model", patch_size=patch, num_patches=patches, vision_use_head=False
    )
    return Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=token_id("<image>"), downsample_factor=2,
        projector_hidden_size=scale.text["hidden_size"], tie_word_embeddings=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """What `Lfm2VlImageProcessor` makes of pictures, which cannot be imported without torchvision.

    Attributes:
        tile_size: Side of a tile in pixels. encoder_patch_size: Of a patch; 2 x 2 of them become a token.
        tokens: The fewest and the most of a picture that comes whole, and of the thumbnail.

    Source: the settings of the published checkpoints; that both make the same is tested where torchvision is there.
    """

    tile_size: int
    encoder_patch_size: int
    tokens: tuple[int, int]
    downsample_factor: int = 2
    max_tiles: int = 10
    use_thumbnail: bool = True
    model_input_names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def fetch_images(self, images: Any) -> Any:
        """Pictures are given, not fetched."""
        return images

    def __call__(self, images: Any, **settings: Any) -> dict[str, Any]:
        """Patches (U, L, 3 * side * side) of all tiles, padded to one number; what is a patch; rows and columns of each."""
        made: dict[str, list[Any]] = {name: [] for name in (*self.model_input_names, "image_rows", "image_cols", "image_sizes")}
        pictures: Any = make_flat_list_of_images(images)
        for picture in pictures:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
            whole, (columns, rows) = self.whole(picture), self.grid(picture)
            tiles = [resized(pixels, whole)]
            if columns * rows > 1:
                large = resized(pixels, (rows * self.tile_size, columns * self.tile_size))
                lines = [line.split(self.tile_size, dim=3) for line in large.split(self.tile_size, dim=2)]
                tiles = [tile for line in lines for tile in line] + tiles
            for tile in tiles:
                patches = F.unfold(tile.float() / 127.5 - 1, self.encoder_patch_size, stride=self.encoder_patch_size)[0].T
                patches = patches.unflatten(1, (3, -1)).mT.flatten(1)  # the colours of a pixel follow each other
                made["pixel_values"].append(patches)
                made["spatial_shapes"].append(torch.tensor(tile.shape[2:]) // self.encoder_patch_size)
            for name, value in (("image_rows", rows), ("image_cols", columns), ("image_sizes", list(whole))):
                made[name].append(value)
        counts = [len(patches) for patches in made["pixel_values"]]
        longest = max(4 * self.tokens[1], (self.tile_size // self.encoder_patch_size) ** 2, *counts)
        made["pixel_attention_mask"] = [(torch.arange(longest) < count).int() for count in counts]
        made["pixel_values"] = [F.pad(patches, (0, 0, 0, longest - len(patches))) for patches in made["pixel_values"]]
        return {name: torch.stack(value) if name in self.model_input_names else value for name, value in made.items()}

    def whole(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width of a picture that comes whole: whole tokens, neither too few nor too many."""
        side, (least, most) = self.encoder_patch_size * self.downsample_factor, self.tokens
        area = picture.height * picture.width
        sizes = [max(1, round(length / side)) for length in (picture.height, picture.width)]
        if math.prod(sizes) > most:
            factor = math.sqrt(area / (most * side**2))
            sizes = [max(1, math.floor(length / factor / side)) for length in (picture.height, picture.width)]
        elif math.prod(sizes) < least:
            factor = math.sqrt(least * side**2 / area)
            sizes = [math.ceil(length * factor / side) for length in (picture.height, picture.width)]
        return sizes[0] * side, sizes[1] * side

    def grid(self, picture: Image.Image) -> tuple[int, int]:
        """Columns and rows of tiles; of a picture that comes whole 1 and 1."""
        side, (width, height) = self.encoder_patch_size * self.downsample_factor, picture.size
        sides = [max(self.encoder_patch_size, round(length / side) * side) for length in (height, width)]
        if math.prod(sides) <= 2 * self.tokens[1] * side**2:
            return 1, 1
        best, least = (1, 1), math.inf
        every = [(w, h) for w in range(1, self.max_tiles + 1) for h in range(1, self.max_tiles + 1)]
        for w, h in sorted((grid for grid in every if 2 <= math.prod(grid) <= self.max_tiles), key=math.prod):
            error = abs(width / height - w / h)
            if error < least or (error == least and width * height > 0.5 * self.tile_size**2 * w * h):
                best, least = (w, h), min(least, error)
        return best


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width) uint8 at another size."""
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)


class WithTiles(Lfm2VlProcessor):
    """The family's own processor around `Tiles`."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "image_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)


def processor(scale: Scale) -> Any:
    """Up to ten tiles and a thumbnail, each behind its marker."""
    return WithTiles(Tiles(512, 16, (64, 256)) if scale.real else Tiles(64, 8, (4, 16)), tokenizer())


LFM2_VL = Family("lfm2-vl", "<image>", Lfm2VlForConditionalGeneration, config, processor, MARKERS, nested=True)
