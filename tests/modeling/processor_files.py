"""The files of a family, written by its own classes: a tiny model, its processor, a tokenizer with a token a byte."""

from dataclasses import dataclass, field
from inspect import signature

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Family:
    """`ids`: fields of the config that are a token's id; `size` and `options`: of image processor and processor."""

    name: str
    config: dict
    picture: str  # what the template puts in place of a picture
    tokens: list[str]
    ids: dict = field(default_factory=dict)
    size: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    image_processor: str = ""
    processor: str = ""
    wrappers: list[str] = field(default_factory=list)  # that only wrap a picture
    label: str = ""  # where two families have one class
    named: dict = field(default_factory=dict)  # tokens that the processor asks the tokenizer for
    needs_torchvision: bool = False

    @property
    def title(self) -> str:
        return self.label or self.name

    def write(self, folder, with_processor: bool = True) -> None:
        tokenizer = self.tokenizer()
        named = {name: tokenizer.convert_tokens_to_ids(token) for name, token in self.ids.items()}
        config = getattr(transformers, f"{self.name}Config")(**self.config, **named, tie_word_embeddings=False)
        torch.manual_seed(0)
        model = getattr(transformers, f"{self.name}ForConditionalGeneration")(config).double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:  # large, so that every layer matters
                    parameter.normal_(0.0, 0.1 if name.endswith("bias") or parameter.ndim < 2 else 0.25)
        model.generation_config.pad_token_id = model.generation_config.eos_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        if not with_processor:
            return
        parts = {"image_processor": self.pictures(), "tokenizer": tokenizer}
        if self.needs_torchvision and "video_processor" in signature(self.processor_class()).parameters:
            parts["video_processor"] = self.videos()
        processor = self.processor_class()(**parts, **self.options)
        processor.chat_template = self.template()
        processor.save_pretrained(folder)

    def processor_class(self):
        return getattr(transformers, self.processor or f"{self.name}Processor")

    def template(self):
        return CHAT.replace("PICTURE", self.picture.replace("\n", "\\n"))

    def pictures(self):
        kind = self.image_processor or f"{self.name}ImageProcessor"
        pil = getattr(transformers, f"{kind}Pil", None)
        return (pil or getattr(transformers, kind))(**self.size)

    def videos(self):
        from transformers.models.auto.video_processing_auto import video_processor_class_from_name as of_name

        names = {"Qwen2_5_VL": "Qwen2VL", "Qwen3_5": "Qwen3VL"}
        return of_name(f"{names.get(self.name, self.name)}VideoProcessor")()

    def tokenizer(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytes_only = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
        bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bytes_only.decoder = decoders.ByteLevel()
        bytes_only.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>", *self.tokens])
        named = {"turn": "<|im_start|>"} | self.named
        named |= {f"extra_{i}": token for i, token in enumerate(self.tokens) if token not in named.values()}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=bytes_only,
            pad_token="<pad>",
            eos_token="<|im_end|>",
            extra_special_tokens=named,
            padding_side="left",
        )
        return tokenizer
