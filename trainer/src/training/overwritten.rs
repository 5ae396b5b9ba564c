//! The rows of the memory of embeddings that a step overwrites, so that a step that is left out leaves nothing in it.

use anyhow::Result;
use tch::{Kind, Tensor};
use tercet::Reference;
use tercet::torch::CrossBatchMemory;

/// Rows of the memory before a batch takes their places.
pub struct Overwritten {
    /// The embeddings and the labels.
    rows: [Tensor; 2],
    places: Tensor,
    len: usize,
    position: usize,
}

impl Overwritten {
    /// Copies the rows that the next `rows` embeddings overwrite: row `i` goes to place `(position + i) mod capacity`.
    pub fn by(rows: usize, memory: &CrossBatchMemory) -> Result<Self> {
        let (len, position, capacity) = (memory.len(), memory.position(), memory.capacity());
        let places = (0..rows.min(capacity)).map(|i| (position + i) % capacity).filter(|&place| place < len);
        let places: Vec<i64> = places.map(|place| place as i64).collect();
        let Reference { embeddings, labels, .. } = memory.reference();
        let places = Tensor::f_from_slice(&places)?.f_to_device(embeddings.device())?;
        let rows = [embeddings.f_index_select(0, &places)?, labels.f_index_select(0, &places)?];
        Ok(Self { rows, places, len, position })
    }

    /// Makes the memory as it was when the rows were copied.
    pub fn put_back(self, memory: &mut CrossBatchMemory) -> Result<()> {
        if self.len == 0 {
            memory.clear();
            return Ok(());
        }
        let Reference { embeddings, labels, .. } = memory.reference();
        let mut before = Vec::new();
        for (now, rows) in [embeddings, labels].into_iter().zip(&self.rows) {
            let copy = now.f_narrow(0, 0, self.len as i64)?.copy();
            before.push(copy.f_index_copy(0, &self.places, rows)?);
        }
        Ok(memory.f_restore(&before[0], &before[1].to_kind(Kind::Int64), self.position)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_memory_is_as_it_was_whatever_was_put_in() {
        let batch = |first: i64, rows: i64| {
            let labels = Tensor::arange_start(first, first + rows, (Kind::Int64, Device::Cpu));
            (labels.to_kind(Kind::Float).reshape([-1, 1]).expand([rows, 2], false).contiguous(), labels)
        };
        let contents = |memory: &CrossBatchMemory| {
            let Reference { embeddings, labels, .. } = memory.reference();
            (memory.position(), embeddings.copy(), labels.copy())
        };
        // Memories that are empty, partly filled, full or have wrapped around; batches that wrap around, fill it, or
        // are larger.
        for before in [0, 3, 5, 7, 12] {
            for rows in [1, 2, 4, 5, 9] {
                let mut memory = CrossBatchMemory::new(5, 2, Kind::Float, Device::Cpu);
                if before > 0 {
                    let (embeddings, labels) = batch(0, before);
                    memory.enqueue(&embeddings, &labels);
                }
                let was = contents(&memory);
                let overwritten = Overwritten::by(rows as usize, &memory).unwrap();
                let (_, labels) = batch(100, rows);
                memory.enqueue(&Tensor::full([rows, 2], f64::INFINITY, (Kind::Float, Device::Cpu)), &labels);
                assert_ne!(contents(&memory), was);
                overwritten.put_back(&mut memory).unwrap();
                assert_eq!(contents(&memory), was, "{before} rows, then {rows}");
            }
        }
    }
}
