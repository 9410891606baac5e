"""A token's box is where its pixels come from, in every model family, also in pictures that are long, high or small."""

import pytest
from families import Family, encode, model_of, photo, processor_of, pruner

from ptp.testing.subject import Subject
from ptp.testing.vision_oracles import boxes


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (400, 90), (40, 170), (30, 30)])
def test_a_box_is_where_the_pixels_of_its_token_are(family: Family, size):
    """A disc drawn into the box of a token changes that token's feature more than any other's of the tiles."""
    subject = Subject(
        model_of(family),
        processor_of(family),
        lambda asked: encode(family, *asked),
        (photo(5, family.shape(size)),),
        (pruner(),),
        1e-4,
    )
    assert [check.oracle for check in boxes(subject)] == ["boxes"]
