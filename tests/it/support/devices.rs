//! What tests ask of every device that launches kernels: memory that they fill and read.

use bytemuck::Pod;
use tercet::internal::Launcher;

pub type MemoryOf<D> = <<D as TestDevice>::Launcher as Launcher>::Memory;

pub trait TestDevice {
    type Launcher: Launcher;
    fn launcher(&self) -> &Self::Launcher;
    fn upload<T: Pod>(&self, data: &[T]) -> MemoryOf<Self>;
    fn read<T: Pod>(&self, memory: &MemoryOf<Self>, len: usize) -> Vec<T>;

    /// Memory of `len` numbers of T, all bits set: NaN for floats.
    fn poison<T: Pod>(&self, len: usize) -> MemoryOf<Self> {
        self.upload(&vec![0xffu8; len * size_of::<T>()])
    }
}
