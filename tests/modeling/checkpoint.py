"""A tiny complete checkpoint (weights, code, processor, template), made on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

import vift_hub
from tests.modeling.tiny import EOS, IMAGE, PAD, tiny_model

WORDS = "system user assistant what colour is the digit red green blue how many left right of top answer".split()
SPECIAL = {"<|endoftext|>": PAD, "<|im_end|>": EOS, "<|im_start|>": 2, "<image>": IMAGE}
TEMPLATE = Path(vift_hub.__file__).with_name("chat_template.jinja").read_text()


def tiny_processor() -> LlavaProcessor:
    free = [i for i in range(64) if i not in SPECIAL.values()]
    vocabulary = SPECIAL | dict(zip([*WORDS, "[UNK]"], free)) | {f"w{i}": i for i in free[len(WORDS) + 1 :]}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="[UNK]",
        additional_special_tokens=["<|im_start|>", "<image>"],
        padding_side="left",
    )
    return LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )


def save_checkpoint(folder, dtype=torch.float32, **config):
    """Saves model and processor to `folder` and returns both."""
    model, processor = tiny_model(dtype=dtype, **config), tiny_processor()
    model.generation_config.eos_token_id = EOS
    model.generation_config.suppress_tokens = [IMAGE]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def chat(*content, system=None):
    """One user turn; a str is text, None an image."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": parts}]
