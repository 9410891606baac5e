"""A server under load for some minutes, its memory read every ten seconds: `python -m serving.soak --minutes 10` in tests/.

Pictures are drawn anew all the time, so that every cache fills and forgets; settings change from request to request. It fails
where an answer fails, or where memory still grows in the second half.
"""

import argparse
import base64
import io
import itertools
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from ptp.tiny.drawing import draw_scene

from .asking import SETTINGS
from .server import NAME, serving

GROWTH = 0.03
"""Share by which the mean of the last third may exceed that of the third before it."""


def memory_mib(process: int) -> float:
    """Resident memory of a process and all below it."""
    total, waiting = 0.0, [process]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/status").read_text()
            waiting += map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())
        except OSError:
            continue
        total += next((float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
    return total


def drawn(seed: int) -> str:
    """A picture as a data URL."""
    rng = np.random.default_rng(seed)
    image = draw_scene(rng, (int(rng.integers(1, 4)), int(rng.integers(1, 4)))).image
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--control", action="store_true", help="prune nothing: what the engine does by itself")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    import openai

    numbers, done, failed, stop = itertools.count(), [0], list[str](), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        small = ("--mm-processor-cache-gb", "0.05")  # vLLM's own cache of processed pictures: full within seconds
        asked = (*small, "--trust-request-mm-kwargs", "--mm-processor-kwargs", '{"ptp": {"reuse_mib": 16}}')
        with serving(Path(folder) / "server.log", *asked) as (address, process):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

            def work() -> None:
                while not stop.is_set():
                    number = next(numbers)
                    part = {"type": "image_url", "image_url": {"url": drawn(number // 4)}}  # four questions about each
                    text = {
                        "type": "text",
                        "text": random.Random(number).choice(["How many red signs?", "What is on the star?"]),
                    }
                    extra = {
                        "mm_processor_kwargs": {"ptp": SETTINGS[0 if options.control else number % len(SETTINGS)]},
                        "ignore_eos": True,
                    }
                    try:
                        client.chat.completions.create(
                            model=NAME, messages=[{"role": "user", "content": [part, text]}], max_tokens=4, extra_body=extra
                        )
                        done[0] += 1
                    except Exception as error:  # told at the end
                        failed.append(repr(error))

            threads = [threading.Thread(target=work, daemon=True) for _ in range(options.threads)]
            for thread in threads:
                thread.start()
            readings, start = list[tuple[float, float]](), time.monotonic()
            while time.monotonic() - start < 60 * options.minutes:
                time.sleep(10)
                readings.append((round(time.monotonic() - start), round(memory_mib(process.pid), 1)))
                print(
                    f"{readings[-1][0]:5.0f} s  {readings[-1][1]:8.1f} MiB  {done[0]} requests, {len(failed)} failed",
                    flush=True,
                )
            stop.set()
            for thread in threads:
                thread.join(60)
    third = max(1, len(readings) // 3)
    before = sum(size for _, size in readings[-2 * third : -third]) / max(1, len(readings[-2 * third : -third]))
    last = sum(size for _, size in readings[-third:]) / third
    told = {"requests": done[0], "failed": failed[:5], "readings": readings, "growth": last / before - 1 if before else 0.0}
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{done[0]} requests, {len(failed)} failed; the last third's memory is {told['growth']:+.1%} of that before.")
    if failed or told["growth"] > GROWTH:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
