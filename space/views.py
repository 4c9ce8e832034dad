"""What the Space draws: what a setting does, the answers over beta, the heat map. HTML, everything escaped."""

from html import escape

# What an answer is. The strip says in words what its colours say.
KINDS = {
    "caption": "a description instead of an answer",
    "answer": "an answer",
    "blind": "the answer given without the picture",
    "garbage": "garbage",
}


def effect(alpha: float, beta: float, first: float, stop: float, layers: int) -> str:
    """HTML, one or two sentences: what these settings do to the words of the question."""
    if (alpha, beta) == (1, 0):
        return "<p><b>Now:</b> α = 1 and β = 0 change nothing. Both answers are the model without fusion.</p>"
    with_picture = {0: "drops", 1: "keeps"}.get(alpha, "weakens" if alpha < 1 else "strengthens")
    alone = {0: "adds nothing of", 1: "adds"}.get(beta, f"adds {beta:g} times")
    band = f"layer {first:g}" if stop - first == 1 else f"layers {first:g} to {stop - 1:g}"
    return (
        f'<p><b>Now, in {band} of {layers}:</b> <b class="with">α = {alpha:g}</b> {with_picture} the question as it '
        f'was read with the picture; <b class="alone">β = {beta:g}</b> {alone} the question as it was read alone. '
        "The picture itself stays as it is.</p>"
    )


def kind_of(text: str, blind: str, is_caption) -> str:
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

    def at(point):
        return f"<span>α = {point['alpha']:g}, β = {point['beta']:g}</span>"

    return (
        f"<p><b>{escape(question)}</b></p>"
        '<div class="vift-strip" role="img" aria-label="answers over beta; the table below says the same">'
        f"{cells}</div>"
        f'<div class="vift-scale">{at(points[0])}<span>frame: yours</span>{at(points[-1])}</div>'
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
            f'<td style="background: rgba(21, 138, 138, {0.7 * value / peak:.2f})">{100 * value:.0f}</td>'
            for value in row
        )
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        '<p class="vift-hint">Wider than this screen? Scroll sideways →</p>'
        f'<div class="vift-scroll" tabindex="0" role="region" aria-label="heat map"><table class="vift-map">'
        f"{''.join(rows)}<tr><th></th>{head}</tr></table></div>"
        '<p class="vift-note">How far fusion moves each token of the prompt, in % of its length, at the input of '
        "every layer (● fused). The picture's tokens, which fusion never writes, are one column: their mean. "
        "Moved tokens above the fused layers are what attention carries on.</p>"
    )
