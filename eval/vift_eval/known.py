"""Whether a picture is of the kind that a model was trained on: a rule that was measured for its weights, or none.

    distance = mean over tokens t of sqrt((f_t - m)ᵀ C⁻¹ (f_t - m) / D)     f: (T, D), a picture as the language model
    known    = distance <= limit                                                gets it from the connector

m and C are mean and covariance of the tokens of pictures from the model's world (Mahalanobis' distance, as in
arXiv 1807.03888). `studies/benchmarks/unknown.py` fits, chooses the limit and measures how often the rule is right.
A rule is a file named after the weights that it was measured for; for other weights there is none: nothing is said.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .files import weights_sha256

UNKNOWN = "I don't know this kind of picture"


@torch.inference_mode()
def features(model, processor, images: list, batch: int = 32) -> np.ndarray:
    """(N, T, D) float32: pictures as the language model gets them."""
    found = []
    for start in range(0, len(images), batch):
        inputs = processor.image_processor(images=images[start : start + batch], return_tensors="pt")
        pixels = inputs["pixel_values"].to(model.device, model.dtype)
        tokens = model.get_image_features(pixels, return_dict=True).pooler_output
        found += [one.float().cpu().numpy() for one in tokens]
    return np.stack(found)


@dataclass(frozen=True)
class Known:
    """`mean` (D,), `root` (D, D) with root rootᵀ = C⁻¹ / D, `limit`: the largest distance of a known picture."""

    mean: np.ndarray
    root: np.ndarray
    limit: float = float("inf")

    @classmethod
    def fit(cls, tokens: np.ndarray) -> "Known":
        """From the features (N, T, D) of pictures of the world; tiny variances are raised, for the inverse."""
        rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(rows.T))
        values = values.clip(1e-4 * values.mean()) * len(values)
        root = (vectors / np.sqrt(values)).astype(np.float16)  # as it is stored
        return cls(rows.mean(axis=0).astype(np.float32), root.astype(np.float32))

    def distances(self, tokens: np.ndarray) -> np.ndarray:
        """(N,), of features (N, T, D)."""
        return np.linalg.norm((tokens - self.mean) @ self.root, axis=-1).mean(axis=-1)

    def save(self, folder: Path, model: Path) -> Path:
        """Writes the rule for the weights in folder `model`; returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = _file(folder, model)
        np.savez_compressed(file, mean=self.mean, root=self.root.astype(np.float16), limit=self.limit)
        return file

    @classmethod
    def load(cls, folder: Path, model: Path) -> "Known | None":
        """The rule in `folder` for the weights in folder `model`; None where they were not measured."""
        if not any(folder.glob("*.npz")) or not (file := _file(folder, model)).is_file():
            return None
        with np.load(file, allow_pickle=False) as held:
            return cls(held["mean"], held["root"].astype(np.float32), float(held["limit"]))


def _file(folder: Path, model: Path) -> Path:
    return folder / f"{(weights_sha256(model) or 'none')[:12]}.npz"


def best_limit(known: np.ndarray, unknown: np.ndarray) -> float:
    """The limit with the highest mean of the two shares that are right; the middle, where several are equal."""
    cuts = np.unique(np.concatenate([known, unknown]))
    cuts = np.concatenate([cuts[:1] - 1e-6, (cuts[1:] + cuts[:-1]) / 2, cuts[-1:] + 1e-6])
    right = np.array([(known <= cut).mean() + (unknown > cut).mean() for cut in cuts])
    best = cuts[right >= right.max() - 1e-9]
    return float((best[0] + best[-1]) / 2)
