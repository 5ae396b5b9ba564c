"""torch.compile, torch.func and autocast."""

import shutil
import unittest

import torch

import tercet
from cases import MINED, OPTIONS, batch, reference
from tercet import functional as F


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend)


def grads(function, *leaves):
    return torch.autograd.grad(function(*leaves), leaves)


class Compile(unittest.TestCase):
    """A graph break is an error under ``fullgraph``, and a recompilation under ``error_on_recompile``."""

    def agree(self, function, leaves_of, sizes=range(20, 40), backend="aot_eager"):
        graph = compiled(lambda *leaves: function(*(leaf * 1.5 for leaf in leaves)) + 1.0, backend)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for rows in sizes:
                leaves = leaves_of(rows)
                value, eager = graph(*leaves), function(*(leaf * 1.5 for leaf in leaves)) + 1.0
                torch.testing.assert_close(value, eager)
                torch.testing.assert_close(
                    grads(graph, *leaves), grads(lambda *x: function(*(v * 1.5 for v in x)), *leaves)
                )

    def test_mined_losses_of_twenty_batch_sizes(self):
        for name, function in MINED.items():
            for options in ({}, {"distance": "cosine"}):
                with self.subTest(name, **options):
                    labels = torch.arange(64) // 3
                    call = {**OPTIONS[name], **options}
                    self.agree(
                        lambda x: function(x, labels[: x.shape[0]], **call),
                        lambda rows: [batch(rows, 5, torch.float32)[0]],
                    )

    def test_against_a_reference_set(self):
        known = reference(dtype=torch.float32)
        labels = torch.arange(64) // 3

        def loss(x, r):
            own = torch.arange(x.shape[0]) - 4
            return F.batch_hard(x, labels[: x.shape[0]], tercet.Reference(r, known.labels, own), margin=2.0)

        self.agree(loss, lambda rows: [batch(rows, 5, torch.float32)[0], known.embeddings])

    def test_paired_losses(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with self.subTest(dtype=dtype):
                of = lambda rows: [batch(rows, 5, dtype, seed)[0] for seed in range(3)]
                self.agree(lambda a, p, n: F.triplet_margin(a, p, n, margin=2.0), of)
                same = torch.arange(64) % 2
                self.agree(lambda a, p, n: F.contrastive(a, p, same[: a.shape[0]]) + n.sum(dtype=torch.float32) * 0, of)

    def test_one_loss_an_anchor(self):
        labels = torch.arange(64) // 3
        self.agree(
            lambda x: F.batch_hard(x, labels[: x.shape[0]], reduction="none").square().sum(),
            lambda rows: [batch(rows, 5, torch.float32)[0]],
        )

    def test_pairwise_distance_and_top_k(self):
        y = batch(50, 5, torch.float32, seed=2)[0].detach()

        def nearest(x):
            _, indices = F.top_k(x, y, k=2)
            return F.pairwise_distance(x, y, distance="euclidean").gather(1, indices).sum()

        self.agree(nearest, lambda rows: [batch(rows, 5, torch.float32)[0]])

    def test_modules_and_statistics(self):
        labels = torch.arange(64) // 3
        module = tercet.losses.BatchAllTripletLoss(margin=1.0)

        def loss(x):
            value, stats = module(x, labels[: x.shape[0]], return_stats=True)
            return value + stats.active * 0.0

        self.agree(loss, lambda rows: [batch(rows, 5, torch.float32)[0]])

    @unittest.skipUnless(shutil.which("g++"), "PyTorch's own compiler needs one for C++")
    def test_by_pytorchs_own_compiler(self):
        labels = torch.arange(64) // 3
        self.agree(
            lambda x: F.batch_hard(x, labels[: x.shape[0]], margin=1.0),
            lambda rows: [batch(rows, 5, torch.float32)[0]],
            sizes=(20, 31),
            backend="inductor",
        )

    def test_func_grad(self):
        x, y = batch(dtype=torch.float32)
        (expected,) = grads(lambda x: F.batch_hard(x, y, margin=1.0), x)
        torch.testing.assert_close(torch.func.grad(lambda x: F.batch_hard(x, y, margin=1.0))(x.detach()), expected)

    def test_export(self):
        y = torch.arange(12) // 3

        class Loss(torch.nn.Module):
            def forward(self, x):
                return F.batch_all(x, y)

        program = torch.export.export(Loss(), (batch(dtype=torch.float32)[0].detach(),))
        self.assertIn("tercet.batch_all", str(program.graph))


class Autocast(unittest.TestCase):
    def test_rows_of_16_bits_are_taken_as_they_are(self):
        encoder, y = torch.nn.Linear(16, 8), torch.arange(12) // 3
        x = torch.randn(12, 16)
        for function in (
            lambda rows: F.batch_hard(rows, y),
            lambda rows: F.triplet_margin(rows, rows.flip(0), rows.roll(1, 0)),
        ):
            with torch.autocast("cpu", torch.bfloat16):
                rows = encoder(x)
                self.assertEqual(rows.dtype, torch.bfloat16)
                loss = function(rows)
            self.assertEqual(loss.dtype, torch.float32)
            torch.testing.assert_close(loss, function(rows.float()))
            loss.backward()
            self.assertTrue(torch.isfinite(encoder.weight.grad).all())

    def test_rows_of_two_dtypes_are_taken_in_the_wider(self):
        x, y = batch(dtype=torch.bfloat16)
        known = reference(dtype=torch.float32)
        with self.assertRaisesRegex(RuntimeError, "reference.embeddings: expected the dtype of embeddings, bfloat16"):
            F.batch_all(x, y, known)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.batch_all(x, y, known)
        torch.testing.assert_close(loss, F.batch_all(x.float(), y, known))
        loss.backward()
        self.assertEqual((x.grad.dtype, known.embeddings.grad.dtype), (torch.bfloat16, torch.float32))
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.triplet_margin(x, x.float().flip(0), x)
        self.assertEqual(loss.dtype, torch.float32)


if __name__ == "__main__":
    unittest.main()
