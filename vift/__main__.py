"""The command `vift`: its subcommands, each imported when it is called."""

import os
import sys
from importlib import import_module

# subcommand -> (its `main(argv)`, what it does); `vift-demo` and so on are names for the same
COMMANDS = {
    "demo": ("vift_eval.demo.command:main", "ask the bundled model, or yours, without and with fusion"),
    "init": ("vift_hub.commands:init", "join a vision tower and a language model into a model to train"),
    "convert": ("vift_hub.commands:convert", "turn a LLaVA checkpoint into a VIFT, or back"),
    "train": ("vift_train.__main__:main", "train on captions and on text instructions"),
    "calibrate": ("vift_eval.calibrate_command:main", "let a model choose alpha, beta and layers"),
    "sweep": ("vift_eval.sweep.command:main", "measure many fusion settings on a benchmark"),
    "analyze": ("vift_eval.layers.command:main", "show in which layers pictures and words meet"),
    "serve": ("vift_serve.__main__:main", "answer over HTTP"),
    "card": ("vift_eval.lmms.results:main", "write results of lmms-eval into a model card"),
    "push": ("vift_hub.commands:push", "publish a model on the Hub"),
    "micro": ("vift_train.micro_command:main", "train the bundled model again, from nothing"),
    "where": ("vift.where:main", "print the folder of the tasks, the recipes or the bundled model"),
}


def usage() -> str:
    lines = [f"  {name:10s}{told}" for name, (_, told) in COMMANDS.items()]
    return "\n".join(
        ["usage: vift COMMAND [options]", "", *lines, "", "vift COMMAND --help   the command's options",
         "vift --version        the version"]
    )  # fmt: skip


def fail(message: str, status: int = 2):
    print(f"vift: {message}", file=sys.stderr)
    raise SystemExit(status)


def main(argv: list[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if argv is None else argv) or [None]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from . import __version__

        print(f"vift {__version__}")
        return 0
    if name not in COMMANDS:
        what = "name a command" if name is None else f"there is no command {name!r}"
        fail(f"error: {what}: {', '.join(COMMANDS)} (--help says what they do)")
    module, function = COMMANDS[name][0].split(":")
    try:
        command = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        fail(f"error: vift {name} is not in this installation: {error.name} is missing")
    except KeyboardInterrupt:
        fail("stopped", 130)
    try:
        return command(rest) or 0
    except BrokenPipeError:  # the reader of a help page left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
