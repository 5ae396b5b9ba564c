//! What tests ask of whatever launches kernels: memory that they fill and read.
#![allow(dead_code, reason = "each test uses its share")]

use bytemuck::Pod;
use tercet::Element;
use tercet::cuda::batch::Input;
use tercet::cuda::{Address, Launcher, Memory};

use super::support::mined::{Batch, Data};

pub type MemoryOf<D> = <<D as TestDevice>::Launcher as Launcher>::Memory;

pub trait TestDevice {
    type Launcher: Launcher;
    fn launcher(&self) -> &Self::Launcher;
    fn upload<T: Pod>(&self, data: &[T]) -> MemoryOf<Self>;
    fn read<T: Pod>(&self, memory: &MemoryOf<Self>, len: usize) -> Vec<T>;

    /// `len` numbers of T that are NaN, or the largest integers.
    fn poison<T: Pod>(&self, len: usize) -> MemoryOf<Self> {
        self.upload(&vec![0xffu8; len * size_of::<T>()])
    }
}

/// A batch in a device's memory.
pub struct OnDevice<M> {
    pub input: Input,
    _memory: [M; 2],
}

impl<M: Memory> OnDevice<M> {
    pub fn new<T: Element, D: TestDevice<Launcher: Launcher<Memory = M>>>(
        device: &D,
        batch: &Batch,
        data: &Data<T>,
    ) -> Self {
        let (x, labels) = (device.upload(&data.laid_out), device.upload(&data.labels));
        let input = Input {
            x: x.address() + (batch.offset * size_of::<T>()) as Address,
            stride: batch.dim + batch.gap,
            labels: labels.address(),
        };
        Self { input, _memory: [x, labels] }
    }
}
