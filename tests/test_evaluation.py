"""Evaluation: the same pictures for everybody, batches that change nothing, honest numbers, resumable files."""

import json

import families
import numpy as np
import pytest
import torch
from conftest import picture, processor, small_model
from PIL import Image

from ptp import PyramidPruner, RandomPruner
from ptp.adapters import adapter_for
from ptp.adapters.base import Layout, Tile, tiled
from ptp.bench.measure import answer, encode_prompt
from ptp.errors import UnsupportedModelError
from ptp.evaluation import Cell, Examiner, batches, draw_sample, plan
from ptp.evaluation.baselines import downsampled_size, downsampled_tiles
from ptp.evaluation.results_file import read_cells, to_json
from ptp.evaluation.samples import SPLITS, evidence_tokens
from ptp.evaluation.summary import comma_separated, markdown, overview, per_task, plot, relative, rows, wilson
from ptp.methods import METHODS
from ptp.methods.parsing import parse_variants
from ptp.runtime import Reads, VisionRead
from ptp.tiny.drawing import GRIDS, TILE, tiled_as_drawn
from ptp.tiny.tasks import TASKS

FIXED = ("gemma3", "smolvlm", "idefics3", "llava-1.5", "gemma4")
"""Families that give every picture as many tokens."""


def test_a_sample_is_the_same_whatever_else_is_drawn_and_no_other_is_like_it():
    first, again = draw_sample(0, "report", 5), draw_sample(0, "report", 5)
    assert (np.asarray(first.scene.image) == np.asarray(again.scene.image)).all() and first.examples == again.examples
    others = [draw_sample(0, "tune", 5), draw_sample(1, "report", 5), draw_sample(0, "report", 6)]
    assert all(other.examples != first.examples for other in others)
    assert set(first.examples) == set(TASKS) and len(set(SPLITS.values())) == len(SPLITS)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_processor_cuts_pictures_as_they_were_drawn_where_samples_need_it(grid, scale):
    image = picture(0, grid).resize((scale * TILE * grid[0], scale * TILE * grid[1]))
    tiles = processor().image_processor(image, return_tensors="pt")["pixel_values"]
    assert (len(tiles) == grid[0] * grid[1] + 1) == tiled_as_drawn(grid, scale)


def test_batches_hold_every_sample_once_and_one_number_of_tiles_each():
    drawn = [draw_sample(0, "tune", number) for number in range(30)]
    groups = batches(iter(drawn))
    assert sorted(sample.number for group in groups for sample in group) == list(range(30))
    for group in groups:
        assert len({sample.scene.grid[0] * sample.scene.grid[1] for sample in group}) == 1


@pytest.mark.parametrize("number", range(5))
def test_evidence_tokens_equal_counting_pixels(number):
    sample = draw_sample(3, "tune", number)
    columns, rows_ = sample.scene.grid
    for example in sample.examples.values():
        expected = set()
        for left, top, right, bottom in example.evidence:
            covered = np.zeros((rows_ * TILE, columns * TILE), bool)
            covered[top:bottom, left:right] = True
            for token in range(16 * columns * rows_):
                tile, place = divmod(token, 16)
                y, x = tile // columns * TILE + place // 4 * 28, tile % columns * TILE + place % 4 * 28
                if 4 * covered[y : y + 28, x : x + 28].sum() >= min(28 * 28, covered.sum()):
                    expected.add(token)
        layout = tiled(sample.scene.grid, 4, 4, thumbnail=True)
        assert evidence_tokens(example.evidence, sample.scene.grid, layout) == expected


@pytest.mark.parametrize("number", range(5))
def test_evidence_is_where_it_is_however_the_model_cuts_the_picture(number):
    """A picture taken whole, in windows of a tile: the tokens of an InternVL. In tokens of 40 px: counting pixels."""
    sample = draw_sample(3, "tune", number)
    grid = columns, rows_ = sample.scene.grid
    qwen = adapter_for(families.model_of(families.FAMILIES["qwen2.5-vl"]))
    (whole,) = qwen.about({"image_grid_thw": torch.tensor([[1, 8 * rows_, 8 * columns]])}, TILE)
    across, down = -(-columns * TILE // 40), -(-rows_ * TILE // 40)  # the last ones show padding
    coarse = Layout((Tile(across, down, (0, 0, 40 * across / (TILE * columns), 40 * down / (TILE * rows_))),))
    for example in sample.examples.values():
        tiles = evidence_tokens(example.evidence, grid, tiled(grid, 4, 4, thumbnail=True))
        assert evidence_tokens(example.evidence, grid, whole.layout) == tiles
        expected = set()
        for left, top, right, bottom in example.evidence:
            covered = np.zeros((40 * down, 40 * across), bool)
            covered[top:bottom, left:right] = True
            areas = covered.reshape(down, 40, across, 40).sum(axis=(1, 3)).flatten()
            enough = min(min(40 * 40, covered.sum()) / 4, areas.max())
            expected |= set(np.flatnonzero(areas >= enough).tolist())
        assert evidence_tokens(example.evidence, grid, coarse) == expected


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("tiles", [3, 6, 12])
def test_downsampling_never_takes_more_tokens_than_pruning(keep, tiles):
    count = downsampled_tiles(keep, tiles, 16)
    tokens = 16 * (count + (count > 1))
    assert tokens <= max(16, round(keep * 16 * (tiles + 1)))
    assert count == tiles or tokens + 16 > keep * 16 * (tiles + 1) - 16, "no larger picture would fit"


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1])
def test_a_smaller_picture_is_the_largest_that_has_no_more_tokens(keep):
    def count(size):
        return (size[0] // 28) * (size[1] // 28)

    width, height = downsampled_size(keep, (448, 336), count)
    assert count((width, height)) <= round(keep * 16 * 12) and abs(width / height - 4 / 3) < 0.02
    assert count((round(width / 0.94), round(height / 0.94))) > round(keep * 16 * 12), "a larger one would fit"
    assert downsampled_size(0.01, (448, 336), lambda size: max(20, count(size)))[0] < 448, "the fewest that there are"
    with pytest.raises(ValueError, match=r"256 visual tokens at any size\. Leave downsample out"):
        downsampled_size(keep, (448, 336), lambda size: 256)


@pytest.mark.parametrize("name", [*METHODS, "pyramid:prune_layer=0"])
@pytest.mark.parametrize("average", [0.5, 0.25, 0.1])
def test_matched_methods_work_on_the_same_number_of_tokens(name, average):
    (contender,), layers = parse_variants(name), 32
    ratio = contender.matched_ratio(average, layers)
    if ratio is None:
        assert contender.pruner(1e-4).average_keep(layers) >= average
    else:
        alive, total = 1.0, 0.0
        for layer in range(layers):
            alive = next((s.budget(10**6) / 10**6 for s in contender.pruner(ratio).stages(layers) if s.layer == layer), alive)
            total += alive
        assert total / layers == pytest.approx(average, abs=1e-4)


@pytest.mark.parametrize("name", ["pyramid", "pyramid:alpha=0:vision_layer=1", "random", "downsample", "full"])
def test_batches_give_every_picture_the_answer_it_gets_alone(name):
    model, proc = small_model("qwen2"), processor()
    drawn = [draw_sample(0, "tune", number) for number in range(6)]
    contenders = [] if name == "full" else parse_variants(name, ("downsample",))
    examiner = Examiner(model, proc, batches(iter(drawn)), contenders)
    cell = Cell("read", contenders[0].method if contenders else "full", 0.5 if contenders else 1.0)
    examiner.fill(cell, contenders[0] if contenders else None)
    assert len(cell.right) == len(cell.answers) == 6
    assert cell.total == sum(16 * (s.scene.grid[0] * s.scene.grid[1] + 1) for s in drawn)
    shares = []
    for sample, right, expected in zip(drawn, cell.right, cell.answers, strict=True):
        example = sample.examples["read"]
        assert expected == example.answer
        if name != "downsample":
            inputs = encode_prompt(proc, [sample.scene.image], example.question, model)
            if contenders:
                with contenders[0].pruner(0.5)(model, proc) as trace:
                    alone = answer(model, proc, inputs, 4)
                tokens = evidence_tokens(example.evidence, sample.scene.grid, trace.images[0].layout)
                shares.append(len(tokens.intersection(trace.images[0].kept.tolist())) / len(tokens))
            else:
                alone = answer(model, proc, inputs, 4)
            assert right == (alone == example.answer)
    if name == "downsample":
        assert cell.kept < 0.5 * cell.total
    elif contenders:
        assert cell.kept == sum(round(0.5 * 16 * (s.scene.grid[0] * s.scene.grid[1] + 1)) for s in drawn)
        assert cell.evidence == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("name", ["full", "blank", "random", "downsample"])
def test_every_family_answers_in_batches_as_it_does_alone(family, name):
    """Against one picture at a time, through the family's own processor and a plain `generate`."""
    model, proc = families.model_of(family), families.processor_of(family)
    drawn = [draw_sample(1, "tune", number) for number in range(3)]
    contenders = parse_variants(name, ("downsample",)) if name in ("random", "downsample") else []
    examiner = Examiner(model, proc, batches(iter(drawn)), contenders)
    cell = Cell("color", name, 0.5 if contenders else 1.0)
    if name == "downsample" and family.name in FIXED:
        with pytest.raises(ValueError, match="visual tokens at any size"):
            examiner.fill(cell, contenders[0])
        return
    answers = []
    decode = proc.batch_decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proc, "batch_decode", lambda *a, **k: answers.extend(texts := decode(*a, **k)) or texts)
        examiner.fill(cell, contenders[0] if contenders else None)
    order = [sample for batch in examiner.batches for sample in batch]
    alone, counts, kept, shares = [], [], [], []
    for sample in order:
        question = sample.examples["color"].question
        image = sample.scene.image if name != "blank" else Image.new("RGB", sample.scene.image.size, (128, 128, 128))
        inputs = family.encode(proc, [([image], question)])
        with torch.no_grad(), RandomPruner(keep_ratio=0.5, window=TILE)(model, proc) as trace:
            pruned = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        whole = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        ids = pruned if name == "random" else whole
        alone.append(proc.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        counts.append(trace.images[0].num_tokens)
        kept.append(len(trace.images[0].kept))
        tokens = evidence_tokens(sample.examples["color"].evidence, sample.scene.grid, trace.images[0].layout)
        shares.append(len(tokens & set(trace.images[0].kept.tolist())) / len(tokens))
    assert cell.total == sum(counts)
    if name == "downsample":
        assert 0 < cell.kept <= 0.5 * sum(counts) + 1
    else:
        assert answers == alone
        assert cell.kept == sum(kept if name == "random" else counts)
        assert cell.evidence == (pytest.approx(np.mean(shares)) if name == "random" else None)


def test_regions_of_a_whole_picture_are_the_tiles_it_was_drawn_on():
    family = families.FAMILIES["qwen2.5-vl"]
    model, proc = families.model_of(family), families.processor_of(family)
    sample = draw_sample(1, "tune", 0)
    examiner = Examiner(model, proc, [[sample]], parse_variants("pyramid,random:window=112"))
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examiner, "_evidence_kept", lambda sample, example, image: traces.append(image))
        examiner.fill(Cell("color", "pyramid", 0.5), parse_variants("pyramid")[0])
    assert sum(traces[0].sizes) == traces[0].num_tokens
    whole = adapter_for(model).about({"image_grid_thw": proc.image_processor(sample.scene.image)["image_grid_thw"]}, TILE)
    assert traces[0].layout == whole[0].layout


def test_a_method_that_reads_what_the_encoder_lacks_is_refused_by_its_name(monkeypatch):
    class OfCls(RandomPruner):
        def reads(self, vision_depth):
            return Reads(vision=(VisionRead(-1, "cls"),))

    monkeypatch.setitem(METHODS, "random", OfCls)
    family = families.FAMILIES["qwen2.5-vl"]
    with pytest.raises(UnsupportedModelError, match=r"^random: The method reads \[CLS\] attention"):
        Examiner(families.model_of(family), families.processor_of(family), [], parse_variants("pyramid,random"))


def test_each_picture_is_encoded_once(monkeypatch):
    model, proc = small_model("qwen2"), processor()
    groups = batches(draw_sample(0, "tune", number) for number in range(4))
    contenders = parse_variants("random,pyramid")
    examiner = Examiner(model, proc, groups, contenders)
    encoded = []
    original = type(model).get_image_features
    monkeypatch.setattr(
        type(model),
        "get_image_features",
        lambda self, pixel_values, **rest: encoded.append(len(pixel_values)) or original(self, pixel_values, **rest),
    )
    by_name = {contender.name: contender for contender in contenders}
    for cell in plan(contenders, [0.5, 0.2], ["read", "color"]):
        if cell.method != "blank":
            examiner.fill(cell, by_name.get(cell.method))
    assert sum(encoded) == sum(s.scene.grid[0] * s.scene.grid[1] + 1 for group in groups for s in group)


def test_random_draws_anew_for_every_picture_and_alike_for_the_same():
    model, proc = small_model("qwen2"), processor()
    kept = []
    for seed, method in ((1, RandomPruner()), (2, RandomPruner()), (1, RandomPruner()), (1, RandomPruner(seed=1))):
        inputs = encode_prompt(proc, [picture(seed, (3, 2))], "Read it.", model)
        with torch.no_grad(), method(model, proc) as trace:
            model(**inputs)
        kept.append(trace.images[0].kept.tolist())
    assert kept[0] == kept[2] and kept[0] != kept[1] and kept[0] != kept[3]


def test_random_within_region_budgets_takes_the_budgets_of_pyramid():
    model, proc = small_model("qwen2"), processor()
    inputs = encode_prompt(proc, [picture(3, (4, 3))], "Read it.", model)
    traces = []
    for method in (
        RandomPruner(keep_ratio=0.3, region="attention_mass"),
        PyramidPruner(keep_ratio=0.3, region="attention_mass", alpha=0, scope="tile"),
    ):
        with torch.no_grad(), method(model, proc) as trace:
            model(**inputs)
        traces.append(trace.images[0])
    assert traces[0].budgets == traces[1].budgets and len(set(traces[0].budgets)) > 1
    assert traces[0].kept.tolist() != traces[1].kept.tolist()
    with pytest.raises(ValueError, match="region must be one of"):
        RandomPruner(region="magic")


def cells_of(scores: dict[tuple[str, float], list[list[bool]]], tasks: list[str]) -> list[Cell]:
    cells = []
    for (method, keep), right in scores.items():
        for task, mine in zip(tasks, right, strict=True):
            cells.append(Cell(task, method, keep, mine, ["a"] * len(mine), None, 10, 12.0, 20, 3, 1.0))
    return cells


def test_rows_are_means_with_intervals_that_hold_them():
    rng = np.random.default_rng(0)
    full = [(rng.random(200) < 0.9).tolist() for _ in range(2)]
    half = [[a and bool(b) for a, b in zip(mine, rng.random(200) < 0.95, strict=True)] for mine in full]
    table = rows(cells_of({("full", 1.0): full, ("pyramid", 0.5): half}, ["read", "color"]), ["read", "color"])
    by_method = {row["method"]: row for row in table}
    row = by_method["pyramid"]
    assert row["accuracy"]["read"] == np.mean(half[0]) and row["mean"] == pytest.approx(np.mean(half))
    assert row["relative"] == pytest.approx(np.mean(half) / np.mean(full))
    assert row["relative_interval"][0] < row["relative"] < row["relative_interval"][1] < 1
    assert by_method["full"]["relative_interval"] == (1.0, 1.0)
    assert by_method["majority"]["mean"] == 1.0, "every answer is the same here"
    low, high = row["interval"]["read"]
    assert low < row["accuracy"]["read"] < high


def test_a_row_waits_for_all_its_cells():
    cells = cells_of({("full", 1.0): [[True, False]] * 2, ("pyramid", 0.5): [[True, True]] * 2}, ["read", "color"])
    assert [row["method"] for row in rows(cells[:-1], ["read", "color"])] == ["full", "majority"]
    assert rows(cells[1:], ["read", "color"]) == []


def test_intervals_are_the_textbook_ones():
    assert wilson([True] * 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    ratio, low, high = relative(np.array([1.0, 0, 1, 0] * 50), np.array([1.0, 1, 1, 1] * 50))
    assert ratio == 0.5 and low == pytest.approx(0.43, abs=0.01) and high == pytest.approx(0.57, abs=0.01)
    assert np.isnan(relative(np.zeros(4), np.zeros(4))).all()


def test_a_run_resumes_only_with_its_own_settings(tmp_path):
    settings = {"tasks": ["read"], "seed": 0}
    cells = cells_of({("full", 1.0): [[True, False]]}, ["read"])
    path = tmp_path / "results.json"
    assert read_cells(path, settings) == []
    path.write_text(to_json({"date": "today"}, settings, cells, rows(cells, ["read"])))
    assert read_cells(path, settings) == cells and json.loads(path.read_text())["about"] == {"date": "today"}
    with pytest.raises(ValueError, match="was made with seed 0, not 1"):
        read_cells(path, {**settings, "seed": 1})
    path.write_text("{}")
    with pytest.raises(ValueError, match="not the file of an evaluation"):
        read_cells(path, settings)


def test_tables_and_plots_hold_every_row(tmp_path):
    tasks = ["read", "color"]
    scores = {("full", 1.0): [[True, True]] * 2, ("pyramid", 0.5): [[True, True]] * 2, ("pyramid", 0.1): [[False, True]] * 2}
    table = rows(cells_of(scores, tasks), tasks)
    assert markdown(table, tasks).count("| pyramid |") == 6
    assert overview(table)[1][:6] == ["full", "1", "50.0 %", "60.0 %", "1.5", "100.0 % [100.0, 100.0]"]
    assert per_task(table, tasks)[-2] == ["pyramid", "0.1", "0.500", "0.500"]
    lines = comma_separated(table, tasks).splitlines()
    assert len(lines) == 1 + len(table) and lines[0].startswith("method,keep_ratio,kept,average,mean")
    plot(table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
