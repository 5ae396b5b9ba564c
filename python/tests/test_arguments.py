"""What is refused and how, and what a gradient graph must and must not do."""

import gc
import inspect
import unittest
import weakref

import torch

import tercet
from cases import MINED, OPTIONS, batch, reference
from tercet import _library
from tercet import functional as F


class Errors(unittest.TestCase):
    def refuses(self, text, function, *arguments, **options):
        with self.assertRaises(RuntimeError) as caught:
            function(*arguments, **options)
        self.assertIn(text, str(caught.exception).splitlines()[0])

    def test_the_text_is_that_of_the_rust_library(self):
        x, y = batch(dtype=torch.float32)
        for name, function in MINED.items():
            with self.subTest(name):
                call = lambda text, *a, **o: self.refuses(f"tercet::{name}: {text}", function, *a, **o)
                call("embeddings: expected dtype float32, float16, bfloat16 or float64, got int32", x.int(), y)
                call("embeddings: expected shape [B, D], got [60]", x.flatten(), y)
                call("embeddings: expected at least one row and one column, got [0, 5]", x[:0], y[:0])
                call("labels: expected shape [12], got [11]", x, y[:11])
                call("labels: expected dtype int64 or int32, got float32", x, y.float())
                call("margin: expected a finite number, 0 or more, got -1", x, y, margin=-1.0)
                call("margin: expected a finite number, 0 or more, got NaN", x, y, margin=float("nan"))
                call("distance: expected one of", x, y, distance="manhattan")
                call("reduction: expected one of", x, y, reduction="max")
                known = reference(dtype=torch.float32)
                call("reference.own: expected shape [12], got [3]", x, y, known._replace(own=torch.arange(3)))
                call("reference.labels: expected shape [10], got [12]", x, y, known._replace(labels=y))
                narrow = known._replace(embeddings=known.embeddings[:, :4])
                call("reference.embeddings: expected rows of 5 numbers, as the embeddings'", x, y, narrow)
        self.refuses("reduction: expected Mean or Sum, got None", F.batch_all, x, y, reduction="none")
        self.refuses("power: expected 1 or 2, got 3", F.batch_contrastive, x, y, power=3)
        self.refuses("pos_margin: expected a finite number", F.batch_contrastive, x, y, pos_margin=-0.5)
        self.refuses("step: expected dtype int64", F.batch_negative, x, y, step=torch.tensor(1.0))

    def test_of_paired_losses(self):
        a, p, n = (batch(dtype=torch.float32, seed=seed)[0] for seed in range(3))
        self.refuses("positive: expected the shape of anchor, [12, 5], got [11, 5]", F.triplet_margin, a, p[:11], n)
        self.refuses("negative: expected the dtype of anchor, float32", F.triplet_margin, a, p, n.half())
        self.refuses("distance.p: expected a number above 0", F.triplet_margin, a, p, n, distance=tercet.Lp(0.0))
        self.refuses(
            "same: expected 0 or 1 for each pair, got 2 for pair 3", F.contrastive, a, p, torch.tensor([0, 1, 0, 2] * 3)
        )
        self.refuses("same: expected shape [12], got [4]", F.contrastive, a, p, torch.tensor([0, 1, 0, 1]))

    def test_of_the_others(self):
        x, y = batch(dtype=torch.float32)[0], batch(dtype=torch.float32, seed=1)[0]
        self.refuses("y: expected rows of 5 numbers, as x has", F.pairwise_distance, x, y[:, :4])
        self.refuses("y: expected dtype float32, as x, got float64", F.pairwise_distance, x, y.double())
        self.refuses("k: expected at least 1, got 0", F.top_k, x, y, k=0)
        self.refuses("stored: expected dtype int8, with scales", F.top_k, x, y, scales=torch.ones(12))
        self.refuses("exact: expected [12, 5], as the stored rows", F.top_k, x, y, exact=y[:3].detach())

    def test_a_call_after_an_error_is_right(self):
        x, y = batch(dtype=torch.float32)
        expected = F.batch_hard(x, y)
        for _ in range(100):
            self.refuses("labels", F.batch_hard, x, y[:3])
        self.assertEqual(F.batch_hard(x, y), expected)


class Graphs(unittest.TestCase):
    def test_a_gradient_cannot_be_differentiated(self):
        x, y = batch()
        a, p, n = (batch(seed=seed)[0] for seed in range(3))
        losses = {
            "ready": lambda: F.batch_hard(x, y, margin=2.0),
            "mined again": lambda: F.batch_hard(x, y, margin=2.0, reduction="none").sum(),
            "paired": lambda: F.triplet_margin(a, p, x, margin=2.0),
            "passed again": lambda: F.triplet_margin(a, p, x, margin=2.0, reduction="none").sum(),
            "distances": lambda: F.pairwise_distance(x, n).sum(),
        }
        for name, loss in losses.items():
            with self.subTest(name):
                (grad,) = torch.autograd.grad(loss(), x, create_graph=True)
                self.assertTrue(grad.requires_grad)
                with self.assertRaisesRegex(RuntimeError, "cannot be differentiated once more"):
                    torch.autograd.grad(grad.square().sum(), x)
                # `create_graph` alone is legal, and changes nothing.
                torch.testing.assert_close(grad.detach(), torch.autograd.grad(loss(), x)[0])

    def test_backward_twice(self):
        for name, function in MINED.items():
            with self.subTest(name):
                x, y = batch(dtype=torch.float32)
                loss = function(x, y, **OPTIONS[name])
                (first,) = torch.autograd.grad(loss, x, retain_graph=True)
                kept = first.clone()
                first.zero_()
                (second,) = torch.autograd.grad(loss, x, retain_graph=True)
                torch.testing.assert_close(second, kept, rtol=0, atol=0)
                loss.backward(retain_graph=True)
                x.grad.mul_(0)
                loss.backward()
                torch.testing.assert_close(x.grad, kept, rtol=0, atol=0)

    def test_no_gradient_is_made_where_none_is_needed(self):
        x, y = batch(dtype=torch.float32)
        with torch.no_grad():
            self.assertFalse(F.batch_hard(x, y).requires_grad)
        self.assertFalse(F.batch_hard(x.detach(), y).requires_grad)
        loss = F.batch_hard(x.detach(), y, tercet.Reference(x, y, 0))
        self.assertTrue(loss.requires_grad)

    def test_a_graph_that_is_dropped_frees_its_tensors(self):
        x, y = batch(dtype=torch.float32)
        hidden = x * 2
        loss = F.batch_hard(hidden, y, margin=2.0)
        known = weakref.ref(hidden)
        del loss, hidden
        gc.collect()
        self.assertIsNone(known())

    def test_rows_that_are_read_again_must_not_change(self):
        x, y = batch(dtype=torch.float32)
        rows = x * 1
        losses = F.batch_hard(rows, y, reduction="none", margin=2.0)
        with torch.no_grad():
            rows.mul_(2)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            losses.sum().backward()
        rows = x * 1
        loss = F.batch_hard(rows, y, margin=2.0)
        with torch.no_grad():
            rows.mul_(2)
        loss.backward()
        self.assertTrue(torch.isfinite(x.grad).all())

    def test_nan_is_seen(self):
        for name, function in MINED.items():
            with self.subTest(name):
                x, y = batch(dtype=torch.float32)
                with torch.no_grad():
                    x[3, 1] = torch.nan
                loss = function(x, y, **OPTIONS[name])
                loss.backward()
                self.assertTrue(loss.isnan().item() and x.grad[3].isnan().all().item())


class Defaults(unittest.TestCase):
    """Names and defaults in Python are those of the Rust structs, in their order."""

    FIRST = {"batch_negative": ("embeddings", "labels", "reference", "step"), "contrastive": ("x1", "x2", "same")}
    MODULES = {
        "triplet_margin": tercet.losses.TripletMarginLoss,
        "contrastive": tercet.losses.ContrastiveLoss,
        "batch_all": tercet.losses.BatchAllTripletLoss,
        "batch_hard": tercet.losses.BatchHardTripletLoss,
        "batch_semi_hard": tercet.losses.BatchSemiHardTripletLoss,
        "batch_negative": tercet.losses.BatchNegativeTripletLoss,
        "batch_contrastive": tercet.losses.BatchContrastiveLoss,
    }

    def test_of_functions_and_modules(self):
        rust = _library.defaults()
        self.assertEqual(len(rust), 9)
        for name, options in rust.items():
            if options.get("p") == 2.0:
                self.assertEqual(tercet.Lp(), (options.pop("p"), options.pop("eps")))
            with self.subTest(name):
                parameters = inspect.signature(getattr(F, name)).parameters.values()
                keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
                for own in ("return_stats", "scales", "exact", "own"):
                    keywords.pop(own, None)
                self.assertEqual(list(keywords.items()), list(options.items()))
                if name in self.MODULES:
                    parameters = inspect.signature(self.MODULES[name]).parameters.values()
                    self.assertEqual([(p.name, p.default) for p in parameters], list(options.items()))
                    self.assertEqual(self.MODULES[name]().options(), options)

    def test_modules_call_their_function_with_their_options(self):
        x, y = batch(dtype=torch.float32)
        for name in MINED:
            with self.subTest(name):
                changed = {"margin": 0.7, "distance": "cosine", "normalize": True, "precision": "high"}
                extra = {
                    "batch_all": {"mean_over": "valid", "reduction": "sum"},
                    "batch_hard": {"soft_margin": True, "reduction": "none"},
                    "batch_negative": {"negative": "random", "pairs": "once", "seed": 5},
                    "batch_contrastive": {"negatives": "hardest", "power": 1, "pos_margin": 0.1, "means_apart": True},
                }
                options = {**changed, **extra.get(name, {})}
                module = self.MODULES[name](**options)
                torch.testing.assert_close(module(x, y), MINED[name](x, y, **options), rtol=0, atol=0)
                self.assertIn("margin=0.7", repr(module))
        a, p, n = (batch(dtype=torch.float32, seed=seed)[0] for seed in range(3))
        options = {"margin": 0.7, "distance": tercet.Lp(3.0), "normalize": True, "swap": True, "reduction": "sum"}
        torch.testing.assert_close(
            tercet.losses.TripletMarginLoss(**options)(a, p, n), F.triplet_margin(a, p, n, **options)
        )
        options.pop("swap")
        same = torch.arange(12) % 2
        torch.testing.assert_close(
            tercet.losses.ContrastiveLoss(**options)(a, p, same), F.contrastive(a, p, same, **options)
        )


if __name__ == "__main__":
    unittest.main()
