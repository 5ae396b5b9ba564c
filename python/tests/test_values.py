"""Values and gradients against the same formulas in PyTorch's own operations, in float64."""

import unittest

import torch
from torch.nn.functional import relu

import tercet
from cases import DTYPES, MINED, OPTIONS, batch
from tercet import functional as F


def both(loss, *inputs):
    """A loss and its gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return value.detach(), [grad.double() for grad in torch.autograd.grad(value, leaves)]


class Values(unittest.TestCase):
    def check(self, ours, formula, *inputs, dtypes=DTYPES):
        for dtype in dtypes:
            with self.subTest(dtype=dtype):
                rounded = [x.detach().to(dtype) for x in inputs]
                value, grads = both(ours, *rounded)
                expected, expected_grads = both(formula, *(x.double() for x in rounded))
                self.assertEqual(value.dtype, torch.float64 if dtype is torch.float64 else torch.float32)
                # Of the largest entry: the arithmetic's error, and the rounding of a gradient to the input's type.
                of_value = 1e-13 if dtype is torch.float64 else 2e-5
                of_grad = of_value + {torch.float16: 2**-11, torch.bfloat16: 2**-8}.get(dtype, 0.0)
                self.assertLessEqual((value.double() - expected).abs().item(), of_value * expected.abs().item())
                for grad, expected_grad in zip(grads, expected_grads):
                    largest = expected_grad.abs().max().item()
                    self.assertLessEqual((grad - expected_grad).abs().max().item(), of_grad * largest)

    def test_triplet_margin(self):
        rows = [batch(40, 24, seed=seed)[0] for seed in range(3)]

        def formula(a, p, n):
            return relu((a - p).square().sum(1) - (a - n).square().sum(1) + 0.2).mean()

        self.check(F.triplet_margin, formula, *rows)
        ours = tercet.losses.TripletMarginLoss.torch(swap=True)
        self.check(ours, torch.nn.TripletMarginLoss(swap=True), *rows, dtypes=(torch.float32, torch.float64))

    def test_contrastive(self):
        rows, same = [batch(40, 24, seed=seed)[0] for seed in range(2)], torch.arange(40) % 2

        def formula(x1, x2):
            d = (x1 - x2).square().sum(1).sqrt()
            return (same * d.square() / 2 + (1 - same) * relu(8 - d).square() / 2).mean()

        self.check(lambda x1, x2: F.contrastive(x1, x2, same, margin=8), formula, *rows)

    def test_batch_all(self):
        x, y = batch(45, 24)
        alike = y[:, None] == y[None]
        triplets = (alike & ~torch.eye(45, dtype=torch.bool))[:, :, None] & ~alike[:, None, :]

        def formula(x):
            d = (x[:, None] - x[None]).square().sum(2)
            terms = relu(d[:, :, None] - d[:, None, :] + 1.0)[triplets]
            return terms.sum() / (terms > 0).sum()

        self.check(lambda x: F.batch_all(x, y, margin=1.0), formula, x)

    def test_batch_hard(self):
        x, y = batch(45, 24)
        alike = y[:, None] == y[None]

        def formula(x):
            d = 1 - torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
            positive = d.masked_fill(~alike | torch.eye(45, dtype=torch.bool), -torch.inf).amax(1)
            return relu(positive - d.masked_fill(alike, torch.inf).amin(1) + 0.2).mean()

        self.check(lambda x: F.batch_hard(x, y, distance="cosine"), formula, x)

    def test_batch_contrastive_with_a_mean_for_each_kind(self):
        x, y = batch(45, 24)
        alike, itself = y[:, None] == y[None], torch.eye(45, dtype=torch.bool)

        def formula(x):
            u = torch.nn.functional.normalize(x)
            d = (u[:, None] - u[None] + itself[:, :, None]).square().sum(2).sqrt()
            pulls, pushes = relu(d - 0.4)[alike & ~itself], relu(1.2 - d)[~alike]
            return pulls.sum() / (pulls > 0).sum() + pushes.sum() / (pushes > 0).sum()

        options = {"power": 1, "pos_margin": 0.4, "margin": 1.2, "means_apart": True, "mean_over": "active"}
        self.check(lambda x: F.batch_contrastive(x, y, normalize=True, **options), formula, x)

    def test_the_upstream_gradient_is_a_factor(self):
        for dtype in DTYPES:
            for name, function in MINED.items():
                with self.subTest(name, dtype=dtype):
                    x, y = batch(dtype=dtype)
                    (plain,) = torch.autograd.grad(function(x, y, **OPTIONS[name]), x)
                    # A power of two moves no bit, whether the gradient was ready or not; but for what float16 rounds near 0.
                    (scaled,) = torch.autograd.grad(function(x, y, **OPTIONS[name]) * 4.0, x)
                    near_zero = 2.0**-23 if dtype is torch.float16 else 0.0
                    torch.testing.assert_close(scaled, plain * 4.0, rtol=0, atol=near_zero)

    def test_a_gradient_scaler_saves_what_float16_would_lose(self):
        rows = 4096
        a, p, n = (torch.full((rows, 1), value, dtype=torch.float16) for value in (0.0, 2.0**-12, 0.0))
        a.requires_grad_()
        F.triplet_margin(a, p, n).mul(2.0**14).backward()
        # 2 (n - p) / rows = -2^-23 is flushed to 0 in float16; times 2^14 it is -2^-9.
        torch.testing.assert_close(a.grad, torch.full_like(a, -(2.0**-9)), rtol=0, atol=0)
        x, y = torch.zeros(4096, 1, dtype=torch.float16), torch.arange(4096) // 2
        x[::2] = 2.0**-12
        x.requires_grad_()
        F.batch_hard(x, y).mul(2.0**14).backward()
        self.assertGreater(x.grad.abs().max().item(), 0)

    def test_views_of_any_strides(self):
        x, y = batch(24, 7, torch.float32)
        wide = torch.randn(24, 30)
        for view in (
            wide[:, 3:10],
            wide.t().contiguous().t()[:, ::4],
            wide[::2].repeat(2, 1)[:, :7],
            wide[:1, :7].expand(24, 7),
        ):
            leaf = view.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.batch_all(leaf, y, margin=9.0), leaf)
            copy = view.clone().contiguous().requires_grad_()
            (expected,) = torch.autograd.grad(F.batch_all(copy, y, margin=9.0), copy)
            torch.testing.assert_close(grad, expected, rtol=0, atol=0)

    def test_statistics(self):
        x = torch.tensor([[0.0], [1.0], [3.0], [5.0]])
        loss, stats = F.batch_all(x, torch.tensor([7, 7, -1, -1]), margin=4.0, return_stats=True)
        self.assertEqual((loss.item(), stats.active.item(), stats.valid.item()), (2.5, 2, 8))
        self.assertEqual(stats.mean_positive_distance.dtype, torch.float64)
        self.assertEqual((stats.mean_positive_distance.item(), stats.mean_negative_distance.item()), (2.5, 13.5))
        self.assertFalse(stats.too_many_pairs.item())

    def test_equal_steps_draw_alike(self):
        x, y = batch(60, 4, torch.float32)
        draw = lambda step: F.batch_negative(x, y, step=step, negative="random", margin=9.0).item()
        self.assertEqual(draw(3), draw(torch.tensor(3)))
        self.assertEqual(draw(None), draw(0))
        self.assertNotEqual(draw(3), draw(4))

    def test_top_k(self):
        queries, stored = batch(20, 8, torch.float32)[0], batch(300, 8, torch.float32, seed=1)[0]
        distances, indices = F.top_k(queries, stored, k=5, distance="euclidean")
        expected = torch.cdist(queries, stored, compute_mode="donot_use_mm_for_euclid_dist").topk(5, largest=False)
        self.assertFalse(distances.requires_grad)
        torch.testing.assert_close(indices, expected.indices)
        torch.testing.assert_close(distances, expected.values.detach())
        none, index = F.top_k(queries[:1], stored[:1], k=2, own=0)
        self.assertEqual((none.tolist(), index.tolist()), ([[torch.inf] * 2], [[-1, -1]]))


if __name__ == "__main__":
    unittest.main()
