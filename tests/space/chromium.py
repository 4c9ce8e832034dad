"""Debian's Chromium (or Chrome), headless, asking nobody but the page's own server."""

import os
import shutil

ARGUMENTS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
MISSING = "tests/space needs Chromium: apt-get install chromium, or CHROMIUM=/path/to/it"


def find() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
