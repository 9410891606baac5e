"""Methods and their settings as users write them."""

from dataclasses import dataclass
from typing import Any, Literal, Optional

import pytest

from ptp import PyramidPruner
from ptp.cli.options import build_pruner
from ptp.methods import METHODS, parsing
from ptp.methods.parsing import parse_variant, settings_of
from ptp.pruner import Pruner


@dataclass(frozen=True, kw_only=True)
class Every(Pruner):
    """A method with a setting of every type."""

    flag: bool = True
    number: int = 0
    share: float = 0.0
    name: str = ""
    choice: Literal["one", "two", 3] = "one"
    maybe: float | None = 0.5
    word: Optional[str] = "w"  # noqa: UP045
    either: int | str = 0
    layers: tuple[int, ...] = ()
    scores: dict[str, Any] | None = None


@pytest.fixture(autouse=True)
def every(monkeypatch):
    monkeypatch.setitem(METHODS, "every", Every)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("flag=false", False),
        ("flag=True", True),
        ("number=-3", -3),
        ("share=1", 1.0),
        ("share=1e-3", 0.001),
        ("name=7", "7"),
        ("choice=two", "two"),
        ("choice=3", 3),
        ("maybe=none", None),
        ("maybe=None", None),
        ("maybe=1", 1.0),
        ("word=none", None),
        ("word=x=y", "x=y"),
        ("either=4", 4),
        ("either=four", "four"),
        ("layers=2", (2,)),
        ("layers=2+6+-1", (2, 6, -1)),
    ],
)
def test_a_value_is_what_the_declared_type_makes_of_it(written, value):
    (found,) = parse_variant(f"every:{written}").settings.values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ("flag=0", "true or false"),
        ("number=1.0", "a whole number"),
        ("number=", "a whole number"),
        ("share=half", "a number"),
        ("choice=four", "one of one, two, 3"),
        ("maybe=half", "a number or none"),
        ("layers=2,3", "whole numbers joined by [+]"),
    ],
)
def test_another_one_is_refused_by_method_setting_value_and_what_is_allowed(written, allowed):
    name, _, value = written.partition("=")
    with pytest.raises(ValueError, match=f"Setting {name} of every must be {allowed}, got '{value}'"):
        parse_variant(f"every:{written}")


def test_only_what_can_be_written_is_a_setting():
    assert list(settings_of("every")) == [
        "window",
        "keep_structure",
        "flag",
        "number",
        "share",
        "name",
        "choice",
        "maybe",
        "word",
        "either",
        "layers",
    ]
    with pytest.raises(ValueError, match="Settings of every are window, keep_structure, flag"):
        parse_variant("every:scores=1")
    with pytest.raises(ValueError, match="Settings of every are window, keep_structure, flag"):
        parse_variant("every:record_scores=false")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "every"])
def test_every_setting_of_every_method_can_be_written(method):
    declared = METHODS[method].__dataclass_fields__
    assert set(settings_of(method)) == set(declared) - set(parsing.ELSEWHERE)
    written = "".join(f":{name}={declared[name].default}" for name in settings_of(method))
    assert parse_variant(method + written).pruner(0.5) == METHODS[method](record_scores=False)


def test_a_flag_that_commands_share_means_one_thing():
    """--alpha is the weight of the instruction: methods without one do not take it."""
    assert [name for name in METHODS if "alpha" in settings_of(name)] == ["pyramid"]
    assert build_pruner("hired:thumbnail_share=0.2", 0.3) == METHODS["hired"](keep_ratio=0.3, thumbnail_share=0.2)
    with pytest.raises(ValueError, match="--alpha does not apply to method 'hired'"):
        build_pruner("hired", 0.3, alpha=0.2)


def test_the_published_form_is_written_as_a_word_and_settings_come_over_it():
    assert parse_variant("pyramid:published").pruner(0.3) == PyramidPruner.published(keep_ratio=0.3, record_scores=False)
    over = PyramidPruner.published(keep_ratio=0.3, prune_layer=0, record_scores=False)
    assert parse_variant("pyramid:published:prune_layer=0").pruner(0.3) == over
    with pytest.raises(ValueError, match=r"Settings of random are .* got 'published'"):
        parse_variant("random:published")
    with pytest.raises(ValueError, match="got 'published'"):
        parse_variant("pyramid:alpha=0:published")
