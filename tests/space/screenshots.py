"""Pictures of a running Space, to be looked at: three widths, light and dark, first screen after asking, tabs.

python space/app.py &
python -m tests.space.screenshots http://127.0.0.1:7860 screenshots
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.space import chromium

SIZES = {390: 844, 768: 1024, 1280: 900}


def shoot(page, url: str, stem: str) -> None:
    """Writes `stem` and what is shown: page, scene, asked, inside, chat, about."""

    def save(name, **options):
        page.wait_for_timeout(700)
        page.screenshot(path=f"{stem}-{name}.png", **options)

    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator("#strip .vift-strip").wait_for()
    page.locator("#picture img").wait_for()
    save("page", full_page=True)
    before = page.locator("#picture img").get_attribute("src")
    page.locator("#new-scene").click()
    page.wait_for_function("src => document.querySelector('#picture img').src !== src", arg=before)
    save("scene")
    page.locator("#ask").click()
    page.wait_for_function("document.querySelector('#answer textarea').value !== ''")
    save("asked")
    page.get_by_role("tab", name="Inside").click()
    page.locator("#move").click()
    page.locator("#map td").first.wait_for()
    page.locator("#map").scroll_into_view_if_needed()
    save("inside")
    page.get_by_role("tab", name="Chat").click()
    page.locator("#message textarea").fill("what digits are there ?")
    page.locator("#send").click()
    page.locator("#chat [data-testid=bot]").nth(1).wait_for()
    page.locator("#send").scroll_into_view_if_needed()
    save("chat")
    page.get_by_role("tab", name="About").click()
    page.get_by_role("button", name="Advanced").click()
    save("about", full_page=True)


def main() -> None:
    if chromium.find() is None:
        sys.exit(chromium.MISSING)
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(), args=chromium.ARGUMENTS, ignore_default_args=["--hide-scrollbars"]
        )
        for width, height in SIZES.items():
            for scheme in ("light", "dark"):
                phone = {"is_mobile": True, "has_touch": True} if width < 700 else {}
                viewport = {"width": width, "height": height}
                with browser.new_context(viewport=viewport, color_scheme=scheme, **phone) as context:
                    shoot(context.new_page(), url, f"{folder}/{width}-{scheme}")
        browser.close()
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
