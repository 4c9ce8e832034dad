"""The vision-language families that `attach_fusion` takes, as tiny models and processors.

The processors are the families' own, at their own settings but for sizes; the tokenizer has a token a byte and the
family's special tokens. What a family's template puts in place of a picture is its own, too.
"""

from tests.modeling.processor_files import Family

LAYERS = 4
TEXT = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN2, LLAMA, MISTRAL = ({"model_type": name} | TEXT for name in ("qwen2", "llama", "mistral"))
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
CLIP = TOWER | {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14}
PIXTRAL = TOWER | {"model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 8}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "in_channels": 3, "out_hidden_size": 32}
PATCHES = {"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 112}}
QWEN_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
QWEN_TOKENS = list(QWEN_IDS.values())
VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen(name, text, tower, **options) -> Family:
    config = {"vision_config": QWEN_TOWER | tower, "text_config": text}
    return Family(
        name, config, VISION, QWEN_TOKENS, QWEN_IDS, PATCHES, image_processor="Qwen2VLImageProcessor",
        wrappers=["<|vision_start|>", "<|vision_end|>"], needs_torchvision=True, **options,
    )  # fmt: skip


def idefics(name, text, **options) -> Family:
    tower = TOWER | {"image_size": 56, "patch_size": 14}
    config = {"vision_config": tower, "text_config": text, "scale_factor": 2}
    marks = ["<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>"]
    marks += ["<row_2_col_1>", "<row_2_col_2>"]
    size = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    return Family(
        name, config, "<image>", ["<image>", "<end_of_utterance>", "<video>", *marks], {"image_token_id": "<image>"},
        size, {"image_seq_len": 4}, wrappers=marks, **options,
    )  # fmt: skip


LLAVA = {"image_token_index": "<image>"}
ANYRES = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
SQUARE = {"size": {"height": 56, "width": 56}}
GEMMA3 = TEXT | {
    "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
CROPPED = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
FAMILIES = [
    Family(
        "Llava",
        {"vision_config": CLIP, "text_config": LLAMA, "image_seq_length": 16},
        "<image>\n",
        ["<image>"],
        LLAVA,
        CROPPED,
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    Family(
        "LlavaNext",
        {"vision_config": CLIP, "text_config": LLAMA, **ANYRES},
        "<image>\n",
        ["<image>"],
        LLAVA,
        CROPPED | ANYRES,
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    Family(
        "LlavaOnevision",
        {"vision_config": SIGLIP, "text_config": QWEN2, **ANYRES},
        "<image>\n",
        ["<image>", "<video>"],
        LLAVA | {"video_token_index": "<video>"},
        SQUARE | ANYRES,
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        needs_torchvision=True,
    ),
    qwen("Qwen2VL", TEXT | MROPE, {"embed_dim": 16, "hidden_size": 32}),
    qwen("Qwen2_5_VL", TEXT | MROPE, {"intermediate_size": 32, "fullatt_block_indexes": [1], "window_size": 56}),
    qwen(
        "Qwen3VL",
        TEXT | MROPE | {"head_dim": 8},
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
    qwen(
        "Qwen3_5",
        TEXT
        | {
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 0],
                "partial_rotary_factor": 0.25,
                "mrope_interleaved": True,
            },
        },
        {"hidden_size": 16, "intermediate_size": 32, "num_position_embeddings": 16},
        processor="Qwen3VLProcessor",
    ),
    Family(
        "Glm4v",
        {
            "vision_config": QWEN_TOWER | {"image_size": 56, "intermediate_size": 32},
            "text_config": TEXT
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                    "partial_rotary_factor": 1.0,
                }
            },
        },
        "<|begin_of_image|><|image|><|end_of_image|>",
        ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"],
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        PATCHES,
        wrappers=["<|begin_of_image|>", "<|end_of_image|>"],
        needs_torchvision=True,
    ),
    idefics("SmolVLM", LLAMA, needs_torchvision=True),
    idefics("Idefics3", LLAMA),
    Family(
        "Gemma3",
        {"vision_config": SIGLIP, "text_config": GEMMA3, "mm_tokens_per_image": 4},
        "<start_of_image>",
        ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
        {
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        SQUARE,
        {"image_seq_length": 4},
        wrappers=["<start_of_image>", "<end_of_image>"],
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    Family(
        "InternVL",
        {
            "vision_config": TOWER | {"image_size": [56, 56], "patch_size": [14, 14]},
            "text_config": QWEN2,
            "image_seq_length": 4,
        },
        "<IMG_CONTEXT>\n",
        ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"],
        {"image_token_id": "<IMG_CONTEXT>"},
        SQUARE,
        {"image_seq_length": 4},
        "GotOcr2ImageProcessor",
        wrappers=["<img>", "</img>"],
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        needs_torchvision=True,
    ),
    Family(
        "Mistral3",
        {"vision_config": PIXTRAL, "text_config": MISTRAL, "spatial_merge_size": 2},
        "[IMG]",
        ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        {"image_token_index": "[IMG]"},
        {"size": {"longest_edge": 56}, "patch_size": {"height": 28, "width": 28}},
        {"patch_size": 14, "spatial_merge_size": 2},
        "PixtralImageProcessor",
        "PixtralProcessor",
        wrappers=["[IMG_BREAK]", "[IMG_END]"],
        needs_torchvision=True,
    ),
    Family(
        "Llava",
        {
            "vision_config": PIXTRAL,
            "text_config": MISTRAL,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_seq_length": 1,
        },
        "[IMG]",
        ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        {"image_token_index": "[IMG]"},
        {"size": {"longest_edge": 56}, "patch_size": {"height": 14, "width": 14}},
        {"patch_size": 14},
        "PixtralImageProcessor",
        "PixtralProcessor",
        wrappers=["[IMG_BREAK]", "[IMG_END]"],
        needs_torchvision=True,
        label="Pixtral",
    ),
    Family(
        "AyaVision",
        {"vision_config": SIGLIP, "text_config": TEXT | {"model_type": "cohere2", "sliding_window": 64}},
        "<image>",
        [
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
            "TILE",
            "TILE_GLOBAL",
        ],
        {"image_token_index": "<|IMG_PATCH|>"},
        SQUARE,
        {"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        "GotOcr2ImageProcessor",
        wrappers=["<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL"],
    ),
    Family(
        "Idefics2",
        {
            "vision_config": {"model_type": "idefics2_vision"} | TOWER | {"image_size": 56, "patch_size": 14},
            "text_config": MISTRAL,
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            },
        },
        "<image>",
        ["<image>", "<fake_token_around_image>", "<end_of_utterance>"],
        {"image_token_id": "<image>"},
        {"size": {"shortest_edge": 28, "longest_edge": 56}, "do_image_splitting": False},
        {"image_seq_len": 4},
        wrappers=["<fake_token_around_image>"],
    ),
    Family(
        "Ovis2",
        {
            "vision_config": TOWER | {"image_size": 56, "patch_size": 14, "vocab_size": 64},
            "text_config": QWEN2,
            "vocab_size": 320,
            "hidden_size": 32,
        },
        "<image>\n",
        ["<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"],
        {
            "image_token_id": "<IMG_ATOM>",
            "visual_indicator_token_ids": ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"],
        },
        SQUARE | {"crop_to_patches": False},
        {"image_seq_length": 16},
        wrappers=["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"],
    ),
    Family(
        "Lfm2Vl",
        {
            "vision_config": TOWER
            | {"model_type": "siglip2_vision_model", "patch_size": 14, "num_patches": 16, "vision_use_head": False},
            "text_config": TEXT
            | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
            "projector_hidden_size": 32,
        },
        "<image>",
        ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"],
        {"image_token_id": "<image>"},
        {
            "do_image_splitting": False,
            "encoder_patch_size": 14,
            "min_image_tokens": 4,
            "max_image_tokens": 4,
            "tile_size": 56,
            "max_num_patches": 16,
        },
        {},
        wrappers=["<|image_start|>", "<|image_end|>"],
        needs_torchvision=True,
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
    ),
    Family(
        "Chameleon",
        TEXT
        | {
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 32,
                "resolution": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
            },
            "vocabulary_map": {"<image>": 259}
            | {f"IMGIMG{''.join(chr(65 + int(d)) for d in str(i))}Z": 300 + i for i in range(16)},
        },
        "<image>",
        ["<image>", "<racm3:break>", "<eoss>"],
        {},
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"image_seq_length": 256},
        wrappers=["<racm3:break>", "<eoss>"],
        named={"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>", "sep_token": "<pad>"},
    ),
]
