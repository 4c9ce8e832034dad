"""What a published folder answers on a machine that has never seen this package.

Run as a script in a fresh interpreter, with this project's packages blocked: `python roundtrip.py FOLDER OUT`. It
loads the folder as a stranger would (`trust_remote_code=True`), asks one question about a picture of noise, and writes
logits and greedy answers, without and with fusion, to OUT. `vift push` compares them with those of the model it read.
"""

import sys
from importlib.metadata import packages_distributions

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

# every top-level package that this project installs
OURS = {package for package, distributions in packages_distributions().items() if "vift" in distributions}


class Blocked:
    """An import finder that has never heard of our packages, and keeps the others from finding them."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is not part of the published folder")


def answers(model, processor, new_tokens: int = 8) -> dict[str, torch.Tensor]:
    """{"input_ids", "logits" (float32), "plain", "fused"} for one question about a picture of noise."""
    noise = torch.randint(0, 256, (64, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    content = [{"type": "image"}, {"type": "text", "text": "what is at the top left ?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[picture], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits.float()
    tensors = {"input_ids": inputs["input_ids"], "logits": logits.contiguous()}
    for name, fusion in (("plain", False), ("fused", True)):
        out = model.generate(**inputs, fusion=fusion, max_new_tokens=new_tokens, do_sample=False)
        tensors[name] = out.contiguous()
    return tensors


def main() -> None:
    folder, out = sys.argv[1:]
    if not OURS:
        sys.exit("the distribution vift is not installed: which packages to hide from the folder is not known")
    sys.meta_path.insert(0, Blocked())
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    save_file(answers(model, processor), out)


if __name__ == "__main__":
    main()
