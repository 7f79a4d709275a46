r"""Opens every page of the built site in Chromium and looks for trouble.

    mkdocs build
    python tests/docs/browse_site.py build/site [SCREENSHOTS]

Needs `pip install selenium` and, on Debian, `apt-get install chromium
chromium-driver`. For each page: messages on the console, pictures that do not
show, requests to another host, and at widths of 1300 and 400 pixels text that
leaves the page or its box without a bar to scroll it. Prints a line for each
page, and exits with status 1 where something was found. Into the folder
SCREENSHOTS it takes pictures of the pages in `SHOWN`, at both widths. Its log
is `tests/benchmarks/logs/site.txt`.
"""

from __future__ import annotations

import functools
import http.server
import pathlib
import sys
import tempfile
import threading

from selenium import webdriver

WIDTHS = (1300, 400)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    f"--window-size={WIDTHS[0]},2000",
)
SHOWN = ("index", "notebooks/quickstart", "guides/finetune", "api/training")
# Elements beyond the window or their box that no ancestor scrolls.
WIDE = """
const [done] = arguments;
const look = () => {
const wide = [];
for (const e of document.querySelectorAll(".md-content *")) {
  const box = e.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1 || e.closest("mjx-container"))
    continue;
  let at = e.parentElement, scrolls = false;
  for (; at && !at.matches(".md-content"); at = at.parentElement)
    scrolls ||= ["auto", "scroll"].includes(getComputedStyle(at).overflowX);
  if (!scrolls) wide.push(e.tagName + ": " + e.textContent.slice(0, 40));
}
if (document.documentElement.scrollWidth > innerWidth) wide.push("page");
done(wide.slice(0, 3));
};
setTimeout(look, 300);  // The page follows its window.
"""
HIDDEN = """
const [done] = arguments;
const images = [...document.images];
images.forEach(i => i.loading = "eager");
Promise.all(images.map(i => i.decode().then(() => 0, () => i.src)))
  .then(found => done(found.filter(Boolean)));
"""
REQUESTS = """
return performance.getEntriesByType("resource").map(e => e.name)
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a log."""

    def log_message(self, *args):
        """Says nothing."""


def browser():
    """A Chromium with an empty profile that keeps its console's messages."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    profile = tempfile.mkdtemp()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    return webdriver.Chrome(options=options, service=service)


def look(chrome, name: str, shots: pathlib.Path | None) -> list[str]:
    """Finds what is too wide, at all widths; takes a picture if wanted."""
    found = []
    for width in WIDTHS:
        # Windows are no narrower than 500 pixels; phones are.
        size = {"width": width, "height": 2000, "deviceScaleFactor": 1}
        size["mobile"] = False
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wide = chrome.execute_async_script(WIDE)
        found += [f"{width}: {x}" for x in wide]
        if shots and (page := name.removesuffix(".html")) in SHOWN:
            file = shots / f"{page.replace('/', '_')}_{width}.png"
            chrome.save_screenshot(str(file))
    return found


def main(site: pathlib.Path, shots: pathlib.Path | None = None) -> int:
    """Visits all pages; returns how many have trouble."""
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    chrome = browser()
    print("Chromium", chrome.capabilities["browserVersion"])
    troubled = 0
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":
            continue
        name = file.relative_to(site).as_posix()
        chrome.get(home + name)
        trouble = [
            f"console: {x['message']}" for x in chrome.get_log("browser")
        ]
        hidden = chrome.execute_async_script(HIDDEN)
        trouble += [f"no picture: {x}" for x in hidden]
        asked = chrome.execute_script(REQUESTS)
        trouble += [f"asks: {x}" for x in asked if not x.startswith(home)]
        trouble += look(chrome, name, shots)
        pictures = chrome.execute_script("return document.images.length")
        print(f"{name}: {pictures} pictures,", *trouble or ["no trouble"])
        troubled += bool(trouble)
    chrome.quit()
    server.shutdown()
    print(f"{troubled} pages with trouble")
    return troubled


if __name__ == "__main__":
    sys.exit(bool(main(*map(pathlib.Path, sys.argv[1:]))))
