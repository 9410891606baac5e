"""`ptp ui`: a page to try pruning on."""

import ipaddress
from typing import Annotated

import typer
from rich.console import Console

from ..loader import load

MISSING = "ptp ui needs Gradio 6.31 or newer. Install it with: pip install 'pyramid-token-pruning[ui]'"


def ui(
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id; default: the embedded ptp-tiny.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 7860,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Serve a page to ask about pictures, with all visual tokens and pruned, side by side."""
    try:
        import gradio

        if int(gradio.__version__.split(".")[0]) < 6:
            raise ValueError(f"{MISSING} (here is {gradio.__version__}).")
        from ..ui import server
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(MISSING) from error
    from ..ui.streaming import Loaded

    server.check_address(host, port)
    loaded = Loaded(*load(model, device=device, dtype=dtype), model or "ptp-tiny (embedded)")
    server.warm_up(loaded)
    page = server.start(loaded, host, port, max_new_tokens)
    console = Console()
    console.print(f"Serving {loaded.name} on http://{host}:{port} - Ctrl-C stops it.", highlight=False, markup=False)
    if not _loopback(host):
        console.print("Whoever reaches this machine there can use the page: there is no password.", highlight=False)
    server.wait(page)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
