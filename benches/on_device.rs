//! Every loss on a CUDA device, forward and backward: times, workspace, and errors against f64, over the sizes that
//! `benches/peers/*.py` time others at, and larger.
//!
//! `cargo bench -p tercet -- on_device --json FILE` adds one row a line to FILE, of the same form as those scripts';
//! `--quick` takes a few sizes, and `--profile` runs losses twice at 8192 x 128 and 32768 x 128, for a profiler to
//! watch. The peers, and the floors, are measured by those scripts: run both in one go on one device.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cudarc::driver::CudaContext;
use half::bf16;
use tch::{Cuda, Device, Kind, Tensor};
use tercet::internal::Input;
use tercet::internal::{self, Inputs, OnDevice as Mined, Output};
use tercet::internal::{Address, CudaLauncher, DeviceProperties, Grid, Launcher, Memory};
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, ContrastiveLoss, Error, Matrix, Precision, TripletMarginLoss,
};

use crate::support::{Clock, asked, gradients, testing};

const DEVICE: Device = Device::Cuda(0);
const PAIRED: [[i64; 2]; 8] =
    [[256, 128], [4096, 128], [65536, 128], [262_144, 128], [1 << 20, 128], [4096, 512], [65536, 512], [262_144, 512]];
const ROWS: [i64; 8] = [256, 1024, 4096, 8192, 16384, 32768, 65536, 131_072];
/// A larger batch is not tried if it would take longer.
const LONGEST_MS: f64 = 3000.0;
/// So many inputs take turns that they have this many bytes together: more than a cache holds.
const CACHE: i64 = 256 << 20;

/// One row of the results.
#[derive(Clone)]
struct Row {
    op: &'static str,
    size: [i64; 2],
    each: Option<i64>,
    dtype: &'static str,
    pass: &'static str,
    precision: Option<Precision>,
    ms: f64,
    peak_bytes: Option<u64>,
    /// The errors of the loss and of the gradient.
    errors: Option<[f64; 2]>,
}

struct Results(Option<std::fs::File>);

impl Results {
    fn add(&mut self, row: &Row) {
        let Row { op, size: [rows, dim], each, dtype, pass, precision, ms, peak_bytes, errors } = row;
        let who = match precision {
            None | Some(Precision::Highest) => "tercet".to_string(),
            Some(precision) => format!("tercet, {precision:?}"),
        };
        let peak = peak_bytes.map_or("-".into(), |bytes| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)));
        let off = errors.map_or("-".into(), |[loss, grad]| format!("{loss:.1e} {grad:.1e}"));
        let classes = each.map_or(String::new(), |each| format!(" {each} a class"));
        println!("{op:<18} {rows}x{dim} {dtype}{classes:<13} {pass:<8} {who:<16} {ms:10.4} ms  {peak:>12}  {off}");
        let Some(file) = &mut self.0 else { return };
        let errors = errors.map_or(String::new(), |[l, g]| format!(", \"loss_error\": {l:e}, \"grad_error\": {g:e}"));
        let each = each.map_or(String::new(), |each| format!(", \"each\": {each}"));
        let peak = peak_bytes.map_or(String::new(), |bytes| format!(", \"peak_bytes\": {bytes}"));
        writeln!(
            file,
            "{{\"op\": {op:?}, \"rows\": {rows}, \"dim\": {dim}{each}, \"dtype\": {dtype:?}, \"pass\": {pass:?}, \
             \"who\": {who:?}, \"ms\": {ms}{peak}{errors}}}"
        )
        .expect("the results can be written");
    }
}

/// The median milliseconds of a step, by events.
fn milliseconds(clock: &Clock, mut step: impl FnMut(usize)) -> f64 {
    const ENOUGH: Duration = Duration::from_millis(150);
    let start = Instant::now();
    for turn in 0..3 {
        if start.elapsed() < ENOUGH {
            step(turn);
            Cuda::synchronize(0);
        }
    }
    let (mut times, start) = (Vec::new(), Instant::now());
    while start.elapsed() < ENOUGH && times.len() < 400 || times.len() < 5 && start.elapsed() < 8 * ENOUGH {
        let turn = times.len();
        times.push(clock.time(|| step(turn)));
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A launcher that counts the bytes that are allocated.
struct Counting {
    launcher: CudaLauncher,
    now: Arc<AtomicU64>,
    most: AtomicU64,
}

struct Counted<M> {
    memory: M,
    bytes: u64,
    now: Arc<AtomicU64>,
}

// SAFETY: the memory inside is this value's alone, and keeps the contract.
unsafe impl<M: Memory> Memory for Counted<M> {
    fn address(&self) -> Address {
        self.memory.address()
    }
}

impl<M> Drop for Counted<M> {
    fn drop(&mut self) {
        self.now.fetch_sub(self.bytes, Relaxed);
    }
}

// SAFETY: the launcher inside does everything, and keeps the contract.
unsafe impl Launcher for Counting {
    type Memory = Counted<<CudaLauncher as Launcher>::Memory>;

    fn properties(&self) -> &DeviceProperties {
        self.launcher.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Self::Memory, Error> {
        let memory = self.launcher.allocate(bytes)?;
        let bytes = bytes as u64;
        self.most.fetch_max(self.now.fetch_add(bytes, Relaxed) + bytes, Relaxed);
        Ok(Counted { memory, bytes, now: self.now.clone() })
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

fn address(tensor: &Tensor) -> Address {
    tensor.data_ptr() as Address
}

/// The most that both passes hold at a time, beside the inputs, the loss and the gradient.
fn workspace<L: Mined>(loss: &L, x: &Tensor, labels: &Tensor) -> u64 {
    let stream = CudaContext::new(0).expect("a device").default_stream();
    let launcher = Counting {
        launcher: CudaLauncher::new(&stream).expect("a launcher"),
        now: Arc::default(),
        most: AtomicU64::new(0),
    };
    let shape = [x.size()[0] as usize, x.size()[1] as usize];
    let anchors = Input { x: address(x), stride: shape[1], labels: address(labels) };
    let (inputs, value) = (Inputs::itself(anchors), Tensor::zeros([1], (Kind::Float, DEVICE)));
    let sums = Tensor::zeros([5], (Kind::Double, DEVICE));
    let (grad, upstream) = (x.zeros_like(), Tensor::ones([1], (Kind::Float, DEVICE)));
    let output = Output { loss: address(&value), stats: address(&sums), ..Output::default() };
    Cuda::synchronize(0);
    macro_rules! run {
        ($t:ty) => {{
            let kept =
                // SAFETY: tensors on the device of the shapes that the passes expect, alive to the end.
                unsafe { internal::mined_forward::<_, $t, _>(loss, &launcher, shape, &inputs, &output, [true, false]) };
            let (kept, to) = (kept.expect("a forward pass"), [address(&grad), 0]);
            // SAFETY: tensors of the shapes that the passes expect, alive to the end; `kept` is of this forward pass.
            let done = unsafe {
                internal::mined_backward::<_, $t, _>(loss, &launcher, shape, &kept, &inputs, address(&upstream), to)
            };
            done.expect("a backward pass");
        }};
    }
    match x.kind() {
        Kind::BFloat16 => run!(bf16),
        _ => run!(f32),
    }
    Cuda::synchronize(0);
    launcher.most.into_inner()
}

/// |got - exact| / |exact| of the loss and of the gradient.
fn errors(got: [&Tensor; 2], exact: [&[f64]; 2]) -> [f64; 2] {
    [0, 1].map(|i| {
        let got =
            Vec::<f64>::try_from(got[i].to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1)).expect("f64");
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        norm(&mut got.iter().zip(exact[i]).map(|(a, b)| a - b)) / norm(&mut exact[i].iter().copied())
    })
}

fn batch([rows, dim]: [i64; 2], each: i64, kind: Kind) -> (Tensor, Tensor) {
    tch::manual_seed(1);
    let x = Tensor::randn([rows, dim], (Kind::Float, DEVICE)).to_kind(kind).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, DEVICE)).remainder((rows / each).max(1)))
}

const DTYPES: [(&str, Kind); 2] = [("f32", Kind::Float), ("bf16", Kind::BFloat16)];

macro_rules! mined {
    ($results:expr, $clock:expr, $quick:expr, $op:literal, $ty:ident { $($option:tt)* }) => {{
        let sizes = ROWS.map(|rows| ([rows, 128], 8));
        let more = [([8192, 512], 8), ([32768, 512], 8), ([8192, 128], 4), ([8192, 128], 64)];
        let sizes = if $quick { sizes[1..4].to_vec() } else { [&sizes[..], &more].concat() };
        for (dtype, kind) in DTYPES {
            for precision in [Precision::Highest, Precision::Medium] {
                let mut took = (1i64, 0.0);
                for &(size @ [rows, dim], each) in &sizes {
                    // `Medium`, which is `High` too, is looked at in f32 and a few sizes.
                    let plain = precision == Precision::Highest;
                    if !plain && (kind != Kind::Float || ![8192, 32768].contains(&rows) || each != 8) {
                        continue;
                    }
                    let ratio = rows as f64 / took.0 as f64;
                    if took.1 * ratio * ratio > LONGEST_MS || (kind != Kind::Float && dim != 128) {
                        continue;
                    }
                    let loss = $ty { precision, $($option)* };
                    let (x, labels) = batch(size, each, kind);
                    let both = milliseconds($clock, |_| drop(black_box(gradients(&loss.forward(&x, &labels), [&x]))));
                    took = (rows, both);
                    let peak_bytes = Some(workspace(&loss, &x, &labels));
                    // What a loss draws follows from the bits of the rows, and those of f64 are others.
                    let errors = (rows <= 4096 && plain && $op != "batch_negative").then(|| {
                        let wide = Vec::<f64>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1)).expect("f64");
                        let ids = Vec::<i64>::try_from(labels.to_device(Device::Cpu)).expect("i64");
                        let mut exact = vec![0.0; wide.len()];
                        let rows = Matrix::new(&wide, dim as usize).expect("rows");
                        let value = loss.on(rows, &ids).loss_and_grad(&mut exact).expect("f64 on the CPU");
                        let got = loss.forward(&x, &labels);
                        let grad = gradients(&got, [&x]);
                        errors([&got.detach(), &grad[0]], [&[value], &exact])
                    });
                    let row = Row { op: $op, size, each: Some(each), dtype, pass: "both", precision: Some(precision), ms: both, peak_bytes, errors };
                    $results.add(&row);
                    if plain {
                        let ms = milliseconds($clock, |_| {
                            drop(tch::no_grad(|| black_box(loss.forward(&x, &labels))));
                        });
                        $results.add(&Row { pass: "forward", ms, peak_bytes: None, errors: None, ..row });
                    }
                }
            }
        }
    }};
}

/// Writes the gradients and returns the loss of K matrices of so many numbers a row.
type Exact<'a, const K: usize> = &'a dyn Fn(&[Vec<f64>; K], usize, &mut [Vec<f64>; K]) -> f64;

fn paired<const K: usize>(
    results: &mut Results,
    clock: &Clock,
    quick: bool,
    op: &'static str,
    loss: &dyn Fn(&[Tensor; K]) -> Tensor,
    exact: Exact<'_, K>,
) {
    for &size in if quick { &PAIRED[1..3] } else { &PAIRED[..] } {
        for (dtype, kind) in DTYPES {
            let inputs =
                || [(); K].map(|()| Tensor::randn(size, (Kind::Float, DEVICE)).to_kind(kind).set_requires_grad(true));
            tch::manual_seed(1);
            let bytes = 2 * K as i64 * size[0] * size[1] * if kind == Kind::Float { 4 } else { 2 };
            let sets: Vec<[Tensor; K]> = (0..(CACHE / bytes + 1).min(16)).map(|_| inputs()).collect();
            let both = |x: &[Tensor; K]| {
                let value = loss(x);
                let grads = gradients(&value, x.each_ref());
                (value.detach(), grads)
            };
            let ms = milliseconds(clock, |turn| drop(black_box(both(&sets[turn % sets.len()]))));
            let errors = (size[0] <= 65536).then(|| {
                let x = &sets[0];
                let wide = x.each_ref().map(|x| {
                    Vec::<f64>::try_from(x.to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1)).expect("f64")
                });
                let mut expected = wide.each_ref().map(|x| vec![0.0; x.len()]);
                let value = exact(&wide, size[1] as usize, &mut expected);
                let (value_got, grads) = both(x);
                let all = grads.iter().zip(&expected).map(|(got, exact)| errors([&value_got, got], [&[value], exact]));
                all.fold([0.0f64; 2], |worst, e| [worst[0].max(e[0]), worst[1].max(e[1])])
            });
            let row = Row { op, size, each: None, dtype, pass: "both", precision: None, ms, peak_bytes: None, errors };
            results.add(&row);
            let ms = milliseconds(clock, |turn| drop(tch::no_grad(|| black_box(loss(&sets[turn % sets.len()])))));
            results.add(&Row { pass: "forward", ms, errors: None, ..row });
        }
    }
}

fn profile() {
    for size in [[8192, 128], [32768, 128]] {
        let (x, labels) = batch(size, 8, Kind::Float);
        for _ in 0..2 {
            drop(gradients(&BatchHardTripletLoss::default().forward(&x, &labels), [&x]));
            drop(gradients(&BatchAllTripletLoss::default().forward(&x, &labels), [&x]));
            drop(gradients(&BatchSemiHardTripletLoss::default().forward(&x, &labels), [&x]));
            drop(gradients(&BatchContrastiveLoss { margin: 16.0, ..Default::default() }.forward(&x, &labels), [&x]));
        }
    }
    for kind in [Kind::Float, Kind::BFloat16] {
        let rows = [(); 3]
            .map(|()| Tensor::randn([1 << 20, 128], (Kind::Float, DEVICE)).to_kind(kind).set_requires_grad(true));
        let [a, p, n] = &rows;
        for _ in 0..2 {
            drop(gradients(&TripletMarginLoss::default().forward(a, p, n), [a, p, n]));
        }
    }
    Cuda::synchronize(0);
}

pub fn bench() {
    if !Cuda::is_available() {
        println!("skipped: no CUDA device: on_device");
        return;
    }
    if asked("--profile") {
        return profile();
    }
    let quick = asked("--quick") || testing();
    let path = std::env::args().skip_while(|a| a != "--json").nth(1);
    assert!(path.is_some() || !asked("--json"), "--json FILE");
    let file = path.map(|path| {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        opened.unwrap_or_else(|e| panic!("{path}: {e}"))
    });
    let mut results = Results(file);
    let clock = Clock::of(DEVICE);
    let triplet = TripletMarginLoss::default();
    paired::<3>(&mut results, &clock, quick, "triplet_margin", &|[a, p, n]| triplet.forward(a, p, n), &|x, dim, to| {
        let rows = x.each_ref().map(|x| Matrix::new(x, dim).expect("rows"));
        triplet.loss_and_grad(rows, to.each_mut().map(|g| &mut g[..])).expect("f64 on the CPU")
    });
    let pairs = ContrastiveLoss { margin: 16.0, ..ContrastiveLoss::default() };
    let same = |rows: i64| Tensor::arange(rows, (Kind::Int64, DEVICE)).remainder(2).eq(0);
    let all: Vec<(i64, Tensor)> = PAIRED.iter().map(|[rows, _]| (*rows, same(*rows))).collect();
    let same_of = |rows: i64| &all.iter().find(|(of, _)| *of == rows).expect("a size above").1;
    paired::<2>(
        &mut results,
        &clock,
        quick,
        "contrastive",
        &|[a, b]| pairs.forward(a, b, same_of(a.size()[0])),
        &|x, dim, to| {
            let same: Vec<bool> = (0..x[0].len() / dim).map(|i| i % 2 == 0).collect();
            let rows = x.each_ref().map(|x| Matrix::new(x, dim).expect("rows"));
            pairs.loss_and_grad(rows, &same, to.each_mut().map(|g| &mut g[..])).expect("f64 on the CPU")
        },
    );
    let (results, clock) = (&mut results, &clock);
    mined!(results, clock, quick, "batch_hard", BatchHardTripletLoss { ..Default::default() });
    mined!(results, clock, quick, "batch_all", BatchAllTripletLoss { ..Default::default() });
    mined!(results, clock, quick, "batch_semi_hard", BatchSemiHardTripletLoss { ..Default::default() });
    mined!(results, clock, quick, "batch_negative", BatchNegativeTripletLoss { ..Default::default() });
    mined!(results, clock, quick, "batch_contrastive", BatchContrastiveLoss { margin: 16.0, ..Default::default() });
}
