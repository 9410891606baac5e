"""Pictures as people show them to a model, drawn here: pages, slides, screenshots, charts, and noise like a photograph's."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "the report of this year shows that we have sold more paper than ever before and it is on time to order what will be "
    "needed next spring since prices of wood and of transport rise again while stocks at both of our houses are low"
)
WORDS = TEXT.split()
INK, GRAY, BLUE, WHITE = (30, 30, 34), (128, 130, 136), (36, 92, 168), (255, 255, 255)


def _text(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int, chance: random.Random) -> None:
    """Lines of words that fill a box."""
    font, (left, top, right, bottom) = ImageFont.load_default(size), box
    for y in range(top, bottom - size, round(1.5 * size)):
        line = ""
        while draw.textlength(line, font) < right - left - 5 * size:
            line += chance.choice(WORDS) + " "
        draw.text((left, y), line, INK, font)


def page(chance: random.Random) -> Image.Image:
    """A letter on A4: a head, a paragraph, a name; the lower two thirds are blank."""
    image = Image.new("RGB", (1190, 1684), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((90, 70), "North & Sons, paper makers", BLUE, ImageFont.load_default(44))
    draw.line((90, 130, 1100, 130), BLUE, 3)
    _text(draw, (90, 170, 1100, 440), 24, chance)
    draw.text((90, 470), "Yours, A. North", INK, ImageFont.load_default(28))
    return image


def full_page(chance: random.Random) -> Image.Image:
    """A printed page on A4, full of text."""
    image = Image.new("RGB", (1190, 1684), WHITE)
    _text(ImageDraw.Draw(image), (90, 80, 1100, 1600), 24, chance)
    return image


def slide(chance: random.Random) -> Image.Image:
    """A slide, 4 : 3, a title and three points at the left, the rest of one colour."""
    image = Image.new("RGB", (1440, 1080), (244, 241, 232))
    draw = ImageDraw.Draw(image)
    draw.text((60, 50), "What we sell", BLUE, ImageFont.load_default(72))
    for number in range(3):
        top = 200 + 100 * number
        draw.ellipse((60, top + 12, 82, top + 34), fill=BLUE)
        draw.text((110, top), " ".join(chance.sample(WORDS, 3)), INK, ImageFont.load_default(40))
    return image


def screenshot(chance: random.Random) -> Image.Image:
    """An editor, 3 : 2: a list of files at the left, some lines of code at the top, nothing below."""
    image = Image.new("RGB", (1440, 960), (252, 252, 252))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 1440, 36), fill=(225, 226, 230))
    for number, name in enumerate(("File", "Edit", "View", "Help")):
        draw.text((20 + 80 * number, 6), name, INK, ImageFont.load_default(20))
    draw.rectangle((0, 36, 280, 960), fill=(238, 239, 242))
    for number in range(9):
        draw.text((24, 60 + 34 * number), f"{chance.choice(WORDS)}_{chance.choice(WORDS)}.py", INK, ImageFont.load_default(20))
    for number in range(11):
        code = f"{'    ' * chance.randrange(3)}{chance.choice(WORDS)} = {chance.choice(WORDS)}({chance.randrange(100)})"
        draw.text((310, 60 + 34 * number), code, INK, ImageFont.load_default(22))
    return image


def chart(chance: random.Random) -> Image.Image:
    """A bar chart, 3 : 2, over the whole picture."""
    image = Image.new("RGB", (1440, 960), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((500, 24), "Paper sold by month", INK, ImageFont.load_default(40))
    for number in range(6):
        y = 860 - 130 * number
        draw.line((100, y, 1400, y), (220, 220, 224), 2)
        draw.text((30, y - 14), str(20 * number), GRAY, ImageFont.load_default(24))
    for number in range(12):
        left, height = 130 + 105 * number, chance.randrange(120, 640)
        draw.rectangle((left, 860 - height, left + 70, 860), fill=BLUE)
        draw.text((left + 16, 880), "JFMAMJJASOND"[number], INK, ImageFont.load_default(28))
    return image


def photograph(chance: random.Random) -> Image.Image:
    """3 : 2, coarse shapes and fine grain: no two places alike."""
    draw = np.random.default_rng(chance.randrange(2**32))
    coarse = Image.fromarray(draw.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((1440, 960), Image.Resampling.BICUBIC)
    grain = draw.normal(0, 8, (960, 1440, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[random.Random], Image.Image]] = {
    "page": page,
    "full_page": full_page,
    "slide": slide,
    "screenshot": screenshot,
    "chart": chart,
    "photograph": photograph,
}
GROUPS = {"documents": tuple(kind for kind in KINDS if kind != "photograph"), "photographs": ("photograph",)}


def parse_kinds(text: str) -> tuple[str, ...]:
    """Comma-separated kinds of pictures, or groups of them.

    Raises:
        ValueError: one is neither.
    """
    kinds: dict[str, None] = {}
    for part in text.split(","):
        if part not in GROUPS and part not in KINDS:
            raise ValueError(f"--pictures must be of {', '.join([*GROUPS, *KINDS])}, got {part!r}. Choose some of these.")
        kinds |= dict.fromkeys(GROUPS.get(part, (part,)))
    return tuple(kinds)


def draw(kind: str) -> Image.Image:
    """A picture of a kind, always the same."""
    return KINDS[kind](random.Random(2509_15704))
