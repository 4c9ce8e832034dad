"""The Space: see what ability fusion does (arXiv 2502.11427), in a browser or through its API.

    python space/app.py                                 # the bundled model, http://127.0.0.1:7860
    python space/app.py --model runs/vift-micro --open  # another one, and open the browser
    VIFT_MODEL=org/name@<commit> python space/app.py    # from the Hub, as a Space is configured

This file is the page. `engine.py` asks the model, `endpoints.py` is what the buttons and the API call, `views.py`
draws, `limits.py` and `gate.py` refuse.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# on a Space nothing is installed but requirements.txt: the rooms lie beside this folder
sys.path[:0] = [str(ROOT), *(str(ROOT / room) for room in ("microworld", "hub", "eval"))]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks no other server

import gradio as gr  # noqa: E402
from gradio.themes.utils.fonts import Font, LocalFont  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from modeling_vift import FUSION_RULES, FUSION_SPANS, resolve_fusion  # noqa: E402
from space import limits, views  # noqa: E402
from space.endpoints import Endpoints, scene_picture  # noqa: E402
from space.engine import UNFUSED, Engine  # noqa: E402
from space.gate import MAX_FILE, Gate  # noqa: E402
from vift_eval.models import BUNDLED, model_name  # noqa: E402
from vift_hub.cli import UserError  # noqa: E402
from vift_microworld import language, sample_scenes  # noqa: E402
from vift_microworld.questions import ask  # noqa: E402

INTRO = """# Ability fusion, seen
This model learnt to see from captions and to solve tasks from text: it was never trained on a question about a
picture. So, asked about one, it tends to *describe* it. **Fusion** reads the question twice, with the picture and
without, and mixes the two readings inside the layers: **h′ = α · h(picture, question) + β · h(question)**.
Same weights, same picture. Ask, and compare."""
EXAMPLE_FAMILIES = ("count", "smallest", "color_of", "color_at", "difference", "same_color")
DEFAULT = "this model's own"


def examples(folder: Path) -> list[list]:
    """[picture file, question, right answer, scene in words]: of each family the first that a row of scenes allows."""
    rows = []
    scenes = iter(sample_scenes(100, 0, "test", "space"))
    for family in EXAMPLE_FAMILIES:
        while (pair := ask(scene := next(scenes), family, random.Random(family))) is None:
            pass
        path = folder / f"{family}.png"
        scene_picture(scene).save(path)
        rows.append([str(path), *pair, language.scene_words(scene)])
    return rows


def presets(config) -> dict[str, list]:
    """Name → [alpha, beta, first layer, stop layer, rule, span], all from the model's config."""

    def knobs(settings):
        band = [min(settings.layers), max(settings.layers) + 1]
        return [settings.alpha, round(settings.beta, 4), *band, settings.rule, settings.span]

    default = resolve_fusion(config, True)
    half = resolve_fusion(config, True, fusion_layers=0.5).layers
    beta = max(-2.0, min(2.0, default.beta * len(default.layers) / len(half)))  # the same dose
    named = {DEFAULT: knobs(default), "no fusion (β = 0)": [*UNFUSED, *knobs(default)[2:]]}
    named |= {name: knobs(resolve_fusion(config, name)) for name in config.fusion_presets}
    named["top half of the layers (the paper's)"] = knobs(resolve_fusion(config, True, beta=beta, fusion_layers=0.5))
    return named


def about(engine: Engine) -> str:
    name = model_name(engine.name)
    where = name if Path(engine.name).exists() else f"[{name}](https://huggingface.co/{name.replace('@', '/tree/')})"
    settings = dict(zip(("α", "β", "layers from", "up to, without", "rule", "span"), presets(engine.config)[DEFAULT]))
    world = (
        "It is a tiny model of a tiny world: 3 × 3 cells with coloured handwritten digits, about 200 words. It knows "
        "nothing else, photographs least of all, and many of its answers are wrong, fused ones too: fusion makes it "
        "*answer* instead of describing, it does not make it right.\n\n"
        if engine.name == str(BUNDLED)
        else ""
    )
    card = Path(engine.name) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return (
        f"**Model**: {where}, {engine.model.num_parameters() / 1e6:.1f} million parameters, {engine.num_layers} "
        f"layers, on {engine.device}. Its own fusion: {', '.join(f'{k} {v}' for k, v in settings.items())}.\n\n{world}"
        "**What you see**: β = 0 (and α = 1) is the model without fusion. As β grows, descriptions give way to "
        "answers; with more, the question drowns the picture, and the answer becomes the one given blind; with much "
        "more, or in many layers, words may fall apart. A good β on one model need not be good on another.\n\n"
        "**What it cannot**: fusion brings nothing that the model did not learn from captions and text. Pictures are "
        "reduced to the size the model reads. Pictures are deleted from this server within hours and not used.\n\n"
        "**Papers**: [Do we Really Need Visual Instructions?](https://arxiv.org/abs/2502.11427) (the method), "
        "[Visual Instruction Tuning Aligns Modalities through Abstraction](https://arxiv.org/abs/2606.03871) (the "
        "layers).\n\n"
        "**Programs** ask through the API (“Use via API” below) or as MCP tools at `/gradio_api/mcp/`.\n\n" + text
    )


def build(engine: Engine) -> gr.Blocks:
    # static: gradio copies an example's file to where it deletes files after a while
    folder = Path(os.environ["GRADIO_TEMP_DIR"] + "-examples")
    folder.mkdir(parents=True, exist_ok=True)
    gr.set_static_paths(folder)
    endpoints, named, rows = Endpoints(engine), presets(engine.config), examples(folder)
    alpha0, beta0, first0, stop0, rule0, span0 = named[DEFAULT]
    opening, answers, strip0 = rows[0], ("", ""), None
    if engine.small:  # answers for the first view, which warm the model up, too
        for row in rows:
            *_, both = endpoints.ask(Image.open(row[0]), row[1], *named[DEFAULT], engine.longest)
            if row is rows[0] or both[0] != row[2] == both[1]:
                opening, answers = row, both
            if both[0] != row[2] == both[1]:
                break
        strip0, _ = endpoints.sweep(Image.open(opening[0]), opening[1], *named[DEFAULT], engine.longest)

    with gr.Blocks(title="Ability fusion, seen", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    opening[0], label="Picture", sources=["upload", "clipboard"], format="png", type="pil",
                    height=300, alt_text="the picture that is asked about", elem_id="picture",
                )  # fmt: skip
                picture.preprocess = limits.open_picture
                scene_button = gr.Button("New scene", elem_id="new-scene")
                words = gr.Textbox(opening[3], label="What is in the scene", interactive=False, elem_id="words")
            with gr.Column(scale=3, min_width=300):
                question = gr.Textbox(opening[1], label="Question", lines=1, max_lines=3, elem_id="question")
                beta = gr.Slider(0, 2, beta0, step=0.01, label="β, the weight of the question alone", elem_id="beta")
                ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Row():
                    box = {"lines": 4, "max_lines": 12, "interactive": False, "min_width": 140}
                    plain = gr.Textbox(answers[0], label="Without fusion", elem_id="plain", **box)
                    fused = gr.Textbox(answers[1], label="With fusion", elem_id="fused", **box)
                answer = gr.Textbox(opening[2], label="Right answer", interactive=False, elem_id="answer")
                remark = gr.Markdown(elem_id="remark")
        gr.Examples(
            rows, [picture, question, answer, words], visible_columns=[1], api_visibility="private",
            label="Examples, not chosen by their answers (shown first: the first that fusion alone answers right)",
        )  # fmt: skip
        with gr.Accordion("Advanced: α, layers, rule, tokens, presets", open=False, elem_id="advanced"):
            preset = gr.Radio(list(named), value=DEFAULT, label="Preset", elem_id="preset")
            with gr.Row():
                weight = "α, the weight of picture and question"
                alpha = gr.Slider(0, 2, alpha0, step=0.01, label=weight, elem_id="alpha")
                first = gr.Slider(0, engine.num_layers - 1, first0, step=1, label="First fused layer", elem_id="first")
                stop = gr.Slider(1, engine.num_layers, stop0, step=1, label="Up to layer, without it", elem_id="stop")
            rule = gr.Radio(list(FUSION_RULES), value=rule0, label="Rule", elem_id="rule")
            span = gr.Radio(list(FUSION_SPANS), value=span0, label="Tokens written", elem_id="span")
            tokens = gr.Slider(1, engine.longest, engine.longest, step=1, label="Longest answer, in tokens")
        with gr.Tabs():
            with gr.Tab("Over β"):
                sweep_button = gr.Button("Ask at every β", elem_id="sweep")
                strip = gr.HTML(strip0, elem_id="strip")
                with gr.Accordion("In numbers", open=False):
                    points = gr.JSON(label="points")
            with gr.Tab("Inside", elem_id="inside"):
                map_button = gr.Button("Show what fusion moves", elem_id="move")
                heat = gr.HTML(elem_id="map")
                with gr.Accordion("In numbers", open=False):
                    moved = gr.JSON(label="moved")
            with gr.Tab("Chat"):
                gr.Markdown("Several turns about the picture above, with the settings above.")
                history = gr.Chatbot(
                    label="Conversation", render_markdown=False, height=320, buttons=["copy"], elem_id="chat"
                )
                history.preprocess, history.data_model = limits.text_turns, limits.Turns
                message = gr.Textbox(label="Message", elem_id="message")
                use = gr.Checkbox(True, label="with fusion", elem_id="use")
                with gr.Row():
                    send = gr.Button("Send", variant="primary", elem_id="send")
                    clear = gr.Button("New conversation", elem_id="clear")
            with gr.Tab("About"):
                gr.Markdown(about(engine))
        seed = gr.Number(None, label="seed", precision=0, visible=False)

        knobs = [alpha, beta, first, stop, rule, span]
        request = [picture, question, *knobs]
        slots = {"concurrency_id": "model", "concurrency_limit": engine.slots}
        gr.on(
            [ask_button.click, question.submit, beta.release], endpoints.ask, [*request, tokens],
            [plain, fused, remark], api_name="ask", **slots,
        )  # fmt: skip
        sweep_button.click(endpoints.sweep, [*request, tokens], [strip, points], api_name="sweep", **slots)
        map_button.click(endpoints.movement, request, [heat, moved], api_name="movement", **slots)
        gr.on(
            [send.click, message.submit], endpoints.chat, [message, history, picture, use, *knobs, tokens],
            [message, history], api_name="chat", **slots,
        )  # fmt: skip
        scene_button.click(endpoints.new_scene, seed, [picture, question, answer, words], api_name="new_scene")

        private = {"api_visibility": "private"}
        clear.click(lambda: [], None, history, **private)
        preset.input(lambda name: named[name], preset, knobs, **private)
        # the right answer is that of the scene's own question
        question.input(None, None, answer, js="() => ''", **private)
        picture.clear(lambda: ("", ""), None, [answer, words], **private)
        # opened at once, so that a picture that cannot be used is refused before anything is asked
        picture.upload(lambda _: ("", ""), picture, [answer, words], **private).failure(
            lambda: (None, "", ""), None, [picture, answer, words], **private
        )
        for box in (question, message):
            box.preprocess = limits.plain_text
    return limits.quiet(demo)


def launch(engine: Engine, **options):
    """Serves the page; `options` of `gr.Blocks.launch`. Returns what it returns: app, local and shared address."""
    demo = build(engine).queue()
    gate = Middleware(Gate, demo=demo, folder=os.environ["GRADIO_TEMP_DIR"])
    return demo.launch(
        share=False,
        css=views.CSS,
        # the semi-bold that gradio brings lacks most letters
        theme=gr.themes.Default(font=[LocalFont("Source Sans Pro", weights=(400, 700)), Font("sans-serif")]),
        footer_links=["api"],
        show_error=True,
        max_file_size=MAX_FILE,
        mcp_server=True,
        ssr_mode=False,
        app_kwargs={"middleware": [gate]},
        **options,
    )


@contextlib.contextmanager
def own_folder():
    """
    A folder of this process alone for what visitors leave, unless GRADIO_TEMP_DIR names one: gradio empties its own at
    the end, under names that another Space may have, too. It goes at the end, and so do those of killed processes.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    base = Path(tempfile.gettempdir())
    for other in base.glob("vift-space-*-*"):
        if not is_running(other.name.split("-")[2]):
            shutil.rmtree(other, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"vift-space-{os.getpid()}-", dir=base)
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: str) -> bool:
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # not ours to judge
        pass
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("VIFT_MODEL") or str(BUNDLED))
    parser.add_argument("--port", type=int, help="default: 7860 or the next free one")
    parser.add_argument("--open", action="store_true", help="open the browser")
    args = parser.parse_args(argv)
    try:
        engine = Engine(args.model)
    except UserError as error:
        print(f"space: error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes, too
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    with own_folder():
        launch(engine, server_port=args.port, inbrowser=args.open and screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
