"""Draws the results of a device, and prints them as a table.

    python benches/peers/draw.py benches/results/nvidia-h200.jsonl docs/images/h200

writes docs/images/h200-time.svg and docs/images/h200-memory.svg, and prints Markdown: each loss beside the strongest peer that
ran, and beside the floor. Needs matplotlib.

The file has one JSON object a line: first what was measured on, then the rows of benches/on_device.rs and of the scripts here.
"""

import collections
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "tercet", "font.family": "sans-serif"}

OURS = "tercet"
COLORS = {
    OURS: "#0b6e4f",
    "torch, eager": "#b0793a",
    "torch.compile": "#8a2be2",
    "Triton, one pass": "#d1495b",
    "jax.jit": "#30638e",
    "sentence-transformers": "#e07a00",
    "pytorch-metric-learning": "#7a7a7a",
    "floor": "#000000",
}
FLOORS = {"copy of as many bytes": "a copy of as many bytes", "X X^T, f32": "X Xᵀ alone, f32", "X X^T, tf32": "X Xᵀ alone, TF32"}
MINED = ["batch_hard", "batch_all", "batch_semi_hard", "batch_negative", "batch_contrastive"]


def read(path):
    lines = [json.loads(line) for line in open(path)]
    return lines[0], lines[1:]


def series(rows, **wanted):
    """By who: sorted (rows, row)."""
    found = collections.defaultdict(dict)
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()) and row.get("ms") is not None:
            found[row["who"]][row["rows"]] = row
    return {who: sorted(by.items()) for who, by in found.items()}


def axes_of(axes, title, y):
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylabel(y, fontsize=8)
    axes.set_xlabel("rows", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(True, which="major", alpha=0.25)


def draw_times(meta, rows, path):
    figure, grid = plt.subplots(2, 3, figsize=(12, 7), constrained_layout=True)
    panels = [("triplet_margin", None)] + [(op, 8) for op in MINED]
    names = {}
    for axes, (op, each) in zip(grid.flat, panels):
        axes_of(axes, op, "ms, forward + backward")
        wanted = {"op": op, "dim": 128, "dtype": "f32", "pass": "both"} | ({"each": each} if each else {})
        for who, points in series(rows, **wanted).items():
            if who in FLOORS:
                style = {"color": COLORS["floor"], "linestyle": ":", "linewidth": 1, "label": FLOORS[who]}
            elif who in COLORS:
                style = {"color": COLORS[who], "marker": "o", "markersize": 3, "linewidth": 2 if who == OURS else 1.2, "label": who}
            else:
                continue
            (line,) = axes.plot([n for n, _ in points], [row["ms"] for _, row in points], **style)
            names.setdefault(style["label"], line)
        if each:
            for who, points in series(rows, op="product", dim=128, dtype="f32", each=8).items():
                dash = ":" if who == "X X^T, f32" else "--"
                (line,) = axes.plot([n for n, _ in points], [row["ms"] for _, row in points], color=COLORS["floor"], linestyle=dash, linewidth=1)
                names.setdefault(FLOORS[who], line)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(f"{meta['device']}, f32, 128 numbers a row, eight rows a class, margin 0.2 ({meta['date']})", fontsize=10)
    figure.savefig(path)


def draw_memory(meta, rows, path):
    figure, grid = plt.subplots(1, 3, figsize=(12, 3.9), constrained_layout=True)
    names = {}
    for axes, op in zip(grid.flat, ["batch_hard", "batch_all", "batch_semi_hard"]):
        axes_of(axes, op, "MiB beside inputs and gradient")
        for who, points in series(rows, op=op, dim=128, dtype="f32", each=8, **{"pass": "both"}).items():
            points = [(n, row["peak_bytes"] / 2**20) for n, row in points if row.get("peak_bytes")]
            if who in COLORS and points:
                (line,) = axes.plot(*zip(*points), color=COLORS[who], marker="o", markersize=3, linewidth=2 if who == OURS else 1.2)
                names.setdefault(who, line)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"{meta['device']}, peak memory of forward + backward, f32, 128 numbers a row, eight rows a class", fontsize=10)
    figure.savefig(path)


def table(rows):
    key = lambda row: (row["op"], row["rows"], row["dim"], row.get("each"), row["dtype"])
    both = collections.defaultdict(dict)
    for row in rows:
        if row["op"] != "product" and row["pass"] == "both":
            both[key(row)][row["who"]] = row
    products = {(row["rows"], row["dim"], row["dtype"], row["who"]): row["ms"] for row in rows if row["op"] == "product"}
    size = lambda row: f"{row['peak_bytes'] / 2**20:.0f} MiB" if row.get("peak_bytes") else "–"
    print("| loss | rows x dim, dtype | rows a class | tercet | strongest peer | | ratio | of the floor | workspace | peer's |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (op, n, dim, each, dtype), by in both.items():
        if OURS not in by:
            continue
        ours = by[OURS]
        peers = [r for who, r in by.items() if not who.startswith(OURS) and who not in FLOORS and r.get("ms")]
        floor = by.get("copy of as many bytes", {}).get("ms")
        if each:
            floor = products.get((n, dim, dtype, "X X^T, f32" if dtype == "f32" else f"X X^T, {dtype}"))
        best = min(peers, key=lambda row: row["ms"], default=None)
        of_floor = f"{100 * floor / ours['ms']:.0f} %" if floor else "–"
        theirs = [best["who"], f"{best['ms']:.3g} ms", f"{best['ms'] / ours['ms']:.1f}"] if best else ["–"] * 3
        cells = [f"`{op}`", f"{n} x {dim}, {dtype}", each or "–", f"{ours['ms']:.3g} ms", *theirs, of_floor, size(ours), size(best) if best else "–"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    meta, rows = read(sys.argv[1])
    draw_times(meta, rows, sys.argv[2] + "-time.svg")
    draw_memory(meta, rows, sys.argv[2] + "-memory.svg")
    table(rows)


if __name__ == "__main__":
    main()
