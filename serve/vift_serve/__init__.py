"""Fused serving on an unmodified vLLM: `python -m vift_serve MODEL`, or `vllm serve MODEL` where this is installed.

What runs where (`vift_serve.plugin` is the entry point `vllm.general_plugins`, which vLLM calls in each process):

    requests     settings of a request, refused with a 400; which tokens are written; the salt of the prefix cache
    refusals     what would be silently wrong is refused before the server starts
    salts        the KV cache of one fusion setting is never read under another; `scheduler` applies them
    rows         who is in which row of a batch, on vLLM's first model runner; `states`: the same on its second one
    text_run     h(q): the decoder's own layers over the prompts without their images
    fusion       the edit h'(v,q) = alpha * h(v,q) + beta * h(q) at the input of decoder layers (arXiv 2502.11427)
    http         settings in the wrong place of a request are refused
    model        VIFT for vLLM, and vLLM's own LLaVA, Qwen2.5-VL and Qwen3-VL with fusion

Importing this imports no vLLM.
"""
