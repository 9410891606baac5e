"""A picture that a browser sends, checked: it is read in memory and never written to disk."""

import base64
import binascii
import io

from PIL import Image

from ..pictures import read_picture

MAX_BYTES = 20_000_000
"""Of a picture file."""
MAX_PIXELS = 40_000_000
"""Of a picture: decoded, three bytes each."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, by Pillow itself; it starts other programs for some formats."""
MAX_NAME = 80


def read_upload(name: object, data_url: object) -> tuple[str, Image.Image]:
    """Read what the page's picker sends.

    Args:
        name: The file's name, for messages; cut to 80 characters.
        data_url: The file as `data:...;base64,...`.

    Returns:
        (name, upright 8-bit RGB picture).

    Raises:
        ValueError: no such URL, a file of more than 20 MB or 40 million pixels, another format, or damaged.
    """
    name = str(name)[:MAX_NAME] or "picture"
    head, comma, body = str(data_url).partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ValueError(f"Picture {name!r} did not arrive whole. Choose it again.")
    if len(body) > 4 * -(-MAX_BYTES // 3):
        raise ValueError(f"Picture {name!r} must have at most {MAX_BYTES // 1_000_000} MB. Shrink it first.")
    try:
        content = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"Picture {name!r} did not arrive whole. Choose it again.") from error
    return name, read_picture(io.BytesIO(content), f"Picture {name!r}", FORMATS, MAX_PIXELS)
