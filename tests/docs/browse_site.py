r"""Opens every page of the built site in Chromium and looks for trouble.

    EXECUTE_NOTEBOOKS=1 mkdocs build
    python tests/docs/browse_site.py build/site

Needs `pip install selenium` and, on Debian, `apt-get install chromium
chromium-driver`. For each page: messages on the console, pictures that do not
show, requests to another host. Prints a line for each page, and exits with
status 1 where something was found. Its log is `tests/benchmarks/logs/site.txt`.
"""

from __future__ import annotations

import functools
import http.server
import pathlib
import sys
import tempfile
import threading

from selenium import webdriver

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    "--window-size=1300,2000",
)
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


def main(site: pathlib.Path) -> int:
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
        pictures = chrome.execute_script("return document.images.length")
        print(f"{name}: {pictures} pictures,", *trouble or ["no trouble"])
        troubled += bool(trouble)
    chrome.quit()
    server.shutdown()
    print(f"{troubled} pages with trouble")
    return troubled


if __name__ == "__main__":
    sys.exit(bool(main(pathlib.Path(sys.argv[1]))))
