"""A `vllm serve` of the embedded model over loopback, for tests and for the soak."""

import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ptp.tiny import WEIGHTS

from .asking import PICTURES

NAME = "tiny"


@contextlib.contextmanager
def serving(log: Path, *options: str, wait: float = 240) -> Iterator[tuple[str, subprocess.Popen]]:
    """The server's address and process. It is stopped at the end.

    Raises:
        RuntimeError: it ended before it answered, or took longer than `wait` seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(WEIGHTS), "--served-model-name", NAME, "--dtype", "float32",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "32",
        "--max-num-batched-tokens", "512", "--enforce-eager", "--limit-mm-per-prompt", '{"image": 3}', *options,
    ]  # fmt: skip
    environment = dict(os.environ, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + wait
    try:
        while not _answers(f"{address}/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(1)
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def messages(turns) -> list[dict]:
    """A conversation for the OpenAI client, as `asking.conversation` has it; pictures as data URLs."""
    roles, made = ("user", "assistant"), []
    for number, turn in enumerate(turns):
        content = []
        for each in [turn] if isinstance(turn, str) else turn:
            if each.endswith(".jpg"):
                data = base64.b64encode((PICTURES / each).read_bytes()).decode()
                content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
            else:
                content.append({"type": "text", "text": each})
        made.append({"role": roles[number % 2], "content": content})
    return made


def ask(client, turns, settings, tokens=3):
    """One chat completion with log-probabilities."""
    extra = {"ignore_eos": True, "return_tokens_as_token_ids": True}
    if settings is not None:
        extra["mm_processor_kwargs"] = {"ptp": settings}
    return client.chat.completions.create(
        model=NAME, messages=messages(turns), max_tokens=tokens, temperature=0, logprobs=True, top_logprobs=3, extra_body=extra
    )
