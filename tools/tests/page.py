#!/usr/bin/env python3
"""The page of `tandem serve` in a real browser: Debian's chromium, by Playwright; axe-core looks for what
people with screen readers or keyboards cannot use.

    pip install playwright axe-playwright-python
    tools/tests/page.py target/debug/tandem [FOLDER FOR SCREENSHOTS]
"""

import pathlib
import subprocess
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

FIXTURES = pathlib.Path(__file__).parent.parent.parent / "fixtures"
MODEL = ["--model", str(FIXTURES / "pocket-q8_0.gguf"), "--bundle", str(FIXTURES / "pocket.tandem")]
TEXT = "This package provides the shared library for reading and writing images in many formats."


def said(tandem, composition):
    flags = ["--compose", composition, "--temp", "0", "-n", "40", "--prompt", TEXT]
    run = subprocess.run([tandem, "run", *MODEL, *flags], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def check_accessibility(page, what):
    found = Axe().run(page).response["violations"]
    assert not found, f"{what}: " + "; ".join(f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found)


def settle(page):
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)


def try_page(page, tandem, shots, name):
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((page.base, "data:")) else None)
    page.goto(page.base)
    expect(page.locator("#model option")).not_to_have_count(0)
    page.click("#show-settings")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "40")
    check_accessibility(page, "settings")
    page.click("#show-settings")

    # A chat with a composition, by the keyboard.
    page.select_option("#model", "summarize-fr")
    page.fill("#input", TEXT)
    page.press("#input", "Enter")
    settle(page)
    answer = page.locator("#messages li.assistant .text")
    assert answer.inner_text().strip() == said(tandem, "summarize-fr"), answer.inner_text()
    expect(page.locator("#messages li.assistant .figures")).to_contain_text("a second")
    expect(page.locator("#status")).to_contain_text("memory")
    page.click("#retry")
    settle(page)
    expect(answer).to_have_count(1)
    page.fill("#input", TEXT)
    page.click("#show-prompt")
    expect(page.locator("#prompt-text")).to_have_text(TEXT + "\n=> ")
    check_accessibility(page, "prompt")
    page.press("#prompt-text", "Escape")
    check_accessibility(page, "chat")
    page.screenshot(path=shots / f"{name}-chat.png")

    # What was said is there again, and text is text.
    page.reload()
    expect(page.locator("#messages li.user .text")).to_have_text(TEXT)
    page.click("#new")
    page.fill("#input", "<img src=x onerror=alert(1)>")
    page.press("#input", "Enter")
    settle(page)
    expect(page.locator("#messages img")).to_have_count(0)

    # The same input through base, plain merge and calibrations.
    page.click("#show-compare")
    page.fill("#input", TEXT)
    page.click("#send")
    settle(page)
    columns = page.locator("#columns article")
    names = columns.locator("h2").all_inner_texts()
    assert len(names) >= 3 and names[0] == "pocket-q8_0" and "summarize-fr-plain" in names, names
    for i, composition in enumerate(names[1:], 1):
        text = columns.nth(i).locator(".text").inner_text().strip()
        assert text == said(tandem, composition), f"{composition}: {text}"
    check_accessibility(page, "compare")
    page.screenshot(path=shots / f"{name}-compare.png", full_page=True)
    width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert width <= 0, f"it is {width} pixels too wide"

    # Stop ends an answer.
    page.click("#show-chat")
    page.click("#new")
    page.select_option("#model", "pocket-q8_0")
    page.click("#show-settings")
    page.fill("#max_tokens", "400")
    page.fill("#temperature", "1")
    page.click("#show-settings")
    page.fill("#input", TEXT)
    page.click("#send")
    # It may have ended by then: a button that is disabled does nothing.
    page.evaluate("document.getElementById('stop').click()")
    settle(page)
    expect(page.locator("#messages li.user")).to_have_count(1)
    expect(page.locator("#error")).to_be_empty()
    # The base has no chat template: that it is asked in another way is no fault.
    wrong = [w for w in wrong if "400 (Bad Request)" not in w]
    assert not wrong, wrong


def main():
    tandem = sys.argv[1]
    shots = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/page")
    shots.mkdir(parents=True, exist_ok=True)
    serve = [tandem, "serve", *MODEL, "--port", "0"]
    server = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if line.startswith("listening on "):
                base = line.split()[-1]
                break
        else:
            raise SystemExit("the server did not start")
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            for name, size, scheme in (("phone", (360, 740), "dark"), ("desktop", (1280, 800), "light")):
                viewport = {"width": size[0], "height": size[1]}
                context = browser.new_context(viewport=viewport, color_scheme=scheme)
                page = context.new_page()
                page.base = base
                try_page(page, tandem, shots, name)
                print(f"{name}, {scheme}: ok")
                context.close()
            browser.close()
    finally:
        server.terminate()
        assert server.wait(20) == 0, "it did not end well"


if __name__ == "__main__":
    main()
