"""Pictures of a running Space, to be looked at: desk, dark, phone, each tab.

python space/app.py &
python -m tests.space.screenshots http://127.0.0.1:7860 screenshots
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.space import chromium

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


def main() -> None:
    if chromium.find() is None:
        sys.exit(chromium.MISSING)
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    views = {"desk": {"viewport": {"width": 1280, "height": 900}}, "phone": PHONE}
    views["dark"] = views["desk"] | {"color_scheme": "dark"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=chromium.ARGUMENTS)
        for name, options in views.items():
            page = browser.new_context(**options).new_page()
            page.goto(url)
            page.locator("#strip .vift-strip").wait_for()
            page.locator("#picture img").wait_for()
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            page.get_by_role("tab", name="Inside").click()
            page.locator("#move").click()
            page.locator("#map td").first.wait_for()
            page.screenshot(path=folder / f"{name}-inside.png", full_page=True)
            page.get_by_role("tab", name="Chat").click()
            page.locator("#message textarea").fill("what digits are there ?")
            page.locator("#send").click()
            page.locator("#chat [data-testid=bot]").wait_for()
            page.get_by_role("button", name="Advanced").click()
            page.wait_for_timeout(1000)
            page.screenshot(path=folder / f"{name}-chat-advanced.png", full_page=True)
            page.get_by_role("tab", name="About").click()
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"{name}-about.png", full_page=True)
        browser.close()
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
