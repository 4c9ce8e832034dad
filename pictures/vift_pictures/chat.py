"""Plain chat as training rows, answered by the starting model itself: what it can do is kept, not replaced.

python -m vift_pictures.chat --model START --output data/train/chat.jsonl
"""

import argparse
import json
from pathlib import Path

from .prompts import PROMPTS, chat


def answer_with(model, tokenizer, batch_size: int = 16, max_new_tokens: int = 128):
    """A function for `prompts.chat`: greedy answers of a causal language model (or of a VLM, without pictures)."""

    def generate(prompts: list[str]) -> list[str]:
        answers = {}
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            turns = [[{"role": "user", "content": prompts[i]}] for i in batch]
            inputs = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            new = output[:, inputs["input_ids"].shape[1] :]
            for i, tokens in zip(batch, new.tolist()):
                # an answer that did not end is left out: training would teach to end in the middle of a sentence
                ended = tokens[-1] in {tokenizer.eos_token_id, tokenizer.pad_token_id}
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=True) if ended else ""
        return [answers[i] for i in range(len(prompts))]

    return generate


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m vift_pictures.chat", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="the checkpoint that training starts from")
    parser.add_argument("--output", type=Path, required=True, help="the JSON Lines to write")
    args = parser.parse_args(argv)
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    try:
        own = {
            "trust_remote_code": Path(args.model).is_dir()
        }  # the Python files of a repository on the Hub are not run
        model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32, **own)
        tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left", **own)
        rows = chat(answer_with(model.eval(), tokenizer))
        args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
    print(f"wrote {len(rows)} answers to {len(PROMPTS)} prompts to {args.output}")


if __name__ == "__main__":
    main()
