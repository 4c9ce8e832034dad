"""Training arguments of VIFT: `SFTConfig` plus stage, what is trained, rates per module, and the sampler's options.

A stage-2 run inherits from the stage-1 checkpoint it starts from: a field that is None takes the value saved there
in `vift_training.json`, a value that is set overrides it. Contradictions are refused at start.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from .options import StageOptions
from .sampler import ORDERS

# stage -> what is trained when the `train_*` fields are None. The released code lists the vision tower as trained in
# stage 2, but its forward ran without gradients: frozen in effect.
STAGES = {
    1: {"vision_tower": False, "connector": True, "language_model": False},
    2: {"vision_tower": False, "connector": True, "language_model": True},
}
# field -> value when neither the run nor its starting checkpoint sets it
INHERITED = {
    "modality_order": "even",
    "chunk_steps": 16,
    "group_by_length": True,
    "text_weight": 1.0,
    "max_length": None,
}
STATE_FILE = "vift_training.json"


@dataclass
class VIFTTrainingConfig(StageOptions, SFTConfig):
    """
    `SFTConfig` with the fields of `StageOptions`; `learning_rate` is the language model's, or that of the only module
    trained.

    Raises:
        ValueError: an unknown stage or order, nothing to train, a band without its language model, bad weights.
    """

    def __post_init__(self):
        if self.bf16 is None:  # TRL turns it on everywhere, and where it can't be every mistake is told as this one
            self.bf16 = not self.fp16 and (self.use_cpu or is_torch_bf16_gpu_available())
        with warnings.catch_warnings():  # TRL turns it on by its old name, whatever the user set
            warnings.filterwarnings("ignore", "`?gradient_checkpointing", FutureWarning)
            super().__post_init__()
        known = get_available_reporting_integrations()
        if missing := [name for name in self.report_to if name not in known]:
            raise ValueError(f"report_to={missing[0]} isn't installed or known; here are {', '.join(known) or 'none'}")
        if self.stage not in STAGES:
            raise ValueError(f"stage={self.stage!r} must be one of {', '.join(map(str, STAGES))}")
        if self.train_layers is not None and self.train_language_model is False:
            raise ValueError(f"train_layers={self.train_layers!r} contradicts train_language_model=False")
        if self.train_layers is not None and self.train_language_model is None:
            self.train_language_model = True
        for name, default in STAGES[self.stage].items():
            if getattr(self, f"train_{name}") is None:
                setattr(self, f"train_{name}", default)
        if not (self.train_vision_tower or self.train_connector or self.train_language_model):
            raise ValueError("train_vision_tower, train_connector and train_language_model are all off")
        for name, on in (("connector_lr", self.train_connector), ("vision_tower_lr", self.train_vision_tower)):
            rate = getattr(self, name)
            if rate is not None and not on:
                raise ValueError(f"{name}={rate} is set, but {name.removesuffix('_lr')} is not trained")
        if not self.assistant_only_loss:
            raise ValueError("assistant_only_loss=False would train on image tokens: leave it True")

    def inherit(self, checkpoint: str | Path | None) -> None:
        """Fill fields that are None from the run that made `checkpoint`, if it was one of ours, else with defaults."""
        file = Path(checkpoint or "") / STATE_FILE
        saved = json.loads(file.read_text(encoding="utf-8"))["config"] if checkpoint and file.is_file() else {}
        for name, default in INHERITED.items():
            if getattr(self, name) is None:
                setattr(self, name, saved.get(name, default))
        if self.modality_order not in ORDERS:
            raise ValueError(f"modality_order={self.modality_order!r} must be one of {', '.join(ORDERS)}")
        if self.chunk_steps < 1:
            raise ValueError(f"chunk_steps={self.chunk_steps} must be at least 1")
        if not 0.0 < self.text_weight <= 100.0:
            raise ValueError(f"text_weight={self.text_weight} must be in (0, 100]")


def parse_band(train_layers: str, num_layers: int) -> range | tuple[int, ...]:
    """ "8:20" -> range(8, 20), inside the language model's layers; "0,4,8:12" -> the layers named."""
    layers = []
    try:
        for part in train_layers.split(","):
            first, colon, stop = part.partition(":")
            band = range(int(first or 0), int(stop or num_layers)) if colon else range(int(part), int(part) + 1)
            layers += band if band else [-1]
    except ValueError:
        layers = []
    if not layers or min(layers) < 0 or max(layers) >= num_layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"train_layers={train_layers!r} must be a band 'first:stop' with first < stop inside 0:{num_layers}, or "
            "several bands and layers, none twice, with commas between"
        )
    layers = sorted(layers)
    whole = range(layers[0], layers[-1] + 1)
    return whole if len(whole) == len(layers) else tuple(layers)
