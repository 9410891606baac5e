"""The check of the signals: statistics against values computed otherwise, verdicts on made-up maps, and `DropTenth`."""

import numpy as np
import pytest
import torch
from conftest import encode, picture, processor, prompt, small_model
from scipy.stats import pearsonr, rankdata, wilcoxon

from ptp.adapters import adapter_for
from ptp.selection import total_budget
from ptp.tuning.signals import PARTS, DropTenth, signals
from ptp.tuning.statistics import (
    IGNORES,
    INVERTED,
    POSITION,
    SPEAKS,
    UNDECIDED,
    Map,
    finding,
    more,
    outlier_share,
    place_share,
    words_change,
)


def grid(scores: np.ndarray, side: int, thumbnail: int = 0) -> Map:
    """A map over side x side places, and a thumbnail of `thumbnail` x `thumbnail` behind it."""
    places = [np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * 2), axis=-1).reshape(-1, 2) for n in (side, thumbnail) if n]
    whole = np.repeat([False, True][: len(places)], [len(one) for one in places])
    return Map(scores, np.concatenate(places), whole)


def test_words_change_the_ranks_as_pearson_of_ranks_says():
    rng = np.random.default_rng(0)
    own, other = rng.random(50), rng.random(50)
    assert words_change(own, other) == pytest.approx(pearsonr(rankdata(own), rankdata(other)).statistic)
    assert words_change(own, np.exp(3 * own)) == pytest.approx(1) and words_change(own, -own) == pytest.approx(-1)
    assert words_change(own, np.ones(50)) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_place_explains_the_share_that_was_put_in(share):
    rng = np.random.default_rng(1)
    place = rng.standard_normal(400)
    maps = [grid(share**0.5 * place + (1 - share) ** 0.5 * rng.standard_normal(400), 20) for _ in range(20)]
    assert place_share(maps) == pytest.approx(share, abs=0.05)
    scaled = [Map(5 + 100 * one.scores, one.centres, one.whole) for one in maps]
    assert place_share(scaled) == pytest.approx(place_share(maps), abs=1e-9), "neither scale nor offset counts"


def test_place_is_found_over_pictures_of_other_layouts():
    """Left is strong, however many tokens there are; in thumbnails it is the other way round."""
    maps = []
    for side in (8, 10, 16):
        tiles, small = np.arange(side * side) % side / side, 1 - np.arange(16) % 4 / 4
        maps.append(grid(np.concatenate([tiles, small]), side, 4))
    assert place_share(maps) > 0.9
    rng = np.random.default_rng(2)
    assert place_share([grid(rng.random(side * side), side) for side in (8, 10, 16)]) < 0.15
    assert place_share(maps[:1]) is None and place_share([grid(np.ones(64), 8)] * 3) is None


def test_outliers_are_a_share_of_the_variance():
    scores = np.zeros(100)
    scores[7] = 1.0
    assert outlier_share(scores) == pytest.approx(0.99**2 / (0.99**2 + 99 * 0.01**2))
    normal = np.random.default_rng(3).standard_normal(200_000)
    cut = 2.3263  # the normal distribution's 99th percentile; E[x^2; x > c] = c phi(c) + 1 - Phi(c)
    expected = cut * np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi) + 0.01
    assert outlier_share(normal) == pytest.approx(expected, rel=0.05) and outlier_share(np.ones(9)) is None


def test_more_is_the_signed_rank_test():
    rng = np.random.default_rng(4)
    a, b = rng.random(40) + 0.2, rng.random(40)
    assert more(a, b) == wilcoxon(a, b, alternative="greater").pvalue < 0.05 < more(b, a)
    assert more(a, a) == 1.0


def made(kl: dict[str, float], place: float = 0.0, words: float = 0.5):
    """The finding of 30 questions with mean divergences near these."""
    rng = np.random.default_rng(5)
    common = rng.standard_normal(100)
    maps = [grid(place**0.5 * common + (1 - place) ** 0.5 * rng.standard_normal(100), 10) for _ in range(30)]
    others = [words * one.scores + (1 - words) * rng.standard_normal(100) for one in maps]
    noise = {part: level * (1 + 0.3 * rng.random(30)) for part, level in kl.items()}
    changed = {part: list(values > 0.5) for part, values in noise.items()}
    return finding("made", maps, others, {part: list(values) for part, values in noise.items()}, changed)


GOOD = {"top": 1.0, "random": 0.2, "bottom": 0.02, "other": 0.3}


def test_verdicts():
    assert made(GOOD).verdict == SPEAKS and made(GOOD).words_matter < 0.05
    assert made(GOOD, words=1.0).verdict == IGNORES
    assert made(GOOD, place=0.8).verdict == POSITION
    assert made(GOOD | {"top": 0.02, "bottom": 1.0}).verdict == INVERTED
    assert made(GOOD | {"top": 0.02, "bottom": 0.02}, place=0.8).verdict == INVERTED, "what does harm is said first"
    assert made(GOOD | {"top": 0.2}).verdict == UNDECIDED
    text = made(GOOD).line()
    assert text.startswith("made: speaks; under other words") and "answers changed 100 / 0 / 0 %" in text and "\n" not in text


def test_a_tenth_goes_by_the_signal():
    """The kept tokens against the recorded scores by numpy; and what the scores are, against the pruned model's own reading."""
    model, inputs = small_model(), encode(prompt(picture(0, (3, 2))))
    for signal, layer in signals(len(adapter_for(model).layers)).values():
        kept, maps = {}, {}
        for part in PARTS:
            pruner = DropTenth(signal=signal, layer=layer, part=part)
            with torch.no_grad(), pruner(model, processor()) as trace:
                model(**inputs)
            (image,) = trace.images
            kept[part], (maps[part],) = set(image.kept.tolist()), pruner.maps
        count = total_budget(0.9, image.num_tokens)
        assert {len(one) for one in kept.values()} == {count} and torch.equal(maps["top"], maps["bottom"])
        order = np.argsort(maps["top"].numpy(), kind="stable")
        weakest, strongest = set(order[: image.num_tokens - count].tolist()), set(order[count:].tolist())
        assert not kept["top"] & strongest and not kept["bottom"] & weakest
        assert len(kept["random"] ^ kept["top"]) and len(kept["random"] ^ kept["bottom"])
        turned = DropTenth(signal=signal, layer=layer, given=[-maps["top"]])
        with torch.no_grad(), turned(model, processor()) as trace:
            model(**inputs)
        assert set(trace.images[0].kept.tolist()) == kept["bottom"] and torch.equal(turned.maps[0], maps["top"])


def test_the_similarity_is_the_cosine_of_embeddings():
    model, inputs = small_model(), encode(prompt(picture(0, (2, 1)), question="What is it?"))
    pruner = DropTenth(signal="similarity")
    with torch.no_grad(), pruner(model, processor()) as trace:
        model(**inputs)
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output.flatten(0, -2)
    words = processor().tokenizer(trace.images[0].instruction, return_tensors="pt")["input_ids"]
    text = model.get_input_embeddings()(words)[0].detach()
    expected = torch.cosine_similarity(features[:, None], text[None], dim=-1).amax(dim=1)
    assert torch.allclose(pruner.maps[0], expected, atol=1e-5)
