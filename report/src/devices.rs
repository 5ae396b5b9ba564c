//! What a multiprocessor of each kind of device holds.

use tercet::internal::{DeviceProperties, SHARED_OF_DRIVER, Shared};

/// A kind of device, with the sizes of one that has it. Limits are from the table of compute capabilities in CUDA's
/// programming guide; all have 64 Ki registers.
#[derive(Clone, Copy, Debug)]
pub struct Multiprocessor {
    /// Compute capability, such as 9 and 0.
    pub capability: (u32, u32),
    /// The device that launches are planned for.
    pub name: &'static str,
    /// The multiprocessors of that device.
    pub count: u32,
    /// Threads at a time.
    pub threads: u32,
    /// Blocks at a time.
    pub blocks: u32,
    /// Shared memory, of which each block takes [`SHARED_OF_DRIVER`] more than it asks for.
    pub shared: Shared,
}

/// Registers of a multiprocessor.
const REGISTERS: u32 = 64 << 10;
/// A warp's registers are handed out in pieces of so many.
const REGISTER_PIECE: u32 = 256;
/// A multiprocessor's registers lie in so many files, each of which serves its own warps.
const FILES: u32 = 4;
/// Shared memory is handed out in pieces of so many bytes.
const SHARED_PIECE: u32 = 128;

/// What the crate knows of a device of this capability.
const fn shared(major: u32, minor: u32) -> Shared {
    Shared::of(major, minor).expect("one of the crate's devices")
}

/// The devices that the images serve.
pub const MULTIPROCESSORS: [Multiprocessor; 6] = [
    Multiprocessor {
        capability: (8, 0),
        name: "NVIDIA A100",
        count: 108,
        threads: 2048,
        blocks: 32,
        shared: shared(8, 0),
    },
    Multiprocessor {
        capability: (8, 6),
        name: "NVIDIA RTX A6000",
        count: 84,
        threads: 1536,
        blocks: 16,
        shared: shared(8, 6),
    },
    Multiprocessor {
        capability: (8, 9),
        name: "NVIDIA L40S",
        count: 142,
        threads: 1536,
        blocks: 24,
        shared: shared(8, 9),
    },
    Multiprocessor {
        capability: (9, 0),
        name: "NVIDIA H200",
        count: 132,
        threads: 2048,
        blocks: 32,
        shared: shared(9, 0),
    },
    Multiprocessor {
        capability: (10, 0),
        name: "NVIDIA B200",
        count: 148,
        threads: 2048,
        blocks: 32,
        shared: shared(10, 0),
    },
    Multiprocessor {
        capability: (12, 0),
        name: "NVIDIA GeForce RTX 5090",
        count: 170,
        threads: 1536,
        blocks: 24,
        shared: shared(12, 0),
    },
];

impl Multiprocessor {
    /// How many blocks it holds at a time, each of so many threads with so many registers, and with so many bytes of shared
    /// memory; 0 if not one.
    #[must_use]
    pub fn resident(&self, threads: u32, registers: u32, shared_bytes: u32) -> u32 {
        if shared_bytes > self.shared.of_block || threads == 0 {
            return 0;
        }
        let warps = threads.div_ceil(32);
        let of_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_PIECE);
        let by_registers = REGISTERS / FILES / of_warp * FILES / warps;
        let by_shared =
            self.shared.of_multiprocessor / (shared_bytes + SHARED_OF_DRIVER).next_multiple_of(SHARED_PIECE);
        by_registers.min(by_shared).min(self.threads / threads).min(self.blocks)
    }

    /// What plans of launches depend on.
    #[must_use]
    pub fn properties(&self) -> DeviceProperties {
        DeviceProperties {
            name: self.name.into(),
            major: self.capability.0,
            minor: self.capability.1,
            multiprocessors: self.count,
            threads_per_multiprocessor: self.threads,
            shared_bytes_per_block: self.shared.of_block,
            shared_bytes_per_multiprocessor: self.shared.of_multiprocessor,
        }
    }

    /// Whether code for `target`, such as `sm_90a`, runs on it: that of its own capability, and without a letter that of a lower
    /// one with the same first number.
    #[must_use]
    pub fn runs(&self, target: &str) -> bool {
        let Some(number) = target.strip_prefix("sm_") else { return false };
        let own = self.capability.0 * 10 + self.capability.1;
        match number.strip_suffix(|c: char| c.is_ascii_lowercase()) {
            Some(number) => number.parse() == Ok(own),
            None => number.parse().is_ok_and(|number: u32| number / 10 == self.capability.0 && number <= own),
        }
    }
}

/// The devices that code for `target` runs on, the one of its own capability first.
pub fn of_target(target: &str) -> impl Iterator<Item = &'static Multiprocessor> {
    MULTIPROCESSORS.iter().filter(move |multiprocessor| multiprocessor.runs(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(capability: (u32, u32)) -> &'static Multiprocessor {
        MULTIPROCESSORS.iter().find(|m| m.capability == capability).unwrap()
    }

    #[test]
    fn each_limit_binds() {
        let hopper = of((9, 0));
        assert_eq!(hopper.resident(256, 32, 0), 8, "threads");
        assert_eq!(hopper.resident(32, 16, 0), 32, "blocks");
        assert_eq!(hopper.resident(128, 152, 0), 3, "registers: 12 warps of 4864, not 13");
        assert_eq!(hopper.resident(128, 168, 0), 3);
        assert_eq!(hopper.resident(128, 169, 0), 2, "registers in pieces of 256 a warp");
        assert_eq!(hopper.resident(128, 32, 100 << 10), 2, "shared memory");
        assert_eq!(hopper.resident(128, 32, (114 << 10) - SHARED_OF_DRIVER), 2);
        assert_eq!(hopper.resident(128, 32, (114 << 10) - SHARED_OF_DRIVER + 1), 1);
        assert_eq!(hopper.resident(128, 32, 227 << 10), 1);
        assert_eq!(hopper.resident(128, 32, (227 << 10) + 1), 0, "more than a block may have");
        assert_eq!(of((8, 6)).resident(256, 32, 0), 6);
        assert_eq!(of((8, 6)).resident(128, 32, 100 << 10), 0);
    }

    #[test]
    fn targets_run_where_the_driver_would_take_them() {
        let devices = |target| of_target(target).map(|m| m.capability).collect::<Vec<_>>();
        assert_eq!(devices("sm_80"), [(8, 0), (8, 6), (8, 9)]);
        assert_eq!(devices("sm_86"), [(8, 6), (8, 9)]);
        assert_eq!(devices("sm_90a"), [(9, 0)]);
        assert_eq!(devices("sm_100"), [(10, 0)]);
        assert_eq!(devices("sm_120"), [(12, 0)]);
        assert_eq!(devices("compute_80"), []);
        // The same choice as among images at run time.
        for device in &MULTIPROCESSORS {
            let image =
                tercet::internal::choose(tercet::internal::IMAGES, "batch", device.capability.0, device.capability.1);
            assert!(
                image.is_some_and(|i| device.runs(i.target) || i.target.starts_with("compute_")),
                "{}",
                device.name
            );
        }
    }
}
