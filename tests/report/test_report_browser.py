"""The page in a real browser: it renders without a complaint and fits a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report.report_sample import write_sample_run

from stillhouse.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

MEASURE = """<script>
const root = document.documentElement
const outside = [...document.querySelectorAll("main *")].filter(element =>
  element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll, .skip, svg"))
parent.postMessage([innerWidth, root.scrollWidth, outside.length].join(" "), "*")
</script>"""
# a window of the browser has a least width, a frame in it has none
PHONE = """<!doctype html><script>
addEventListener("message", event => document.documentElement.dataset.measured = event.data)
</script><iframe src="copy.html" style="width:390px;height:900px;border:0"></iframe>"""


def browse(page: Path, folder: Path, width: int) -> tuple[str, str]:
    """The page's document after rendering, and what the browser's console said."""
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *(
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ),
        "--virtual-time-budget=3000",
        *("--enable-logging=stderr", f"--user-data-dir={folder}", f"--window-size={width},900"),
        *("--dump-dom", page.resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_browser_renders_without_complaint(tmp_path):
    page = write_report(write_sample_run(tmp_path))
    document, console = browse(page, tmp_path / "profile", 1280)
    assert console == ""
    assert document.count("<section") == 12
    assert document.count("<svg") == page.read_text().count("<svg")


@pytest.mark.parametrize("folded", [True, False])
def test_nothing_runs_off_a_phone(tmp_path, folded):
    """Measured by a script in a copy of the page that lacks the policy; the page itself can run none."""
    text = write_report(write_sample_run(tmp_path)).read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    text = text if folded else text.replace("<details", "<details open")
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    (tmp_path / "phone.html").write_text(PHONE)
    document, console = browse(tmp_path / "phone.html", tmp_path / "profile", 800)
    measured = re.search(r'data-measured="(\d+) (\d+) (\d+)"', document)
    assert measured is not None, console
    inner, scroll, outside = map(int, measured.groups())
    assert (inner, scroll, outside) == (390, 390, 0)
