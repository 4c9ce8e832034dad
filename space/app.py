"""The Space: see what ability fusion does (arXiv 2502.11427), in a browser or through its API.

    python space/app.py                                 # the bundled model, http://127.0.0.1:7860
    python space/app.py --model runs/vift-micro --open  # another one, and open the browser
    VIFT_MODEL=org/name@<commit> python space/app.py    # from the Hub, as a Space is configured

This file is the page. `engine.py` asks the model, `endpoints.py` is what the buttons and the API call, `views.py`
draws, `look.py` dresses, `worlds.py` is what a model was trained on, `limits.py` and `gate.py` refuse.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# on a Space nothing is installed but requirements.txt: the rooms lie beside this folder
sys.path[:0] = [str(ROOT), *(str(ROOT / room) for room in ("microworld", "pictures", "hub", "eval"))]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks no other server

import gradio as gr  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from modeling_vift import FUSION_RULES, FUSION_SPANS, resolve_fusion  # noqa: E402
from space import limits, look, views  # noqa: E402
from space.endpoints import Endpoints  # noqa: E402
from space.engine import UNFUSED, Engine  # noqa: E402
from space.gate import MAX_FILE, Gate  # noqa: E402
from vift_eval.known import UNKNOWN  # noqa: E402
from vift_eval.models import BUNDLED, model_name  # noqa: E402
from vift_hub.cli import UserError  # noqa: E402

INTRO = """# Ability fusion, seen
This model saw pictures with captions, and questions without pictures. Asked *about* a picture, it writes a caption.
**Fusion** makes the same weights answer: they read the question <span class="with">with the picture</span> and
<span class="alone">alone</span>, and both readings are mixed inside."""
DEFAULT = "this model's own"
# in the place of what belonged to another question
NO_STRIP = "<p>Press the button: the same question at 17 settings, from no fusion to more than above.</p>"
NO_MAP = "<p>Press the button: how far fusion moves every word of this question, layer by layer.</p>"


def examples(world, folder: Path) -> list[list]:
    """[picture file, question, right answer, scene in words], one of each family."""
    rows = []
    for number, family in enumerate(world.families):
        picture, *words = world.scene(number, (family,))
        path = folder / f"{family}.png"
        picture.save(path)
        rows.append([str(path), *words])
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
    card = Path(engine.name) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return (
        f"**Model**: {where}, {engine.model.num_parameters() / 1e6:.1f} million parameters, {engine.num_layers} "
        f"layers, on {engine.device}. Its own fusion: {', '.join(f'{k} {v}' for k, v in settings.items())}. "
        f"{engine.world.about}\n\n"
        "**What is mixed**: h′ = α · h(picture, question) + β · h(question), hidden states of the question's words "
        "at the input of the fused layers.\n\n"
        "**What you see**: β = 0 (and α = 1) is the model without fusion. As β grows, descriptions give way to "
        "answers; with more, the question drowns the picture, and the answer becomes the one given blind; with much "
        "more, or in many layers, words may fall apart. A good β on one model need not be good on another.\n\n"
        "**What it cannot**: fusion brings nothing that the model did not learn from captions and text. "
        f"{'“' + UNKNOWN + '” comes from a rule that was measured for these weights. ' if engine.known else ''}"
        "Pictures are "
        "reduced to the size the model reads. Pictures are deleted from this server within hours and not used.\n\n"
        "**Papers**: [Do we Really Need Visual Instructions?](https://arxiv.org/abs/2502.11427) (the method), "
        "[Visual Instruction Tuning Aligns Modalities through Abstraction](https://arxiv.org/abs/2606.03871) (the "
        "layers).\n\n"
        "**Programs** ask through the API (“Use via API” below) or as MCP tools at `/gradio_api/mcp/`.\n\n" + text
    )


def conversation(question: str, answer: str) -> list[dict]:
    """How a chat begins."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns if answer else []


def build(engine: Engine) -> gr.Blocks:
    # static: gradio copies an example's file to where it deletes files after a while
    folder = Path(os.environ["GRADIO_TEMP_DIR"] + "-examples")
    folder.mkdir(parents=True, exist_ok=True)
    gr.set_static_paths(folder)
    endpoints, named, rows = Endpoints(engine), presets(engine.config), examples(engine.world, folder)
    alpha0, beta0, first0, stop0, rule0, span0 = named[DEFAULT]
    opening, answers, strip0, map0 = rows[0], ("", ""), NO_STRIP, NO_MAP
    if engine.small:  # answers for the first view, which warm the model up, too
        for row in rows:
            *_, both = endpoints.ask(Image.open(row[0]), row[1], *named[DEFAULT], engine.longest)
            if row is rows[0] or both[0] != row[2] == both[1]:
                opening, answers = row, both
            if both[0] != row[2] == both[1]:
                break
        shown = [Image.open(opening[0]), opening[1], *named[DEFAULT]]
        (strip0, _), (map0, _) = endpoints.sweep(*shown, engine.longest), endpoints.movement(*shown)

    with gr.Blocks(title="Ability fusion, seen", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(INTRO, elem_id="intro")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    opening[0], label="Picture", sources=["upload", "clipboard"], format="png", type="pil",
                    height=400, alt_text="the picture that is asked about", elem_id="picture",
                )  # fmt: skip
                picture.preprocess = limits.open_picture
            with gr.Column(scale=3, min_width=300):
                question = gr.Textbox(opening[1], label="Question", lines=1, max_lines=3, elem_id="question")
                with gr.Row():
                    ask_button = gr.Button("Ask", variant="primary", min_width=120, elem_id="ask")
                    scene_button = gr.Button("New scene", min_width=120, elem_id="new-scene")
                remark = gr.Markdown(elem_id="remark")
                with gr.Row():
                    box = {"lines": 3, "max_lines": 12, "interactive": False, "min_width": 130}
                    plain = gr.Textbox(answers[0], label="Without fusion", elem_id="plain", **box)
                    fused = gr.Textbox(answers[1], label="With fusion", elem_id="fused", **box)
                now = gr.HTML(views.effect(*named[DEFAULT][:4], engine.num_layers), elem_id="now")
                with gr.Row():
                    weight = {"step": 0.01, "min_width": 130}
                    alpha = gr.Slider(0, 2, alpha0, label="α, picture", elem_id="alpha", **weight)
                    beta = gr.Slider(0, 2, beta0, label="β, alone", elem_id="beta", **weight)
                answer = gr.Textbox(
                    answers[1] and opening[2], label="Right answer", interactive=False, elem_id="answer"
                )
        with gr.Accordion("What is in the scene (gives the answer away)", open=False, elem_id="scene"):
            words = gr.Textbox(opening[3], show_label=False, container=False, interactive=False, elem_id="words")
        key = gr.Textbox(opening[2], label="Right answer", visible=False)
        asked_of = gr.Textbox(visible=False)  # question and picture that were asked about last
        chosen = gr.Examples(
            rows, [picture, question, key, words], visible_columns=[1], api_visibility="private",
            label="Examples, not chosen by their answers (shown first: the first that fusion alone answers right)",
        )  # fmt: skip
        with gr.Accordion("Advanced: layers, rule, presets", open=False, elem_id="advanced"):
            preset = gr.Radio(list(named), value=DEFAULT, label="Preset", elem_id="preset")
            with gr.Row():
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
                heat = gr.HTML(map0, elem_id="map")
                with gr.Accordion("In numbers", open=False):
                    moved = gr.JSON(label="moved")
            with gr.Tab("Chat"):
                gr.Markdown("Goes on from the question and answer above: same picture, same settings.")
                history = gr.Chatbot(
                    conversation(opening[1], answers[1]), label="Conversation", render_markdown=False, height=320,
                    buttons=["copy"], elem_id="chat", placeholder="Ask something about the picture.",
                )  # fmt: skip
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
        private = {"api_visibility": "private"}
        # first of all: what belongs to another question goes
        of_question = [plain, fused, remark, answer, strip, points, heat, moved, history]
        blank = ["", "", "", "", NO_STRIP, None, NO_MAP, None, []]
        asks = [ask_button.click, question.submit, alpha.release, beta.release]
        gr.on(
            [*asks, scene_button.click, chosen.dataset.click, question.input, picture.change],
            None, None, of_question, js=f"() => {json.dumps(blank)}", **private,
        )  # fmt: skip
        gr.on(asks, None, [question, picture], asked_of, js="(q, p) => q + p?.url", **private)
        asked = gr.on(asks, endpoints.ask, [*request, tokens], [plain, fused, remark], api_name="ask", **slots)
        # an answer that comes after another question was written, or to another picture, goes as well
        asked.success(
            None, [question, picture, asked_of, plain, fused, remark, key], [plain, fused, remark, answer], **private,
            js="(q, p, of, ...shown) => of === q + p?.url ? shown : ['', '', '', '']",
        ).then(conversation, [question, fused], history, queue=False, show_progress="hidden", **private)  # fmt: skip
        sweep_button.click(endpoints.sweep, [*request, tokens], [strip, points], api_name="sweep", **slots)
        map_button.click(endpoints.movement, request, [heat, moved], api_name="movement", **slots)
        gr.on(
            [send.click, message.submit], endpoints.chat, [message, history, picture, use, *knobs, tokens],
            [message, history], api_name="chat", **slots,
        )  # fmt: skip
        scene_button.click(endpoints.new_scene, seed, [picture, question, key, words], api_name="new_scene")

        clear.click(lambda: [], None, history, **private)
        preset.input(lambda name: named[name], preset, knobs, **private)
        gr.on(
            [knob.change for knob in (alpha, beta, first, stop)],
            lambda alpha, beta, first, stop: views.effect(alpha, beta, first, stop, engine.num_layers), knobs[:4], now,
            queue=False, show_progress="hidden", trigger_mode="always_last", **private,
        )  # fmt: skip
        # the right answer is that of the scene's own question
        question.input(None, None, key, js="() => ''", **private)
        picture.clear(lambda: ("", ""), None, [key, words], **private)
        # opened at once, so that a picture that cannot be used is refused before anything is asked
        picture.upload(lambda _: ("", ""), picture, [key, words], **private).failure(
            lambda: (None, "", ""), None, [picture, key, words], **private
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
        head=f"<style>{look.CSS}</style>",  # gradio rewrites `css`, and drops what it does not know
        theme=look.theme(),
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
