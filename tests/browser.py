"""A headless browser for the tests of pages."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
TELL = """
<script>
function told(text) {
  const place = document.createElement("pre");
  place.id = "told";
  place.textContent = text;
  document.body.append(place);
}
STEPS
</script>
"""


def driven(page, tmp_path, steps):
    """What steps of JavaScript on a copy of the page have told(...), its document then, and the console's lines."""
    copy = tmp_path / "driven.html"
    before, end, after = page.read_text().rpartition("</body>")
    copy.write_text(before + TELL.replace("STEPS", steps) + end + after)
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom")
    flags += ("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND")
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]), done.stdout, console


def narrow(page, tmp_path, width):
    """A page that shows this one in a frame so wide, since windows are never below 500 pixels."""
    frame = tmp_path / "frame.html"
    text = json.dumps(page.read_text()).replace("<", "\\u003c")
    frame.write_text(
        f'<body><iframe style="width:{width}px;height:3000px;border:0"></iframe><script>'
        f'const frame = document.querySelector("iframe"); frame.srcdoc = {text};</script></body>'
    )
    return frame
