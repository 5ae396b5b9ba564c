//! Training steps of paired losses, forward and then backward, as tensors on a device take them: how many matrices they move, and
//! that gradients which are made with the loss have the bits of those that are made after it.

use half::{bf16, f16};
use tercet::internal::{Launcher, Memory, Pass};
use tercet::{Element, PairedDistance, Reduction};
use tercet_emulator::{Emulator, Options};

use super::launches::Launched;
use crate::support::Numbers;

/// Rows of 512 numbers are the longest that stay in registers in every dtype below; longer ones are read for the gradient again.
const SHAPE: [usize; 2] = [64, 512];

/// What a step moved, in matrices of [`SHAPE`], and its gradients.
struct Step<T, const K: usize> {
    matrices: f64,
    grads: [Vec<T>; K],
}

/// The step that `with_loss` asks for: whether forward makes the gradients, too.
fn step<T: Element, L: Launched<K>, const K: usize>(loss: &L, upstream: f64, with_loss: bool) -> Step<T, K> {
    let [rows, dim] = SHAPE;
    let emulator = Emulator::new(Options { detect: true, ..Options::default() });
    let mut numbers = Numbers(7);
    let inputs =
        [(); K].map(|()| emulator.upload(&(0..rows * dim).map(|_| T::from_f64(numbers.unit())).collect::<Vec<_>>()));
    let memory = |bytes: usize| emulator.allocate(bytes).expect("memory");
    let grads = [(); K].map(|()| memory(rows * dim * size_of::<T>()));
    let value = memory(size_of::<T::Scalar>());
    let upstream = emulator.upload(&[T::Scalar::from_f64(upstream)]);
    let ready = loss.ready(&emulator, rows, 1);
    let rows_only = Pass { inputs: inputs.each_ref().map(Memory::address), strides: [dim; K], ..Pass::default() };
    let to = grads.each_ref().map(Memory::address);
    let forward = Pass { loss: value.address(), grads: if with_loss { to } else { [0; K] }, ..rows_only };
    let backward = Pass { upstream: upstream.address(), idle_if_one: with_loss, grads: to, ..rows_only };
    emulator.take_work();
    for pass in [forward, backward] {
        // SAFETY: buffers of the emulator, of the shape that `pass` says.
        unsafe { loss.launch::<T, _>(&ready, &emulator, SHAPE, &pass) }.unwrap_or_else(|e| panic!("{e}"));
    }
    let bytes: u64 = emulator.take_work().iter().map(|work| work.traffic.bytes_read + work.traffic.bytes_written).sum();
    Step { matrices: bytes as f64 / (rows * dim * size_of::<T>()) as f64, grads: grads.map(|grad| grad.read()) }
}

/// What a step of K matrices must move: each matrix and each gradient once, and a second time if the upstream is not 1; or, of
/// f16, the matrices in either pass and the gradients once. Beside them there is little, less than half of a matrix here: each lane of
/// a row reads the upstream, and which pairs belong together.
pub fn steps_move_what_their_dtype_needs<L: Launched<K>, const K: usize>() {
    fn moves<T: Element, L: Launched<K>, const K: usize>(upstreams: [(f64, usize); 3]) {
        let loss = L::plain(1.0, PairedDistance::SquaredEuclidean, Reduction::Mean);
        let with_loss = loss.grads_with_loss::<T>(SHAPE);
        for (upstream, expected) in upstreams {
            let Step { matrices, grads } = step::<T, L, K>(&loss, upstream, with_loss);
            let beside = matrices - expected as f64;
            assert!((0.0..0.5).contains(&beside), "{}: {matrices} instead of {expected} at {upstream}", T::NAME);
            // The factors upstream and 1/B are inside the one rounding on either way.
            let apart = step::<T, L, K>(&loss, upstream, false).grads;
            assert!(grads == apart, "{}: other bits than those of a pass for the gradients alone", T::NAME);
            assert!(grads.iter().flatten().any(|g| g.to_f64() != 0.0), "no row has a gradient");
        }
    }
    moves::<f32, L, K>([(1.0, 2 * K), (-2.5, 4 * K), (65536.0, 4 * K)]);
    moves::<bf16, L, K>([(1.0, 2 * K), (-2.5, 4 * K), (65536.0, 4 * K)]);
    moves::<f16, L, K>([(1.0, 3 * K), (-2.5, 3 * K), (1024.0, 3 * K)]);
    let each_row = L::plain(1.0, PairedDistance::SquaredEuclidean, Reduction::None);
    assert!(!each_row.grads_with_loss::<bf16>(SHAPE), "a loss a row has an upstream a row");
}
