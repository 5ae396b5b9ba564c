"""The operators on a CUDA device: against those of the CPU, on streams, in graphs, and under torch.compile.

Without a device each test says that it is skipped; with ``TERCET_REQUIRE_CUDA`` set that is a failure.
"""

import os
import sys
import tempfile
import unittest

import torch
from torch.library import opcheck

import tercet
from cases import MINED, OPTIONS, PER_ANCHOR, arguments, batch, reference
from tercet import functional as F

DEVICE = "cuda"
NARROW = (torch.float32, torch.float16, torch.bfloat16)


def on_device(*tensors):
    """Leaves on the device with the same numbers."""
    return [x.detach().to(DEVICE).requires_grad_(x.requires_grad) for x in tensors]


def grads(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


class Cuda(unittest.TestCase):
    def setUp(self):
        if torch.cuda.is_available():
            return
        self.assertNotIn("TERCET_REQUIRE_CUDA", os.environ, "no CUDA device")
        print(f"skipped: no CUDA device: {self.id()}", file=sys.stderr)
        self.skipTest("no CUDA device")


class Operators(Cuda):
    def near(self, got, expected, dtype):
        """Whether tensors of the device are those of the CPU in float64, up to their arithmetic and dtype."""
        of = 2e-5 + {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 0.0)
        for one, other in zip(got, expected, strict=True):
            largest = other.abs().max().item()
            self.assertLessEqual((one.detach().double().cpu() - other).abs().max().item(), of * largest + 1e-30)

    def check(self, function, dtype, *rows):
        """``function`` of leaves and of a device, there and on the CPU."""
        rounded = [x.detach().to(dtype) for x in rows]
        there = [x.to(DEVICE).requires_grad_() for x in rounded]
        here = [x.double().requires_grad_() for x in rounded]
        value, expected = function(DEVICE, *there), function("cpu", *here)
        self.assertEqual((value.device.type, value.dtype), (DEVICE, torch.float32))
        self.near([value], [expected.detach()], torch.float32)
        got = grads((value * 0.75).sum(), *there)
        self.assertEqual({grad.dtype for grad in got}, {dtype})
        self.near(got, grads((expected * 0.75).sum(), *here), dtype)

    def test_mined(self):
        x, y = batch(90, 24)
        for name, function in MINED.items():
            for dtype in NARROW:
                for options in ({"distance": "euclidean"}, {"distance": "cosine"}, {"normalize": True}):
                    with self.subTest(name, dtype=dtype, **options):
                        loss = lambda device, x: function(x, y.to(device), **{**OPTIONS[name], **options})
                        self.check(loss, dtype, x)

    def test_against_a_reference_set(self):
        (x, y), known = batch(12, 5), reference()
        for name, function in MINED.items():
            with self.subTest(name):

                def loss(device, x, r):
                    against = tercet.Reference(r, known.labels.to(device), known.own.to(device))
                    return function(x, y.to(device), against, **OPTIONS[name])

                self.check(loss, torch.float32, x, known.embeddings)

    def test_one_loss_an_anchor(self):
        x, y = batch(90, 24)
        for name in PER_ANCHOR:
            with self.subTest(name):
                options = {**OPTIONS[name], "distance": "euclidean", "reduction": "none"}
                self.check(lambda device, x: MINED[name](x, y.to(device), **options), torch.float32, x)

    def test_paired(self):
        rows, same = [batch(40, 24, seed=seed)[0] for seed in range(3)], torch.arange(40) % 2
        for dtype in NARROW:
            for reduction in ("mean", "sum", "none"):
                with self.subTest(dtype=dtype, reduction=reduction):
                    triplets = lambda device, a, p, n: F.triplet_margin(a, p, n, margin=4.0, reduction=reduction)
                    self.check(triplets, dtype, *rows)
                    pairs = lambda device, a, p: F.contrastive(a, p, same.to(device), margin=8.0, reduction=reduction)
                    self.check(pairs, dtype, *rows[:2])

    def test_pairwise_distance(self):
        x, y = batch(60, 24)[0], batch(70, 24, seed=1)[0]
        for dtype in NARROW:
            for distance in ("squared_euclidean", "euclidean", "cosine"):
                with self.subTest(dtype=dtype, distance=distance):
                    self.check(lambda device, x, y: F.pairwise_distance(x, y, distance=distance), dtype, x, y)

    def test_top_k(self):
        queries, stored = batch(20, 8, torch.float32)[0].detach(), batch(3000, 8, torch.float32, seed=1)[0].detach()
        for distance in ("squared_euclidean", "euclidean", "cosine"):
            with self.subTest(distance=distance):
                here = F.top_k(queries, stored, k=5, distance=distance)
                there = F.top_k(queries.to(DEVICE), stored.to(DEVICE), k=5, distance=distance)
                self.assertEqual(there[1].tolist(), here[1].tolist())
                torch.testing.assert_close(there[0].cpu(), here[0])

    def test_equal_calls_give_equal_bits(self):
        x, y = on_device(*batch(90, 24, torch.float32))
        for name, function in MINED.items():
            with self.subTest(name):
                first = self.bits(function, name, x, y)
                for _ in range(20):
                    self.assertEqual(self.bits(function, name, x, y), first)

    def bits(self, function, name, x, y):
        loss = function(x, y, **OPTIONS[name])
        return loss.item(), grads(loss, x)[0].tolist()

    def test_what_lies_elsewhere_is_refused(self):
        x, y = batch(dtype=torch.float32)
        with self.assertRaisesRegex(RuntimeError, "labels: expected "):
            F.batch_hard(x.to(DEVICE), y)
        with self.assertRaisesRegex(RuntimeError, "embeddings: expected dtype float32, float16 or bfloat16"):
            F.batch_hard(x.to(DEVICE).double(), y.to(DEVICE))


class Opcheck(Cuda):
    """PyTorch's own checks, on tensors of the device."""

    def check(self, operator, arguments):
        passed = opcheck(getattr(torch.ops.tercet, operator).default, arguments)
        self.assertEqual(set(passed.values()), {"SUCCESS"})
        self.assertEqual(len(passed), 4)

    def test_all(self):
        for dtype in NARROW:
            x, y, p, n = on_device(*batch(dtype=dtype), *(batch(dtype=dtype, seed=seed)[0] for seed in (1, 2)))
            for name in MINED:
                with self.subTest(name, dtype=dtype):
                    self.check(name, arguments(name, x, y, None, None, None, None, None, 1, **OPTIONS[name]))
            with self.subTest("others", dtype=dtype):
                self.check("triplet_margin", arguments("triplet_margin", x, p, n, 7))
                self.check("contrastive", arguments("contrastive", x, p, y % 2, 3))
                self.check("pairwise_distance", arguments("pairwise_distance", x, p))
                self.check("top_k", arguments("top_k", x.detach(), p.detach(), None, None, None, 3, k=4))


class Streams(Cuda):
    def test_the_current_stream_is_used_and_nothing_waits(self):
        x, y = on_device(*batch(256, 64, torch.float32))
        for name, function in MINED.items():
            with self.subTest(name):
                step = lambda: grads(function(x, y, **OPTIONS[name]), x)[0]
                expected = step()
                torch.cuda.synchronize()
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(2_000_000_000)  # about a second of clocks
                    got = step()
                self.assertFalse(stream.query(), "the call waited for the device")
                stream.synchronize()
                self.assertEqual(got.tolist(), expected.tolist())

    def test_memory_is_given_back(self):
        x, y = on_device(*batch(256, 64, torch.float32))
        for name, function in MINED.items():
            with self.subTest(name):
                grads(function(x, y, **OPTIONS[name]), x)
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                for _ in range(5):
                    grads(function(x, y, **OPTIONS[name]), x)
                self.assertEqual(torch.cuda.memory_allocated(), before)


class Graphs(Cuda):
    def replayed(self, function, *rows):
        """Captures forward and backward of a loss, replays them with other rows, and compares with the loss itself."""
        leaves = on_device(*rows)
        step = lambda: (loss := function(*leaves), *grads(loss, *leaves))
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            step()
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        for turn in range(3):
            with torch.no_grad():
                for leaf in leaves:
                    leaf.copy_(leaf.roll(1 + turn, 1) * 1.25)
            graph.replay()
            torch.cuda.synchronize()
            for got, expected in zip(results, step(), strict=True):
                self.assertEqual(got.tolist(), expected.tolist())

    def test_mined(self):
        x, y = batch(90, 24, torch.float32)
        y = y.to(DEVICE)
        for name, function in MINED.items():
            with self.subTest(name):
                self.replayed(lambda x: function(x, y, **OPTIONS[name]), x)

    def test_paired(self):
        a, p, n = (batch(40, 24, torch.float32, seed)[0] for seed in range(3))
        same = (torch.arange(40) % 2).to(DEVICE)
        self.replayed(lambda a, p, n: F.triplet_margin(a, p, n, margin=4.0), a, p, n)
        self.replayed(lambda a, p: F.contrastive(a, p, same, margin=8.0), a, p)

    def test_pairwise_distance(self):
        x, y = batch(60, 24, torch.float32)[0], batch(70, 24, torch.float32, seed=1)[0]
        self.replayed(lambda x, y: F.pairwise_distance(x, y, distance="euclidean").sum(), x, y)

    def test_a_replayed_graph_draws_anew(self):
        (x, y), step = on_device(*batch(60, 4, torch.float32)), torch.zeros((), dtype=torch.int64, device=DEVICE)
        draw = lambda step: F.batch_negative(x, y, step=step, negative="random", margin=9.0)
        draw(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = draw(step)
        seen = []
        for number in (3, 4, 3):
            step.fill_(number)
            graph.replay()
            seen.append(loss.item())
            self.assertEqual(seen[-1], draw(number).item())
        self.assertEqual(seen[0], seen[2])
        self.assertNotEqual(seen[0], seen[1])


class Distributed(Cuda):
    def test_one_process_by_nccl(self):
        x, y = on_device(*batch(24, 6, torch.float32))
        with tempfile.TemporaryDirectory() as folder:
            where = {"init_method": f"file://{folder}/rendezvous", "rank": 0, "world_size": 1}
            torch.distributed.init_process_group("nccl", **where)
            try:
                for work in ("shared", "repeated"):
                    with self.subTest(work=work):
                        module = tercet.losses.BatchAllTripletLoss(margin=1.0)
                        loss, expected = tercet.DistributedLoss(module, work=work)(x, y), module(x, y)
                        torch.testing.assert_close(loss, expected)
                        torch.testing.assert_close(grads(loss, x), grads(expected, x))
            finally:
                torch.distributed.destroy_process_group()


class Compile(Cuda):
    def test_fullgraph(self):
        labels = torch.arange(64, device=DEVICE) // 3
        for name, function in MINED.items():
            with self.subTest(name):
                torch._dynamo.reset()
                loss = lambda x: function(x * 1.5, labels[: x.shape[0]], **OPTIONS[name]) + 1.0
                graph = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
                with torch._dynamo.config.patch(error_on_recompile=True):
                    for rows in (20, 31, 64):
                        (x,) = on_device(batch(rows, 5, torch.float32)[0])
                        torch.testing.assert_close(grads(graph(x), x), grads(loss(x), x))


if __name__ == "__main__":
    unittest.main()
