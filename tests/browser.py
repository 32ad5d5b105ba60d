"""Debian's chromium, headless, and what a page measures in it."""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html import escape, unescape
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
Browser = Callable[..., str]

MEASURE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => { d.open = true; });
  const e = document.documentElement, images = [...document.images];
  const fetched = performance.getEntriesByType("resource").map(r => r.name);
  parent.document.body.dataset.measured = JSON.stringify({
    title: document.title,
    sections: [...document.querySelectorAll("main section")].map(s => s.id),
    needed: e.scrollWidth,
    width: innerWidth,
    images: images.length,
    broken: images.filter(i => !i.naturalWidth).length,
    fetched: fetched.filter(name => !name.startsWith("data:")),
  });
});
</script>"""


def measured(page: Path, width: int, chromium: Browser, extra: str = "") -> dict[str, object]:
    """Lays the page out in a frame of some width (a window is never narrower than 500 px)."""
    # Its policy forbids scripts and fetching: without it the page has to stand on its own.
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    text = text.replace("</body>", extra + MEASURE + "</body>")
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(text)}">'
    outer = page.with_name(f"outer{width}.html")
    outer.write_text(f"<!DOCTYPE html><body>{frame}</iframe></body>", encoding="utf-8")
    seen = chromium(outer, "--dump-dom", "--window-size=1400,1000")
    match = re.search(r'<body data-measured="([^"]*)"', seen)
    assert match is not None, seen[:300]
    return dict(json.loads(unescape(match.group(1))))


def browser(program: str, profiles: Path) -> Browser:
    """Runs the program on a page, with a new profile each time, and returns what it prints."""

    def browse(page: Path, *flags: str, address: str = "") -> str:
        profile = profiles / f"profile-{len(list(profiles.iterdir()))}"
        command = [program, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri() + address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return done.stdout

    return browse


def driven(page: Path, steps: str, chromium: Browser, *flags: str, address: str = "") -> Any:
    """What statements of JavaScript return that run in a page, its policy in force, when loaded.

    `await` needs --virtual-time-budget among the flags, in which no time can be measured.
    """
    finish = "document.body.dataset.driven = JSON.stringify(found);"
    how = "async " if "await" in steps else ""
    call = f"const found = {'await ' if how else ''}({how}() => {{ {steps} }})();"
    script = f'addEventListener("load", {how}() => {{ {call} {finish} }});'
    digest = b64encode(sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert "script-src 'sha256-" in text
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = page.with_name("driven.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    seen = chromium(copy, "--dump-dom", "--window-size=1280,1000", *flags, address=address)
    match = re.search(r'<body[^>]* data-driven="([^"]*)"', seen)
    assert match is not None, seen[-300:]
    return json.loads(unescape(match.group(1)))
