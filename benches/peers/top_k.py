"""Times exact search in faiss: a million rows of 128 numbers, k = 10, one query and a thousand, as benches/top_k.rs does.

    python benches/peers/top_k.py [--json FILE]

IndexFlatL2 (squared Euclidean distance) and IndexFlatIP (products, which rank unit vectors as the cosine does), on the CPU
with as many threads as faiss takes. Needs the package faiss-cpu.
"""

import argparse

import faiss
import torch
from common import Results, milliseconds

ROWS, DIM, K = 1_000_000, 128, 10


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="add the rows to this file")
    results = Results(parser.parse_args().json)
    print(f"faiss {faiss.__version__}, cpu, {faiss.omp_get_max_threads()} threads")
    torch.manual_seed(1)
    rows = torch.randn(ROWS, DIM).numpy()
    for index in (faiss.IndexFlatL2(DIM), faiss.IndexFlatIP(DIM)):
        index.add(rows)
        for queries in (1, 1000):
            x = torch.randn(queries, DIM).numpy()
            ms = milliseconds(lambda _: index.search(x, K), seconds=2, least=3)
            what = {"op": f"top_k, {queries} queries", "rows": ROWS, "dim": DIM, "dtype": "f32", "pass": "search"}
            results.row(**what, who=f"faiss {type(index).__name__}", ms=ms)


if __name__ == "__main__":
    main()
