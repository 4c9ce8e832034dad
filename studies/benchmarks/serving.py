"""Fused serving on vLLM against `generate()`, and against vLLM without the plug-in: answers, throughput, a load.

    OMP_NUM_THREADS=1 python studies/benchmarks/serving.py --json docs/results/serving.json         # all of it
    OMP_NUM_THREADS=1 python studies/benchmarks/serving.py --part load --json docs/results/serving.json

Parts, each written when it is done and left out of a later run (`--again` to repeat it):

    answers     64 questions of the micro world under five settings in one batch: how many of the 320 answers have the
                ids of `generate()`, and the largest difference of a first token's log-probability
    throughput  prompts a CPU second, one thread, on a model with random weights (39 M parameters, 196 image tokens, 32
                of text, 16 of an answer): vLLM's own LLaVA; the same with the plug-in, unfused; the same weights as a
                VIFT, unfused and with the top half fused; transformers' `generate()` in a batch. Asked in turn
    load        64 clients over HTTP on loopback for two minutes, one in two leaves midway, one in ten asks for what
                cannot be: answers that were lost or differ from the quiet server's, memory before, halfway and after

`fused_over_flops`: fused over unfused throughput of the VIFT in vLLM, over what matrix FLOPs allow, 1 / (1 + share),
with the text run's share of a request's other work. `plugin_over_plain`: vLLM's LLaVA unfused, with over without it.
"""

import argparse
import base64
import http.client
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from asking import (  # beside this
    MICRO,
    ROOT,
    SETTINGS,
    TOKENS,
    chat,
    difference,
    engine_environment,
    in_engine,
    pictures,
)
from safetensors.torch import load_file, save_file

from vift_eval.files import command_line, made_by, read_json, write_json

PARTS = ("answers", "throughput", "load")
QUESTIONS, CLIENTS, SECONDS, PORT = 64, 64, 120, 8137
# throughput: a model on which an engine's fixed costs do not rule
TEXT = {
    "model_type": "qwen2", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 4096,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 224, "patch_size": 16, "vision_use_head": False,
}  # fmt: skip
IMAGE, IMAGE_TOKENS, TEXT_TOKENS, ANSWER, PROMPTS, ROUNDS = 5, 196, 32, 16, 8, 5


# --- answers ------------------------------------------------------------------------------------------------------


def answers() -> dict:
    asked = pictures(QUESTIONS)
    job = [
        {"picture": i, "messages": chat(q), "settings": s} for i, (_, q) in enumerate(asked) for s in SETTINGS.values()
    ]
    (own,), _ = in_engine([job], seconds=1800, block_size=32)
    equal, largest = difference(job, own)
    return {"pairs": len(job), "equal": equal, "largest_difference_of_a_first_logprob": largest}


# --- throughput ---------------------------------------------------------------------------------------------------


def flops_share() -> float:
    """Matrix work of the text run over all other work of a request: weights of a layer per token, head, tower."""
    width, inner, kv = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["num_key_value_heads"]
    layer = width * (2 * width + 2 * width * kv // TEXT["num_attention_heads"] + 3 * inner)
    depth, tokens = TEXT["num_hidden_layers"], IMAGE_TOKENS + TEXT_TOKENS + ANSWER - 1
    own, deep = VISION["hidden_size"], VISION["intermediate_size"]
    tower = IMAGE_TOKENS * VISION["num_hidden_layers"] * own * (4 * own + 2 * deep)
    whole = tokens * depth * layer + ANSWER * width * TEXT["vocab_size"] + tower
    return TEXT_TOKENS * (depth - 1) * layer / whole


def save_models(folder: Path) -> int:
    """`vift` and `llava` of the same random weights in `folder`, without tokenizer; returns their parameters."""
    from transformers import LlavaConfig

    from modeling_vift import VIFTConfig, VIFTForConditionalGeneration

    torch.manual_seed(0)
    options = {"image_token_index": IMAGE, "image_seq_length": IMAGE_TOKENS, "vision_feature_layer": -1}
    config = VIFTConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False, **options)
    fused = VIFTForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    fused.save_pretrained(folder / "vift")
    options |= {"text_config": TEXT, "vision_config": VISION, "tie_word_embeddings": False}
    plain = LlavaConfig(
        vision_feature_select_strategy="full", architectures=["LlavaForConditionalGeneration"], **options
    )
    plain.save_pretrained(folder / "llava")
    # under the names of older checkpoints: vLLM 0.32 finds no SigLIP of a LLaVA under the newer ones
    weights = load_file(folder / "vift" / "model.safetensors")
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(older, folder / "llava" / "model.safetensors", metadata={"format": "pt"})
    for name in ("vift", "llava"):
        _processor().save_pretrained(folder / name)
    return fused.num_parameters()


def _processor():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

    words = {f"w{i}": i for i in range(TEXT["vocab_size"])} | {"<image>": IMAGE}
    words.pop(f"w{IMAGE}")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", additional_special_tokens=["<image>"])
    side = VISION["image_size"]
    image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    return LlavaProcessor(image_processor, fast, VISION["patch_size"], "full", image_token="<image>")


def prompts(round_: int) -> list[dict]:
    """Fresh ones each round, so that no cache helps: text, then the image, then text."""
    from PIL import Image

    draw = random.Random(round_)
    made = []
    for _ in range(PROMPTS):
        words = [f"w{draw.randrange(10, TEXT['vocab_size'])}" for _ in range(TEXT_TOKENS)]
        image = Image.frombytes("RGB", (32, 32), draw.randbytes(32 * 32 * 3))
        made.append({"prompt": " ".join([*words[:8], "<image>", *words[8:]]), "multi_modal_data": {"image": image}})
    return made


ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
HALF = {"alpha": 1.0, "beta": 0.1, "fusion_layers": 0.5}
WAYS = {  # way -> (engine, settings)
    "plain": ("llava", None),
    "plugin": ("fused llava", {"fusion": False}),
    "vift": ("vift", {"fusion": False}),
    "vift fused": ("vift", HALF),
    "transformers": ("transformers", {"fusion": False}),
    "transformers fused": ("transformers", HALF),
}


def worker(folder: str, name: str) -> None:
    """One engine: reads (settings, round) from its input, a line each, and writes the CPU seconds that it took."""
    if name == "transformers":
        from modeling_vift import VIFTForConditionalGeneration

        model = VIFTForConditionalGeneration.from_pretrained(Path(folder, "vift"), dtype=torch.float32).eval()
        model.generation_config.eos_token_id, processor = None, _processor()

        def run(settings, made):
            text, images = [one["prompt"] for one in made], [one["multi_modal_data"]["image"] for one in made]
            inputs = processor(text=text, images=images, return_tensors="pt")
            model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False, **settings)
    else:
        from vllm import LLM, SamplingParams

        options = {
            "max_model_len": 512,
            "max_num_seqs": PROMPTS,
            "max_num_batched_tokens": 8192,
            "enforce_eager": True,
        }
        if name == "fused llava":
            options["hf_overrides"] = {"architectures": ["FusedLlavaForConditionalGeneration"]}
        llm = LLM(str(Path(folder, name.split()[-1])), dtype="float32", **options)

        def run(settings, made):
            params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, extra_args=settings)
            llm.generate(made, params, use_tqdm=False)

    print("ready", flush=True)
    for line in sys.stdin:
        settings, round_ = json.loads(line)
        made = prompts(round_)
        start = time.process_time()
        run(settings, made)
        print("took", time.process_time() - start, flush=True)


def throughput() -> dict:
    """CPU seconds of each way, the ways taking turns; medians of the ratios of neighbours in a round."""
    seconds = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_models(Path(folder))
        engines = {}
        try:
            for name in dict.fromkeys(server for server, _ in WAYS.values()):
                command = [sys.executable, __file__, "--worker", folder, name]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                engines[name] = subprocess.Popen(command, text=True, env=engine_environment() | ONE_THREAD, **pipes)
                _line(engines[name], "ready")
            for round_ in range(ROUNDS + 1):
                order = list(WAYS)[:: 1 - 2 * (round_ % 2)]
                for way in order:
                    server, settings = WAYS[way]
                    # prompts of its own, the same for the two models of a comparison
                    engines[server].stdin.write(json.dumps([settings, 10 * round_ + (way == "vift fused")]) + "\n")
                    engines[server].stdin.flush()
                    took = float(_line(engines[server], "took").split()[1])
                    if round_:  # the first warms up
                        seconds[way].append(took)
        finally:
            for engine in engines.values():
                engine.stdin.close()
                engine.wait(60)

    def over(way, other):
        return round(statistics.median(b / a for a, b in zip(seconds[way], seconds[other], strict=True)), 4)

    allowed = 1 / (1 + flops_share())
    return {
        "parameters": parameters,
        "image_tokens": IMAGE_TOKENS,
        "text_tokens": TEXT_TOKENS,
        "answer_tokens": ANSWER,
        "prompts_at_once": PROMPTS,
        "rounds": ROUNDS,
        "prompts_a_cpu_second": {way: round(PROMPTS / statistics.median(took), 3) for way, took in seconds.items()},
        "cpu_seconds": {way: [round(one, 3) for one in took] for way, took in seconds.items()},
        "fused_over_unfused": over("vift fused", "vift"),
        "flops_allow": round(allowed, 4),
        "fused_over_flops": round(over("vift fused", "vift") / allowed, 4),
        "plugin_over_plain": over("plugin", "plain"),
        "vift_over_transformers_both_fused": over("vift fused", "transformers fused"),
    }


def _line(process, start: str) -> str:
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError(f"an engine ended before it was {start!r}")


# --- load ---------------------------------------------------------------------------------------------------------


def load() -> dict:
    """What 64 clients saw, against what each request gets when it is alone."""
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "32"]
    command = [sys.executable, "-m", "vift_serve", str(MICRO), "--port", str(PORT), *options]
    own = engine_environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command + ["--served-model-name", "micro"], stdout=log, stderr=log, env=own)
        try:
            _wait(server)
            bodies = [_body(i, s) for i in range(8) for s in SETTINGS.values()]
            quiet = [_ask(body)[1] for body in bodies]
            before, seen, stop = _memory(server.pid), [], time.monotonic() + SECONDS
            clients = [threading.Thread(target=_client, args=(n, bodies, quiet, seen, stop)) for n in range(CLIENTS)]
            for client in clients:
                client.start()
            half = threading.Timer(SECONDS / 2, lambda: seen.append(("memory", _memory(server.pid))))
            half.start()
            for client in clients:
                client.join()
            half.join()
            again = [_ask(body)[1] for body in bodies]
            time.sleep(5)
            after = _memory(server.pid)
        finally:
            server.terminate()
            server.wait(60)
    halfway = next(value for kind, value in seen if kind == "memory")
    count = {kind: sum(one == kind for one, _ in seen) for kind in ("equal", "different", "refused", "left", "lost")}
    return {
        "clients": CLIENTS,
        "seconds": SECONDS,
        "requests": count,
        "quiet_answers_afterwards_equal": again == quiet,
        "memory_mb": {"before": before, "halfway": halfway, "after": after},
    }


def _body(picture: int, settings: dict) -> dict:
    image, question = pictures(picture + 1)[-1]
    image.save(png := io.BytesIO(), format="PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    asked = {"model": "micro", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return asked | {"max_tokens": TOKENS, "vllm_xargs": settings}


def _ask(body: dict, leave: bool = False):
    """(status, text); with `leave` the connection is closed at the first piece of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    try:
        sent = json.dumps(body | {"stream": True} if leave else body)
        connection.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if leave:
            answer.readline()
            return answer.status, None
        result = json.loads(answer.read())
        return answer.status, result["choices"][0]["message"]["content"] if answer.status == 200 else str(result)
    finally:
        connection.close()


def _client(number: int, bodies, quiet, seen, stop):
    draw = random.Random(number)
    while time.monotonic() < stop:
        place, bad, leave = draw.randrange(len(bodies)), draw.random() < 0.1, number % 2
        try:
            if bad:
                status, text = _ask(bodies[place] | {"vllm_xargs": {"beta": 99}})
                seen.append(("refused" if status == 400 and "beta=99" in text else "different", None))
                continue
            status, text = _ask(bodies[place], leave)
            kind = "left" if leave else "equal" if text == quiet[place] else "different"
            seen.append((kind if status == 200 else "lost", None))
        except Exception:  # whatever it is, no answer came
            seen.append(("lost", None))


def _memory(pid: int) -> float:
    """Resident memory of a process and its descendants, MB."""
    pids, total = [pid], 0
    for one in pids:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
        total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return round(total / 2**20, 1)


def _wait(server):
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError("the server did not start")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(1)
    raise RuntimeError("the server is not up after five minutes")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them when left out")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "serving.json")
    parser.add_argument("--again", action="store_true", help="parts that the file has already, too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(*args.worker)
    report = read_json(args.json) if args.json.is_file() else {}
    for part in args.part or PARTS:
        if part not in report or args.again:
            report[part] = {"answers": answers, "throughput": throughput, "load": load}[part]()
            report["made"] = made_by(command_line(__file__), MICRO)
            report["machine"] = report["made"]["machine"]
            report |= {name: report[where][name] for where, name in TOP if where in report}
            write_json(args.json, report)
            print(json.dumps({part: report[part]}, indent=1), flush=True)


TOP = (
    ("answers", "pairs"),
    ("answers", "equal"),
    ("throughput", "fused_over_flops"),
    ("throughput", "plugin_over_plain"),
)

if __name__ == "__main__":
    main()
