"""Runs the peers' own tests with Tercet's losses in the place of theirs, and compares both on random batches.

    python run.py [--record] [--pml DIR [--tests PATTERN]] [--sentence-transformers DIR]

``cargo xtask peers`` calls it. DIR is a checkout of the peer's repository, whose sources are tested; what these need beside
PyTorch must be importable. Nothing of them is copied.

It ends with a table: each test in which a replaced loss was called, how many calls ran natively, how many were passed on to the
original, and why. It fails where a test fails that passes without Tercet, where a test has fewer native calls than native.json
says (``--record`` writes it), and where a random case differs.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import pathlib
import random
import subprocess
import sys
import unittest
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
RECORD = HERE / "native.json"
UNPATCHED = "TERCET_PEERS_UNPATCHED"


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def run_one(test: unittest.TestCase) -> unittest.TestResult:
    """Runs a test with what its class sets up, from the same seeds in every run."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    result = unittest.TestResult()
    unittest.TestSuite([test]).run(result)
    return result


def pml_tests(folder: pathlib.Path, pattern: str) -> list[unittest.TestCase]:
    """The tests of the losses in a checkout of pytorch-metric-learning, in the files of these names."""
    os.environ.setdefault("TEST_DEVICE", "cpu")
    # The originals compute float16 in float16, which their own bounds take no account of on the CPU.
    os.environ.setdefault("TEST_DTYPES", "float32,float64")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    return list(tests_of(unittest.TestLoader().discover("tests/losses", pattern, top_level_dir=".")))


def run_pml(folder: pathlib.Path, pattern: str) -> tuple[dict[str, dict], list[str]]:
    """Runs the tests; returns by test what was called, and those that fail."""
    import tercet

    calls: dict[str, dict] = {}
    failed = []
    for test in pml_tests(folder, pattern):
        name = test.id().removeprefix("tests.losses.")
        tercet.reset_report()
        result = run_one(test)
        outcome = "failed" if result.errors or result.failures else "passed"
        if outcome == "failed":
            failed.append(name)
            print(f"{name}:\n{(result.errors + result.failures)[0][1]}", flush=True)
        called = {loss: of for loss, of in tercet.report().items() if loss != "pml.CrossBatchMemory"}
        native = sum(of["native"] for of in called.values())
        passed_on: dict[str, int] = {}
        for of in called.values():
            for reason, count in of["passed_on"].items():
                passed_on[reason] = passed_on.get(reason, 0) + count
        if native or passed_on:
            calls[name] = {"native": native, "passed on": passed_on, "outcome": outcome}
    return calls, failed


def fails_unpatched(folder: pathlib.Path, names: list[str]) -> set[str]:
    """Which of these tests fail with the originals, too: in a process of its own."""
    if not names:
        return set()
    command = [sys.executable, __file__, "--pml", str(folder)]
    output = subprocess.run(
        command, env={**os.environ, UNPATCHED: json.dumps(names)}, capture_output=True, text=True, check=True
    )
    return set(json.loads(output.stdout.splitlines()[-1]))


def run_unpatched(folder: pathlib.Path) -> None:
    """The other side of `fails_unpatched`."""
    names, failing = json.loads(os.environ[UNPATCHED]), []
    sys.path.insert(0, str(folder / "src"))
    for test in pml_tests(folder, "test*.py"):
        name = test.id().removeprefix("tests.losses.")
        if name in names:
            result = run_one(test)
            if result.errors or result.failures:
                failing.append(name)
    print(json.dumps(failing))


def print_table(calls: dict[str, dict]) -> None:
    rows = [("test", "native", "passed on", "why")]
    for name, of in calls.items():
        why = ", ".join(f"{reason} {count}" for reason, count in of["passed on"].items())
        rows.append((name, str(of["native"]), str(sum(of["passed on"].values())), why))
    rows.append(
        (
            "all",
            str(sum(of["native"] for of in calls.values())),
            str(sum(sum(of["passed on"].values()) for of in calls.values())),
            "",
        )
    )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, native, passed_on, why in rows:
        print(f"{name:{widths[0]}}  {native:>{widths[1]}}  {passed_on:>{widths[2]}}  {why}".rstrip())


def fewer_native(calls: dict[str, dict], recorded: dict[str, int], pattern: str) -> list[str]:
    """The tests that have fewer native calls than they had."""
    found = []
    for name, count in recorded.items():
        if name not in calls and not fnmatch.fnmatch(f"{name.split('.')[0]}.py", pattern):
            continue
        now = calls.get(name, {"native": 0})["native"]
        if now < count:
            found.append(f"{name}: {now} native calls, and {count} before")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pml", type=pathlib.Path)
    parser.add_argument("--sentence-transformers", type=pathlib.Path)
    parser.add_argument("--tests", default="test*.py", help="the files of pytorch-metric-learning's tests")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if UNPATCHED in os.environ:
        run_unpatched(options.pml)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(HERE))
    import torch

    import tercet

    wrong: list[str] = []
    if options.pml:
        sys.path.insert(0, str(options.pml / "src"))
        peer = importlib.import_module("pytorch_metric_learning")
        tercet.patch("pytorch_metric_learning")
        print(f"pytorch-metric-learning {peer.__version__}, PyTorch {torch.__version__}", flush=True)
        calls, failed = run_pml(options.pml, options.tests)
        unpatched = fails_unpatched(options.pml, failed)
        print_table(calls)
        for name in failed:
            if name in unpatched:
                print(f"fails without Tercet, too: {name}")
            else:
                wrong.append(f"{name} fails, and does not without Tercet")
        recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        if options.record:
            native = recorded | {name: of["native"] for name, of in calls.items() if of["native"]}
            RECORD.write_text(json.dumps(native, indent=2) + "\n")
        else:
            wrong += fewer_native(calls, recorded, options.tests)
        tercet.unpatch("pytorch_metric_learning")
        cases = importlib.import_module("random_cases")
        wrong += cases.pml()
        training = importlib.import_module("training")
        wrong += training.compare()
    if options.sentence_transformers:
        sys.path.insert(0, str(options.sentence_transformers))
        peer = importlib.import_module("sentence_transformers")
        print(f"sentence-transformers {peer.__version__}, PyTorch {torch.__version__}", flush=True)
        cases = importlib.import_module("random_cases")
        wrong += cases.sentence_transformers()
    for line in wrong:
        print(f"WRONG: {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
