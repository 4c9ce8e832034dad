"""The decoders of the families of `families.py` with fusion, written by hand in numpy float64.

One prompt at a time, no padding, no cache, no hooks: Llama, Qwen2, Qwen2/2.5-VL and Qwen3-VL (M-RoPE, DeepStack) and
Gemma3 (windows, images seen both ways, scaled embeddings), straight from their definitions. The image features are
given: fusion does not touch the vision tower.
"""

import math

import numpy as np

from tests.modeling.reference import heads, linear, softmax


def rms_norm(x, weight, eps, gemma):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (1 + weight if gemma else weight)


def rope(x, positions, theta, axes):
    """Rotary embedding of (heads, T, d); `axes` names the row of `positions` (3, T) of each frequency."""
    half = x.shape[-1] // 2
    angle = positions[axes].T * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


class Decoder:
    def __init__(self, model):
        config = model.config.to_dict()
        self.family, self.c, self.image_id = config["model_type"], config["text_config"], model.config.image_token_id
        self.gemma = self.family == "gemma3"
        p = {name: value.double().numpy() for name, value in model.state_dict().items()}
        stem = "model.text_model." if "model.text_model.norm.weight" in p else "model.language_model."
        self.p = {name.replace(stem, ""): value for name, value in p.items()}

    def embed(self, ids):
        return self.p["embed_tokens.weight"][ids] * (math.sqrt(self.c["hidden_size"]) if self.gemma else 1.0)

    def positions(self, ids, side=2):
        """(3, T). With M-RoPE an image of side x side tokens has positions start + (0, row, column)."""
        if not self.family.startswith("qwen"):
            return np.tile(np.arange(len(ids)), (3, 1))
        columns, start, t = [], 0, 0
        while t < len(ids):
            if ids[t] == self.image_id:
                columns += [(start, start + row, start + column) for row in range(side) for column in range(side)]
                start, t = start + side, t + side * side
            else:
                columns.append((start, start, start))
                start, t = start + 1, t + 1
        return np.array(columns).T

    def axes(self, half):
        if "qwen" not in self.family:
            return np.zeros(half, int)
        t, h, w = self.c["rope_parameters"]["mrope_section"]
        if self.family == "qwen3_vl":  # t h w t h w ... while a section lasts, then t
            axes = np.zeros(half, int)
            axes[1 : 3 * h : 3], axes[2 : 3 * w : 3] = 1, 2
            return axes
        return np.repeat([0, 1, 2], [t, h, w])

    def mask(self, ids, layer):
        i, j = np.arange(len(ids))[:, None], np.arange(len(ids))[None, :]
        seen = j <= i
        if self.gemma:
            image = np.array(ids) == self.image_id
            block = np.cumsum(image & ~np.roll(image & (np.arange(len(ids)) < len(ids) - 1), 1)) * image
            seen = seen | ((block[:, None] == block[None, :]) & (block[:, None] > 0))
            if self.c["layer_types"][layer] == "sliding_attention":
                seen = seen & (j > i - self.c["sliding_window"])
        return seen

    def run(self, ids, x, edit=None, deepstack=()):
        """Embeddings x (T, D) of `ids` -> (logits (T, V), the input of every layer after `edit(layer, x)`)."""
        c, p, inputs, eps = self.c, self.p, [], self.c["rms_norm_eps"]
        positions, image = self.positions(ids), np.array(ids) == self.image_id
        norm = lambda y, name: rms_norm(y, p[name + ".weight"], eps, self.gemma)  # noqa: E731
        for i in range(c["num_hidden_layers"]):
            x = x if edit is None else edit(i, x.copy())
            inputs.append(x)
            b = f"layers.{i}."
            y = norm(x, b + "input_layernorm")
            q = heads(linear(y, p, b + "self_attn.q_proj"), c["num_attention_heads"])
            k = heads(linear(y, p, b + "self_attn.k_proj"), c["num_key_value_heads"])
            v = heads(linear(y, p, b + "self_attn.v_proj"), c["num_key_value_heads"])
            if b + "self_attn.q_norm.weight" in p:
                q, k = norm(q, b + "self_attn.q_norm"), norm(k, b + "self_attn.k_norm")
            parameters = c["rope_parameters"]
            parameters = parameters[c["layer_types"][i]] if self.gemma else parameters
            turn = (positions, parameters["rope_theta"], self.axes(q.shape[-1] // 2))
            q, k = rope(q, *turn), rope(k, *turn)
            group = len(q) // len(k)
            k, v = k.repeat(group, axis=0), v.repeat(group, axis=0)
            scale = c["query_pre_attn_scalar"] if self.gemma else q.shape[-1]
            score = np.where(self.mask(ids, i), q @ k.transpose(0, 2, 1) / math.sqrt(scale), -np.inf)
            y = (softmax(score) @ v).transpose(1, 0, 2).reshape(len(x), -1)
            y = linear(y, p, b + "self_attn.o_proj")
            x = x + (norm(y, b + "post_attention_layernorm") if self.gemma else y)
            y = norm(x, b + ("pre_feedforward_layernorm" if self.gemma else "post_attention_layernorm"))
            act = gelu if self.gemma else silu
            y = linear(
                act(linear(y, p, b + "mlp.gate_proj")) * linear(y, p, b + "mlp.up_proj"), p, b + "mlp.down_proj"
            )
            x = x + (norm(y, b + "post_feedforward_layernorm") if self.gemma else y)
            if i < len(deepstack):
                x[image] += deepstack[i]
        return norm(x, "norm") @ p["lm_head.weight"].T, inputs

    def fused(self, prompt, features, deepstack=(), answer=(), fusion=None, wrappers=()):
        """
        Logits (T, V) of `prompt + answer` (token ids), the prompt fused.

        `features`: (N, D) each, of the prompt's images in order; `deepstack`: (all N, D) a layer. `fusion`: None or a
        dict of alpha, beta, layers, rule, span. Prompts without an image are never fused.
        """
        ids = [*prompt, *answer]
        x = self.embed(ids)
        if features:
            x[np.array(ids) == self.image_id] = np.concatenate(features)
        if fusion is None or not features:
            return self.run(ids, x, deepstack=deepstack)[0]
        text = [t for t, token in enumerate(prompt) if token != self.image_id and token not in wrappers]
        text_ids = [prompt[t] for t in text]
        _, h_q = self.run(text_ids, self.embed(text_ids))
        _, h_vq = self.run(ids, x, deepstack=deepstack)
        last_image = max(t for t, token in enumerate(prompt) if token == self.image_id)
        pairs = {
            "all": [(t, i) for i, t in enumerate(text)],
            "after_image": [(t, i) for i, t in enumerate(text) if t > last_image],
            "reference": [(len(prompt) - len(text) + i, i) for i in range(len(text))],
        }[fusion["span"]]
        alpha, beta = fusion["alpha"], fusion["beta"]

        def edit(layer, x):
            if layer in fusion["layers"]:
                for t, i in pairs:
                    x[t] = {
                        "cascade": alpha * x[t] + beta * h_q[layer][i],
                        "additive": x[t] + beta * h_q[layer][i] - (1 - alpha) * h_vq[layer][t],
                        "independent": alpha * h_vq[layer][t] + beta * h_q[layer][i],
                    }[fusion["rule"]]
            return x

        return self.run(ids, x, edit, deepstack)[0]
