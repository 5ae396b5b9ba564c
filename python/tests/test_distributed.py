"""The loss of several processes against that of one with the whole batch."""

import os
import tempfile
import unittest

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import tercet
from cases import batch

LOSSES = {
    "batch_all": lambda: tercet.losses.BatchAllTripletLoss(margin=1.0),
    "batch_all, all triplets": lambda: tercet.losses.BatchAllTripletLoss(margin=1.0, mean_over="valid"),
    "batch_hard": lambda: tercet.losses.BatchHardTripletLoss(margin=1.0),
    "batch_semi_hard": lambda: tercet.losses.BatchSemiHardTripletLoss(margin=1.0, reduction="sum"),
    "batch_negative": lambda: tercet.losses.BatchNegativeTripletLoss(margin=1.0, negative="hardest"),
    "batch_contrastive": lambda: tercet.losses.BatchContrastiveLoss(margin=4.0),
    "batch_contrastive, hardest": lambda: tercet.losses.BatchContrastiveLoss(margin=4.0, negatives="hardest"),
    "batch_contrastive, apart": lambda: tercet.losses.BatchContrastiveLoss(margin=4.0, power=1, means_apart=True),
}
SHARES = {1: [24], 2: [7, 17], 3: [10, 0, 14], 4: [6, 6, 6, 6]}
ROWS, DIM = 24, 6


def _whole(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value, gradient, and labels of the whole batch; of 16-bit rows computed in float32."""
    x, y = batch(ROWS, DIM, dtype)
    wide = x if dtype is torch.float64 else x.float()
    value = LOSSES[name]()(wide, y)
    return value.detach(), torch.autograd.grad(value, x)[0], y


def _process(rank: int, world: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    sizes = SHARES[world]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for name, make in LOSSES.items():
        for dtype in (torch.float64, torch.bfloat16):
            value, grad, labels = _whole(name, dtype)
            for work in ("shared", "repeated"):
                x = batch(ROWS, DIM, dtype)[0].detach()[own].requires_grad_()
                loss = tercet.DistributedLoss(make(), work=work)(x, labels[own])
                loss.backward()
                what = f"{name}, {work}, {dtype}, process {rank} of {world}"
                close = {torch.float64: 1e-12, torch.bfloat16: 1e-5}[dtype]
                torch.testing.assert_close(loss.detach(), value, rtol=close, atol=0, msg=lambda m: f"{what}: {m}")
                largest = grad.abs().max().item() * world
                # Both were rounded to 16 bits, one of them before W was a factor.
                rounded = {torch.bfloat16: 2**-7}.get(dtype, 0.0)
                torch.testing.assert_close(
                    x.grad, grad[own] * world, rtol=0, atol=(close + rounded) * largest, msg=lambda m: f"{what}: {m}"
                )
    dist.destroy_process_group()


class Distributed(unittest.TestCase):
    def test_one_to_four_processes(self):
        for world in SHARES:
            with self.subTest(world=world), tempfile.TemporaryDirectory() as folder:
                mp.spawn(_process, (world, os.path.join(folder, "rendezvous")), nprocs=world)

    def test_what_it_does_not_take(self):
        with self.assertRaisesRegex(ValueError, "reduction"):
            tercet.DistributedLoss(tercet.losses.BatchHardTripletLoss(reduction="none"))
        with self.assertRaisesRegex(ValueError, "work: expected"):
            tercet.DistributedLoss(tercet.losses.BatchHardTripletLoss(), work="half")


if __name__ == "__main__":
    unittest.main()
