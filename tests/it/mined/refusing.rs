//! A device that refuses one allocation, each in turn: only the call that asked for it fails.

use std::cell::Cell;
use std::fmt::Debug;

use tercet::internal::{self, OnDevice as Mined, Output, STATS_WRITTEN};
use tercet::internal::{Address, DeviceProperties, Grid, Launcher, Memory};
use tercet::{Error, Reduction};

use super::batch::{Batch, Content, Data, Labelling};
use super::launches::{OnDevice, mine};
use crate::support::devices::TestDevice;

struct Refusing<'a, L> {
    launcher: &'a L,
    /// How many allocations succeed before one is refused.
    left: Cell<usize>,
}

// SAFETY: the launcher inside does everything.
unsafe impl<L: Launcher> Launcher for Refusing<'_, L> {
    type Memory = L::Memory;

    fn properties(&self) -> &DeviceProperties {
        self.launcher.properties()
    }

    fn triangle_from(&self) -> usize {
        self.launcher.triangle_from()
    }

    fn allocate(&self, bytes: usize) -> Result<L::Memory, Error> {
        match self.left.get().checked_sub(1) {
            None => Err(Error::Cuda { action: format!("allocating {bytes} bytes"), reason: "a refusal".into() }),
            Some(left) => {
                self.left.set(left);
                self.launcher.allocate(bytes)
            }
        }
    }

    unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.launcher.clear(to, bytes) }
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, arguments: &[u8]) -> Result<(), Error> {
        // SAFETY: the caller's contract.
        unsafe { self.launcher.launch(stem, kernel, grid, arguments) }
    }
}

/// Returns how many allocations forward and backward make. Each was refused once; the pass then failed with that error, and
/// the next whole run gave what it did before.
pub fn at_each_allocation<D: TestDevice, L: Mined + Debug>(device: &D, loss_fn: &L) -> usize {
    let batch = Batch {
        rows: 70,
        // Too long for one launch to prepare: what a backward pass needs is an allocation of its own.
        dim: 129,
        gap: 0,
        offset: 0,
        content: Content::Uniform { scale: 1.0 },
        labelling: Labelling::Random { each: 4 },
        seed: 1,
        reference: None,
    };
    let data = Data::<half::bf16>::new(&batch, Reduction::Mean);
    let inputs = OnDevice::new(device, &batch, &data);
    let run = || {
        let mut mined = mine::<half::bf16, _, _>(device, loss_fn, &inputs, 0, &[&[1.0]]);
        (mined.loss.to_bits(), mined.grads.remove(0))
    };
    let expected = run();
    for refused in 0.. {
        let launcher = Refusing { launcher: device.launcher(), left: Cell::new(refused) };
        let (stats, upstream) = (device.poison::<f64>(STATS_WRITTEN), device.upload(&[1f32]));
        let grad = device.poison::<half::bf16>(batch.rows * batch.dim);
        let output = Output { stats: stats.address(), ..Output::default() };
        let (shape, to) = ([batch.rows, batch.dim], [grad.address(), 0]);
        // SAFETY: buffers of the device, of the shapes that the calls expect, alive until `run` has read what it computes.
        let result = unsafe {
            internal::mined_forward::<_, half::bf16, _>(
                loss_fn,
                &launcher,
                shape,
                &inputs.inputs,
                &output,
                [true, false],
            )
            .and_then(|kept| {
                let from = upstream.address();
                internal::mined_backward::<_, half::bf16, _>(loss_fn, &launcher, shape, &kept, &inputs.inputs, from, to)
            })
        };
        match result {
            Ok(()) => return refused,
            Err(error) => assert!(error.to_string().contains("a refusal"), "{loss_fn:?}: {error}"),
        }
        assert!(run() == expected, "{loss_fn:?} after allocation {refused} was refused");
    }
    unreachable!("the loop ends with the first run that nothing is refused to")
}
