"""The options of `vift train`: ours, and of TRL's those that one sets most; read without importing torch or TRL.

In YAML and in Python the names have underscores (`output_dir`), on the command line dashes (`--output-dir`).
"""

from dataclasses import dataclass, field, fields

from vift_hub.cli import OneLineParser

# of TRL's and transformers' options: name -> what a user reads
OFTEN = {
    "config": "YAML file with any of these; the command line wins",
    "output_dir": "folder for checkpoints, the model and its log",
    "learning_rate": "of the language model, or of the only module trained",
    "num_train_epochs": "passes over the rows",
    "max_steps": "optimizer steps, instead of epochs",
    "per_device_train_batch_size": "rows of a batch on one device",
    "gradient_accumulation_steps": "batches of an optimizer step",
    "bf16": "compute in bfloat16: true or false (default: where a GPU can)",
    "eval_strategy": "when the held-out rows are read: no, steps or epoch",
    "save_steps": "optimizer steps between two checkpoints",
    "resume_from_checkpoint": "true (the newest in the output folder) or a path: go on with an interrupted run",
    "use_peft": "train LoRA adapters (--lora-r, --lora-alpha ... set them)",
    "seed": "of rows, order and new weights",
    "push_to_hub": "publish the trained model (--hub-model-id names it)",
    "trust_remote_code": "run the Python files of a model on the Hub (those of your own folders are run)",
    "help_all": "show all options, TRL's too",
}


def option(default, help: str):
    """A field of a command line's dataclass; [] stands for a new list each time."""
    default = {"default_factory": list} if default == [] else {"default": default}
    return field(**default, metadata={"help": help})


@dataclass
class RunArguments:
    """What is trained on what; see `vift_train.data` for the kinds of rows."""

    model: str | None = option(None, "VIFT checkpoint to start from (vift init makes one): a folder or hub id")
    captions: list[str] = option([], "sources of caption rows")
    instructions: list[str] = option([], "sources of text-only rows")
    image_folder: str | None = option(None, "where relative image paths start")
    plain_captions: bool | None = option(None, "captions without a query (default: in stage 1)")
    caption_queries: list[str] | None = option(None, "instead of the pool in vift_train.data")
    eval_captions: list[str] = option([], "held-out caption rows: eval_image_loss")
    eval_instructions: list[str] = option([], "held-out text rows: eval_text_loss")
    answers: int = option(4, "at every evaluation, answer about so many pictures of eval_captions")
    ask: list[str] | None = option(None, "questions about these pictures (default: the captions' own queries)")
    streaming: bool = option(False, "read rows as they are needed; needs --max-steps")
    on_bad_row: str = option("skip", "skip (counted and named) or raise")
    num_proc: int | None = option(None, "processes that convert rows and count lengths")
    columns: str | None = option(None, """what your columns are, such as '{"caption": "alt", "ignore": ["title"]}'""")
    every_caption: bool = option(False, "a row for each of several captions of a picture, instead of one an epoch")
    check_pictures: str = option("load", "load (each is opened before the run) or training (opened when it is due)")


@dataclass
class StageOptions:
    """What a stage trains, and in which order; the fields that `VIFTTrainingConfig` has beside TRL's."""

    stage: int = option(2, "1: connector only; 2: language model and connector")
    train_vision_tower: bool | None = option(None, "true or false (default: as the stage says)")
    train_connector: bool | None = option(None, "true or false (default: as the stage says)")
    train_language_model: bool | None = option(None, "true or false (default: as the stage says)")
    train_layers: str | None = option(
        None,
        "half-open band of decoder layers, such as 8:20 (or 0,4,8:12): of the language model, only these are trained; "
        "auto: the band in which image and caption come to look alike (vift_train.auto_band)",
    )
    connector_lr: float | None = option(None, "its learning rate (default: --learning-rate)")
    vision_tower_lr: float | None = option(None, "its learning rate (default: --learning-rate)")
    modality_order: str | None = option(
        None,
        "even (the share of text steps is steady over the epoch), random, or mixed (no pure steps: a control) "
        "(default: as in the run that made --model)",
    )
    group_by_length: bool | None = option(
        None, "rows of like length (in tokens) share a step (default: as in the run that made --model)"
    )
    chunk_steps: int | None = option(
        None, "optimizer steps whose rows are sorted by length together (default: as in the run that made --model)"
    )
    text_weight: float | None = option(
        None,
        "how often an epoch visits each text row: 0.5 = another half every epoch, 2 = twice (default: as in the run "
        "that made --model)",
    )
    overwrite_output_dir: bool = option(False, "delete the checkpoints and the model that lie in output_dir")
    assistant_only_loss: bool = option(True, "without it TRL trains on every image token")
    max_length: int | None = option(
        None, "TRL's default of 1024 would cut inside images (default: as in the run that made --model)"
    )


def build_parser() -> OneLineParser:
    """For `--help` only: `vift_train.launch.Parser` reads the values."""
    parser = OneLineParser("vift train", "")
    for title, names in (
        ("what is trained on what", {one.name: one.metadata["help"] for one in fields(RunArguments)}),
        ("stage", {one.name: one.metadata["help"] for one in fields(StageOptions)}),
        ("of TRL's options", OFTEN),
    ):
        group = parser.add_argument_group(title)
        for name, told in names.items():
            group.add_argument(f"--{name.replace('_', '-')}", help=told, metavar="")
    return parser
