"""What competes in an evaluation beside the methods: baselines that are no pruners."""

from collections.abc import Callable

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


STEP = 0.95
"""By how much a picture is shrunk at a time."""


def downsampled_size(keep_ratio: float, size: tuple[int, int], count: Callable[[tuple[int, int]], int]) -> tuple[int, int]:
    """(width, height) of the largest copy of a picture, its shape kept, with at most the tokens that pruning would keep.

    Where even the smallest copy has more, it is the largest of those that have the fewest.

    Args:
        size: (width, height) of the picture.
        count: Says how many tokens a picture of some size has; it need not fall with every step.

    Raises:
        ValueError: they are as many at every size.
    """
    shrunk, sizes = 1.0, list[tuple[int, int]]()
    while min(size) * shrunk >= 1:
        sizes.append((round(size[0] * shrunk), round(size[1] * shrunk)))
        shrunk *= STEP
    wanted, counts = total_budget(keep_ratio, count(size)), dict[tuple[int, int], int]()
    for smaller in sizes:
        counts[smaller] = count(smaller)
        if counts[smaller] <= wanted:
            return smaller
    fewest = min(counts.values())
    if fewest == counts[sizes[0]]:
        raise ValueError(f"The model gives a picture {fewest} visual tokens at any size. Leave {DOWNSAMPLE} out of --methods.")
    return next(smaller for smaller in sizes if counts[smaller] == fewest)
