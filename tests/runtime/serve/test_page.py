"""The page in a browser: key, keyboard, streaming, figures, stop, and text that is never more than text."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.serve.chromium import PROGRAM, Browser
from tests.runtime.serve.live import KEY, LiveServer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

LAST = "[...document.querySelectorAll('.model')].at(-1)"


@pytest.fixture(scope="module")
def browser(server: LiveServer) -> Iterator[Browser]:
    with Browser() as opened:
        opened.open(f"http://127.0.0.1:{server.port}/")
        yield opened


def ask(browser: Browser, text: str) -> None:
    """Type a message and send it with Enter."""
    browser.type(text)
    browser.press("Enter")


def test_it_asks_for_the_key_until_it_is_right(browser: Browser) -> None:
    browser.wait("document.getElementById('ask').open")
    ask(browser, "sk-wrong")
    browser.wait("document.getElementById('ask').open && at('ask-why').textContent.includes('refused')")
    ask(browser, KEY)
    browser.wait("model === 'demo'")
    assert browser.js("document.title") == "demo"
    assert browser.js("document.activeElement.id") == "prompt"


def test_an_answer_streams_with_its_figures(browser: Browser, tmp_path: Path) -> None:
    browser.js("at('most').value = 60")
    ask(browser, "def parse(text):")
    browser.wait("running && at('send').textContent === 'Stop'")
    browser.wait("!running")
    assert browser.js(f"{LAST}.querySelector('.text').textContent.length") > 60
    figures = browser.js(f"{LAST}.querySelector('.figures').textContent")
    assert figures.startswith("60 tokens · ")
    assert " tokens/s · " in figures
    assert " drafted tokens accepted" in figures
    assert browser.js("document.querySelector('.user .text').textContent") == "def parse(text):"
    assert browser.js("document.activeElement.id") == "prompt"
    for scheme, ground in (("light", "rgb(246, 247, 247)"), ("dark", "rgb(16, 22, 21)")):
        browser.scheme(scheme)
        assert browser.js("getComputedStyle(document.documentElement).backgroundColor") == ground
    browser.screenshot(tmp_path / "page.png")


def test_escape_and_the_button_stop_an_answer(browser: Browser, server: LiveServer) -> None:
    browser.js("at('most').value = ''")
    for stop in (lambda: browser.press("Escape"), lambda: browser.js("at('send').click()")):
        ask(browser, "def parse(text):")
        browser.wait(f"running && {LAST}.querySelector('.figures')")
        stop()
        browser.wait("!running")
        assert browser.js(f"{LAST}.querySelector('.figures').textContent").endswith("stopped")
    deadline = time.monotonic() + 30
    while server.metric("eagleplan_requests_running"):
        assert time.monotonic() < deadline, "a stopped answer goes on"
        time.sleep(0.05)
    browser.js("at('fresh').click()")
    assert browser.js("document.querySelectorAll('.turn').length") == 0
    assert browser.js("conversation.length") == 0


def test_text_is_never_more_than_text(browser: Browser) -> None:
    """Text of the model, and of the person, with tags, is shown as it is."""
    evil = "<img src=x onerror='window.evil=1'><script>window.evil=1</script>&amp;"
    chunk = json.dumps({"choices": [{"delta": {"content": evil}, "finish_reason": "stop"}]})
    body = json.dumps(f"data: {chunk}\n\ndata: [DONE]\n\n")
    browser.js(f"window.realFetch = window.fetch; window.fetch = async () => new Response({body}); 0")
    ask(browser, evil)
    browser.wait(f"!running && {LAST}")
    browser.js("window.fetch = window.realFetch; 0")
    assert browser.js(f"{LAST}.querySelector('.text').textContent") == evil
    assert browser.js("document.querySelector('.user .text').textContent") == evil
    assert browser.js("document.querySelectorAll('main img, main script').length") == 0
    assert browser.js("window.evil === undefined")


def test_a_refusal_is_shown_and_the_policy_holds(browser: Browser) -> None:
    browser.js("at('fresh').click(); at('most').value = 512")
    ask(browser, "x")
    browser.wait("!running && document.querySelector('.figures.wrong')")
    assert "context has 512 tokens" in browser.js("document.querySelector('.figures.wrong').textContent")
    assert browser.js("at('announcement').textContent").startswith("Error: ")
    assert "innerHTML" not in browser.js("document.scripts[0].textContent")
    refused = [entry for entry in browser.events if "Content Security Policy" in json.dumps(entry)]
    assert refused == [], "the page keeps to its own policy"
    browser.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.evil = 2'}))"
    )
    assert browser.js("window.evil === undefined"), "an inline script that is not the page's is not run"


def test_controls_have_names_and_nothing_is_wider_than_a_phone(browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    browser.js("document.querySelector('details').open = true")
    assert browser.js("document.documentElement.scrollWidth") <= 360
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox", "spinbutton")]
    assert len(controls) >= 5
    assert [node for node in controls if not node["name"]["value"]] == []
