//! How kernels are launched, as a device sees it; and with their machine code a hash of each stem, which
//! `cargo xtask gpu-status` compares with those that were verified on a device. Nothing is run here.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::LazyLock;

use bytemuck::Pod;
use tercet::internal::{
    self, Address, DeviceProperties, Dtype, Grid, IMAGES, Image, Input, Inputs, Launcher, Memory, OnDevice, Output,
    ReferenceInput, SearchInputs, StoredInput,
};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Distance, Error, Negative, Own, PairwiseDistance, Precision, Reduction,
    TopK, TripletMarginLoss,
};
use tercet_kernel_report::devices::{self, Multiprocessor};
use tercet_kernel_report::hash;
use tercet_kernel_report::report::Resources;
use tercet_kernel_report::work::{Work, dynamic_shared_bytes};

use crate::mined::recorded::{Recorded, Records};
use crate::paired::property::OfRows;
use crate::support::backends::{Backend, EachDtype, Number, Operation, each_dtype};
use crate::support::devices::TestDevice;
use crate::support::records::Listed;

/// Names the file where `cargo xtask gpu-status` and bundles want the hashes: lines of target, stem and hash.
const FILE: &str = "TERCET_KERNEL_HASHES";

/// One call to a device.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Clear(usize),
    Launch { stem: String, kernel: String, grid: Grid },
}

/// A device that does nothing but write down what it is asked.
struct Recorder {
    properties: DeviceProperties,
    calls: RefCell<Vec<Call>>,
    allocations: Cell<usize>,
    bytes: Cell<usize>,
}

impl Recorder {
    fn new(device: &Multiprocessor) -> Self {
        Self {
            properties: device.properties(),
            calls: RefCell::default(),
            allocations: Cell::default(),
            bytes: Cell::default(),
        }
    }
}

/// Memory of the host that nobody touches, so that it costs nothing.
struct Untouched {
    start: NonNull<u8>,
    layout: Layout,
}

/// What addresses of device memory are multiples of.
const ALIGNED: usize = 256;

impl Untouched {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes + ALIGNED, 1).expect("a size of memory");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        // SAFETY: from `new`, of that layout; nobody else frees it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: it owns its bytes, as a box does.
unsafe impl Send for Untouched {}
// SAFETY: as many bytes follow the multiple of 256 within what `new` allocated, and only `drop` frees them; nothing that was
// launched uses them.
unsafe impl Memory for Untouched {
    fn address(&self) -> Address {
        (self.start.as_ptr() as Address).next_multiple_of(ALIGNED as Address)
    }
}

// SAFETY: memory is as large as asked for. No kernel is run and nothing is filled, so the order of calls makes no difference;
// the code that asks only passes addresses on.
unsafe impl Launcher for Recorder {
    type Memory = Untouched;

    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Untouched, Error> {
        self.allocations.set(self.allocations.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Ok(Untouched::new(bytes))
    }

    unsafe fn clear(&self, _: Address, bytes: usize) -> Result<(), Error> {
        self.calls.borrow_mut().push(Call::Clear(bytes));
        Ok(())
    }

    unsafe fn launch(&self, stem: &str, kernel: &str, grid: Grid, _: &[u8]) -> Result<(), Error> {
        self.calls.borrow_mut().push(Call::Launch { stem: stem.into(), kernel: kernel.into(), grid });
        Ok(())
    }
}

impl TestDevice for Recorder {
    type Launcher = Self;

    fn launcher(&self) -> &Self {
        self
    }

    fn upload<T: Pod>(&self, data: &[T]) -> Untouched {
        Untouched::new(size_of_val(data))
    }

    fn read<T: Pod>(&self, _: &Untouched, len: usize) -> Vec<T> {
        vec![T::zeroed(); len]
    }
}

impl Backend for Recorder {
    const NAME: &'static str = "a recorder of launches";
    const IS_DEVICE: bool = true;

    fn run<O: Operation, T: Number>(&self, case: &O::Case, data: &O::Data<T>) -> O::Output<T> {
        O::on_device(self, case, data)
    }
}

/// The launches of one stem's calls on some devices.
struct Recording<'a, L> {
    recorders: &'a [Recorder],
    operation: PhantomData<L>,
}

impl<L: Listed> EachDtype for Recording<'_, L> {
    type Result = ();
    fn of<T: Number>(&self) {
        for (_, case, data) in L::listed::<T>(true) {
            self.recorders.iter().for_each(|recorder| drop(recorder.run::<L, T>(&case, &data)));
        }
    }
}

/// A mined loss with batches of a size at which rows of tiles are split, and of long rows, which those that are recorded are
/// too small for.
struct Large<'a, L> {
    recorders: &'a [Recorder],
    losses: Vec<L>,
}

impl<L: OnDevice> Large<'_, L> {
    fn of<T: Number>(&self) {
        for shape in [[8192, 128], [8192, 512]] {
            self.of_shape::<T>(shape);
        }
    }

    fn of_shape<T: Number>(&self, shape: [usize; 2]) {
        for loss in &self.losses {
            for references in [None, Some(3 * shape[0])] {
                self.recorders.iter().for_each(|recorder| step::<L, T>(recorder, loss, shape, references));
            }
        }
    }
}

/// Forward and backward of a loss, with all gradients and without statistics.
fn step<L: OnDevice, T: Number>(recorder: &Recorder, loss: &L, shape: [usize; 2], references: Option<usize>) {
    let memory = Untouched::new(1);
    let some = memory.address();
    let rows = Input { x: some, stride: shape[1], labels: some };
    let reference = references.map(|count| ReferenceInput { rows, count, own: Own::Offset(0) });
    let with_grad = [true, reference.is_some()];
    let (inputs, output) = (Inputs { anchors: rows, reference, step: some }, Output::default());
    let grads = with_grad.map(|wanted| if wanted { some } else { 0 });
    // SAFETY: a recorder runs nothing, so no address is used.
    let done = unsafe {
        internal::mined_forward::<L, T, _>(loss, recorder, shape, &inputs, &output, with_grad)
            .and_then(|kept| internal::mined_backward::<L, T, _>(loss, recorder, shape, &kept, &inputs, some, grads))
    };
    done.unwrap();
}

/// The gradients of matrices of distances, of sizes as [`Large`] has them.
fn gradients<T: Number>(recorder: &Recorder) {
    let memory = Untouched::new(1);
    let some = memory.address();
    for (dim, precision) in [128, 512].into_iter().flat_map(|dim| PRECISIONS.map(|precision| (dim, precision))) {
        for distance in [Distance::SquaredEuclidean, Distance::Euclidean] {
            let op = PairwiseDistance { distance, precision, ..Default::default() };
            let inputs = [Input { x: some, stride: dim, labels: 0 }; 2];
            let (op, shapes) = ((&op, precision.into()), [[8192, dim], [12288, dim]]);
            // SAFETY: a recorder runs nothing, so no address is used.
            unsafe { internal::pairwise_distance_backward::<T, _>(op, recorder, shapes, &inputs, some, [some; 2]) }
                .unwrap();
        }
    }
}

/// Searches among rows of every type, of sizes as [`Large`] has them.
fn searches(recorder: &Recorder) {
    let memory = Untouched::new(1);
    let some = memory.address();
    for (dim, precision) in [128, 512].into_iter().flat_map(|dim| PRECISIONS.map(|precision| (dim, precision))) {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Int8] {
            let top = TopK { k: 10, precision, ..Default::default() };
            let queries = StoredInput { x: some, stride: dim, dtype: Dtype::F32, scales: 0 };
            let scales = if dtype == Dtype::Int8 { some } else { 0 };
            let exact = (dtype != Dtype::F32).then_some(Input { x: some, stride: dim, labels: 0 });
            let inputs =
                SearchInputs { queries, stored: StoredInput { dtype, scales, ..queries }, exact, own: Own::None };
            // SAFETY: a recorder runs nothing, so no address is used.
            unsafe { internal::top_k(&top, recorder, [[1000, dim], [200_000, dim]], &inputs, [some; 2], None) }
                .unwrap();
        }
    }
}

const PRECISIONS: [Precision; 3] = [Precision::Highest, Precision::High, Precision::Medium];

/// The calls of a stem, by device.
fn recorded<L: Listed>(
    devices: &[&Multiprocessor],
    calls: &mut BTreeMap<&str, Vec<Vec<Call>>>,
    more: impl Fn(&[Recorder]),
) {
    let recorders: Vec<Recorder> = devices.iter().map(|device| Recorder::new(device)).collect();
    each_dtype::<L, Recorder, _>(&Recording { recorders: &recorders, operation: PhantomData::<L> });
    more(&recorders);
    calls.insert(L::STEM, recorders.into_iter().map(|recorder| recorder.calls.into_inner()).collect());
}

/// The calls of all stems, by device in the order of [`targets`].
static CALLS: LazyLock<BTreeMap<&'static str, Vec<Vec<Call>>>> = LazyLock::new(|| {
    let (mut calls, targets) = (BTreeMap::new(), targets());
    let devices: &Vec<_> = &targets.iter().map(|(_, device)| *device).collect();
    macro_rules! mined {
        ($loss:ident) => {
            recorded::<Records<$loss>>(devices, &mut calls, |recorders| {
                let all = <$loss as Recorded>::all(1.0, Distance::SquaredEuclidean, false, Reduction::Mean);
                let roots = <$loss as Recorded>::all(1.0, Distance::Euclidean, false, Reduction::Mean);
                let all = all.into_iter().chain(roots);
                let losses = all.flat_map(|loss| PRECISIONS.map(|precision| $loss { precision, ..loss }));
                let large = Large { recorders, losses: losses.collect() };
                large.of::<f32>();
                large.of::<half::f16>();
                large.of::<half::bf16>();
            });
        };
    }
    mined!(BatchAllTripletLoss);
    mined!(BatchHardTripletLoss);
    mined!(BatchSemiHardTripletLoss);
    mined!(BatchNegativeTripletLoss);
    mined!(BatchContrastiveLoss);
    recorded::<OfRows<TripletMarginLoss, 3>>(devices, &mut calls, |_| {});
    recorded::<OfRows<ContrastiveLoss, 2>>(devices, &mut calls, |_| {});
    recorded::<PairwiseDistance>(devices, &mut calls, |recorders| {
        for recorder in recorders {
            gradients::<f32>(recorder);
            gradients::<half::f16>(recorder);
            gradients::<half::bf16>(recorder);
        }
    });
    recorded::<TopK>(devices, &mut calls, |recorders| recorders.iter().for_each(searches));
    calls
});

/// The targets of this build, with the device that launches are planned for.
fn targets() -> Vec<(&'static str, &'static Multiprocessor)> {
    let of_batch = IMAGES.iter().filter(|image| image.stem == "batch");
    of_batch.filter_map(|image| Some((image.target, devices::of_target(image.target).next()?))).collect()
}

fn image(stem: &str, target: &str) -> &'static Image {
    IMAGES.iter().find(|image| (image.stem, image.target) == (stem, target)).expect("all stems have the same targets")
}

/// A line for each call.
fn lines(calls: &[Call]) -> String {
    calls.iter().fold(String::new(), |mut text, call| {
        let _ = match call {
            Call::Clear(bytes) => writeln!(text, "clear {bytes}"),
            Call::Launch { stem, kernel, grid: Grid { blocks, threads, shared_bytes } } => {
                writeln!(text, "{stem} {kernel} {blocks} {threads} {shared_bytes}")
            }
        };
        text
    })
}

#[test]
fn each_stem_has_a_hash_of_its_machine_code_and_launches() {
    let (targets, calls) = (targets(), &*CALLS);
    let mut text = String::new();
    for (at, (target, device)) in targets.iter().enumerate() {
        let mut hashes = BTreeSet::new();
        let stems: BTreeSet<_> = IMAGES.iter().map(|image| image.stem).collect();
        for stem in &stems {
            // What all mined losses launch of `batch` stands among theirs.
            let launches = calls.get(stem).map_or(String::new(), |of_devices| lines(&of_devices[at]));
            assert!(!launches.is_empty() || *stem == "batch", "no launches of {stem} were recorded");
            let hash = hash::of_stem(&image(stem, target).decompressed(), &launches).unwrap();
            let _ = writeln!(text, "{target} {stem} {hash}");
            hashes.insert(hash);
        }
        assert_eq!(hashes.len(), stems.len(), "two stems of {target} have the same hash: {text}");
        println!("{target}, launches as on {}", device.name);
    }
    print!("{text}");
    if let Some(file) = std::env::var_os(FILE).filter(|file| !file.is_empty()) {
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[test]
fn launches_are_as_kernels_were_compiled_for() {
    let (targets, calls) = (targets(), &*CALLS);
    for (at, (target, device)) in targets.iter().enumerate() {
        let resources =
            IMAGES.iter().filter(|image| image.target == *target).flat_map(|i| Resources::of_image(i).unwrap());
        let resources: BTreeMap<_, _> = resources.map(|resources| (resources.kernel, resources)).collect();
        let mut launched = BTreeSet::new();
        for call in calls.values().flat_map(|of_devices| &of_devices[at]) {
            let Call::Launch { stem, kernel, grid } = call else { continue };
            let of_kernel = &resources[kernel.as_str()];
            assert_eq!(of_kernel.stem, stem, "{call:?}");
            assert_eq!(grid.threads, of_kernel.threads, "{call:?} for {target}: threads of the launch bounds");
            assert_eq!(
                grid.shared_bytes,
                dynamic_shared_bytes(kernel),
                "{call:?}: what tercet-kernel-report says of it"
            );
            assert!(grid.shared_bytes <= device.shared.of_block && grid.blocks > 0, "{call:?}");
            launched.insert(kernel.as_str());
        }
        // Of devices that run one target, this one takes either the wide strips, or the tall ones, or the narrow ones.
        let others = |kernel: &str| match kernel.rsplit_once("_narrow") {
            Some((family, long)) => ["_wide", "_tall"].map(|shape| format!("{family}{shape}{long}")).to_vec(),
            None => vec![kernel.replace("_wide", "_narrow").replace("_tall", "_narrow")],
        };
        for tiles in resources.keys().filter(|kernel| Work::of(kernel).is_some()) {
            let either =
                launched.contains(tiles) || others(tiles).iter().any(|other| launched.contains(other.as_str()));
            assert!(either, "{tiles} was not launched for {target}");
        }
    }
}

/// What a step of a loss on f32 embeddings sends to a device: launches, fills, and allocations beside those of the loss and the
/// gradient, which are the caller's.
fn sent<L: OnDevice>(loss: &L, shape: [usize; 2]) -> [usize; 3] {
    let recorder = Recorder::new(devices::of_target("sm_90a").next().expect("a device of compute capability 9.0"));
    step::<L, f32>(&recorder, loss, shape, None);
    let calls = recorder.calls.take();
    let fills = calls.iter().filter(|call| matches!(call, Call::Clear(_))).count();
    [calls.len() - fills, fills, recorder.allocations.get()]
}

#[test]
fn few_calls_are_sent_for_a_small_batch() {
    macro_rules! counted {
        ($($loss:ident $launches:expr, $allocations:expr;)*) => {$(
            let loss = $loss::default();
            for rows in [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768] {
                let [launches, fills, allocations] = sent(&loss, [rows, 128]);
                println!("{}, {rows} x 128: {launches} launches, {fills} fills, {allocations} allocations", $loss::STEM);
                if rows <= 1024 {
                    let expected = $launches[usize::from(rows > 32)];
                    assert_eq!([launches, fills, allocations], [expected, 0, $allocations], "{}, {rows} rows", $loss::STEM);
                }
            }
        )*};
    }
    counted! {
        BatchHardTripletLoss [4, 4], 1;
        BatchAllTripletLoss [5, 5], 1;
        BatchSemiHardTripletLoss [5, 5], 1;
        BatchNegativeTripletLoss [6, 6], 1;
        BatchContrastiveLoss [6, 6], 1;
    }
}

/// What the documentation of `pairs_at_once` says that each pair takes, with a gradient.
#[test]
fn room_for_pairs_takes_as_many_bytes_as_documented() {
    /// The bytes that a step allocates.
    fn bytes<L: OnDevice>(loss: &L) -> usize {
        let recorder = Recorder::new(devices::of_target("sm_90a").next().expect("a device of compute capability 9.0"));
        step::<L, f32>(&recorder, loss, [4096, 128], None);
        recorder.bytes.get()
    }
    // What is not said is what `capacity` says; mined::room tells what happens beyond it.
    let room = Some(internal::capacity(4096, 4096, None));
    assert_ne!(room, Some(4096 * 4096));
    assert_eq!(
        bytes(&BatchAllTripletLoss::default()),
        bytes(&BatchAllTripletLoss { pairs_at_once: room, ..Default::default() })
    );
    assert_eq!(
        bytes(&BatchSemiHardTripletLoss::default()),
        bytes(&BatchSemiHardTripletLoss { pairs_at_once: room, ..Default::default() })
    );
    // Multiples of what parts of memory are aligned to.
    let rooms = [1 << 16, 3 << 16].map(Some);
    let of_pair = |[few, many]: [usize; 2]| (many - few) as f64 / f64::from(2 << 16);
    let all = rooms.map(|pairs_at_once| bytes(&BatchAllTripletLoss { pairs_at_once, ..Default::default() }));
    assert_eq!(of_pair(all), 16.0);
    let semi_hard = rooms.map(|pairs_at_once| bytes(&BatchSemiHardTripletLoss { pairs_at_once, ..Default::default() }));
    assert_eq!(of_pair(semi_hard), 20.0);
    for (negative, expected) in [(Negative::Hardest, 20.0), (Negative::Random, 20.0), (Negative::SemiHard, 20.0)] {
        let loss = |pairs_at_once| BatchNegativeTripletLoss { negative, pairs_at_once, ..Default::default() };
        assert_eq!(of_pair(rooms.map(|room| bytes(&loss(room)))), expected, "{negative:?}");
    }
    // By default there is room for 2²² pairs, and for no more than there could be of few rows.
    let default =
        [Some(1 << 22), None].map(|pairs_at_once| bytes(&BatchAllTripletLoss { pairs_at_once, ..Default::default() }));
    assert_eq!(default[0], default[1]);
}
