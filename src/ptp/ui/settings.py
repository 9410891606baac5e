"""What a visitor sets, checked: the method and its settings by the words of `--method`, the kept share, the question."""

from ..methods import METHODS
from ..methods.parsing import Variant, parse_variant
from ..pruner import Pruner

MAX_QUESTION = 2000
MAX_WORDS = 500
MAX_COMPARED = 20


def chosen_variant(method: object, words: object) -> Variant:
    """The method of the list with what stands in the field for its settings.

    Args:
        words: `alpha=0:region=uniform`, or the same behind the method's name, as `--method` takes it; empty for the defaults.

    Raises:
        ValueError: as `parse_variant`.
    """
    text = str(words or "").strip()
    if len(text) > MAX_WORDS:
        raise ValueError(f"Settings must be at most {MAX_WORDS} characters, got {len(text):,}. Leave some out.")
    text = text.removeprefix(f"{method}:").removeprefix(":")
    return parse_variant(f"{method}:{text}" if text and text != method else str(method))


def build(variant: Variant, keep_percent: object) -> Pruner:
    """A method that keeps a share given in percent, with its score maps.

    Raises:
        ValueError: the share is no number in (0, 100].
    """
    if isinstance(keep_percent, bool) or not isinstance(keep_percent, int | float):
        raise ValueError(f"The kept share must be a number of percent in (0, 100], got {keep_percent!r}. Move the slider.")
    return METHODS[variant.method](keep_ratio=keep_percent / 100, **variant.settings)


def checked_question(question: object) -> str:
    """The question without the white space around it.

    Raises:
        ValueError: it is empty or too long.
    """
    text = str(question or "").strip()
    if not text:
        raise ValueError("A question is needed. Write one, such as: What does the sign say?")
    if len(text) > MAX_QUESTION:
        raise ValueError(f"A question must be at most {MAX_QUESTION:,} characters, got {len(text):,}. Shorten it.")
    return text


def chosen_variants(names: object, words: object = "") -> list[Variant]:
    """The methods to compare: those ticked, and those written, one a line or parted by commas.

    Raises:
        ValueError: none, too many, or one that is wrong.
    """
    more = str(words or "")
    if len(more) > MAX_WORDS:
        raise ValueError(f"Settings must be at most {MAX_WORDS} characters, got {len(more):,}. Leave some out.")
    wanted = [*(names if isinstance(names, list) else []), *more.replace("\n", ",").split(",")]
    texts = dict.fromkeys(text for text in (str(name).strip() for name in wanted) if text)
    if not texts:
        raise ValueError("A method is needed. Tick one or more.")
    if len(texts) > MAX_COMPARED:
        raise ValueError(f"At most {MAX_COMPARED} methods are compared at a time, got {len(texts)}. Leave some out.")
    return [parse_variant(text) for text in texts]
