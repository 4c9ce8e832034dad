"""What stands on the pages is so: their Python runs, their commands have these options, messages and files exist.

A fence of Python runs as pasted, with the names of `given`. Two comments before a fence say otherwise:
`<!-- run: FILE -->` (it stands in that file, word for word, whose test runs it) and `<!-- not run: why -->`.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.package.test_commands import PARSERS, options_of

ROOT = Path(__file__).parents[2]
PAGES = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
PAGES.pop("log.md")  # each entry is of its day
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w+) *\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
HEREDOC = re.compile(r"<<'END'\n.*?^END$", re.MULTILINE | re.DOTALL)
# messages of torch, torchvision and transformers
OTHERS = {"operator torchvision::nms does not exist", "Torch not compiled with CUDA enabled", "CUDA out of memory",
          "requires the Torchvision library but it was not found in your environment"}  # fmt: skip


def fences(kind: str):
    for page, text in PAGES.items():
        for match in FENCE.finditer(text):
            if match["kind"] == kind:
                line = text[: match.start()].count("\n") + 1
                yield pytest.param(match["code"], match["mark"] or "", id=f"{page}:{line}")


@pytest.fixture(scope="module")
def given():
    """A loaded model with a prompt, the question in it, and a LLaVA with fusion attached."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vift import BUNDLED, attach_fusion
    from vift_hub.convert import to_llava
    from vift_microworld import visual_questions

    model = AutoModelForImageTextToText.from_pretrained(BUNDLED, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(BUNDLED, trust_remote_code=True)
    row = visual_questions(1)[0]
    content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": row["question"]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    llava, llava_processor = to_llava(BUNDLED)
    llava.generation_config.max_new_tokens = model.generation_config.max_new_tokens = 4
    attach_fusion(llava, processor=llava_processor)
    given = {"model": model, "processor": processor, "inputs": inputs, "question": row["question"], "tuned": model}
    given |= {"llava": llava, "llava_processor": llava_processor, "llava_inputs": inputs}
    return given | {"attach_fusion": attach_fusion}


@pytest.mark.parametrize("code, mark", list(fences("python")))
def test_python_runs_as_pasted(code, mark, given, monkeypatch):
    monkeypatch.chdir(ROOT)
    if mark.startswith("run: "):
        source = (ROOT / mark.removeprefix("run: ")).read_text(encoding="utf-8")
        if mark.endswith(".ipynb"):
            source = "\n".join("".join(cell["source"]) for cell in json.loads(source)["cells"])
        assert code.strip() in source
    elif not mark.startswith("not run: "):
        assert mark == ""
        exec(compile(code, "page", "exec"), dict(given))


@pytest.mark.parametrize("code, mark", list(fences("bash")))
def test_commands_have_the_options_and_files_of_the_page(code, mark):
    lines = HEREDOC.sub("", code.replace("\\\n", " ")).splitlines()
    for line in lines:
        words = words_of(line.replace("...", " "))
        for place, (program, command) in enumerate(zip(words, words[1:])):
            if Path(program).name == "vift" and command in PARSERS.keys() - {"serve"}:  # which takes vLLM's, too
                known = {one.option_strings[0] for one in options_of(command)}
                asked = {word.partition("=")[0] for word in words[place:] if word.startswith("--")}
                assert asked - known <= further(command), line
        for word in words:
            if re.match(r"(studies|train|eval|checkpoints|docs/results|notebooks)/[\w/.-]+\.(py|yaml|md|png)$", word):
                assert (ROOT / word).exists() or "--json" in line, word


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # of a string over several lines
        return line.split()


def further(command: str) -> set[str]:
    """Options that a command takes and does not list in its short help: TRL's and transformers'."""
    if command != "train":
        return set()
    from dataclasses import fields

    from trl import ModelConfig

    from vift_train.config import VIFTTrainingConfig

    return {f"--{one.name.replace('_', '-')}" for kind in (VIFTTrainingConfig, ModelConfig) for one in fields(kind)}


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    rooms = ("modeling_vift", "hub", "train", "eval", "vift")
    source = "\n".join(file.read_text(encoding="utf-8") for room in rooms for file in (ROOT / room).rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    messages = re.findall(r"^### `+(.*?)`+$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 15
    for message in set(messages) - OTHERS:
        for part in re.split(r"…|`|transformers>=.*|'", message):
            assert part.strip(" :(,") in source, (message, part)


def test_the_tutorial_shows_what_its_results_file_holds():
    results = json.loads((ROOT / "docs" / "results" / "training" / "tutorial.json").read_text(encoding="utf-8"))
    for stage, printed in results["printed"].items():
        assert "```text\n" + "\n".join(printed) + "\n```" in PAGES["training.md"], stage
    for loss in results["eval_image_loss"].values():
        assert f"{loss:.2f}" in PAGES["training.md"], loss


def test_a_page_names_no_command_that_is_not_there():
    for page, text in PAGES.items():
        for name in re.findall(r"`vift ([a-z]+)\b", text):
            assert name in PARSERS, (page, name)
