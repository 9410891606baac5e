"""What a pruned prefill looks like: overlays on the picture and a self-contained HTML page."""

from .overlay import figure
from .page import Answer, Page, write_page

__all__ = ["Answer", "Page", "figure", "write_page"]
