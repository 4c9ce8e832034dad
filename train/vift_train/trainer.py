"""`VIFTTrainer`: TRL's `SFTTrainer` with ViFT's two stages (arXiv 2502.11427) and pure steps.

Stage 1 trains the connector alone on captions; stage 2 trains the language model and the connector on
captions and text-only instructions. Rows are `messages` + `images` ([] for text) + `modality`; each
optimizer step holds one modality; the loss is on the assistant's tokens.
"""

from dataclasses import dataclass, field

from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer

from .sampler import ModalityBatchSampler

# stage -> what is trained when the `train_*` fields are None
STAGES = {
    1: {"vision_tower": False, "connector": True, "language_model": False},
    2: {"vision_tower": False, "connector": True, "language_model": True},
}


@dataclass
class VIFTTrainingConfig(SFTConfig):
    """
    `SFTConfig` with the fields below; `learning_rate` is the language model's, or that of the only
    module that is trained.

    Args:
        stage: 1 (connector only) or 2 (language model and connector).
        train_vision_tower, train_connector, train_language_model: None = as the stage says.
        connector_lr, vision_tower_lr: None = `learning_rate`.
    """

    stage: int = field(default=2, metadata={"help": "1: connector only; 2: language model + connector"})
    train_vision_tower: bool | None = field(default=None, metadata={"help": "None: as the stage says"})
    train_connector: bool | None = field(default=None, metadata={"help": "None: as the stage says"})
    train_language_model: bool | None = field(default=None, metadata={"help": "None: as the stage says"})
    connector_lr: float | None = field(default=None, metadata={"help": "None: learning_rate"})
    vision_tower_lr: float | None = field(default=None, metadata={"help": "None: learning_rate"})
    assistant_only_loss: bool = field(default=True, metadata={"help": "without it TRL trains on every image token"})
    max_length: int | None = field(default=None, metadata={"help": "TRL's default of 1024 would cut inside images"})

    def __post_init__(self):
        super().__post_init__()
        if self.stage not in STAGES:
            raise ValueError(f"stage={self.stage!r} must be one of {', '.join(map(str, STAGES))}")
        for name, default in STAGES[self.stage].items():
            if getattr(self, f"train_{name}") is None:
                setattr(self, f"train_{name}", default)
        if not (self.train_vision_tower or self.train_connector or self.train_language_model):
            raise ValueError("train_vision_tower, train_connector, train_language_model: all off")


def module_of(name: str) -> str:
    """The module that a parameter of a LLaVA-class model belongs to, by its full name."""
    if "vision_tower" in name:
        return "vision_tower"
    if "multi_modal_projector" in name:
        return "connector"
    return "language_model"


class VIFTTrainer(SFTTrainer):
    """
    Args are those of `SFTTrainer`, with `args` a `VIFTTrainingConfig` and a `train_dataset` that has
    the columns `messages`, `images`, `modality`.

    Raises:
        ValueError: a missing column, or a configuration that trains nothing.
    """

    def __init__(self, model, args: VIFTTrainingConfig, train_dataset, **kwargs):
        missing = {"messages", "images", "modality"} - set(train_dataset.column_names)
        if missing:
            raise ValueError(f"train_dataset lacks the columns {', '.join(sorted(missing))}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad = getattr(args, f"train_{module_of(name)}")
        # features come from an inner layer, so nothing after it can get a gradient
        for name, parameter in model.named_parameters():
            if "post_layernorm" in name:
                parameter.requires_grad = False
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        group = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        sampler = ModalityBatchSampler(
            self.train_dataset["modality"],
            batch_size=self.args.per_device_train_batch_size,
            group=group,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model=None):
        """AdamW with a learning rate per module; the language model's group first (it is logged)."""
        model = self.model if model is None else model
        if self.optimizer is not None:
            return self.optimizer
        decayed = set(self.get_decay_parameter_names(model))
        rates = {
            "language_model": self.args.learning_rate,
            "connector": self.args.connector_lr,
            "vision_tower": self.args.vision_tower_lr,
        }
        groups = []
        for module, rate in rates.items():
            for decay in (True, False):
                parameters = [
                    p
                    for n, p in model.named_parameters()
                    if p.requires_grad and module_of(n) == module and (n in decayed) == decay
                ]
                if parameters:
                    groups.append(
                        {
                            "params": parameters,
                            "lr": self.args.learning_rate if rate is None else rate,
                            "weight_decay": self.args.weight_decay if decay else 0.0,
                        }
                    )
        optimizer_cls, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_cls(groups, **options)
        return self.optimizer
