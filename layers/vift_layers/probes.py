"""Linear probes: can a class be read off the representations of one layer? With a control on shuffled labels.

Logistic regression on standardised features (scikit-learn), fitted on 70 % of the items and scored on the rest. The
probe of the text form is also scored on the image form's held-out items ("transfer"): a class that both forms hold in
the same directions is read off pictures by a probe that has seen words only. Each form is standardised by itself, so
that a mere shift between the forms (the modality gap) does not hide shared directions.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

SPLIT_SEED = 42
LEAST = 5  # items of a class; smaller classes are left out
REGULARISATION = 0.1  # scikit-learn's C


def usable(labels: list) -> np.ndarray:
    """Indices of the items whose class has at least `LEAST` items."""
    classes, index, count = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    return np.flatnonzero(count[index] >= LEAST)


def fit(x: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=REGULARISATION, max_iter=500).fit(x, labels)


def probe(image: np.ndarray, text: np.ndarray, labels: list, seed: int = SPLIT_SEED) -> dict:
    """
    Args:
        image, text: (N, D), the two forms of the same items.
        labels: N classes, any type.

    Returns:
        {"image", "text", "transfer", "shuffled": bool (held-out items,), "chance", "classes"}: which items each probe
        got right; `shuffled` is the image probe fitted and scored on shuffled labels, `chance` the share of the
        largest class.

    Raises:
        ValueError: lengths differ, or fewer than two classes of `LEAST` items.
    """
    if not len(image) == len(text) == len(labels):
        raise ValueError(f"image has {len(image)} items, text {len(text)}, labels {len(labels)}")
    kept = usable(labels)
    classes = np.asarray(labels, dtype=str)[kept]
    if len(set(classes)) < 2:
        raise ValueError(f"labels have {len(set(classes))} classes of {LEAST} items or more: a probe needs two")
    train, test = train_test_split(np.arange(len(kept)), test_size=0.3, random_state=seed, stratify=classes)
    image, text = (StandardScaler().fit(x[kept[train]]).transform(x[kept]) for x in (image, text))
    shuffled = np.random.default_rng(seed).permutation(classes)
    by_text = fit(text[train], classes[train])
    right = {
        "image": fit(image[train], classes[train]).predict(image[test]) == classes[test],
        "text": by_text.predict(text[test]) == classes[test],
        "transfer": by_text.predict(image[test]) == classes[test],
        "shuffled": fit(image[train], shuffled[train]).predict(image[test]) == shuffled[test],
    }
    chance = float(np.unique(classes[test], return_counts=True)[1].max() / len(test))
    return right | {"chance": round(chance, 4), "classes": len(set(classes))}
