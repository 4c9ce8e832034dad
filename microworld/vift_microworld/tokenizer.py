"""The world's closed vocabulary as an ordinary fast tokenizer, and its processor.

One token per word, except that a place ("top left"), a coloured digit ("red 7") and a coloured digit at a place ("top
left red 7") are one token each: small language models learn those within minutes and words spelt apart only much
later, and a thing then takes one token in words as it does in the picture, where a token is a cell. ChatML's special
tokens and `<image>` are added as special tokens. Capitals are read as small
letters; unknown words become `<unk>`.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from . import language
from .scenes import CELL, COLORS, IMAGE_SIZE, PLACES

IMAGE_TOKEN = "<image>"
EOS_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", EOS_TOKEN, IMAGE_TOKEN, "<unk>")
_PLACE, _COLOR = "|".join(PLACES), "|".join(COLORS)
_PATTERN = rf"(?:(?:{_PLACE}) )?(?:{_COLOR}) [0-9](?![0-9])|(?:{_PLACE})|[0-9]+|[a-z_]+|[^\sa-z_0-9]|\n"
# words that the sentence templates hold, plus a few a visitor may use
_WORDS = """
user assistant system picture image photo digit digits number show shows describe detail briefly write
short caption tell me everything about name each what which where how many is are it they in the a an of
at and or to on color colors place largest smallest larger smaller than sum difference do does have has
same left above there be not none than empty please answer yes no caption detailed
""".split()


def _vocabulary() -> list[str]:
    words = [f"{color} {digit}" for color in COLORS for digit in range(10)]
    words += [f"{place} {name}" for place in PLACES for name in words]
    words += [*PLACES, *COLORS, *(str(n) for n in range(19)), *".,:;?!-", "\n", *_WORDS]
    for query in (*language.CAPTION_QUERIES, language.WEB_QUERY):
        words += query.split()
    return list(dict.fromkeys(words))


def build_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """The world's tokenizer; ids are the same every time."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *_vocabulary()])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = Lowercase()  # visitors write capitals; the world has none
    backend.pre_tokenizer = Split(Regex(_PATTERN), behavior="removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS_TOKEN,
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", IMAGE_TOKEN],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.chat_template = chat_template
    return tokenizer


def build_processor(chat_template: str | Path) -> LlavaProcessor:
    """LlavaProcessor with a PIL image processor; one image is 9 tokens, one per grid cell."""
    if isinstance(chat_template, Path):
        chat_template = chat_template.read_text(encoding="utf-8")
    image_processor = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
        resample=0,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(chat_template),
        patch_size=CELL,
        num_additional_image_tokens=0,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )
