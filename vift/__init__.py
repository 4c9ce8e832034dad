"""VIFT: visual instruction-free fine-tuning, and ability fusion inside `generate()`, for vision-language models.

    from vift import attach_fusion                     # the fused generate() for a model one already has
    from vift import VIFTTrainer, VIFTTrainingConfig   # training; needs `pip install 'vift[train]'`

Each name is imported when it is first used, so that `import vift` takes no time.
"""

from importlib import import_module

# name -> (module, the extra that brings what the module imports)
NAMES = {
    "attach_fusion": ("modeling_vift", None),
    "detach_fusion": ("modeling_vift", None),
    "TextStreamCache": ("modeling_vift", None),
    "VIFTConfig": ("modeling_vift", None),
    "VIFTForConditionalGeneration": ("modeling_vift", None),
    "BUNDLED": ("vift_hub.models", None),
    "analyze": ("vift_eval.layers.command", "microworld"),
    "calibrate": ("vift_eval.calibrate", "microworld"),
    "interventions": ("vift_layers.interventions", None),
    "VIFTTrainer": ("vift_train.trainer", "train"),
    "VIFTTrainingConfig": ("vift_train.config", "train"),
}
__all__ = ["__version__", *NAMES]


def __getattr__(name: str):
    if name == "__version__":
        return import_module("importlib.metadata").version("vift")
    if name not in NAMES:
        raise AttributeError(f"module 'vift' has no attribute {name!r}")
    module, extra = NAMES[name]
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        install = f"vift[{extra}]" if extra else "vift"
        raise ImportError(f"vift.{name} needs `pip install '{install}'` ({error.name} is missing)") from None
    if module.rpartition(".")[2] != name or hasattr(found, name):
        found = getattr(found, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
