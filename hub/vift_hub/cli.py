"""What the commands share: one style of options, and a mistake of the user in one line, never a stack trace.

Options have dashes (`--batch-size`); the same names with underscores are understood. What a command works on is
`--model`, the file or folder it writes is `--output`. Nothing heavy is imported here: `--help` answers at once.
"""

import argparse
import logging
import os
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError

MARKS = {"microworld": "sklearn", "train": "trl", "eval": "lmms_eval"}  # extra -> a package that it brings
NOISY = ("torchao", "torch.utils._pytree")
NOISE = r".*pin_memory|.*gradient_checkpointing|.*use_reentrant|.*torchao|.*Enum subclass"


class UserError(ValueError):
    """Something the user can put right; shown as one line, exit status 2."""


class OneLineParser(argparse.ArgumentParser):
    """
    Args:
        prog: such as "vift demo".
        description: what the command does, and how it is called.
        old: former spellings of options, {"--models": "--model"}.
        words: options whose values may stand without a name, in this order, as they once did.
        needed: options that must be given, in whichever way.
    """

    def __init__(self, prog: str, description: str, old: dict | None = None, words: tuple = (), needed: tuple = ()):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, usage=f"{prog} [options]", description=description, formatter_class=raw)
        self.old, self.words, self.needed = old or {}, words, needed
        if words:
            self.add_argument("words", nargs="*", help=argparse.SUPPRESS)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")

    def parse_args(self, args=None, namespace=None):
        arguments = []
        for word in sys.argv[1:] if args is None else args:
            name, equals, value = word.partition("=")
            name = name.replace("_", "-") if name.startswith("--") else name
            arguments.append(self.old.get(name, name) + equals + value)
        found = (self.parse_intermixed_args if self.words else super().parse_args)(arguments, namespace)
        for option in self.words:
            if (name := option[2:].replace("-", "_")) and found.words and option not in arguments:
                reader = self._option_string_actions[option]
                setattr(found, name, self._get_value(reader, found.words.pop(0)))
        if self.words and found.words:
            self.error(f"unrecognized arguments: {' '.join(found.words)}")
        if missing := [one for one in self.needed if getattr(found, one[2:].replace("-", "_")) is None]:
            self.error(f"{' and '.join(missing)} must be given")
        return found


def add_model(parser, default: str | None, help: str = "folder or Hub id of a VIFT model", **options) -> None:
    parser.add_argument("--model", default=default, help=help, **options)
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="run the Python files of a model on the Hub (those of your own folders are run)",
    )  # fmt: skip


def add_running(parser) -> None:
    parser.add_argument("--batch-size", type=int, default=32, help="prompts in a batch (default 32)")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16 or float16")
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU if there is one)")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def needs(extra: str | None, error: ImportError) -> str:
    """What to install where a package is missing."""
    return (
        f"needs `pip install '{f'vift[{extra}]' if extra else 'vift'}'` ({error.name or one_line(error)} is missing)"
    )


def be_quiet() -> None:
    """No warnings of the versions that we pin, which tell developers about themselves."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", NOISE)


def quietly(module: str, function: str, *args) -> None:
    """A function by its name, as the target of a process of its own: quiet before anything heavy is imported."""
    be_quiet()
    found = getattr(import_module(module), function)
    hide_bars()
    found(*args)


def hide_bars() -> None:
    """Loading weights shows no bars; downloads keep theirs."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # which the line above turned off, too


def check_home() -> None:
    """A UserError where no folder takes what is downloaded and compiled, before a library fails on it."""
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if "HF_HOME" not in os.environ and (home is None or not home.is_dir()):
        where = "there is no home folder" if home is None else f"the home folder {home} does not exist"
        raise UserError(f"{where}: set HOME, or HF_HOME to a folder for downloaded models")


def run(prog: str, command, *args, extra: str | None = None, stopped: str | None = None) -> int:
    """
    0 when `command(*args)` has ended well.

    Args:
        extra: of this package, which brings what the command imports.
        stopped: what a user reads after Ctrl-C.

    Raises:
        SystemExit: with status 2 after a mistake of the user, 130 after Ctrl-C, both told in one line.
    """
    try:
        check_home()
        if (package := MARKS.get(extra)) and find_spec(package) is None:  # before the seconds that others take
            raise ModuleNotFoundError(name=package)
        be_quiet()
        command(*args)
    except BrokenPipeError:  # the reader left, as in `vift demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        print(f"{prog}: error: {needs(extra, error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, OSError, SafetensorError, ImportError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{prog}: {stopped or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
    return 0
