"""`VIFTTrainer`: TRL's `SFTTrainer` with ViFT's two stages (arXiv 2502.11427) and pure steps.

Stage 1 trains the connector alone on captions; stage 2 the language model and the connector on captions and
text-only instructions. Rows are `messages` + `images` ([] for text) + `modality` (and, if known, `length` in tokens);
each optimizer step holds one modality on all ranks; the loss is on the assistant's tokens. Which steps there are is
decided by `sampler` (map-style datasets) or `streaming`; what may be trained by `config`; early errors by `checks`.
"""

import copy
import json
import re
import time
import warnings
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import ProgressCallback
from trl import SFTTrainer

from vift_hub.card import save_training_card, training_card
from vift_hub.output import lock

from .auto_band import AUTO, auto_band
from .callbacks import AtTheStart, ModalityProgress, Throughput
from .checks import check_columns, check_groups, check_stream, small_modalities
from .collator import CheckedCollator
from .config import INHERITED, STATE_FILE, VIFTTrainingConfig, parse_band
from .labelled import labelled_only
from .lengths import column, dataset_lengths, fitting, image_tokens, of_longest, row_lengths, undecoded
from .runs import (
    check_fingerprint,
    digest_rows,
    digest_weights,
    fingerprint,
    make_room,
    newest_checkpoint,
    told,
    unwritten,
    written_aside,
)
from .sampler import ModalityBatchSampler
from .streaming import PureSteps

CHECKED_ROWS = 8  # rows of each modality that are collated before the first step


def module_of(name: str) -> str:
    """The module that a parameter of a LLaVA-class model belongs to, by its full name."""
    if "vision_tower" in name:
        return "vision_tower"
    return "connector" if "multi_modal_projector" in name else "language_model"


def is_trained(name: str, args: VIFTTrainingConfig, band: Collection[int] | None) -> bool:
    """Whether stage and band train the parameter `name`."""
    module = module_of(name)
    if "post_layernorm" in name:  # features come from an inner layer: nothing after it can get a gradient
        return False
    if module == "language_model" and band is not None:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        return args.train_language_model and layer is not None and int(layer[1]) in band
    return getattr(args, f"train_{module}")


class VIFTTrainer(SFTTrainer):
    """
    Args are those of `SFTTrainer`, with `args` a `VIFTTrainingConfig` and a `train_dataset` (a `Dataset`, or an
    `IterableDataset` with `max_steps`) that has the columns `messages`, `images`, `modality`.

    Raises:
        ValueError: before the first step: a missing column, a bad row, image tokens among the labels, a row with
            nothing to learn, a band outside the model, a parameter outside the optimizer's groups; on resuming: a
            run of another shape, or a checkpoint whose weights do not fit.
    """

    def __init__(self, model, args: VIFTTrainingConfig, train_dataset, data_collator=None, peft_config=None, **kwargs):
        check_columns(train_dataset)
        train_dataset, kwargs["eval_dataset"] = undecoded(train_dataset), undecoded(kwargs.get("eval_dataset"))
        args.inherit(getattr(model, "name_or_path", None))
        num_layers = model.config.get_text_config().num_hidden_layers
        if args.train_layers == AUTO:
            args.train_layers = str(auto_band(model, kwargs.get("processing_class"), train_dataset, args))
        band = None if args.train_layers is None else parse_band(args.train_layers, num_layers)
        if peft_config is None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad = is_trained(name, args, band)
        else:
            peft_config = adapt_peft_config(peft_config, args, band)
        is_stream = isinstance(train_dataset, IterableDataset)
        if is_stream:
            check_stream(args)
        known = {
            "start_sha256": digest_weights(model),
            "peft_config": None if peft_config is None else peft_config.to_dict(),
        }
        super().__init__(model, args, data_collator, train_dataset, peft_config=peft_config, **kwargs)
        if data_collator is None:
            fields = {name: getattr(self.data_collator, name) for name in self.data_collator.__dataclass_fields__}
            self.data_collator = CheckedCollator(**fields)  # evaluation may ask about text in any stage
        self._train_collator = copy.copy(self.data_collator)
        self._train_collator.trains_on_text = args.train_language_model
        self._train_collator.seed = args.seed if args.data_seed is None else args.data_seed
        self._train_collator.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # for workers that outlive it
        self._left_out: dict[str, str] = {}  # row -> why its picture can't be opened
        self.add_callback(AtTheStart())
        self._modalities = self._lengths = None
        self._tokens_per_image = image_tokens(self.processing_class)
        with self.accelerator.local_main_process_first():  # the others read its cache
            for name in ("train_dataset", "eval_dataset"):
                options = self.processing_class, self._tokens_per_image, args.max_length, name, args.dataset_num_proc
                setattr(self, name, fitting(getattr(self, name), *options))
        train_dataset = self.train_dataset
        if is_stream:
            first = list(train_dataset.take(CHECKED_ROWS))
            self._train_collator(first)
            known["first_rows"] = [[row.get("id"), row["messages"]] for row in first]
        else:
            self._modalities = column(train_dataset, "modality")
            for message in small_modalities(self._modalities, self._group):
                warnings.warn(message, stacklevel=2)
            for modality in np.unique(self._modalities):
                first = np.flatnonzero(self._modalities == modality)[:CHECKED_ROWS]
                self._train_collator([train_dataset[i] for i in first.tolist()])
            if args.group_by_length:
                self._lengths = self._measure_dataset(train_dataset)
        self._throughput: dict[str, Throughput] = {}  # by modality, since the start
        self._logged: dict[str, Throughput] = {}
        self._fingerprint = None
        if self.accelerator.is_main_process:
            known |= {} if is_stream else {"rows_sha256": digest_rows(train_dataset)}
            known["world_size"] = self.accelerator.num_processes
            self._fingerprint = fingerprint(args, self._modalities, self._lengths, **known)
        (self._fingerprint,) = broadcast_object_list([self._fingerprint])
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ModalityProgress(self._throughput, None if is_stream else self._sampler().steps))

    @property
    def _group(self) -> int:
        """Micro-batches per optimizer step, over all ranks."""
        return self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def _measure_dataset(self, dataset) -> np.ndarray:
        """The column `length`, or the lengths counted from the text and the number of images."""
        if "length" in dataset.column_names:
            lengths = column(dataset, "length")
        else:
            with self.accelerator.local_main_process_first():  # the others read its cache
                lengths = dataset_lengths(
                    dataset, self.processing_class, self._tokens_per_image, self.args.dataset_num_proc
                )
        return lengths if self.args.max_length is None else np.minimum(lengths, self.args.max_length)

    def _measure_rows(self, rows: list[dict]) -> list[int]:
        if all(row.get("length") is not None for row in rows):
            return [row["length"] for row in rows]
        batch = {name: [row.get(name) for row in rows] for name in ("messages", "images", "versions")}
        return of_longest(row_lengths, self.processing_class, batch, self._tokens_per_image)

    def _sampler(self) -> ModalityBatchSampler:
        args = self.args
        return ModalityBatchSampler(
            self._modalities,
            batch_size=args.per_device_train_batch_size,
            group=self._group,
            seed=args.seed if args.data_seed is None else args.data_seed,
            lengths=self._lengths,
            order=args.modality_order,
            chunk_steps=args.chunk_steps,
            weights={"text": args.text_weight},
        )

    # Batches ----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        args, data = self.args, self.train_dataset
        options = {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
        }
        if isinstance(data, IterableDataset):
            if args.dataloader_num_workers > 1:
                raise ValueError(
                    f"dataloader_num_workers={args.dataloader_num_workers}: a stream of pure steps is read by one "
                    "worker at most, or its order would depend on their number"
                )
            if args.modality_order == "mixed":
                raise ValueError("modality_order='mixed' needs a data set that is no stream: a stream has pure steps")
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            measure = self._measure_rows if args.group_by_length else None
            steps = PureSteps(data, args.per_device_train_batch_size, self._group, rank, world, measure, endless=True)
            steps.epoch = self._train_collator.epoch
            return DataLoader(steps, batch_size=None, collate_fn=self._train_collator, **options)
        sampler = self._sampler()
        loader = self.accelerator.prepare(
            DataLoader(data, batch_sampler=sampler, collate_fn=self._train_collator, **options)
        )

        # A run resumed in a later epoch wraps this once more, and only an outer `set_epoch` would be found
        def set_epoch(epoch):
            sampler.epoch = epoch
            self._train_collator.epoch.fill_(epoch)

        loader.batch_sampler.set_epoch = set_epoch
        return loader

    def get_batch_samples(self, *args, **kwargs):
        """None once the last step is done: the parent would train one more when it resumes there."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _prepare_inputs(self, inputs):
        for name, why in inputs.pop("left_out", ()):
            if name not in self._left_out:
                warnings.warn(f"{name} is left out: {why}", stacklevel=2)
            self._left_out[name] = why
        return super()._prepare_inputs(inputs)

    # Figures ----------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, *args, **kwargs):
        """Counts this rank's tokens, padding and seconds by modality; `log` and the progress bar show them."""
        modality, mask = "image" if "pixel_values" in inputs else "text", inputs["attention_mask"]
        tokens, places, start = int(mask.sum()), mask.numel(), time.perf_counter()
        loss = super().training_step(model, inputs, *args, **kwargs)
        if torch.accelerator.is_available():  # kernels are queued: without this only their launch is timed
            torch.accelerator.synchronize()
        step_ends = self.accelerator.sync_gradients
        if step_ends and self.is_deepspeed_enabled:
            forget_gradients(self.deepspeed)
        throughput = self._throughput.setdefault(modality, Throughput())
        throughput.add(tokens, places, time.perf_counter() - start, step_ends)
        return loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The parent reads `lm_head.weight` without calling `lm_head`. Where FSDP2 shards the head on its own (as
        accelerate does when it finds no norm beside it) its gradient would be that of one rank, never reduced;
        gathered first, it is a parameter like any other."""
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        if model.training and isinstance(head, FSDPModule):
            head.unshard()
        with labelled_only():
            return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            for modality, total in self._throughput.items():
                new = total.minus(self._logged.get(modality, Throughput()))
                if new.places:
                    logs[f"{modality}_tokens_per_second"] = new.tokens / new.seconds
                    logs[f"{modality}_padding"] = 1 - new.tokens / new.places
            self._logged = {modality: replace(total) for modality, total in self._throughput.items()}
        super().log(logs, start_time)

    # Optimizer --------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None):
        """One group per module, each with its rate; the language model's first, because that one is logged."""
        if self.optimizer is not None:
            return self.optimizer
        args, model = self.args, self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        rates = {"language_model": None, "connector": args.connector_lr, "vision_tower": args.vision_tower_lr}
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = []
        for module, rate in rates.items():
            for decay in (True, False):
                parameters = [p for n, p in trained.items() if module_of(n) == module and (n in decayed) == decay]
                if parameters:
                    rate_of_group = args.learning_rate if rate is None else rate
                    weight_decay = args.weight_decay if decay else 0.0
                    groups.append({"params": parameters, "lr": rate_of_group, "weight_decay": weight_decay})
        check_groups(groups, trained)
        optimizer_cls, options = self.get_optimizer_cls_and_kwargs(args, model)
        self.optimizer = optimizer_cls(groups, **options)
        return self.optimizer

    # Checkpoints ------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, **kwargs):
        resumed, world = resume_from_checkpoint is True, self.args.world_size
        if resumed:
            resume_from_checkpoint = newest_checkpoint(self.args.output_dir, world)
        if resume_from_checkpoint:
            file = Path(resume_from_checkpoint) / STATE_FILE
            if not file.is_file():
                raise ValueError(f"{resume_from_checkpoint} holds no {STATE_FILE}: not a checkpoint of this trainer")
            saved = json.loads(file.read_text(encoding="utf-8"))
            check_fingerprint(saved["fingerprint"], self._fingerprint, str(resume_from_checkpoint))
            self._total_train_tokens = saved["num_tokens"]  # TRL counts from 0 again
            if missing := unwritten(resume_from_checkpoint, world):
                raise ValueError(f"resume_from_checkpoint={resume_from_checkpoint} lacks {missing}: not a whole save")
        if self.args.should_save:
            output_dir = self.args.output_dir
            self._lock = lock(output_dir)  # as long as this trainer lives: the final save is its own too
            if Path(resume_from_checkpoint or "nowhere/x").resolve().parent != Path(output_dir).resolve():
                options = getattr(self.model, "name_or_path", None), resumed
                make_room(output_dir, self.args.overwrite_output_dir, *options)
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self._left_out:
            warnings.warn(f"{len(self._left_out)} rows were left out: their pictures can't be opened", stacklevel=2)
        return result

    def save_model(self, output_dir=None, _internal_call=False):
        """Weights, config, code, processor and template (as the parent does), and what a later run inherits."""
        folder = Path(output_dir or self.args.output_dir)
        with told(folder), written_aside(folder) if self.args.should_save else nullcontext(folder) as part:
            super().save_model(str(part), _internal_call=True)
            if self.args.should_save:
                config = {name: getattr(self.args, name) for name in ("stage", "train_layers", *INHERITED)}
                record = {"config": config, "fingerprint": self._fingerprint, "num_tokens": self._total_train_tokens}
                (part / STATE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model, trial):
        with told(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state that is written next says that all ranks' files are there

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """See `vift_hub.card`; the arguments are TRL's, and `tags` are added to the usual ones."""
        if self.is_world_process_zero():
            args, tags = self.args, [tags] if isinstance(tags, str) else tags or []
            parts = ("vision_tower", "connector", "language_model")
            trained = [part.replace("_", " ") for part in parts if getattr(args, f"train_{part}")]
            if args.train_language_model and args.train_layers:
                trained[-1] += f" (layers {args.train_layers})"
            what = f"stage {args.stage}, for {self.state.global_step} steps: {', '.join(trained)} trained"
            repo = self.hub_model_id or model_name or Path(args.output_dir).name
            card, pushed = training_card(repo, what, [*self._tag_names, *tags]), repo if args.push_to_hub else None
            save_training_card(card, Path(args.output_dir) / "README.md", pushed, args.hub_token)

    def _save(self, output_dir=None, state_dict=None):
        """FSDP2 has made the model's class one of torch's own; the code saved beside the weights is of the model's."""
        sharded = type(self.model)
        if issubclass(sharded, FSDPModule):
            self.model.__class__ = sharded.__bases__[1]
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = sharded

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Through `from_pretrained`: the parent's `load_state_dict(strict=False)` knows nothing of weight names that
        are converted on saving, and would silently load no weights at all."""
        target = self.model if model is None else model
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(target, "peft_config"):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded, info = type(target).from_pretrained(
            resume_from_checkpoint, dtype=target.dtype, output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            wrong = [*info["missing_keys"], *info["mismatched_keys"]]
            raise ValueError(f"{resume_from_checkpoint} lacks weights of the model: {sorted(map(str, wrong))[:3]}")
        target.load_state_dict(loaded.state_dict())

    def _load_best_model(self):
        """The same for `load_best_model_at_end`, whose parent loads as silently."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(self.model, "peft_config"):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def forget_gradients(engine) -> None:
    """
    Clear ZeRO-3's buffer of gradients after a step. A parameter that gets no gradient in the next one, as the
    connector in a text step, would otherwise be moved by the gradient of the last image step once more.
    """
    buffer = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if buffer is not None:
        buffer.zero_()


def adapt_peft_config(peft_config, args: VIFTTrainingConfig, band: Collection[int] | None):
    """LoRA on the language model only (in the band only), the connector trained whole where the stage says so."""
    peft_config = copy.copy(peft_config)  # the caller's stays as it is
    projections = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    targets = peft_config.target_modules or projections
    if not isinstance(targets, str):
        layers = r"\d+" if band is None else f"(?:{'|'.join(map(str, band))})"
        peft_config.target_modules = rf".*language_model\.layers\.{layers}\..*\.(?:{'|'.join(sorted(targets))})"
    if args.train_connector:
        whole = list(peft_config.modules_to_save or [])
        peft_config.modules_to_save = [*whole, *({"multi_modal_projector"} - set(whole))]
    return peft_config
