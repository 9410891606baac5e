"""The page in a real browser: headless Chromium, driven by Playwright. `make test-ui` runs it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptp.testing import photo
from ptp.tiny.demo import load_demo
from test_ui import HOSTILE, bomb, saved

pytest.importorskip("gradio", reason="the page needs Gradio; make test-ui has it")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested through Playwright; make test-ui has it")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the page is tested in Chromium: apt-get install chromium, or CHROMIUM=PATH", allow_module_level=True)

SHOTS = os.environ.get("PTP_UI_SHOTS")
"""A folder for screenshots, to be looked at."""
SIZES = {"wide": (1280, 900), "narrow": (375, 812)}
WAIT = 30_000
IDLE = "!document.querySelector('[aria-busy=true]')"
BROKEN = Path(__file__).read_bytes()


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Where Gradio and Python would keep files."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def served(disk):
    """The address of `ptp ui`, run as a user does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {"TMPDIR": str(disk), "GRADIO_TEMP_DIR": str(disk / "gradio"), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "ptp", "ui", "--port", str(port), "--max-new-tokens", "12"]
    server = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    line = server.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line + server.stdout.read()
    yield f"http://127.0.0.1:{port}/"
    server.send_signal(signal.SIGINT)
    output, _ = server.communicate(timeout=30)
    assert server.returncode == 130 and output.strip().splitlines()[-1] == "ptp: interrupted", output
    assert "Traceback" not in output, output


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture(params=["wide-light"])
def page(request, browser, served):
    """A visitor's page, the first demo picture on it. Nothing may be asked of another host, and no script may fail."""
    width, scheme = request.param.split("-")
    context = browser.new_context(viewport=dict(zip(("width", "height"), SIZES[width], strict=True)), color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    elsewhere, broken = [], []
    page.on("request", lambda sent: sent.url.startswith((served, "data:", "blob:")) or elsewhere.append(sent.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("dialog", lambda dialog: broken.append(dialog.message))
    page.goto(served)
    page.wait_for_selector("#ptp-preview img")
    yield page
    context.close()
    assert (elsewhere, broken) == ([], [])


def look(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def ask(page, question: str | None = None, turns: int = 1) -> None:
    """Ask as a visitor without a mouse does; wait for both answers."""
    box = page.locator("#ptp-question textarea")
    if question is not None:
        box.fill(question)
    box.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('#ptp-said li').length == {turns} && {IDLE}")
    page.wait_for_selector("#ptp-views img", state="attached")


def answers(page) -> list[str]:
    return page.locator(".ptp-answer").all_inner_texts()


def upload(page, name: str, content: bytes) -> None:
    page.set_input_files("#ptp-file", {"name": name, "mimeType": "image/png", "buffer": content})


def set_kept(page, percent: int) -> None:
    """Move the slider itself."""
    slider = page.locator("#ptp-keep input[type=range]")
    slider.focus()
    now = int(slider.input_value())
    for _ in range(abs(percent - now)):
        slider.press("ArrowRight" if percent > now else "ArrowLeft")
    assert slider.input_value() == str(percent)


LOOKS = [f"{width}-{scheme}" for width in SIZES for scheme in ("light", "dark")]


@pytest.mark.parametrize("page", LOOKS, indirect=True)
def test_a_question_a_follow_up_and_a_comparison(page, request):
    """On a wide and a narrow window, light and dark: all of it, and nothing wider than the window."""
    look_ = request.node.callspec.params["page"]
    look(page, f"{look_}-1-first")
    ask(page)
    assert answers(page) == ["F", "F"]
    figures = page.inner_text("#ptp-figures")
    assert "50 % kept" in figures and re.search(r"208 → 104", figures) and "smaller" in figures
    assert "What is on the yellow circle?" in page.inner_text(".ptp-instruction")
    look(page, f"{look_}-2-asked")
    set_kept(page, 25)
    page.locator(".ptp-views label", has_text="Tile budgets").click()
    assert page.locator(".ptp-panel:visible img").first.get_attribute("alt") == "Tile budgets on the picture"
    page.get_by_role("tab", name="Compare methods").click()
    page.click("#ptp-compare")
    page.wait_for_function("document.querySelectorAll('#ptp-table tbody img').length == 4")
    methods = page.locator("#ptp-table tbody th").all_inner_texts()
    assert methods == ["all tokens", "pyramid", "visionzip", "fastv", "random"]
    assert page.locator("#ptp-table tbody tr").nth(1).locator("td").nth(1).inner_text() == "52"
    look(page, f"{look_}-3-compared")
    page.get_by_role("tab", name="Ask").click()
    ask(page, "Name the color of sign A.", turns=2)
    assert answers(page)[2] == "blue" and "25 % kept" in page.inner_text("#ptp-figures")
    look(page, f"{look_}-4-follow-up")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle({of}).{what}"))[:3]))
        for of, what in (("document.querySelector('.ptp-answer')", "color"), ("document.body", "backgroundColor"))
    )
    assert (ink > paper + 300) if dark else (paper > ink + 300)


def test_a_follow_up_on_held_caches_reads_no_picture_again(page):
    ask(page)
    kept = page.locator(".ptp-views img").first.get_attribute("src")
    ask(page, "Name the color of sign A.", turns=2)
    assert page.locator(".ptp-side small").all_inner_texts() == ["on the held cache"] * 2
    assert "held KV cache" in page.inner_text("#ptp-figures")
    assert page.locator(".ptp-views img").first.get_attribute("src") == kept
    page.click("#ptp-over")
    page.wait_for_function("!document.querySelector('#ptp-said li')")
    ask(page, "What is on the yellow circle?")
    assert answers(page) == ["F", "F"]


def test_an_upload_is_asked_about_and_leaves_no_file(page, disk):
    picture, q = (load_demo()[0]["china_2.jpg"], load_demo()[1][4])
    upload(page, "sign <b>.png", saved(picture))
    page.wait_for_function("document.querySelector('#ptp-preview figcaption').innerText.startsWith('sign <b>.png')")
    ask(page, q.question)
    assert answers(page) == [q.answer, q.answer]
    assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_what_is_no_picture_is_a_sentence_and_the_page_lives_on(page):
    for name, content, sentence in (
        ("broken.png", BROKEN, "Picture 'broken.png' is not a picture that this page can read. Convert it to PNG or JPEG."),
        ("cut.png", saved(photo(0, (300, 200)))[:2000], "Picture 'cut.png' is damaged"),
        ("bomb.png", bomb(20_000), "Picture 'bomb.png' has more than 40 million pixels. Shrink it first."),
        ("empty.png", b"", "Picture 'empty.png' is empty (0 bytes)."),
    ):
        upload(page, name, content)
        page.wait_for_function(f"document.querySelector('#ptp-picture-error').innerText.startsWith({sentence!r})")
    look(page, "error-picture")
    upload(page, "huge.png", b"\0" * 20_000_001)
    page.wait_for_function("document.querySelector('.ptp-problem').innerText.includes('at most 20 MB, got 20.0')")
    ask(page)
    assert answers(page) == ["F", "F"]


def test_a_wrong_setting_is_a_sentence_and_a_right_one_is_used(page):
    page.get_by_role("button", name="Settings of the method").click()
    page.locator("#ptp-words textarea").fill("alfa=0")
    page.click("#ptp-ask")
    page.wait_for_selector("#ptp-error [role=alert]")
    assert page.inner_text("#ptp-error").startswith("Settings of pyramid are window, ")
    look(page, "error-setting")
    page.locator("#ptp-words textarea").fill("prune_layer=77")
    page.click("#ptp-ask")
    page.wait_for_function("document.querySelector('#ptp-error').innerText.startsWith('prune_layer must be in [0, 5]')")
    page.locator("#ptp-words textarea").fill("pyramid:alpha=0:region=uniform")
    ask(page)
    assert page.locator("#ptp-error [role=alert]").count() == 0
    assert "looks at the picture alone" in page.inner_text("#ptp-views")
    page.locator("#ptp-question textarea").fill(" ")
    page.click("#ptp-ask")
    page.wait_for_function("document.querySelector('#ptp-error').innerText.startsWith('A question is needed.')")


def test_what_visitors_write_is_shown_as_written(page):
    ask(page, HOSTILE)
    assert page.inner_text(".ptp-question").split(maxsplit=1)[1] == HOSTILE
    assert page.locator("#ptp-said img, #ptp-views q img").count() == 0


def test_a_picture_by_the_camera(page):
    page.click(".ptp-camera")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    page.click(".ptp-shoot")
    page.wait_for_function("document.querySelector('#ptp-preview figcaption').innerText.startsWith('camera.jpg')")
    assert not page.is_visible("video")


def test_another_picture_to_try_brings_its_questions(page):
    page.click(".ptp-demo >> nth=1")
    page.wait_for_function("document.querySelector('#ptp-question textarea').value == 'Is a yellow triangle in the picture?'")
    page.click("#ptp-to-ask input")
    page.get_by_role("option", name="How many yellow signs are there?").click()
    page.wait_for_function("document.querySelector('#ptp-question textarea').value == 'How many yellow signs are there?'")
    ask(page)
    assert answers(page) == ["4", "4"]


def test_by_keyboard_alone(page):
    """Tab reaches file, camera, a picture to try, question, the slider, the button and the tabs of what was kept."""
    ask(page)
    reached, wanted = set(), {"ptp-file", "ptp-camera", "ptp-demo", "textarea", "range", "ptp-ask", "ptp-view-1"}
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate("(e => [e.id, e.type, ...e.classList].join(' '))(document.activeElement)").split()
        reached |= wanted & set(at)
        if reached == wanted:
            break
    assert reached == wanted
    page.focus("#ptp-view-1")
    page.keyboard.press("ArrowRight")
    assert page.locator(".ptp-panel:visible img").first.get_attribute("alt") == "Tile budgets on the picture"


def test_the_server_refuses_files(page, served, disk):
    sent = page.request.post(
        f"{served}gradio_api/upload", multipart={"files": {"name": "a.png", "mimeType": "image/png", "buffer": b"a"}}
    )
    assert sent.status == 403
    host, port = served.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 28000000\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413 ")
    assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_a_port_that_is_taken_is_one_line(served):
    port = served.rstrip("/").rsplit(":", 1)[1]
    run = subprocess.run([sys.executable, "-m", "ptp", "ui", "--port", port], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "must be a free address" in run.stderr and run.stderr.count("\n") == 1


def test_another_picture_ends_the_answer_that_is_being_written(page):
    """What the old picture's answer still sends must not come back."""
    page.locator("#ptp-question textarea").press("Enter")
    page.click(".ptp-demo >> nth=1")
    page.wait_for_function("document.querySelector('#ptp-preview figcaption').innerText.startsWith('china_2.jpg')")
    ask(page, "How many yellow signs are there?")
    assert answers(page) == ["4", "4"]


def test_a_visitor_who_leaves_does_not_hold_the_model(page, browser, served):
    page.locator("#ptp-question textarea").press("Enter")
    page.goto("about:blank")
    time.sleep(0.2)
    page.goto(served)
    page.wait_for_selector("#ptp-preview img")
    ask(page)
    assert answers(page) == ["F", "F"]
