"""Does the band in which text and image align predict where to fuse? A plot and a verdict.

    python -m vift_studies.bands.bridge --models runs/seed0 runs/seed1 runs/seed2

Overlap above chance of each layer's input (1000 scenes of the validation split; `vift_layers.band`) against the
accuracy of fusion at that layer alone (alpha 0, beta 1) and of bands at alpha 1 and their best dose, as the sweep of
`make paper` measured them on the same models (docs/results/paper/results.json, validation split). Writes docs/results/bridge/.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import spearmanr

from vift_eval.answers.conditions import load
from vift_eval.layers.pairs import micro_pairs
from vift_layers.band import band_rule, overlap_profile
from vift_layers.capture import capture

from ..paper.plan import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from vift_eval.plots import LINES, STYLE  # noqa: E402

PAIRS = 1000
PREDICTS = 0.7  # rank correlation, in every seed
WHY = {
    "predicts it": "",
    "does not predict it": "",
    "predicts the reverse": """Fusion works where picture and words are *not* arranged alike yet: it replaces what the
text tokens know by the text run's states, and the picture must still be read in the layers above. Overlap is high
where it has been read, and what is fused there overwrites it. Both curves go one way with depth, so that "the lower
the better" says the same.
""",
}


def best_bands(bands: dict, seed: int) -> dict[str, float]:
    """Band -> accuracy of this seed at its best dose."""
    found: dict[str, float] = {}
    for key, entry in bands.items():
        band = key.split()[0]
        found[band] = max(found.get(band, 0.0), entry["seeds"][seed])
    return found


def mean_over(profile: list, band: str) -> float:
    """Mean of the profile over the inputs of a band's layers."""
    first, stop = map(int, band.split(":"))
    return float(np.nanmean([np.nan if v is None else v for v in profile[first:stop]]))


def relate(profiles: dict[str, list], sweeps: dict) -> dict:
    """Rank correlations by seed: of single layers, and of bands."""
    layers = [int(key.split(":")[0]) for key in sweeps["replace"]]
    found = {"layers": layers, "pooling": {}}
    for pooling, rows in profiles.items():
        entry = {"profiles": rows, "single": [], "bands": [], "rule": [str(band_rule(row)) for row in rows]}
        for seed, profile in enumerate(rows):
            accuracy = [value["seeds"][seed] for value in sweeps["replace"].values()]
            entry["single"].append(round(float(spearmanr([profile[layer] for layer in layers], accuracy)[0]), 3))
            bands = best_bands(sweeps["bands"], seed)
            overlap = [mean_over(profile, band) for band in bands]
            entry["bands"].append(round(float(spearmanr(overlap, list(bands.values()))[0]), 3))
        found["pooling"][pooling] = entry
    last = found["pooling"]["last"]
    found["verdict"] = {
        name: "predicts it"
        if min(last[name]) >= PREDICTS
        else "predicts the reverse"
        if max(last[name]) <= -PREDICTS
        else "does not predict it"
        for name in ("single", "bands")
    }
    return found


def draw(found: dict, sweeps: dict, file: Path) -> None:
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
        for axes, pooling in zip(panels, ("last", "mean")):
            for number, profile in enumerate(found["pooling"][pooling]["profiles"]):
                values = [np.nan if value is None else value for value in profile]
                axes.plot(range(len(values)), values, "o-", color=LINES[number], markersize=3, label=f"seed {number}")
            axes.set_title(
                f"overlap above chance, {'last token' if pooling == 'last' else 'means of tokens'}",
                fontsize=9,
                loc="left",
            )
            axes.set_xlabel("input of layer")
            axes.set_ylim(bottom=0)
        panels[0].legend(fontsize=8, frameon=False)
        for number in range(len(found["pooling"]["last"]["profiles"])):
            accuracy = [100 * value["seeds"][number] for value in sweeps["replace"].values()]
            panels[2].plot(found["layers"], accuracy, "o-", color=LINES[number], markersize=3)
        panels[2].set_title("right answers in %, fused at this layer alone", fontsize=9, loc="left")
        panels[2].set_xlabel("input of layer (alpha 0, beta 1)")
        panels[2].set_xlim(panels[0].get_xlim())
        panels[2].set_ylim(bottom=0)
        figure.savefig(file, dpi=130)
    plt.close(figure)


def page(found: dict, models: list[str]) -> str:
    last, mean = found["pooling"]["last"], found["pooling"]["mean"]

    def row(name: str, entry: dict) -> str:
        cells = (", ".join(map(str, entry[key])) for key in ("single", "bands", "rule"))
        return f"| {name} | {' | '.join(cells)} |"

    return f"""# Does the alignment band predict where to fuse?

Where picture and words come to be arranged alike (overlap above chance), against where fusion works, over the same
{len(models)} models. Rank correlation over layers, a seed each; "predicts" means {PREDICTS} or more in every seed.

| overlap of | fusion at one layer (alpha 0, beta 1) | fusion of a band (alpha 1, best dose) | band of the rule |
|---|---|---|---|
{row("last token", last)}
{row("means of tokens", mean)}

**Verdict.** Of the best single layer, the profile of the last token (which the rule uses)
{found["verdict"]["single"]}; of the best band, it {found["verdict"]["bands"]}.

![Overlap above chance by layer, last token and means; accuracy of fusion at each layer alone](bridge.png)

{WHY[found["verdict"]["single"]]}
Made by `python -m vift_studies.bands.bridge --models {" ".join(models)}`; figures: [bridge.json](bridge.json); the
sweep of fusion is that of [docs/results/paper](../../paper/README.md) (300 validation questions a seed).
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", required=True, help="the models of `make paper`, one a seed, in order")
    parser.add_argument("--sweeps", type=Path, default=Path("docs/results/paper/results.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/bridge"))
    args = parser.parse_args(argv)
    sweeps = json.loads(args.sweeps.read_text(encoding="utf-8"))["sweeps"]
    profiles: dict[str, list] = {"last": [], "mean": []}
    for path in args.models:
        found = capture(*load(path), micro_pairs(PAIRS), batch_size=50)
        for pooling, rows in profiles.items():
            values = overlap_profile(found, pooling=pooling)
            rows.append([None if np.isnan(value) else round(value, 4) for value in values])
    found = relate(profiles, sweeps)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "bridge.json", found)
    draw(found, sweeps, args.output / "bridge.png")
    (args.output / "README.md").write_text(page(found, [Path(path).name for path in args.models]), encoding="utf-8")
    print(json.dumps(found["verdict"]))


if __name__ == "__main__":
    main()
