"""Chromium, driven over the real page of a real server."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from dev.host import ROOT, link
from dev.server import Server, host_from_environment

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
SHOTS = Path(__file__).resolve().parents[2] / ".host" / "screenshots"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def page_server():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine (install the package 'chromium')")
    host = host_from_environment()
    front_end = host.comfy / "web_custom_versions"
    if not front_end.exists() and not _has_front_end():
        pytest.skip("this ComfyUI has no front end package")
    link(ROOT / "tests" / "host" / "vcd_test_nodes", host.base / "custom_nodes" / "vcd_test_nodes")
    # the page shares two cores with the server
    os.environ["OMP_NUM_THREADS"] = "1"
    with Server(host, arguments=("--disable-api-nodes",)) as server:
        yield server


def _has_front_end():
    import importlib.util

    return importlib.util.find_spec("comfyui_frontend_package") is not None


@pytest.fixture(scope="session")
def browser(page_server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


USUAL = {"Comfy_VueNodes_Enabled": False, "Comfy_Locale": "en"}


class Tab:
    """One page, what it said on its console, and a folder for screenshots."""

    def __init__(self, page, server):
        self.page, self.server, self.messages, self.failed = page, server, [], []
        page.on("console", lambda m: self.messages.append((m.type, m.text)))
        page.on("pageerror", lambda error: self.messages.append(("error", str(error))))
        page.on("response", lambda r: self.failed.append((r.status, r.url)) if r.status >= 400 else None)

    def open_template(self, name, pack="video_custom_diffusion"):
        self.page.goto(f"{self.server.url}/?template={name}&source={pack}", wait_until="load")
        self.page.wait_for_function(
            "() => window.app?.graph?._nodes?.some(n => n.type.startsWith('VCD_'))", timeout=90_000
        )
        self.page.wait_for_timeout(1000)

    def settings(self, **values):
        """The user's settings, as the page stores them; to be called before the page is opened."""
        for name, value in values.items():
            self.server.post(f"/settings/{name.replace('_', '.')}", value)

    def evaluate(self, script, *arguments):
        return self.page.evaluate(script, *arguments)

    def errors(self):
        """Console errors that are ours: those that name the pack, or script errors of no other cause."""
        ours = ("vcd", "video_custom_diffusion", "video custom diffusion")
        told = [text for kind, text in self.messages if kind == "error"]
        # the page looks for help in the user's language first and falls back by itself
        failed = [f"{status} {url}" for status, url in self.failed if not url.endswith("/en.md")]
        return [line for line in told + failed if any(name in line.lower() for name in ours)]

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))


@pytest.fixture
def tab(browser, page_server):
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield Tab(page, page_server)
    for name, value in USUAL.items():
        page_server.post(f"/settings/{name.replace('_', '.')}", value)
    with contextlib.suppress(Exception):
        context.close()
