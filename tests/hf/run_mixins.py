"""Runs the tests that transformers has for every model on VIFT, then those that VIFT does not pass
on stock Llava, and lists what stock passes and VIFT does not.

    python tests/hf/run_mixins.py                 # exit status 1 if the list is not empty
    python tests/hf/run_mixins.py -k resize -v    # some tests only; every outcome
    python tests/hf/run_mixins.py --both          # stock runs all tests too

The tests are those of the transformers that is installed. Its wheel leaves them out; its source
distribution has a part, and is fetched once, by pip, into `.cache/`; mixin_cases.py says which.
A checkout of the same version has everything: name it in TRANSFORMERS_CHECKOUT.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "transformers-tests"
NO_TESTS = 3  # exit status: transformers' tests could not be had


class NoTests(Exception):
    """transformers' tests could not be had."""


def transformers_root() -> Path:
    """A folder with the `tests` of the transformers that is installed."""
    if checkout := os.environ.get("TRANSFORMERS_CHECKOUT"):
        if not (Path(checkout) / "tests" / "test_modeling_common.py").exists():
            raise NoTests(f"TRANSFORMERS_CHECKOUT={checkout} has no tests/test_modeling_common.py")
        return Path(checkout)

    from importlib.metadata import version

    name = f"transformers-{version('transformers')}"
    if (CACHE / name).exists():
        return CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE.parent / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
        # pip asks the package for its metadata (seconds), but builds nothing.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        what = ["--no-deps", "--no-binary", "transformers", "--retries", "1", "--dest", tmp]
        command = [*pip, *what, name.replace("-", "==", 1)]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(tmp).glob("transformers-*.tar.gz"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip() or "no archive").splitlines()[-1]
            raise NoTests(f"pip could not download the source distribution of {name}: {reason}")
        with tarfile.open(archives[0]) as archive:
            wanted = [m for m in archive if m.name.startswith(f"{name}/tests/")]
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in every Python 3.11
            archive.extractall(tmp, members=wanted, **safe)
        (Path(tmp) / name / "tests" / "__init__.py").touch()  # the archive leaves it out
        with contextlib.suppress(OSError):  # another process was faster
            (Path(tmp) / name).rename(CACHE / name)
    return CACHE / name


class Recorder:
    """A pytest plugin that keeps the outcome, time and message of each test, by its name."""

    def __init__(self):
        self.results = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rsplit("::", 1)[-1]
        kept = self.results.setdefault(name, {"outcome": "passed", "seconds": 0.0, "message": ""})
        kept["seconds"] += report.duration
        if not report.passed:
            kept["outcome"] = report.outcome
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            kept["message"] = text


def run(case: str, names: list[str] | None = None, expression: str = "") -> dict[str, dict]:
    """The outcome of each test of one class in mixin_cases.py, in a process of its own."""
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "results.json"
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # tiny models: more threads only wait
        # Some mixin tests would each start one more process of this kind; this one is enough.
        env["_INSIDE_SUB_PROCESS"] = "1"
        env["VIFT_TRANSFORMERS_ROOT"] = str(transformers_root())
        request = json.dumps({"case": case, "names": names, "expression": expression})
        child = [sys.executable, str(HERE / "run_mixins.py"), "--child", request, str(out)]
        done = subprocess.run(child, cwd=HERE, env=env, capture_output=True, text=True)
        if not out.exists():
            raise RuntimeError(f"{case} did not run:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def child(request: str, out: str) -> None:
    import pytest

    request = json.loads(request)
    recorder, log = Recorder(), io.StringIO()
    cases = f"mixin_cases.py::{request['case']}"
    targets = [cases] if request["names"] is None else [f"{cases}::{n}" for n in request["names"]]
    # Neither this repository's pytest settings nor its conftest: those are for its own tests.
    options = ["-c", os.devnull, "--rootdir", str(HERE), "--noconftest", "-p", "no:cacheprovider"]
    options += ["--import-mode=importlib", "-q", "--disable-warnings", "-k", request["expression"]]
    with contextlib.redirect_stdout(log):
        status = pytest.main([*options, *targets], plugins=[recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f"pytest ended with {status!r}:\n{log.getvalue()[-4000:]}")
    Path(out).write_text(json.dumps(recorder.results))


def compare(expression: str = "", both: bool = False) -> tuple[dict, dict, list[str]]:
    """Outcomes of VIFT, outcomes of stock, names that stock passes and VIFT does not."""
    ours = run("VIFTMixinTest", expression=expression)
    behind = sorted(name for name, result in ours.items() if result["outcome"] != "passed")
    stock = {}
    if both:
        stock = run("StockLlavaMixinTest", expression=expression)
    elif behind:
        stock = run("StockLlavaMixinTest", names=behind)
    missing = [name for name in behind if stock.get(name, {}).get("outcome") == "passed"]
    return ours, stock, missing


def count(results: dict[str, dict]) -> str:
    outcomes = [result["outcome"] for result in results.values()]
    return ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped"))


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("-k", dest="expression", default="", help="as pytest's -k")
    parser.add_argument("-v", "--verbose", action="store_true", help="every outcome, slowest first")
    parser.add_argument("--both", action="store_true", help="run stock on every test")
    parser.add_argument("--stock", action="store_true", help="run stock only")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    args = parser.parse_args()

    start = time.monotonic()
    try:
        if args.stock:
            ours, stock, missing = {}, run("StockLlavaMixinTest", expression=args.expression), []
        else:
            ours, stock, missing = compare(args.expression, args.both)
    except NoTests as error:
        print(error)
        return NO_TESTS
    if args.json:
        everything = {"vift": ours, "stock": stock, "missing": missing}
        args.json.write_text(json.dumps(everything, indent=1))
    if args.verbose:
        for who, results in (("vift", ours), ("stock", stock)):
            for name, result in sorted(results.items(), key=lambda item: -item[1]["seconds"]):
                print(f"{who:5} {result['outcome']:7} {result['seconds']:6.1f} s  {name}")
    for name in missing:
        print(f"\n{name}: VIFT {ours[name]['outcome']}\n{ours[name]['message']}")
    print(f"\nVIFT: {count(ours)}; stock Llava, of the {len(stock)} tests it ran: {count(stock)}")
    print(f"stock passes and VIFT does not: {', '.join(missing) or 'none'}")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if missing else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
