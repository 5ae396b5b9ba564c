"""The memory of earlier batches."""

import io
import unittest

import torch

import tercet
from cases import batch
from tercet import functional as F


class Memory(unittest.TestCase):
    def memory(self, capacity=30, warm_up=0):
        loss_fn = tercet.losses.BatchAllTripletLoss(margin=2.0)
        return tercet.CrossBatchMemory(loss_fn, capacity, 5, warm_up)

    def test_the_loss_is_that_against_the_last_batches(self):
        memory, seen = self.memory(), []
        for step in range(6):
            x, y = batch(12, 5, torch.float32, seed=step)
            seen = [*seen, (x.detach(), y)]
            loss = memory(x, y)
            rows, labels = torch.cat([r for r, _ in seen])[-30:], torch.cat([v for _, v in seen])[-30:]
            expected = F.batch_all(x, y, tercet.Reference(rows, labels, rows.shape[0] - 12), margin=2.0)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(expected, x)[0])
        self.assertEqual((len(memory), memory.capacity), (30, 30))

    def test_a_batch_larger_than_the_memory(self):
        memory = self.memory(capacity=7)
        x, y = batch(12, 5, torch.float32)
        memory.enqueue(x, y)
        self.assertEqual(memory.newest(12).tolist(), [-1] * 5 + [5, 6, 0, 1, 2, 3, 4])
        places = memory.newest(7)
        torch.testing.assert_close(memory.embeddings[places], x.detach()[-7:])

    def test_warm_up(self):
        memory = self.memory(warm_up=20)
        x, y = batch(12, 5, torch.float32)
        torch.testing.assert_close(memory(x, y), F.batch_all(x, y, margin=2.0))
        self.assertFalse(memory.is_warm)
        memory(x, y)
        self.assertTrue(memory.is_warm)
        memory.clear()
        self.assertEqual(len(memory), 0)

    def test_a_checkpoint_has_the_place_of_the_next_row(self):
        first, file = self.memory(), io.BytesIO()
        for step in range(4):
            first(*batch(12, 5, torch.float32, seed=step))
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = self.memory()
        second.load_state_dict(torch.load(file, weights_only=True))
        x, y = batch(12, 5, torch.float32, seed=9)
        torch.testing.assert_close(first(x, y), second(x, y), rtol=0, atol=0)

    def test_what_does_not_fit_is_refused(self):
        x, y = batch(12, 5, torch.float32)
        for rows, labels, text in (
            (x[:, :4], y, "embeddings: expected shape"),
            (x.half(), y, "embeddings: expected torch.float32"),
            (x, y[:3], "labels: expected shape"),
        ):
            with self.assertRaisesRegex(ValueError, text):
                self.memory()(rows, labels)
        with self.assertRaisesRegex(ValueError, "capacity: expected at least 1"):
            self.memory(capacity=0)


if __name__ == "__main__":
    unittest.main()
