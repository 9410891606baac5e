"""A live server, the OpenAI client, and settings of its own for each request."""

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from .asking import SETTINGS, expected, questions
from .server import ask, serving

pytestmark = pytest.mark.usefixtures("vllm")
THREADS, REQUESTS = 16, 500


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    openai = pytest.importorskip("openai", reason="the OpenAI client comes with vLLM")
    log = tmp_path_factory.mktemp("server") / "server.log"
    options = ("--trust-request-mm-kwargs", "--mm-processor-kwargs", '{"ptp": {"keep_ratio": 0.5, "reuse_mib": 64}}')
    with serving(log, *options) as (address, process):
        yield address, process, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_every_answer_is_right(live, reference):
    *_, client = live
    cases = [([[name, asked]], settings) for name, asked in questions() for settings in [None, *SETTINGS[1:]]]
    wanted = [expected(reference, turns, {"keep_ratio": 0.5} if own is None else own)[0] for turns, own in cases]

    def right(number: int) -> float:
        turns, settings = cases[number % len(cases)]
        (choice,) = ask(client, turns, settings).choices
        first = choice.logprobs.content[0]
        rows = wanted[number % len(cases)]
        return max(abs(each.logprob - float(rows[int(each.token.removeprefix("token_id:"))])) for each in first.top_logprobs)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(right, range(REQUESTS)))
    assert len(found) == REQUESTS and max(found) < 1e-3


BAD = [
    ({"keep_ratio": 2}, "keep_ratio must be in"),
    ({"ratio": 0.5}, "got ratio"),
    ({"method": "pyramiddrop", "keep_ratio": 0.5}, "pyramiddrop cannot be served"),
    ({"keep_ratio": 0.5, "prune_layer": 2}, "drops tokens at layer 2"),
    ({"keep_ratio": 0.5, "vision_layer": 40}, "vision_layer must be in"),
    ({"method": ["pyramid"]}, "method must be a name"),
    ({"keep_ratio": 0.5, "reuse_mib": 1}, "reuse_mib is the engine's"),
    ("half", "must be an object of settings"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_requests(live, settings, message):
    import openai

    _, process, client = live
    name, asked = questions()[0]
    with pytest.raises(openai.BadRequestError, match=re.escape(message)):
        ask(client, [[name, asked]], settings)
    assert process.poll() is None and ask(client, [[name, asked]], {"keep_ratio": 0.25}).choices


def test_videos_are_refused(live):
    import openai

    *_, client = live
    video = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + _one_frame()}}
    content = [video, {"type": "text", "text": "What is red?"}]
    with pytest.raises(openai.BadRequestError, match=r"[Vv]ideo"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1)


def _one_frame() -> str:
    import base64

    from .asking import PICTURES

    return base64.b64encode((PICTURES / "coffee_1.jpg").read_bytes()).decode()


def test_metrics(live):
    address, _, client = live

    def read() -> list[float]:
        text = urllib.request.urlopen(f"{address}/metrics").read().decode()
        names = ("ptp:visual_tokens_total", "ptp:visual_tokens_kept_total", "ptp:pictures_total")
        return [sum(float(v) for v in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.M)) for name in names]

    before, (name, asked) = read(), questions()[0]
    ask(client, [[name, asked]], {"keep_ratio": 0.25})
    ask(client, [[name, asked]], None)  # the engine's own 0.5
    assert [b - a for a, b in zip(before, read(), strict=True)] == [416, 52 + 104, 2]
