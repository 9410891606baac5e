"""Serving the page."""

import os
import socket
import threading
from importlib import resources

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware

from ..tiny.demo import load_demo
from .app import build_page
from .ask import Talk, ask
from .guard import Guard
from .settings import build, chosen_variant
from .streaming import Loaded

SESSIONS = 16
"""Visitors whose pictures and KV caches are held; the oldest is forgotten first."""
WAITING = 32


def warm_up(loaded: Loaded) -> None:
    """Ask once, so that the first visitor's times are no start-up."""
    pictures, questions = load_demo()
    talk = Talk(pictures[questions[0].picture], "")
    for _ in ask(loaded, talk, questions[0].question, build(chosen_variant("pyramid", ""), 50), 2):
        pass


def start(loaded: Loaded, host: str, port: int, max_new_tokens: int) -> gr.Blocks:
    """Serve the page in threads of its own; `close()` what is returned to stop.

    Nothing is written to disk: pictures come inside events, overlays go as data URIs, and `Guard` refuses Gradio's uploads.

    Raises:
        ValueError: the port is taken, or the host is none of this machine's.
    """
    check_address(host, port)
    page = build_page(loaded, max_new_tokens)
    page.queue(max_size=WAITING)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        state_session_capacity=SESSIONS,
        max_file_size=1,
        app_kwargs={"middleware": [Middleware(Guard)]},
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=resources.files("ptp.ui").joinpath("page.css").read_text("utf-8"),
    )
    return page


def check_address(host: str, port: int) -> None:
    """Raise ValueError unless a server can listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ValueError(
            f"--host and --port must be a free address of this machine, got {host}:{port} ({error.strerror}). "
            f"Try --port {port % 65535 + 1}."
        ) from error


def wait(page: gr.Blocks) -> None:
    """Serve until Ctrl-C."""
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
