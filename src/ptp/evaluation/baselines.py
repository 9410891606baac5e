"""What competes in an evaluation beside the methods: baselines that are no pruners."""

from ..selection import total_budget

FULL, BLANK, DOWNSAMPLE = "full", "blank", "downsample"
"""All tokens; all tokens of a blank picture (what can be guessed); a picture of fewer tiles, so fewer pixels."""


def downsampled_tiles(keep_ratio: float, tiles: int, tokens_per_tile: int) -> int:
    """Tiles (thumbnail not counted) of a smaller picture with at most the tokens that pruning would keep.

    Tokens come in whole tiles, so it often has fewer; it never has less than one tile, without a thumbnail.

    Args:
        tiles: Tiles of the picture without its thumbnail.
    """
    count = tiles + (tiles > 1)
    return max(1, total_budget(keep_ratio, count * tokens_per_tile) // tokens_per_tile - 1)
