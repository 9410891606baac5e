"""The page: what stands where, and which function each part calls."""

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from typing import Any

import gradio as gr
import torch

from ..methods import METHODS
from ..tiny.demo import load_demo
from .ask import Talk, ask, compare
from .figures import (
    compared_html,
    error_html,
    figures_html,
    head_html,
    kept_uri,
    picker_html,
    preview_html,
    settings_html,
    talk_html,
    views_html,
)
from .settings import MAX_QUESTION, MAX_WORDS, build, checked_question, chosen_variant, chosen_variants
from .streaming import Loaded
from .uploads import read_upload

FIRST_COMPARED = ["pyramid", "visionzip", "fastv", "random"]
TWICE = 1.0
"""Seconds within which the same question is the second click of a double click."""
FORGET = 3600
"""Seconds after which the conversation of a closed page is forgotten."""
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
ONE = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "always_last"}
SERIAL: dict[str, Any] = {**QUICK, **ONE, "show_progress": "minimal"}
"""How events run: those that ask the model one after the other, and what is asked while an answer ends is asked next."""


def sentence(error: Exception) -> str:
    """What the page says of an error; what is no mistake of the visitor's is in the terminal, too."""
    if isinstance(error, torch.OutOfMemoryError):
        return "Out of memory. Use a smaller picture, keep less, or start over."
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    traceback.print_exception(error, file=sys.stderr)
    return f"That failed inside ptp ({type(error).__name__}: {' '.join(str(error).split())[:300]}). The terminal says more."


def build_page(loaded: Loaded, max_new_tokens: int) -> gr.Blocks:
    """The page for one model; `launch` it."""
    pictures, questions = load_demo()
    to_try = {name: [q.question for q in questions if q.picture == name] for name in pictures}
    first = next(iter(pictures))

    def cleared() -> list[Any]:
        return [error_html(""), "", "", ""]

    def opened(talk: Talk | None, data: dict[str, Any]) -> list[Any]:
        try:
            if "demo" in data:
                name = str(data["demo"])
                if name not in pictures:
                    raise ValueError(f"There is no picture {name!r} to try. Choose one of {', '.join(pictures)}.")
                picture, asked = pictures[name], to_try[name]
            else:
                (name, picture), asked = read_upload(data.get("name"), data.get("data")), []
        except Exception as error:
            return [gr.skip(), gr.skip(), error_html(sentence(error)), *[gr.skip()] * 7]
        if talk is not None:
            talk.end()
        shown = gr.Dropdown(choices=asked, value=None, visible=bool(asked))
        question = asked[0] if asked else gr.skip()
        return [Talk(picture, name), preview_html(picture, name), "", *cleared(), shown, question, ""]

    def picked(talk: Talk | None, event: gr.EventData) -> list[Any]:
        return opened(talk, dict(event._data or {}))

    def asked(talk: Talk | None, question: str, keep: float, method: str, words: str) -> Iterator[list[Any]]:
        try:
            if talk is None:
                raise ValueError("A picture is needed. Choose one, or one of the pictures to try.")
            question = checked_question(question)
            pruner = build(chosen_variant(method, words), keep)
            again = bool(talk.turns) and talk.turns[-1].question == question and talk.pruner == pruner
            if again and time.monotonic() - talk.finished < TWICE:
                yield [error_html(""), talk_html(talk.turns), gr.skip(), gr.skip()]
                return
            talk.stopped.clear()
            with closing(ask(loaded, talk, question, pruner, max_new_tokens)) as turns:
                for turn in turns:
                    if talk.stopped.is_set():
                        break
                    yield [error_html(""), talk_html([*talk.turns, turn], running=True), figures_html(turn), gr.skip()]
            if talk.over or talk.stopped.is_set():
                yield cleared() if talk.over else [error_html(""), talk_html(talk.turns), "", gr.skip()]
                return
            yield ["", talk_html(talk.turns), figures_html(talk.turns[-1]), views_html(turn.trace, talk.picture)]
        except Exception as error:
            told = gr.skip() if talk is None else talk_html(talk.turns)
            yield [error_html(sentence(error)), told, gr.skip(), gr.skip()]

    def compared(talk: Talk | None, question: str, keep: float, names: list[str], words: str) -> Iterator[list[Any]]:
        try:
            if talk is None:
                raise ValueError("A picture is needed. Choose one, or one of the pictures to try.")
            question, variants = checked_question(question), chosen_variants(names, words)
            talk.stopped.clear()
            kept: list[str] = []
            with closing(compare(loaded, talk.picture, question, variants, keep, max_new_tokens)) as tables:
                for rows in tables:
                    if talk.stopped.is_set():
                        break
                    over = [row for row in rows if row.reply.done or row.error]
                    kept += [kept_uri(row, talk.picture) for row in over[len(kept) :]]
                    yield [error_html(""), compared_html(rows, kept, running=len(over) <= len(variants))]
            if talk.over or talk.stopped.is_set():
                yield [error_html(""), "" if talk.over else compared_html(rows, kept)]
        except Exception as error:
            yield [error_html(sentence(error)), gr.skip()]

    def started_over(talk: Talk | None) -> list[Any]:
        if talk is None:
            return [None, *cleared()]
        talk.end()
        return [Talk(talk.picture, talk.name), *cleared()]

    def stopped(talk: Talk | None) -> None:
        if talk is not None:
            talk.stopped.set()

    with gr.Blocks(title="Pyramid Token Pruning", analytics_enabled=False, fill_width=True) as page:
        talk = gr.State(None, time_to_live=FORGET)
        gr.HTML(head_html(loaded.name))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                preview = gr.HTML(elem_id="ptp-preview")
                problem = gr.HTML(elem_id="ptp-picture-error")
                js = resources.files("ptp.ui").joinpath("picker.js").read_text("utf-8")
                picker = gr.HTML(picker_html(pictures), js_on_load=js, elem_id="ptp-picker")
            with gr.Column(scale=3, min_width=320):
                question = gr.Textbox(label="Question", lines=1, max_lines=6, max_length=MAX_QUESTION, elem_id="ptp-question")
                to_ask = gr.Dropdown([], label="Questions to try", visible=False, elem_id="ptp-to-ask")
                keep = gr.Slider(
                    1, 100, value=50, step=1, label="Kept share of the visual tokens, in percent", elem_id="ptp-keep"
                )
                with gr.Tabs():
                    with gr.Tab("Ask", id="ask"):
                        method = gr.Dropdown(list(METHODS), value="pyramid", label="Method", elem_id="ptp-method")
                        with gr.Accordion("Settings of the method", open=False):
                            words = gr.Textbox(
                                label="Settings",
                                placeholder="alpha=0:region=uniform",
                                max_length=MAX_WORDS,
                                elem_id="ptp-words",
                            )
                            about = gr.HTML(settings_html("pyramid"))
                        with gr.Row():
                            go = gr.Button("Ask", variant="primary", elem_id="ptp-ask")
                            stop = gr.Button("Stop", elem_id="ptp-stop", min_width=80)
                            over = gr.Button("Start over", elem_id="ptp-over", min_width=80)
                        failed = gr.HTML(elem_id="ptp-error")
                        said = gr.HTML(elem_id="ptp-said")
                        figures = gr.HTML(elem_id="ptp-figures")
                        views = gr.HTML(elem_id="ptp-views")
                    with gr.Tab("Compare methods", id="compare"):
                        names = gr.CheckboxGroup(list(METHODS), value=FIRST_COMPARED, label="Methods", elem_id="ptp-names")
                        more = gr.Textbox(
                            label="More, with settings of their own, parted by commas",
                            placeholder="pyramid:alpha=0, fastv:prune_layer=1",
                            max_length=MAX_WORDS,
                            elem_id="ptp-more",
                        )
                        with gr.Row():
                            run = gr.Button("Compare", variant="primary", elem_id="ptp-compare")
                            halt = gr.Button("Stop", elem_id="ptp-halt", min_width=80)
                        unlike = gr.HTML(elem_id="ptp-compare-error")
                        table = gr.HTML(elem_id="ptp-table")
        answers = [failed, said, figures, views]
        told = [talk, question, keep, method, words]
        go.click(asked, told, answers, **SERIAL)
        question.submit(asked, told, answers, **SERIAL)
        run.click(compared, [talk, question, keep, names, more], [unlike, table], **SERIAL)
        stop.click(stopped, talk, None, **QUICK)
        halt.click(stopped, talk, None, **QUICK)
        over.click(started_over, talk, [talk, *answers], **QUICK)
        new_picture = [talk, preview, problem, *answers, to_ask, question, table]
        picker.picked(picked, talk, new_picture, **QUICK)
        page.load(lambda: opened(None, {"demo": first}), None, new_picture, **QUICK)
        to_ask.input(lambda text: text or "", to_ask, question, **QUICK)
        method.change(settings_html, method, about, **QUICK)
    return page
