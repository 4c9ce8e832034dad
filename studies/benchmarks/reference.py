"""The figures of `estimators.py agree` by DADApy and scikit-dimension, in an environment of their own.

    OTHER/bin/python studies/benchmarks/reference.py points.npz figures.json      # `estimators.py agree` calls it

Nothing of this project can be imported there.
"""

import json
import sys
from pathlib import Path

import dadapy
import numpy as np
import skdim
from dadapy._utils.metric_comparisons import _return_imbalance

K = 30  # neighbours of the overlap, as in `estimators.py`


def by_libraries(file: Path) -> dict:
    points, figures = dict(np.load(file)), {}
    for name in sorted({key.split("_")[0] for key in points}):
        a, b = points[f"{name}_a"], points[f"{name}_b"]
        data, other = dadapy.Data(a), dadapy.Data(b)
        data.compute_distances(maxk=len(a) - 1)
        dimensions, *_ = data.return_id_scaling_gride(range_max=64)
        other.compute_distances(maxk=len(b) - 1)
        ranks_a, ranks_b = data.dist_indices, other.dist_indices
        figures[name] = {
            "gride": [float(d) for d in dimensions],
            "overlap": float(data.return_data_overlap(coordinates=b, k=K)),
            "imbalance_ab": float(_return_imbalance(ranks_a, ranks_b, np.random.default_rng(0))),
            "imbalance_ba": float(_return_imbalance(ranks_b, ranks_a, np.random.default_rng(0))),
            "twonn": float(skdim.id.TwoNN().fit(a).dimension_),
        }
    return figures


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(by_libraries(Path(sys.argv[1]))), encoding="utf-8")
