"""The command `vift`: one style of options, every option described, help at once, one name for each command."""

import re
import subprocess
import sys
from importlib import import_module

import pytest

from tests.imports import PYPROJECT
from tests.status import status_of
from vift import __version__
from vift.__main__ import COMMANDS, main

PARSERS = {
    "demo": "vift_eval.demo.command:build_parser",
    "init": "vift_hub.commands:init_parser",
    "convert": "vift_hub.commands:convert_parser",
    "train": "vift_train.options:build_parser",
    "calibrate": "vift_eval.calibrate_command:build_parser",
    "sweep": "vift_eval.sweep.command:build_parser",
    "analyze": "vift_eval.layers.command:build_parser",
    "serve": "vift_serve.__main__:build_parser",
    "card": "vift_eval.lmms.results:build_parser",
    "push": "vift_hub.commands:push_parser",
    "micro": "vift_train.micro_command:build_parser",
    "where": "vift.where:build_parser",
}
HEAVY = {"torch", "transformers", "trl", "datasets", "lmms_eval", "matplotlib", "sklearn"}


def options_of(name: str) -> list:
    module, function = PARSERS[name].split(":")
    actions = getattr(import_module(module), function)()._actions
    return [one for one in actions if one.help != "==SUPPRESS==" and one.option_strings != ["-h", "--help"]]


def test_every_command_has_its_parser_here_and_its_former_name():
    assert PARSERS.keys() == COMMANDS.keys()
    scripts = PYPROJECT["project"]["scripts"]
    assert scripts.pop("vift") == "vift.__main__:main"
    assert scripts.items() <= {f"vift-{name}": place for name, (place, _) in COMMANDS.items()}.items()


@pytest.mark.parametrize("name", PARSERS)
def test_options_have_one_style_and_are_all_described(name):
    for option in options_of(name):
        (spelling,) = option.option_strings  # no positional, no second spelling
        assert re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*", spelling), spelling
        assert option.help and len(option.help) > 5, spelling


def test_one_thing_has_one_name():
    """What is worked on is --model (parts of init: two), what is written is --output or --output-dir."""
    spellings = {name: {one.option_strings[0] for one in options_of(name)} for name in PARSERS}
    assert {name for name, found in spellings.items() if "--model" not in found} == {"init", "micro"}
    for name, found in spellings.items():
        assert not found & {"--models", "--source", "--folder", "--out", "--batch", "--repo-id", "--data-type"}, name
    shown = [one for name in PARSERS for one in options_of(name)]
    for option in ("--batch-size", "--dtype", "--device", "--trust-remote-code"):
        assert len({(one.type, one.nargs) for one in shown if one.option_strings == [option]}) <= 2, option


def test_help_of_every_command_imports_nothing_heavy():
    code = f"""
import contextlib, io, sys
from vift.__main__ import COMMANDS, main
for name in [None, *{sorted(PARSERS)!r}]:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*([name] if name else []), "--help"])
    assert ("usage: vift " + (name or "COMMAND")) in said.getvalue(), (name, said.getvalue())
    assert not {HEAVY!r} & set(sys.modules), (name, {HEAVY!r} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_former_spellings_are_understood(capsys):
    from vift_eval.sweep.command import build_parser as sweep
    from vift_hub.commands import convert_parser, push_parser

    found = sweep().parse_args("--models a b --tasks t --include_path=x_y --batch_size 3 --output o".split())
    assert found.model == ["a", "b"] and found.include_path == "x_y" and found.batch_size == 3
    for words in (
        "a b --to llava",
        "--to llava a b",
        "a --to llava b",
        "--model a b --to llava",
        "a --output b --to llava",
    ):
        found = convert_parser().parse_args(words.split())
        assert (found.model, str(found.output), found.to) == ("a", "b", "llava"), words
    assert push_parser().parse_args(["runs/x", "o/x", "--dry_run"]).dry_run
    assert status_of(convert_parser().parse_args, ["a"]) == 2 and "--output must be given" in capsys.readouterr().err
    assert status_of(convert_parser().parse_args, ["a", "b", "c"]) == 2 and "unrecognized" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a command: demo, init"),
        (["dmeo"], "there is no command 'dmeo'"),
        (["init"], "--vision-tower and --language-model and --output must be given"),
        (["sweep"], "--model and --tasks and --output must be given"),
        (["push"], "--model and --repo must be given"),
        (["micro"], "name --output"),
        (["demo", "--beta", "much"], "--beta"),
        (["convert", "--model", "no/such/model/here", "--output", "x"], "no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, capsys):
    assert status_of(main, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("vift") and error.count("\n") == 1 and words in error


def test_version_and_an_absent_command(capsys, monkeypatch):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"vift {__version__}\n"
    assert PYPROJECT["project"]["version"] == __version__
    monkeypatch.setitem(sys.modules, "vift_serve.__main__", None)
    assert status_of(main, ["serve"]) == 2 and "vift serve is not in this installation" in capsys.readouterr().err
