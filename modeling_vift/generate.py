"""`custom_generate/generate.py` of a published repository: its fusion for a model that is loaded already.

    any_vlm.generate(**inputs, custom_generate="org/vift-7b", trust_remote_code=True, beta=0.1)

The first call attaches fusion, switched off: `any_vlm.generate(**inputs)` stays native, bit for bit. transformers also
puts this function in the place of `generate()` of a VIFT whose repository has it; there, it hands the call on.
"""

from .attach_vift import attach_fusion

# what `load_custom_generate` reads and leaves among the arguments
LOADING = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "subfolder")


def generate(*args, model, **kwargs):
    """`FusedGeneration.generate` for a VIFT or any model that `attach_fusion` takes; fused unless told not to."""
    kwargs = {name: value for name, value in kwargs.items() if name not in LOADING}
    if model.config.model_type != "vift":
        if not hasattr(model, "fusion_config"):
            attach_fusion(model, fusion_enabled=False)
        if kwargs.get("fusion") is None:
            kwargs["fusion"] = True
    return type(model).generate(model, *args, **kwargs)


generate.fuses = True  # `FusedGeneration.generate` hands its own arguments on to nobody else's
