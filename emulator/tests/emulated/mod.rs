//! The emulator, for tests that every backend takes.

use bytemuck::Pod;
use tercet_emulator::{Buffer, Emulator};

use super::launches::TestDevice;

impl TestDevice for Emulator {
    type Launcher = Self;

    fn launcher(&self) -> &Self {
        self
    }

    fn upload<T: Pod>(&self, data: &[T]) -> Buffer {
        Emulator::upload(self, data)
    }

    fn read<T: Pod>(&self, memory: &Buffer, len: usize) -> Vec<T> {
        let mut all = memory.read::<T>();
        assert!(all.len() >= len, "{len} numbers of {}", all.len());
        all.truncate(len);
        all
    }
}
