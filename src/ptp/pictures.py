"""Opening pictures: whatever a user hands over becomes upright 8-bit RGB, or one clear error."""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 8
MAX_STRETCH = 200


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Open a picture, a file or its bytes, as upright RGB.

    EXIF rotation is applied, transparency is laid on white, CMYK and 16-bit pictures are converted, of an animation the
    first frame is taken.

    Raises:
        ValueError: the file is missing, no picture, damaged, larger than Pillow's limit of pixels, smaller than 8 pixels
            on a side, or more than 200 times longer than wide.
    """
    if isinstance(source, bytes):
        return read_picture(io.BytesIO(source), "The picture")
    path, name = Path(source), f"Picture {str(source)!r}"
    if not path.exists():
        raise ValueError(f"{name} does not exist. Check the path.")
    if path.is_dir():
        raise ValueError(f"{name} is a directory. Name a file in it.")
    try:
        with path.open("rb") as file:
            return read_picture(file, name)
    except PermissionError as error:
        raise ValueError(f"{name} cannot be read: permission denied. Check its permissions.") from error


def read_picture(
    file: BinaryIO, name: str, formats: tuple[str, ...] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Read a picture from an open file, as `open_picture` does.

    Args:
        name: What messages begin with.
        formats: Pillow's names of the formats that are tried; None is all. For some of them it starts other programs (EPS).
        max_pixels: Refused above, before anything is decoded; None is Pillow's own limit.

    Raises:
        ValueError: as `open_picture`.
    """
    limit = min(most for most in (max_pixels, Image.MAX_IMAGE_PIXELS, 2**62) if most)
    too_large = f"{name} has more than {limit // 1_000_000} million pixels. Shrink it first."
    try:
        if file.seek(0, io.SEEK_END) == 0:
            raise ValueError(f"{name} is empty (0 bytes). Use another copy of it.")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(file, formats=formats)
            if image.width * image.height > limit:  # filters of warnings are everybody's: another thread may have its own
                raise ValueError(too_large)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(too_large) from error
    except UnidentifiedImageError as error:
        known = "Pillow" if formats is None else "this page"
        raise ValueError(f"{name} is not a picture that {known} can read. Convert it to PNG or JPEG.") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is damaged ({error}). Use another copy of it.") from error
    image = _to_rgb(ImageOps.exif_transpose(image))
    short, long = sorted(image.size)
    shown = f"{image.width} x {image.height} pixels"
    if short < MIN_SIDE:
        raise ValueError(f"{name} must be at least {MIN_SIDE} pixels on each side, got {shown}. Enlarge it.")
    if long > MAX_STRETCH * short:
        raise ValueError(f"{name} must be at most {MAX_STRETCH} times longer than wide, got {shown}. Cut it up.")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits a pixel: convert() would clip, not scale
        values = np.asarray(image, np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
