"""PyTorch's own checks of the operators, and gradients against finite differences."""

import unittest

import torch
from torch.library import opcheck

import tercet
from cases import DTYPES, MINED, OPTIONS, PER_ANCHOR, arguments, batch, reference
from tercet import functional as F

FOUR = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


class Opcheck(unittest.TestCase):
    """Each operator, on each kind of call that gives it other results."""

    def check(self, operator, arguments):
        passed = opcheck(getattr(torch.ops.tercet, operator).default, arguments)
        self.assertEqual(passed, dict.fromkeys(FOUR, "SUCCESS"))

    def test_mined(self):
        for name in MINED:
            for dtype in DTYPES:
                with self.subTest(name, dtype=dtype):
                    x, y = batch(dtype=dtype)
                    alone = (x, y, None, None, None, None, None)
                    self.check(name, arguments(name, *alone, 1, **OPTIONS[name]))
                    known = reference(dtype=dtype)
                    against = (x, y, known.embeddings, known.labels, known.own, None, None)
                    self.check(name, arguments(name, *against, 3, **OPTIONS[name]))
                    self.check(name, arguments(name, *alone, 0, **OPTIONS[name]))

    def test_one_loss_an_anchor(self):
        for name in PER_ANCHOR:
            with self.subTest(name):
                x, y = batch(dtype=torch.float32)
                call = (x, y, x.detach(), y.int(), None, 0, None)
                self.check(name, arguments(name, *call, 1, reduction="none", **OPTIONS[name]))

    def test_mined_gradients(self):
        for name in MINED:
            with self.subTest(name):
                (x, y), known = batch(dtype=torch.float32), reference(dtype=torch.float32)
                rows = (x.detach(), y, known.embeddings.detach(), known.labels, None, 1, None)
                upstream = torch.tensor(0.5)
                self.check(f"{name}_backward", arguments(f"{name}_backward", upstream, *rows, 3, **OPTIONS[name]))

    def test_paired(self):
        for dtype in DTYPES:
            for reduction in ("mean", "sum", "none"):
                with self.subTest(dtype=dtype, reduction=reduction):
                    a, p, n = (batch(dtype=dtype, seed=seed)[0] for seed in range(3))
                    self.check("triplet_margin", arguments("triplet_margin", a, p, n, 7, reduction=reduction))
                    same = torch.arange(12) % 2
                    self.check("contrastive", arguments("contrastive", a, p, same, 3, reduction=reduction))

    def test_paired_gradients(self):
        a, p, n = (batch(dtype=torch.float16, seed=seed)[0].detach() for seed in range(3))
        upstream, same = torch.tensor(0.5), torch.arange(12) % 2 == 0
        self.check("triplet_margin_backward", arguments("triplet_margin_backward", upstream, a, p, n, 5))
        self.check("contrastive_backward", arguments("contrastive_backward", upstream, a, p, same, 2))

    def test_pairwise_distance(self):
        for dtype in DTYPES:
            for distance in ("squared_euclidean", "euclidean", "cosine"):
                with self.subTest(dtype=dtype, distance=distance):
                    x, y = batch(dtype=dtype)[0], batch(70, dtype=dtype, seed=1)[0]
                    self.check("pairwise_distance", arguments("pairwise_distance", x, y, distance=distance))
        x, y = batch(dtype=torch.float32)[0].detach(), batch(70, dtype=torch.float32, seed=1)[0].detach()
        distances, near = torch.ops.tercet.pairwise_distance(*arguments("pairwise_distance", x, y))
        call = (torch.ones_like(distances), x, y, distances, near, 3)
        self.check("pairwise_distance_backward", arguments("pairwise_distance_backward", *call))

    def test_top_k(self):
        x, stored = batch(dtype=torch.float32)[0].detach(), batch(40, dtype=torch.float32, seed=1)[0].detach()
        self.check("top_k", arguments("top_k", x, stored, None, None, None, 3, k=4))
        scales = torch.full((40,), 0.02)
        narrow = (stored / 0.02).round().clamp(-127, 127).to(torch.int8)
        self.check("top_k", arguments("top_k", x, narrow, scales, stored, torch.arange(12), None, k=4))

    def test_all_were_checked(self):
        names = {name for name in dir(torch.ops.tercet) if not name.startswith("_")} - {"name"}
        forward = {*MINED, "triplet_margin", "contrastive", "pairwise_distance"}
        self.assertLessEqual(names, forward | {f"{name}_backward" for name in forward} | {"top_k"})


class Gradcheck(unittest.TestCase):
    def test_mined(self):
        x, y = batch()
        known = reference()
        for name, function in MINED.items():
            for distance in ("squared_euclidean", "euclidean", "cosine"):
                for normalize in (False, True):
                    with self.subTest(name, distance=distance, normalize=normalize):
                        options = {**OPTIONS[name], "distance": distance, "normalize": normalize}
                        self.assertTrue(torch.autograd.gradcheck(lambda x: function(x, y, **options), (x,)))
                        both = lambda x, r: function(x, y, known._replace(embeddings=r), **options)
                        self.assertTrue(torch.autograd.gradcheck(both, (x, known.embeddings)))

    def test_one_loss_an_anchor(self):
        x, y = batch()
        for name in PER_ANCHOR:
            with self.subTest(name):
                loss = lambda x: MINED[name](x, y, reduction="none", **OPTIONS[name])
                self.assertTrue(torch.autograd.gradcheck(loss, (x,)))

    def test_options_of_batch_contrastive(self):
        x, y = batch()
        for options in (
            {"power": 1, "pos_margin": 0.5, "means_apart": True, "mean_over": "active"},
            {"power": 1, "negatives": "hardest"},
            {"power": 2, "pos_margin": 0.5, "means_apart": True},
        ):
            with self.subTest(**options):
                self.assertTrue(
                    torch.autograd.gradcheck(lambda x: F.batch_contrastive(x, y, margin=3.0, **options), (x,))
                )

    def test_paired(self):
        a, p, n = (batch(seed=seed)[0] for seed in range(3))
        same = torch.arange(12) % 3 == 0
        for distance in ("squared_euclidean", "euclidean", "cosine", tercet.Lp(), tercet.Lp(3.0, 0.0)):
            for reduction in ("mean", "sum", "none"):
                with self.subTest(distance=distance, reduction=reduction):
                    options = {"distance": distance, "reduction": reduction, "margin": 2.0}
                    triplets = lambda a, p, n: F.triplet_margin(a, p, n, swap=True, **options)
                    self.assertTrue(torch.autograd.gradcheck(triplets, (a, p, n)))
                    pairs = lambda a, p: F.contrastive(a, p, same, **options)
                    self.assertTrue(torch.autograd.gradcheck(pairs, (a, p)))

    def test_pairwise_distance(self):
        x, y = batch(9)[0], batch(12, seed=1)[0]
        for distance in ("squared_euclidean", "euclidean", "cosine"):
            with self.subTest(distance=distance):
                op = lambda x, y: F.pairwise_distance(x, y, distance=distance)
                self.assertTrue(torch.autograd.gradcheck(op, (x, y)))
                # The upstream gradient of a sum is one number, expanded; that of a transposed matrix has other strides.
                self.assertTrue(torch.autograd.gradcheck(lambda x, y: op(x, y).sum(), (x, y)))
                self.assertTrue(torch.autograd.gradcheck(lambda x, y: op(x, y).t().exp(), (x, y)))


if __name__ == "__main__":
    unittest.main()
