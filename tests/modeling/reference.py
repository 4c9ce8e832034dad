"""A second VIFT, written by hand in numpy float64: the golden that the model is compared with.

One prompt at a time, no padding, no cache, no hooks, nothing from torch or transformers: a SigLIP tower, the
two-layer GELU connector, a Qwen2 decoder and the fusion formulas, straight from their definitions. Slow and plain.
"""

import math

import numpy as np


def erf(x):
    return np.vectorize(math.erf)(x)


def layer_norm(x, p, name, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p[name + ".weight"] + p[name + ".bias"]


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def linear(x, p, name):
    y = x @ p[name + ".weight"].T
    return y + p[name + ".bias"] if name + ".bias" in p else y


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x, n):
    return x.reshape(len(x), n, -1).transpose(1, 0, 2)


def image_tokens(p, config, image):
    """image (3, H, W) -> (num_patches, D): tower features of hidden state -2, through the connector."""
    c, name = config["vision_config"], "model.vision_tower."
    size = c["patch_size"]
    kernel = p[name + "embeddings.patch_embedding.weight"]
    rows, cols = image.shape[1] // size, image.shape[2] // size
    x = np.stack(
        [
            (kernel * image[None, :, r * size : (r + 1) * size, k * size : (k + 1) * size]).sum((1, 2, 3))
            for r in range(rows)
            for k in range(cols)
        ]
    )
    x = x + p[name + "embeddings.patch_embedding.bias"] + p[name + "embeddings.position_embedding.weight"]
    for i in range(c["num_hidden_layers"] - 1):  # hidden state -2: all layers but the last
        b = f"{name}encoder.layers.{i}."
        y = layer_norm(x, p, b + "layer_norm1", c["layer_norm_eps"])
        q, k, v = (heads(linear(y, p, b + f"self_attn.{w}_proj"), c["num_attention_heads"]) for w in "qkv")
        a = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])) @ v
        x = x + linear(a.transpose(1, 0, 2).reshape(len(x), -1), p, b + "self_attn.out_proj")
        y = linear(layer_norm(x, p, b + "layer_norm2", c["layer_norm_eps"]), p, b + "mlp.fc1")
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, p, b + "mlp.fc2")
    y = linear(x, p, "model.multi_modal_projector.linear_1")
    return linear(0.5 * y * (1 + erf(y / math.sqrt(2))), p, "model.multi_modal_projector.linear_2")


def rotate(x, theta):
    """Rotary embedding of (heads, T, d) at positions 0 ... T-1."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def decoder(p, config, x, edit=None):
    """x (T, D) embeddings -> (logits (T, V), the input of every layer after `edit(layer, x)`)."""
    c, inputs = config["text_config"], []
    causal = np.tril(np.ones((len(x), len(x)), bool))
    theta = c["rope_parameters"]["rope_theta"]
    for i in range(c["num_hidden_layers"]):
        x = x if edit is None else edit(i, x.copy())
        inputs.append(x)
        b = f"model.language_model.layers.{i}."
        y = rms_norm(x, p[b + "input_layernorm.weight"], c["rms_norm_eps"])
        q = rotate(heads(linear(y, p, b + "self_attn.q_proj"), c["num_attention_heads"]), theta)
        k = rotate(heads(linear(y, p, b + "self_attn.k_proj"), c["num_key_value_heads"]), theta)
        v = heads(linear(y, p, b + "self_attn.v_proj"), c["num_key_value_heads"])
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = k.repeat(group, axis=0), v.repeat(group, axis=0)
        score = np.where(causal, q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]), -np.inf)
        x = x + linear((softmax(score) @ v).transpose(1, 0, 2).reshape(len(x), -1), p, b + "self_attn.o_proj")
        y = rms_norm(x, p[b + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate = linear(y, p, b + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, p, b + "mlp.up_proj"), p, b + "mlp.down_proj")
    return rms_norm(x, p["model.language_model.norm.weight"], c["rms_norm_eps"]) @ p["lm_head.weight"].T, inputs


def vift_logits(p, config, prompt, images=(), answer=(), fusion=None, written=None):
    """
    Logits (T, V) and layer inputs of `prompt + answer` (token ids), the prompt fused.

    `fusion`: None or a dict of alpha, beta, layers, rule, span, norm, skip_first; without an image, nothing is fused.
    `written`: positions that may be written at all (those that were not in a cache), default all.
    """
    image_id, embed = config["image_token_index"], p["model.language_model.embed_tokens.weight"]
    ids = np.array([*prompt, *answer])
    x = embed[ids].copy()
    if len(images):
        x[ids == image_id] = np.concatenate([image_tokens(p, config, image) for image in images])
    if fusion is None or not len(images):
        return decoder(p, config, x)

    text = [t for t in range(len(prompt)) if prompt[t] != image_id]
    _, h_q = decoder(p, config, embed[np.array(prompt)[text]])
    _, h_vq = decoder(p, config, x)
    last_image = max(t for t in range(len(prompt)) if prompt[t] == image_id)
    pairs = {  # (position in the prompt, index in the text run)
        "all": [(t, i) for i, t in enumerate(text)],
        "after_image": [(t, i) for i, t in enumerate(text) if t > last_image],
        "reference": [(len(prompt) - len(text) + i, i) for i in range(len(text))],
    }[fusion["span"]]
    pairs = [(t, i) for t, i in pairs if i > 0 or not fusion.get("skip_first")]
    pairs = [(t, i) for t, i in pairs if written is None or t in written]
    alpha, beta = fusion["alpha"], fusion["beta"]

    def edit(layer, x):
        if layer not in fusion["layers"]:
            return x
        for t, i in pairs:
            old, text_state, image_state = x[t].copy(), h_q[layer][i], h_vq[layer][t]
            if fusion["rule"] == "cascade":
                new = alpha * old + beta * text_state
            elif fusion["rule"] == "additive":
                new = old + beta * text_state - (1 - alpha) * image_state
            else:
                new = alpha * image_state + beta * text_state
            if fusion.get("norm"):
                new = new * np.linalg.norm(old) / np.linalg.norm(new)
            x[t] = new
        return x

    return decoder(p, config, x, edit)
