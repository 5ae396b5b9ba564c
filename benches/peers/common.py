"""What the scripts of this folder share: batches, times, and rows of results.

A row is one JSON object a line: op, rows, dim, each (rows a class, for mined losses), dtype, pass, who, ms (null where it does
not run), peak_bytes, loss_error and grad_error (relative, against f64; where it was looked at), note.
"""

import json
import statistics
import time

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MARGIN = 0.2
# Inputs take turns until they are this many bytes: more than a cache holds.
CACHE = 256 << 20
MOST_TURNS = 16


def description():
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def seeded(rows, dim, dtype, count, scale=1.0):
    """`count` matrices that require gradients."""
    torch.manual_seed(1)
    made = [torch.randn(rows, dim, device=DEVICE) * scale for _ in range(count)]
    return [x.to(DTYPES[dtype]).requires_grad_() for x in made]


def labels(rows, each):
    return torch.arange(rows, device=DEVICE) % max(rows // each, 1)


def turns(bytes_of_one):
    """How many copies of the inputs take turns."""
    return 1 if DEVICE == "cpu" else max(1, min(MOST_TURNS, -(-CACHE // bytes_of_one)))


def milliseconds(step, seconds=0.15, least=5, most=400):
    """The median time of `step(turn)`: on CUDA by events around it, else by the clock."""
    for turn in range(3):
        step(turn)
    times, start = [], time.perf_counter()
    while (len(times) < least and time.perf_counter() - start < 8 * seconds) or (
        len(times) < most and time.perf_counter() - start < seconds
    ):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = step(len(times))
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin = time.perf_counter()
            result = step(len(times))
            times.append((time.perf_counter() - begin) * 1e3)
        del result
    return statistics.median(times)


def peak(step):
    """Bytes beyond what is held already, at most, during a step: on CUDA only."""
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step(0)
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def relative(got, exact):
    """|got - exact| / |exact|, in f64."""
    got, exact = got.detach().double(), exact.detach().double()
    return float((got - exact).norm() / exact.norm().clamp_min(1e-300))


class Results:
    """Writes rows to a file and a short line of each to the screen."""

    def __init__(self, path):
        self.file = open(path, "a") if path else None

    def row(self, **row):
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)
        size = f"{row['rows']}x{row['dim']} {row['dtype']}" + (f" {row['each']} a class" if row.get("each") else "")
        ms = f"{row['ms']:10.4f} ms" if row.get("ms") is not None else row.get("note", "-")
        print(f"{row['op']:<18} {size:<28} {row['pass']:<8} {row['who']:<40} {ms}", flush=True)

    def measure(self, what, step, errors=None, seconds=0.15):
        """One row; a step that runs out of memory, or that its library refuses, is a row without a time."""
        try:
            ms = milliseconds(step, seconds)
            row = {"ms": ms, "peak_bytes": peak(step)}
            if errors:
                row |= errors()
        except Exception as error:  # noqa: BLE001: libraries raise what they like; the row says what
            row = {"ms": None, "note": (str(error).strip() or type(error).__name__).splitlines()[0][:160]}
        self.row(**what, **row)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
