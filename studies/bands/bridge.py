"""Does the band in which text and image align predict where to fuse? A plot and a verdict.

    python -m vift_studies.bands.bridge --models runs/seed0 runs/seed1 runs/seed2

Overlap above chance of each layer's input (1000 scenes of the validation split; `vift_layers.band`) against the
accuracy of fusion at that layer alone (alpha 0, beta 1) and of bands at alpha 1 and their best dose, as the sweep of
`make paper` measured them on the same models (docs/results/paper/results.json, validation split). Writes
docs/results/bridge/.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.ticker import MultipleLocator
from scipy.stats import spearmanr

from vift_eval.files import made_line, markdown_table, read_json, save_figure
from vift_eval.layers.pairs import micro_pairs
from vift_eval.models import load_model
from vift_eval.plots import LINES, STYLE, panels, plt
from vift_layers.band import band_rule, overlap_profile
from vift_layers.capture import capture

from ..answers import UNTESTABLE, pick
from ..runner import made_of, write_results

PAIRS = 1000
PREDICTS = 0.7  # rank correlation, in every seed
POOLINGS = {"last": "last token", "mean": "means of tokens"}
REVERSE = "predicts the reverse"
WHY_REVERSE = """
Fusion works where picture and words are *not* arranged alike yet: it replaces what the text tokens know by the text
run's states, and the picture must still be read in the layers above. Overlap is high where it has been read, and what
is fused there overwrites it. Both curves go one way with depth, so that "the lower the better" says the same.
"""


def best_bands(records: list[dict], seed: int) -> dict[str, float]:
    """Band -> accuracy of this seed at its best dose."""
    accuracy: dict[str, float] = {}
    for record in records:
        accuracy[record["layers"]] = max(accuracy.get(record["layers"], 0.0), record["seeds"][seed])
    return accuracy


def mean_over(profile: list, band: str) -> float:
    """Mean of the profile over the inputs of a band's layers."""
    first, stop = map(int, band.split(":"))
    return float(np.nanmean([np.nan if v is None else v for v in profile[first:stop]]))


def correlation(first: list, second: list) -> float | None:
    """Spearman's; None where there is nothing to rank: fewer than three points, or one value throughout."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return round(float(spearmanr(first, second)[0]), 3)


def verdict(correlations: list) -> str:
    if None in correlations:
        return UNTESTABLE
    if min(correlations) >= PREDICTS:
        return "predicts it"
    return REVERSE if max(correlations) <= -PREDICTS else "does not predict it"


def relate(profiles: dict[str, list], validation: list[dict]) -> dict:
    """Rank correlations by seed: of single layers, and of bands. `validation`: records of `make paper`."""
    replaced, bands = pick(validation, sweep="replace"), pick(validation, sweep="bands")
    layers = [int(record["layers"].split(":")[0]) for record in replaced]
    results = {"layers": layers, "pooling": {}}
    for pooling, rows in profiles.items():
        entry = {"profiles": rows, "single": [], "bands": [], "rule": [str(band_rule(row)) for row in rows]}
        for seed, profile in enumerate(rows):
            accuracy = [record["seeds"][seed] for record in replaced]
            entry["single"].append(correlation([profile[layer] for layer in layers], accuracy))
            best = best_bands(bands, seed)
            entry["bands"].append(correlation([mean_over(profile, band) for band in best], list(best.values())))
        results["pooling"][pooling] = entry
    last = results["pooling"]["last"]
    results["accuracy"] = [[record["seeds"][seed] for record in replaced] for seed in range(len(last["profiles"]))]
    return results | {"verdict": {name: verdict(last[name]) for name in ("single", "bands")}}


def draw(results: dict, folder: Path) -> None:
    told = (
        "Left and middle: of a picture's nearest neighbours among pictures, the share whose captions are its own "
        "caption's neighbours, less what another caption gives: how alike pictures and words are arranged. Right: "
        "fusion that replaces the text tokens' states at the input of this layer alone (α = 0, β = 1). A line a model."
    )
    with plt.rc_context(STYLE):
        title = "Where pictures and words are arranged alike, and where fusion works"
        figure, (row,) = panels(title, told, (11.2, 3.4), 1, 3, sharex=True)
        for axes, (pooling, words) in zip(row, POOLINGS.items()):
            for number, profile in enumerate(results["pooling"][pooling]["profiles"]):
                values = [np.nan if value is None else value for value in profile]
                axes.plot(range(len(values)), values, "o-", color=LINES[number], label=f"run {number}")
            axes.set_title(f"overlap above chance, {words}")
        row[0].legend(loc="lower right")
        for number, accuracy in enumerate(results["accuracy"]):
            values = [100 * value for value in accuracy]
            row[2].plot(results["layers"], values, "o-", color=LINES[number])
        row[2].set_title("right answers in %, fused")
        for axes in row:
            axes.set_xlabel("input of layer")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MultipleLocator(1))
        save_figure(figure, folder / "bridge.png", results["made"], dpi=130)
    plt.close(figure)


def page(results: dict) -> str:
    rows = [
        [words, *(", ".join(map(str, results["pooling"][pooling][key])) for key in ("single", "bands", "rule"))]
        for pooling, words in POOLINGS.items()
    ]
    header = ["overlap of", "fusion at one layer (alpha 0, beta 1)", "fusion of a band (alpha 1, best dose)",
              "band of the rule"]  # fmt: skip
    verdicts = results["verdict"]
    return f"""# Does the alignment band predict where to fuse?

Where picture and words come to be arranged alike (overlap above chance), against where fusion works, over the same
{len(results["accuracy"])} models. Rank correlation over layers, one per seed; "predicts" means {PREDICTS} or more in
every seed.

{markdown_table(header, rows)}

**Verdict.** Of the best single layer, the profile of the last token (which the rule uses): {verdicts["single"]}; of
the best band: {verdicts["bands"]}.

![Overlap above chance by layer, last token and means; accuracy of fusion at each layer alone](bridge.png)
{WHY_REVERSE if verdicts["single"] == REVERSE else ""}
Figures: [bridge.json](bridge.json); the sweep of fusion is that of [docs/results/paper](../paper/README.md) (300
validation questions per seed). Made by {made_line(results["made"])}
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", required=True, help="the models of `make paper`, one per seed, in order"
    )
    parser.add_argument("--sweeps", type=Path, default=Path("docs/results/paper/results.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/bridge"))
    args = parser.parse_args(argv)
    profiles: dict[str, list] = {pooling: [] for pooling in POOLINGS}
    for path in args.models:
        captured = capture(*load_model(path), micro_pairs(PAIRS), batch_size=50)
        for pooling, rows in profiles.items():
            values = overlap_profile(captured, pooling=pooling)
            rows.append([None if np.isnan(value) else round(value, 4) for value in values])
    models = {f"seed{number}": Path(path) for number, path in enumerate(args.models)}
    made = made_of(f"python -m vift_studies.bands.bridge --models {' '.join(models)}", models)
    results = relate(profiles, read_json(args.sweeps)["validation"])
    write_results(args.output, "bridge", made, results, draw, page)
    print(json.dumps(results["verdict"]))


if __name__ == "__main__":
    main()
