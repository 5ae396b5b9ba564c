//! Property tests of `triplet_margin`: every backend x dtype x distance x option against the f64 oracle, with bounds
//! that follow from the arithmetic. The emulator takes the same cases in emulator/tests/triplet_margin.rs.

#[path = "support/triplet_margin_property.rs"]
mod property;
#[path = "support/triplet_margin_records.rs"]
mod records;
mod support;

use property::{Backend, Case, Data, Output, property};
use tercet::{Element, Matrix, Reduction};

#[cfg(feature = "cuda")]
trait BackendElement: cudarc::driver::DeviceRepr {}
#[cfg(feature = "cuda")]
impl<T: cudarc::driver::DeviceRepr> BackendElement for T {}
#[cfg(not(feature = "cuda"))]
trait BackendElement {}
#[cfg(not(feature = "cuda"))]
impl<T> BackendElement for T {}

fn poison<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

struct Cpu;

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
        let Case { rows, dim, gap, offset, .. } = *case;
        let inputs = data.laid_out.each_ref().map(|x| Matrix::strided(&x[offset..], rows, dim, dim + gap).unwrap());
        let mut losses = poison(rows);
        case.loss.losses(inputs, &mut losses).unwrap();
        let size = rows * dim;
        let mut grads = [poison(size), poison(size), poison(size)];
        let reduced = case.loss.reduction != Reduction::None;
        let loss = reduced.then(|| {
            let forward = case.loss.loss(inputs).unwrap();
            let both = case.loss.loss_and_grad(inputs, grads.each_mut().map(|g| &mut g[..])).unwrap();
            assert!(forward.to_f64().to_bits() == both.to_f64().to_bits(), "with and without gradients");
            both
        });
        let mut scaled_grads = [poison(size), poison(size), poison(size)];
        let upstream: Vec<T::Scalar> = data.upstream.iter().map(|u| T::Scalar::from_f64(*u)).collect();
        case.loss.grad(inputs, &upstream, scaled_grads.each_mut().map(|g| Some(&mut g[..]))).unwrap();
        Output { losses, loss, grads: reduced.then_some(grads), scaled_grads }
    }
}

#[cfg(feature = "cuda")]
struct Cuda(std::sync::Arc<cudarc::driver::CudaStream>);

#[cfg(feature = "cuda")]
impl Backend for Cuda {
    const NAME: &'static str = "cuda";
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
        use tercet::TripletMarginLoss;
        use tercet::cuda::CudaMatrix;
        let Case { rows, dim, gap, offset, .. } = *case;
        let stream = &self.0;
        let device = data.laid_out.each_ref().map(|x| stream.clone_htod(x).unwrap());
        let inputs =
            || device.each_ref().map(|x| CudaMatrix::strided(x.slice(offset..), rows, dim, dim + gap).unwrap());
        let size = rows * dim;
        let upload = |len| stream.clone_htod(&poison::<T::Scalar>(len)).unwrap();
        let outputs = || [(); 3].map(|()| stream.clone_htod(&poison::<T>(size)).unwrap());

        let each = TripletMarginLoss { reduction: Reduction::None, ..case.loss };
        let mut losses = upload(rows);
        each.loss_and_grad_cuda(stream, inputs(), &mut losses, [None, None, None]).unwrap();
        let mut grads = outputs();
        let reduced = case.loss.reduction != Reduction::None;
        let loss = reduced.then(|| {
            let mut loss = upload(1);
            case.loss.loss_and_grad_cuda(stream, inputs(), &mut loss, grads.each_mut().map(Some)).unwrap();
            stream.clone_dtoh(&loss).unwrap()[0]
        });
        let upstream: Vec<T::Scalar> = data.upstream.iter().map(|u| T::Scalar::from_f64(*u)).collect();
        let upstream = stream.clone_htod(&upstream).unwrap();
        let mut scaled = outputs();
        case.loss.grad_cuda(stream, inputs(), &upstream, scaled.each_mut().map(Some)).unwrap();
        let download = |x: [cudarc::driver::CudaSlice<T>; 3]| x.map(|x| stream.clone_dtoh(&x).unwrap());
        Output {
            losses: stream.clone_dtoh(&losses).unwrap(),
            loss,
            grads: reduced.then(|| download(grads)),
            scaled_grads: download(scaled),
        }
    }
}

#[test]
fn cpu_agrees_with_the_oracle() {
    property(&Cpu, 1500);
}

/// A file of recorded figures.
fn record(of: &str) -> std::path::PathBuf {
    support::package().join(format!("tests/data/triplet_margin-{of}.json"))
}

#[test]
fn cpu_computes_what_it_did() {
    records::unchanged(&Cpu, &record("cpu"));
}

/// Gradients a twentieth too large.
struct Wrong(Cpu);

impl Backend for Wrong {
    const NAME: &'static str = "a wrong cpu";
    fn run<T: Element + BackendElement>(&self, case: &Case, data: &Data<T>) -> Output<T>
    where
        T::Scalar: BackendElement,
    {
        let mut output = self.0.run(case, data);
        output.scaled_grads.iter_mut().flatten().for_each(|x| *x = T::from_f64(x.to_f64() * 1.05));
        output
    }
}

#[test]
fn a_change_is_found_in_every_case() {
    if support::rewrite_records() {
        return; // it would be recorded
    }
    let (changes, _) = records::changes(&Wrong(Cpu), &record("cpu"));
    let mut cases: Vec<&str> = changes.iter().filter_map(|change| Some(change.split_once(": grads")?.0)).collect();
    cases.dedup();
    assert_eq!(cases.len(), 4 * 14, "{}", changes.join("\n"));
}

#[cfg(feature = "cuda")]
fn device(test: &str) -> Option<Cuda> {
    if tercet::cuda::device_count() > 0 {
        return Some(Cuda(cudarc::driver::CudaContext::new(0).unwrap().default_stream()));
    }
    assert!(std::env::var_os("TERCET_REQUIRE_CUDA").is_none(), "TERCET_REQUIRE_CUDA is set, and there is no device");
    println!("skipped: no CUDA device: {test}");
    None
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_agrees_with_the_oracle() {
    if let Some(cuda) = device("cuda_agrees_with_the_oracle") {
        property(&cuda, 1500);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_computes_what_it_did() {
    let Some(cuda) = device("cuda_computes_what_it_did") else { return };
    let name = cuda.0.context().name().unwrap();
    let file = record(&name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    if !file.exists() && !support::rewrite_records() {
        println!("skipped: nothing recorded on {name}: cuda_computes_what_it_did");
        return;
    }
    records::unchanged(&cuda, &file);
}
