"""A server of fused answers over HTTP, with the API of OpenAI.

    vift serve --model MODEL [--port 8000] [...]        # or: vift serve MODEL, python -m vift_serve MODEL

vLLM serves where it is installed (further options are those of `vllm serve`), transformers' own server elsewhere. A
request's fusion settings are its `vllm_xargs`, or of transformers' server `generation_config`; without any, the
model's own hold.
"""

import argparse
import importlib.util
import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

from vift_hub.cli import OneLineParser, add_model


def curl(model: str, host: str, port: int, vllm: bool) -> str:
    """A command that asks the server about picture.png with a fusion setting of its own."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}}
    text = {"type": "text", "text": "What is in the picture?"}
    body = {"model": model, "messages": [{"role": "user", "content": [picture, text]}]}
    body |= {"vllm_xargs": {"alpha": 1.0, "beta": 0.1}} if vllm else {}
    shown = json.dumps(body).replace("PICTURE", "'$(base64 -w0 picture.png)'")
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"curl http://{host}:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{shown}'"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("vift serve", __doc__)
    add_model(parser, None, required=True)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (default 8000)")
    parser.add_argument("--served-model-name", help="how requests name the model (default: as --model does)")
    return parser


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args, options = parser.parse_known_args(["--model", *argv] if argv and not argv[0].startswith("-") else argv)
    name = args.served_model_name or args.model
    has_vllm = importlib.util.find_spec("vllm") is not None
    if Path(args.model).is_dir() and not (Path(args.model) / "config.json").is_file():
        parser.error(f"model={args.model} is not a model: the folder has no config.json")
    where = ["--host", args.host, "--port", str(args.port)]
    print(f"When it is up, ask it:\n{curl(name, args.host, args.port, has_vllm)}", flush=True)
    if not has_vllm:
        print("vLLM is not installed: this is transformers' server (pip install 'vift[vllm]')", flush=True)
        command = Path(sys.executable).with_name("transformers")
        own_code = args.trust_remote_code or Path(args.model).is_dir()
        trust = ["--trust-remote-code"] if own_code else []
        os.execv(command, [str(command), "serve", args.model, *trust, *where, *options])
    if not any(one.value.startswith("vift_serve.") for one in entry_points(group="vllm.general_plugins")):
        parser.error("vLLM does not know vift_serve: install the package vift (pip install vift), so that it finds it")
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and "vift" not in allowed.split(","):
        parser.error(f"VLLM_PLUGINS={allowed!r} leaves 'vift' out: nothing would be fused")
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    options += ["--trust-remote-code"] if args.trust_remote_code else []
    middleware = ["--middleware", "vift_serve.http.MisplacedSettings"]
    sys.argv = ["vift_serve", "--model", args.model, "--served-model-name", name, *middleware, *where, *options]
    serve()


if __name__ == "__main__":
    main()
