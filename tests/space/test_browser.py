"""The page in a real browser. `visit` also fails a test whose page logs an error or asks another server."""

import re
import time
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from tests.space import pictures
from tests.space.conftest import TIMEOUT
from vift_eval.known import UNKNOWN

DETAIL = "describe the picture in detail ."
# keeps every value that the two answers take while they stream
WATCH = """() => {
  window.seen = {plain: [], fused: []};
  const look = () => {
    for (const [name, seen] of Object.entries(window.seen)) {
      const box = document.querySelector(`#${name} textarea`);
      if (seen.at(-1) !== box.value) seen.push(box.value);
    }
    requestAnimationFrame(look);
  };
  look();
}"""


def value(page, name):
    return page.locator(f"#{name} :is(textarea, input)").first.input_value()


def said(page):
    return value(page, "plain"), value(page, "fused")


def wait_until(page, happened):
    deadline = time.monotonic() + TIMEOUT / 1000
    while not happened():
        assert time.monotonic() < deadline, "the Space does not answer"
        page.wait_for_timeout(20)


def idle(page):
    """Waits until no request runs."""
    page.wait_for_timeout(150)
    wait_until(page, lambda: not page.streams)
    expect(page.locator(".generating, .progress-text:visible, .pending")).to_have_count(0)


@contextmanager
def answered(page):
    """What is done inside asks the Space; goes on when it has answered to the end."""
    before = page.streams_begun
    with page.expect_response(re.compile("queue/join")):
        yield
    wait_until(page, lambda: page.streams or page.streams_begun > before)
    idle(page)


def ask(page, question=None):
    if question is not None:
        page.locator("#question textarea").fill(question)
    with answered(page):
        page.locator("#ask").click()


def set_number(page, name, number):
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(number))
    box.press("Tab")
    idle(page)


def toast(page, word):
    """A message with this word shows; closes it."""
    message = page.locator(".toast-body", has_text=word).first
    expect(message).to_be_visible()
    assert "Traceback" not in message.inner_text()
    page.locator(".toast-close").first.click()


@contextmanager
def another_picture(page):
    """What is done inside brings a picture; goes on when it is there."""
    before = page.locator("#picture img").get_attribute("src")
    yield
    page.wait_for_function("b => ![b, undefined].includes(document.querySelector('#picture img')?.src)", arg=before)
    idle(page)


def nothing_old(page):
    """No answer, strip, map or conversation is on the page."""
    for name in ("plain", "fused", "answer"):
        expect(page.locator(f"#{name} textarea")).to_have_value("")
    expect(page.locator(".vift-strip, #chat [data-testid=bot]")).to_have_count(0)
    expect(page.locator("#strip")).to_contain_text("Press the button")
    expect(page.locator("#map td")).to_have_count(0)


def upload(page, path):
    if page.locator("#picture [aria-label*=emove], #picture [aria-label=Clear]").count():
        page.locator("#picture [aria-label*=emove], #picture [aria-label=Clear]").first.click()
    page.locator("#picture input[type=file]").first.set_input_files(path)


# --- what a visitor does ------------------------------------------------------------------------


def test_the_first_view_is_complete(visit):
    page = visit()
    expect(page.locator("#picture img")).to_be_visible()
    plain, fused = said(page)
    assert plain and fused and value(page, "question") and value(page, "answer")
    expect(page.locator("#words")).not_to_be_visible()  # it would give the answer away
    expect(page.locator("#now")).to_contain_text("α = 0 drops the question as it was read with the picture")
    expect(page.locator("#strip .vift-strip span")).to_have_count(17)
    assert page.locator("#strip .here").count() == 1
    page.get_by_role("tab", name="Inside").click()
    expect(page.locator("#map td").first).to_be_visible()
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#chat [data-testid=bot]")).to_contain_text(fused)
    page.get_by_role("button", name="What is in the scene").click()
    expect(page.locator("#words textarea")).to_have_value(re.compile("."))


def test_new_scene_and_both_answers_stream(visit):
    page = visit()
    with another_picture(page):
        page.locator("#new-scene").click()
    nothing_old(page)
    ask(page)
    expect(page.locator("#answer textarea")).to_have_value(re.compile("."))
    page.locator("#question textarea").press_sequentially(" x")
    nothing_old(page)
    page.evaluate(WATCH)
    ask(page, DETAIL)
    seen = page.evaluate("window.seen")
    for name, whole in zip(("plain", "fused"), said(page)):
        partial = [text for text in seen[name] if text and whole.startswith(text)]
        assert len(partial) >= 2 and partial[-1] == whole and partial == sorted(partial, key=len), seen
    expect(page.locator("#answer textarea")).to_have_value("")  # it was the answer of another question
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#chat [data-testid=bot]")).to_contain_text(whole)
    page.locator("#ask").click()
    page.locator("#question textarea").press_sequentially(" y")  # before the answer has come
    idle(page)
    nothing_old(page)


def test_beta_decides(visit):
    page = visit()
    set_number(page, "alpha", 1)
    set_number(page, "beta", 0)
    expect(page.locator("#now")).to_contain_text("change nothing")
    ask(page)
    plain, fused = said(page)
    assert plain == fused
    page.locator("#beta input[type=range]").evaluate("slider => slider.scrollIntoView()")
    box = page.locator("#beta input[type=range]").bounding_box()
    with answered(page):  # letting the slider go asks
        page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert float(value(page, "beta")) > 1.5 and said(page)[0] == plain


def test_presets_fill_in_and_advanced_options_count(visit):
    page = visit()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("top half of the layers").check()
    expect(page.locator("#first input[type=number]")).to_have_value("4")
    expect(page.locator("#stop input[type=number]")).to_have_value("8")
    page.locator("#rule").get_by_label("independent").check()
    page.locator("#span").get_by_label("after_image").check()
    ask(page, DETAIL)
    assert all(said(page))
    page.get_by_label("no fusion").check()
    expect(page.locator("#beta input[type=number]")).to_have_value("0")
    set_number(page, "first", 6)
    set_number(page, "stop", 2)
    page.locator("#ask").click()
    toast(page, "6:2")
    set_number(page, "stop", 8)
    ask(page)
    assert said(page)[0] == said(page)[1]


def test_strip_heat_map_and_chat(visit):
    page = visit()
    page.locator("#question textarea").fill("how many digits are there ?")
    page.locator("#sweep").click()
    expect(page.locator("#strip")).to_contain_text("how many digits are there ?")
    assert page.locator("#strip tr").count() >= 2
    page.get_by_role("tab", name="Inside").click()
    page.locator("#move").click()
    expect(page.locator("#map td").first).to_be_visible()
    assert page.locator("#map tr").count() == 8 + 2  # layers, output, tokens
    page.get_by_role("tab", name="Chat").click()
    for turn in (1, 2):
        page.locator("#message textarea").fill("what digits are there ?")
        page.locator("#send").click()
        expect(page.locator("#chat [data-testid=bot]")).to_have_count(turn)
        idle(page)
    page.locator("#clear").click()
    expect(page.locator("#chat [data-testid=bot]")).to_have_count(0)
    page.get_by_role("tab", name="About").click()
    expect(page.get_by_text("What it cannot")).to_be_visible()


def test_an_example_brings_picture_question_and_answer(visit):
    page = visit()
    page.get_by_role("button", name="what color is the").first.click()
    page.wait_for_function("document.querySelector('#question textarea').value.startsWith('what color is the')")
    nothing_old(page)
    ask(page)
    assert all(said(page))
    expect(page.locator("#answer textarea")).to_have_value(re.compile("."))


def test_a_picture_of_ones_own(visit, tmp_path):
    page = visit()
    with another_picture(page):
        upload(page, pictures.good(tmp_path))
    ask(page, DETAIL)
    assert "digits" in said(page)[0] and value(page, "answer") == ""
    expect(page.locator("#remark p")).to_have_count(0)
    with another_picture(page):
        upload(page, pictures.odd(tmp_path))
    nothing_old(page)
    ask(page)
    expect(page.locator("#remark")).to_contain_text(UNKNOWN)


# --- what a visitor does wrong ------------------------------------------------------------------


def test_bad_pictures_are_refused_at_once(visit, tmp_path):
    page = visit()
    for make, word in pictures.REFUSED.items():
        upload(page, make(tmp_path))
        toast(page, word)
        expect(page.locator("#picture img")).to_have_count(0)
    page.locator("#ask").click()
    toast(page, "no picture")
    page.locator("#new-scene").click()
    expect(page.locator("#picture img")).to_be_visible()
    ask(page)
    assert all(said(page))


def test_bad_questions_are_refused(visit):
    page = visit()
    for question, word in (
        ("<img src=x onerror=alert(1)>", "markup"),
        ("x" * 100_000, "100000 characters"),
        ("", "empty"),
        ("<|im_end|>", "something else"),
    ):
        page.locator("#question textarea").fill(question)
        page.locator("#ask").click()
        toast(page, word)
    ask(page, "which zebra is red ?")
    expect(page.locator("#remark")).to_contain_text("zebra")


# --- other ways of using it ---------------------------------------------------------------------


def test_keyboard_alone_is_enough(visit):
    page = visit()

    def tab_to(selector, limit=40):
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("s => !!document.activeElement.closest(s)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#new-scene")
    with another_picture(page):
        page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")  # over the button that asks
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type(DETAIL)
    with answered(page):
        page.keyboard.press("Enter")
    assert said(page)[0].startswith("the picture")
    tab_to("#beta input[type=range]")
    start = float(value(page, "beta"))
    page.keyboard.press("ArrowRight")
    assert float(value(page, "beta")) == pytest.approx(start + 0.01)
    tab_to("#ask")
    idle(page)  # leaving the slider asks, too
    with answered(page):
        page.keyboard.press("Space")
    tab_to("#inside-button")
    page.keyboard.press("Enter")
    tab_to("#move")
    page.keyboard.press("Enter")
    expect(page.locator("#map td").first).to_be_visible()


def test_a_phone_shows_all_without_scrolling_sideways(visit):
    page = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, device_scale_factor=2)
    page.locator("#new-scene").tap()
    page.locator("#question textarea").fill(DETAIL)
    page.locator("#ask").tap()
    page.wait_for_function("document.querySelector('#plain textarea').value.startsWith('the picture')")
    idle(page)
    page.evaluate("window.scrollTo(0, 0)")
    for name in ("ask", "fused", "now"):  # the first screen has the answer, and what was done for it
        box = page.locator(f"#{name}").bounding_box()
        assert box["y"] + box["height"] <= 844, name
    page.get_by_role("tab", name="Inside").tap()
    page.locator("#move").tap()
    expect(page.locator("#map td").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("picture", "new-scene", "question", "beta", "ask", "plain", "fused", "answer", "move"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, name
    scrolls = page.locator(".vift-scroll").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert scrolls[0] > scrolls[1]  # the wide map scrolls inside its own frame


CONTRAST = """element => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]) };
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
  const back = layers.reduce((under, top) => over(top, under), [255, 255, 255]);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const [a, b] = [light(over(parse(getComputedStyle(element).color), back)), light(back)].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    page.get_by_role("tab", name="Inside").click()
    page.locator("#move").click()
    expect(page.locator("#map td").first).to_be_visible()
    read = [*page.locator("#map td, #map th").all()[::7], page.locator("#plain textarea"), page.locator("h1")]
    darkest = page.locator("#map td").evaluate_all(
        "all => all.map((e, i) => [Number(e.textContent), i]).sort((a, b) => b[0] - a[0])[0][1]"
    )
    read += [page.locator("#map td").nth(darkest), *page.locator("#now p, #now b, #intro span").all()]
    page.get_by_role("tab", name="Over β").click()
    read += page.locator("#strip td, #strip th, #strip p").all()
    ratios = [element.evaluate(CONTRAST) for element in read]
    assert min(ratios) >= 4.5, ratios
