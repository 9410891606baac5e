"""Opening pictures: whatever a user hands over becomes upright 8-bit RGB, or one clear error."""

import io
import warnings
from pathlib import Path
from typing import Any

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
    name, size = f"Picture {str(source)!r}", -1
    file: Any = Path(source) if isinstance(source, str) else source
    if isinstance(file, bytes):
        name, size, file = "The picture", len(file), io.BytesIO(file)
    elif not file.exists():
        raise ValueError(f"{name} does not exist. Check the path.")
    elif file.is_dir():
        raise ValueError(f"{name} is a directory. Name a file in it.")
    try:
        if (file.stat().st_size if isinstance(file, Path) else size) == 0:
            raise ValueError(f"{name} is empty (0 bytes). Use another copy of it.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(file)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ValueError(f"{name} has more than {limit} million pixels. Shrink it first.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture that Pillow can read. Convert it to PNG or JPEG.") from error
    except PermissionError as error:
        raise ValueError(f"{name} cannot be read: permission denied. Check its permissions.") from error
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
