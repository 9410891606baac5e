"""The benchmark measures what it says."""

import statistics

import pytest
import torch
from conftest import small_model
from families import FAMILIES, encode, model_of, processor_of

from ptp.bench import selection_cost
from ptp.bench.clock import between, mark, timing
from ptp.bench.costs import count_flops, peak_memory
from ptp.bench.documents import KINDS, draw, parse_kinds
from ptp.bench.first_token import HEADS as FIRST_TOKEN_HEADS
from ptp.bench.first_token import measure, table
from ptp.bench.presets import FAMILY_PRESETS, PRESETS, build
from ptp.bench.prompt import cut, made_up_turn, make_prompt, picture_prompt
from ptp.bench.rounds import compete
from ptp.bench.selection_cost import Cost, exponent, selection_costs
from ptp.bench.summary import HEADS, markdown, plot, tables
from ptp.methods import METHODS, PyramidPruner
from ptp.methods.parsing import parse_variants
from ptp.testing.encoder import recording

CPU = torch.device("cpu")
TILES, TOKENS = 7, 112


@pytest.fixture(scope="module")
def measured():
    model = small_model()
    variants = parse_variants("pyramid,fastv,deft,random:prune_layer=1")
    prompt = make_prompt(model, TILES, [variant.pruner(0.5) for variant in variants])
    entries = [(variant, keep, keep) for keep in (0.5, 0.25) for variant in variants]
    totals: list[int] = []
    done: list[None] = []
    rows = compete(prompt, entries, rounds=2, new_tokens=3, naive=True, total=totals.append, advance=lambda: done.append(None))
    assert totals == [len(done)], "the progress bar ends where it says"
    return prompt, rows


@pytest.fixture(autouse=True)
def nothing_stays_on_the_model():
    yield
    model = small_model()
    assert model.config._attn_implementation == "sdpa"
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [hook for hook in hooks if hook.__module__.startswith("ptp")], "transformers keeps some of its own"


def row_of(rows, method, keep):
    return next(row for row in rows if row.method == method and row.keep_ratio == pytest.approx(keep))


def test_everyone_is_measured(measured):
    _, rows = measured
    names = [row.method for row in rows]
    assert names[0] == "full" and names[1:5] == ["pyramid", "fastv", "deft", "random:prune_layer=1"]
    assert [name for name in names if "naive" in name] == [
        "full (naive)",
        *["pyramid (naive)", "fastv (naive)", "deft (naive)"] * 2,
    ]
    limits = [row.visual_tokens for row in rows if row.method == "limit"]
    assert limits == sorted({68, 56, 45, 28}, reverse=True), "what any layer of any method has"


def test_tokens_and_cache_are_those_of_the_method(measured):
    prompt, rows = measured
    text = prompt.ids.shape[1] - TOKENS
    per_token = 4 * 2 * 2 * 12 * 4  # layers, keys and values, heads, width, float32
    assert rows[0].visual_tokens == rows[0].average_tokens == TOKENS
    for row in rows:
        assert row.cache_bytes == per_token * (text + row.visual_tokens)
    fastv, deft = row_of(rows, "fastv", 0.5), row_of(rows, "deft", 0.5)
    assert (fastv.visual_tokens, fastv.average_tokens) == (56, (2 * 112 + 2 * 56) / 4)
    assert (deft.visual_tokens, deft.average_tokens) == (56, (2 * 68 + 2 * 56) / 4)


def test_operations_are_counted(measured):
    """Of full: every matrix product of four layers and one row of the output, by hand; pruned ones are fewer."""
    prompt, rows = measured
    length = prompt.ids.shape[1]
    weights = 48 * 48 + 2 * 48 * 24 + 48 * 48 + 3 * 48 * 96  # q, k and v, o, mlp
    attention = 2 * length * length * 48  # scores and values
    vocabulary = 48 * prompt.model.config.text_config.vocab_size
    angles = length * 12 // 2  # a matrix product, too, in older releases of transformers
    assert rows[0].flops / 2 - 4 * (length * weights + attention) - vocabulary in (0, angles)
    assert rows[0].flops > row_of(rows, "fastv", 0.5).flops > row_of(rows, "fastv", 0.25).flops
    assert row_of(rows, "limit", 0.25).flops < row_of(rows, "pyramid", 0.25).flops < row_of(rows, "pyramid", 0.5).flops


def test_full_maps_cost_memory(measured):
    _, rows = measured
    naive, full = row_of(rows, "full (naive)", 1), row_of(rows, "full", 1)
    maps = 4 * 4 * measured[0].ids.shape[1] ** 2 * 4  # layers, heads, float32
    assert naive.peak_memory >= full.peak_memory + maps / 2 and naive.peak_memory > maps
    assert row_of(rows, "limit", 0.25).peak_memory < full.peak_memory


def test_ratios_follow_from_the_times(measured):
    _, rows = measured
    for row in rows:
        assert row.prefill.low <= row.prefill.median <= row.prefill.high and row.decode.median > 0 and row.encode.median > 0
        assert row.first_token.median == pytest.approx(row.encode.median + row.prefill.median)
        assert sum(row.parts) == pytest.approx(row.first_token.median) and row.parts[0] > 0 and row.parts[2] > 0
        assert (row.select is None) == (row.method.startswith(("full", "limit")))
        if row.average_tokens == row.visual_tokens:
            assert row.over_limit == pytest.approx(row.over_bound)
        else:
            assert row.over_limit != row.over_bound
    assert rows[0].speed_up == rows[0].over_limit == 1 and rows[-1].over_limit == 1


def test_results_are_written(measured, tmp_path):
    _, rows = measured
    costs = [Cost("pyramid", 256 * 2**k, 1e-3 * 2**k) for k in range(7)] + [Cost("random", 256, 1e-4)]
    for kind, lines in tables(rows).items():
        assert len(lines) == len(rows) and {len(line) for line in lines} == {len(HEADS[kind])}
    text = markdown(rows, costs, 0.5)
    assert text.count("| fastv (naive) |") == 4 and "| pyramid | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 1.00 |" in text
    plot(rows, costs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_pages_have_blank_stretches_and_photographs_none():
    for kind, drawn in {kind: draw(kind) for kind in KINDS}.items():
        assert drawn == draw(kind), "always the same"
        tiles = cut(drawn, 112, 12).flatten(1)
        assert (len(tiles.unique(dim=0)) < len(tiles)) == (kind in ("page", "slide", "screenshot")), kind
    assert parse_kinds("photographs,page") == ("photograph", "page") and set(parse_kinds("documents")) == set(KINDS) - {
        "photograph"
    }


def test_first_tokens_are_of_whole_calls_with_savings_and_without():
    model = small_model()
    turns = {kind: made_up_turn(model.config, cut(draw(kind), 112, 6)) for kind in ("page", "photograph")}
    found, done = {}, []

    def note(now) -> None:
        done.append(tuple(len(one.rest) for one in now.values()))

    with recording(model.model.vision_tower) as seen:
        measure(
            model,
            turns,
            PyramidPruner(keep_ratio=0.25),
            found,
            2,
            note,
        )
    assert done == [(1, 0), (1, 1), (2, 1), (2, 2)], "in turns"
    rows = [len(call.query) for call in seen if call.module is seen[0].module]
    assert rows == [1, 7, 4, 7, 7, 4, 7, 7, 7], "a warm-up; then without, with or with, without; nothing again"
    for kind, encoded in (("page", 4), ("photograph", 7)):
        one = found[kind]
        assert (one.units, one.encoded, one.tokens) == (7, encoded, (112, 28)) and one.kept_bytes > 0
        assert one.speed_up == pytest.approx(statistics.median(a / b for a, b in zip(one.without, one.with_all, strict=True)))
        assert min(*one.without, *one.with_all, *one.again, *one.rest) > 0
    assert [len(line) for line in table(found)] == [len(FIRST_TOKEN_HEADS)] * 2


def test_growth_is_the_power_of_the_number_of_tokens():
    assert exponent([Cost("a", n, 1e-6 * n) for n in (256, 1024, 4096, 16384)]) == pytest.approx(1)
    assert exponent([Cost("a", n, 1e-9 * n * n) for n in (1024, 4096)]) == pytest.approx(2)
    assert exponent([Cost("a", 256, 1.0), Cost("a", 1024, 2.0)]) is None, "one large picture says nothing"


def test_every_method_is_measured_alone_until_it_takes_too_long(monkeypatch):
    tokens = [16, 32, 80]
    costs = selection_costs(small_model(), parse_variants("all"), 0.5, (1, 2, 5))
    assert [(cost.method, cost.visual_tokens) for cost in costs] == [(name, count) for name in METHODS for count in tokens]
    assert all(cost.seconds > 0 for cost in costs)
    monkeypatch.setattr(selection_cost, "PATIENCE", 0.0)
    assert [c.visual_tokens for c in selection_costs(small_model(), parse_variants("pyramid"), 0.5, (1, 2, 5))] == [16]


def test_memory_at_the_peak_is_counted():
    def run():
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        return second * 2

    assert peak_memory(run, CPU) == pytest.approx(8e6, rel=0.01), "two at a time, never three"
    assert count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5


def test_timings_have_quartiles():
    found = timing([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.median, found.low, found.high) == (3, 2, 4)
    start = mark(CPU)
    assert 0 <= between(start, mark(CPU)) < 60


SIZES = {"100m": 102, "internvl2-1b": 938, "internvl2-2b": 2206, "internvl2-8b": 8075}


@pytest.mark.parametrize(("preset", "millions"), SIZES.items())
def test_presets_have_real_sizes(preset, millions):
    """Parameters of InternVL2-1B, -2B and -8B as published, to 1 %."""
    model = build(preset, torch.bfloat16, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert model.config.image_seq_length == 256 and model.dtype == torch.bfloat16


def test_the_smallest_preset_has_the_shape_of_the_embedded_model():
    model = build("tiny", torch.float32, CPU)
    assert set(PRESETS) == {"tiny", *SIZES}
    assert model.config.image_seq_length == 16 and torch.equal(
        model.lm_head.weight, build("tiny", torch.float32, CPU).lm_head.weight
    )


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_is_measured_on_a_picture_of_its_own(name):
    family = FAMILIES[name]
    model, variants = model_of(family), parse_variants("pyramid,fastv")
    asked = []

    def made(picture, question):
        asked.append(picture.size)
        return encode(family, ([picture], question))

    prompt = picture_prompt(model, processor_of(family), made, 240, [variant.pruner(0.5) for variant in variants])
    rows = compete(prompt, [(variant, 0.25, 0.25) for variant in variants], rounds=2, new_tokens=2)
    assert asked == [(240, 180)] and [row.method for row in rows[:3]] == ["full", "pyramid", "fastv"]
    kept = round(0.25 * prompt.visual_tokens)
    assert {row.visual_tokens for row in rows if row.method != "full"} == {kept}
    text = prompt.ids.shape[1] - prompt.visual_tokens
    decoder = prompt.adapter.text
    holding = [layer for layer in decoder.attending if decoder.shared(layer) is None]
    held = len(holding) * 2 * 2 * 12 * 4 * (text + kept)
    limit = row_of(rows, "limit", kept / prompt.visual_tokens)
    assert rows[1].cache_bytes == held and rows[1].select.median > 0
    assert limit.cache_bytes == held or (prompt.adapter.text.window and limit.cache_bytes < held), "windows alone may forget"


@pytest.mark.parametrize("preset", list(FAMILY_PRESETS))
def test_family_presets_are_of_one_size(preset):
    """A hundred million parameters, to a tenth."""
    model = build(preset, torch.bfloat16, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(105, rel=0.15)
