"""What the Space draws: the strip of answers over beta, the heat map, and their style. HTML, everything escaped."""

from html import escape

from vift_microworld import is_caption

# What an answer is. The strip says in words what its colours say.
KINDS = {
    "caption": "a description instead of an answer",
    "answer": "an answer",
    "blind": "the answer given without the picture",
    "garbage": "garbage",
}

CSS = """
.vift-strip {display: flex; height: 2.2rem; border-radius: 6px; overflow: hidden; margin: .4rem 0}
.vift-strip span {flex: 1; border-right: 1px solid var(--body-background-fill)}
.vift-strip .here {outline: 3px solid var(--body-text-color); outline-offset: -3px}
.vift-caption {background: #d9822b} .vift-answer {background: #2f7fc1}
.vift-blind {background: #8d7bb8} .vift-garbage {background: #8a8a8a}
.vift-scale {display: flex; justify-content: space-between; font-size: .85rem; opacity: .85}
.vift-runs, .vift-map {border-collapse: collapse; margin: .6rem 0; color: var(--body-text-color)}
.prose :is(.vift-runs, .vift-map, .vift-map tr, .vift-runs tr) {border: none}
.vift-runs {width: 100%}
.prose .vift-runs :is(td, th) {border: none; border-top: 1px solid var(--border-color-primary); padding: .25rem .5rem;
  text-align: left; vertical-align: top}
.vift-runs td:first-child {white-space: nowrap}
.vift-runs td:last-child {overflow-wrap: anywhere}
.vift-chip {display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em}
.vift-scroll {overflow-x: auto; padding-bottom: .4rem}
.prose .vift-map th {font-weight: 400; font-size: .8rem; padding: .1rem .4rem; text-align: right; white-space: nowrap;
  border: none}
.prose .vift-map .token {writing-mode: vertical-rl; transform: rotate(180deg); text-align: right; padding: .3rem 0}
.prose .vift-map td {min-width: 2.1rem; height: 1.5rem; padding: 0; font-size: .72rem; text-align: center;
  border: 1px solid var(--body-background-fill)}
.vift-note {opacity: .85; font-size: .92rem}
"""


def kind_of(text: str, blind: str) -> str:
    """One of `KINDS`. Words tell a caption, repetition tells garbage: a rule of thumb, and said to be one."""
    words = text.lower().split()
    if not words or (len(words) >= 8 and len(set(words)) <= len(words) / 3):
        return "garbage"
    if is_caption(text):
        return "caption"
    return "blind" if text == blind else "answer"


def runs_of(points: list[dict]) -> list[dict]:
    """Neighbouring points with the same answer, joined: {"from", "to", "kind", "answer"}."""
    runs = []
    for point in points:
        if runs and runs[-1]["answer"] == point["answer"]:
            runs[-1]["to"] = point["beta"]
        else:
            runs.append({"from": point["beta"], "to": point["beta"]} | {k: point[k] for k in ("kind", "answer")})
    return runs


def strip(question: str, points: list[dict], blind: str, beta: float) -> str:
    """HTML of answers over beta; `points` as `Endpoints.sweep` returns them, with growing beta; `beta` is marked."""
    alphas = [point["alpha"] for point in points]
    path = f"α goes from {alphas[0]:g} to {alphas[-1]:g} on the way. " if alphas[0] != alphas[-1] else ""
    nearest = min(points, key=lambda point: abs(point["beta"] - beta))
    cells = "".join(
        f'<span class="vift-{p["kind"]}{" here" if p is nearest else ""}" '
        f'title="α = {p["alpha"]:g}, β = {p["beta"]:g}: {escape(p["answer"])}"></span>'
        for p in points
    )
    rows = "".join(
        f"<tr><td>{run['from']:g} – {run['to']:g}</td>"
        f'<td><span class="vift-chip vift-{run["kind"]}"></span>{KINDS[run["kind"]]}</td>'
        f"<td>{escape(run['answer']) or '(nothing)'}</td></tr>"
        for run in runs_of(points)
    )
    return (
        f"<p><b>{escape(question)}</b></p>"
        '<div class="vift-strip" role="img" aria-label="answers over beta; the table below says the same">'
        f"{cells}</div>"
        f'<div class="vift-scale"><span>β = {points[0]["beta"]:g}</span><span>frame: your β, {beta:g}</span>'
        f"<span>β = {points[-1]['beta']:g}</span></div>"
        f'<table class="vift-runs"><tr><th>β</th><th>what comes</th><th>in words</th></tr>{rows}</table>'
        f'<p class="vift-note">Without the picture the model says: {escape(blind) or "(nothing)"}. '
        f"{path}Descriptions and garbage are told apart by their words, a rule of thumb.</p>"
    )


def heat_map(movement: dict, fused: range) -> str:
    """HTML table of `Engine.movement`: layers upwards, tokens across; `fused` are the fused layers."""
    peak = max(max(row) for row in movement["moved"]) or 1.0
    head = "".join(f'<th class="token" scope="col">{escape(t.strip()) or "↵"}</th>' for t in movement["tokens"])
    rows = []
    for layer, row in reversed(list(zip(movement["layers"], movement["moved"]))):
        name = layer if layer == "output" else f"layer {layer}{' ●' if int(layer) in fused else ''}"
        cells = "".join(
            f'<td style="background: rgba(47, 127, 193, {0.7 * value / peak:.2f})">{100 * value:.0f}</td>'
            for value in row
        )
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="vift-scroll" tabindex="0" role="region" aria-label="heat map"><table class="vift-map">'
        f"{''.join(rows)}<tr><th></th>{head}</tr></table></div>"
        '<p class="vift-note">How far fusion moves each token of the prompt, in % of its length, at the input of '
        "every layer (● fused). The picture's tokens, which fusion never writes, are one column: their mean. "
        "Moved tokens above the fused layers are what attention carries on.</p>"
    )
