//! `PairwiseDistance` on tch tensors: the same numbers as the formula in tch operations, and what autograd expects.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tch::{Device, IndexOp, Kind, Tensor};
use tercet::torch::CustomFunction;
use tercet::{Distance, PairwiseDistance};

fn matrices(kind: Kind) -> [Tensor; 2] {
    tch::manual_seed(7);
    [24, 17].map(|rows| Tensor::randn([rows, 10], (kind, Device::Cpu)).set_requires_grad(true))
}

/// The formula, in f64, for every option.
fn in_operations(op: &PairwiseDistance, x: &Tensor, y: &Tensor) -> Tensor {
    let prepared = |x: &Tensor| {
        let x = x.to_kind(Kind::Double);
        match op.normalize || op.distance == Distance::Cosine {
            true => &x / x.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12),
            false => x,
        }
    };
    let (x, y) = (prepared(x), prepared(y));
    let squared = || (x.unsqueeze(1) - y.unsqueeze(0)).square().sum_dim_intlist(2, false, Kind::Double);
    match op.distance {
        Distance::Cosine => 1.0 - x.matmul(&y.tr()),
        Distance::Euclidean => squared().sqrt(),
        _ => squared(),
    }
}

fn close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    assert_eq!(actual.size(), expected.size(), "{what}");
    let error = (&actual - &expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]);
    assert!(error <= tolerance * (1.0 + size), "{what}: error {error}, size {size}");
}

/// The sum of `d` weighted by sines, so that the upstream gradient differs from element to element.
fn weighted(d: &Tensor) -> Tensor {
    let weights = Tensor::arange(d.numel() as i64, (Kind::Double, d.device())).sin().reshape(d.size());
    (d * weights.to_kind(d.kind())).sum(d.kind())
}

#[test]
fn agrees_with_the_formula_in_tensor_operations() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for normalize in [false, true] {
            for (kind, tolerance) in
                [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)]
            {
                let op = PairwiseDistance { distance, normalize, ..Default::default() };
                let [x, y] = matrices(kind);
                let what = format!("{op:?} {kind:?}");
                let (ours, expected) = (op.forward(&x, &y), in_operations(&op, &x, &y));
                assert_eq!(ours.kind(), if kind == Kind::Double { Kind::Double } else { Kind::Float });
                close(&ours, &expected, f64::min(tolerance, 1e-5), &what);
                let ours = Tensor::run_backward(&[weighted(&ours)], &[&x, &y], false, false);
                let expected = Tensor::run_backward(&[weighted(&expected)], &[&x, &y], false, false);
                for (ours, expected) in ours.iter().zip(&expected) {
                    assert_eq!(ours.kind(), kind);
                    close(ours, expected, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn a_tensor_with_itself_has_zeros_and_both_gradients() {
    let [x, _] = matrices(Kind::Float);
    let op = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
    let d = op.forward(&x, &x);
    assert_eq!(d.diag(0), d.diag(0).zeros_like());
    let both = Tensor::run_backward(&[weighted(&d)], &[&x], false, false).swap_remove(0);
    let copies = [x.detach(), x.detach()].map(|x| x.set_requires_grad(true));
    let d = op.forward(&copies[0], &copies[1]);
    let apart = Tensor::run_backward(&[weighted(&d)], &[&copies[0], &copies[1]], false, false);
    close(&both, &(&apart[0] + &apart[1]), 1e-6, "the sum of both");
}

#[test]
fn either_may_need_no_gradient() {
    let [x, y] = matrices(Kind::Float);
    let op = PairwiseDistance::default();
    let both = Tensor::run_backward(&[weighted(&op.forward(&x, &y))], &[&x, &y], false, false);
    let first = Tensor::run_backward(&[weighted(&op.forward(&x, &y.detach()))], &[&x], false, false);
    let second = Tensor::run_backward(&[weighted(&op.forward(&x.detach(), &y))], &[&y], false, false);
    assert_eq!((&first[0], &second[0]), (&both[0], &both[1]));
    for d in [op.forward(&x.detach(), &y.detach()), tch::no_grad(|| op.forward(&x, &y))] {
        assert!(!d.requires_grad());
    }
}

#[test]
fn rows_may_be_any_view() {
    let [x, y] = matrices(Kind::Float);
    let op = PairwiseDistance::default();
    let expected = op.forward(&x, &y);
    let transposed = x.detach().tr().contiguous().tr();
    assert_eq!(transposed.stride(), [1, 24]);
    assert_eq!(op.forward(&transposed, &y), expected);
    let every_second = Tensor::stack(&[&y, &y], 1).flatten(0, 1).slice(0, 0, 34, 2);
    assert_eq!(op.forward(&x, &every_second), expected);
    // An expanded upstream gradient: all of its elements are one number.
    let ones = Tensor::run_backward(&[op.forward(&x, &y).sum(Kind::Float)], &[&x], false, false).swap_remove(0);
    let expected = in_operations(&op, &x, &y).sum(Kind::Double);
    close(&ones, &Tensor::run_backward(&[expected], &[&x], false, false)[0], 1e-5, "expanded");
}

#[test]
fn an_upstream_gradient_may_be_expanded_or_transposed() {
    let [x, y] = matrices(Kind::Float);
    let of_rows = Tensor::arange(24, (Kind::Float, Device::Cpu)).sin().unsqueeze(1);
    let of_columns = Tensor::arange(17, (Kind::Float, Device::Cpu)).cos().unsqueeze(0);
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        let op = PairwiseDistance { distance, ..Default::default() };
        for upstream in [
            of_rows.expand([24, 17], false),
            of_columns.expand([24, 17], false),
            (of_rows.tr() + of_columns.tr()).tr(),
            of_rows.i((.., 0)).i(0).expand([24, 17], false),
        ] {
            let grads = |upstream: &Tensor| {
                let sum = (op.forward(&x, &y) * upstream).sum(Kind::Float);
                Tensor::run_backward(&[sum], &[&x, &y], false, false)
            };
            let expected = grads(&upstream.contiguous());
            // This node hands the upstream gradient on with its strides.
            let through = CustomFunction::new("Upstream").inputs(&[&op.forward(&x, &y)]).attach(
                &Tensor::zeros([], (Kind::Float, Device::Cpu)),
                {
                    let upstream = upstream.shallow_clone();
                    move |_| Ok(vec![Some(upstream.shallow_clone())])
                },
            );
            let grads = Tensor::run_backward(&[through.unwrap()], &[&x, &y], false, false);
            assert_eq!(grads, expected, "{distance:?}, strides {:?}", upstream.stride());
        }
    }
}

/// The gradient of the root divides by the result, which may be something else by then.
#[test]
fn the_result_may_be_changed_in_place_before_backward() {
    let [x, y] = matrices(Kind::Float);
    let op = PairwiseDistance { distance: Distance::Euclidean, ..Default::default() };
    let expected = Tensor::run_backward(&[weighted(&op.forward(&x, &y))], &[&x, &y], false, false);
    let mut d = op.forward(&x, &y);
    let _ = d.g_add_scalar_(1.0);
    let changed = Tensor::run_backward(&[weighted(&d)], &[&x, &y], false, false);
    for (changed, expected) in changed.iter().zip(&expected) {
        close(changed, expected, 1e-6, "after a change in place");
    }
}

#[test]
fn a_retained_graph_runs_backward_again() {
    let [x, y] = matrices(Kind::Float);
    let loss = weighted(&PairwiseDistance::default().forward(&x, &y));
    let once = Tensor::run_backward(&[&loss], &[&x], true, false);
    let twice = Tensor::run_backward(&[&loss * 2.0], &[&x], true, false);
    assert_eq!(&once[0] * 2.0, twice[0]);
    assert_eq!(Tensor::run_backward(&[&loss], &[&x], false, false)[0], once[0]);
    assert!(Tensor::f_run_backward(&[&loss], &[&x], false, false).is_err(), "the graph is gone");
}

#[test]
fn a_change_in_place_is_an_error_and_so_is_a_second_derivative() {
    let [x, y] = matrices(Kind::Float);
    let mut z = &x * 1.0;
    let d = PairwiseDistance::default().forward(&z, &y);
    let _ = z.f_add_(&Tensor::from(1.0f32)).unwrap();
    let error = Tensor::f_run_backward(&[weighted(&d)], &[&x], false, false).unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");

    let d = PairwiseDistance::default().forward(&x, &y);
    let grad = Tensor::run_backward(&[weighted(&d)], &[&x], true, true).swap_remove(0);
    assert!(Tensor::f_run_backward(&[grad.sum(Kind::Float)], &[&x], false, false).is_err());
}

#[test]
fn wrong_arguments_are_named() {
    let op = PairwiseDistance::default();
    let [x, y] = matrices(Kind::Float);
    for (x, y, expected) in [
        (x.flatten(0, 1), y.shallow_clone(), "x: expected shape [B, D], got [240]"),
        (x.to_kind(Kind::Int64), y.shallow_clone(), "x: expected dtype f32, f64, f16 or bf16, got Int64"),
        (x.shallow_clone(), y.to_kind(Kind::Half), "y: expected dtype Float, as x, got Half"),
        (x.shallow_clone(), Tensor::new(), "y: expected a tensor, got an undefined one"),
        (x.shallow_clone(), y.slice(1, 0, 9, 1), "y: expected rows of 10 numbers, as x has, got [17, 9]"),
        (x.slice(0, 0, 0, 1), y.shallow_clone(), "x: expected at least one row and one column, got [0, 10]"),
    ] {
        assert_eq!(op.f_forward(&x, &y).unwrap_err().to_string(), expected);
    }
    let panic = std::panic::catch_unwind(|| op.forward(&x, &y.to_kind(Kind::Half))).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().starts_with("PairwiseDistance: y: expected dtype"));
}

thread_local! {
    /// How many blocks on huge pages, which hold large gradients, this thread has allocated.
    static BLOCKS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() >= 2 << 20 {
            BLOCKS.set(BLOCKS.get() + 1);
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both matrices require a gradient, and backward asks for one, the other, or both.
#[test]
fn gradients_that_nobody_asked_for_are_not_made() {
    let matrix = |rows: i64| Tensor::ones([rows, 4096], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let (x, y) = (matrix(80), matrix(90));
    let blocks_of = |of: &[&Tensor]| {
        tercet::torch::release_cpu_memory();
        let d = PairwiseDistance::default().forward(&x, &y).sum(Kind::Float);
        let before = BLOCKS.get();
        let grads = Tensor::run_backward(&[d], of, false, false);
        assert_eq!(grads.len(), of.len());
        BLOCKS.get() - before
    };
    assert_eq!([blocks_of(&[&x]), blocks_of(&[&y]), blocks_of(&[&x, &y])], [1, 1, 2]);
}
