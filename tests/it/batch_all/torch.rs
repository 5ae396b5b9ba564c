//! `BatchAllTripletLoss` on tch tensors: the same numbers as the formula in tch operations, and what autograd expects.
use tch::{Device, Kind, Tensor};
use tercet::{BatchAllTripletLoss, Distance, MeanOver, Reduction};

fn batch(rows: i64, dim: i64, kind: Kind) -> (Tensor, Tensor) {
    tch::manual_seed(7);
    let x = Tensor::randn([rows, dim], (kind, Device::Cpu)).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder((rows / 4).max(1)))
}

/// The formula over all `[N, N, N]` triplets, in f64, for every option.
fn in_operations(loss: &BatchAllTripletLoss, x: &Tensor, labels: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Double);
    let x = match loss.normalize || loss.distance == Distance::Cosine {
        true => &x / x.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12),
        false => x,
    };
    let rows = x.size()[0];
    let squared = || (x.unsqueeze(0) - x.unsqueeze(1)).square().sum_dim_intlist(2, false, Kind::Double);
    let d = match loss.distance {
        Distance::Cosine => 1.0 - x.matmul(&x.tr()),
        // The root has no gradient at 0: 1 is added on the diagonal, which is in no triplet.
        Distance::Euclidean => (squared() + Tensor::eye(rows, (Kind::Double, Device::Cpu))).sqrt(),
        _ => squared(),
    };
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let own = Tensor::eye(rows, (Kind::Bool, Device::Cpu));
    let positive = same.logical_and(&own.logical_not()).unsqueeze(2);
    let valid = positive.logical_and(&same.logical_not().unsqueeze(1));
    let terms = (d.unsqueeze(2) - d.unsqueeze(1) + loss.margin) * valid.to_kind(Kind::Double);
    let terms = terms.relu();
    let count = match (loss.reduction, loss.mean_over) {
        (Reduction::Mean, MeanOver::Active) => terms.greater(0.0).sum(Kind::Double),
        (Reduction::Mean, MeanOver::Valid) => valid.sum(Kind::Double),
        _ => Tensor::from(1.0),
    };
    terms.sum(Kind::Double) / count
}

fn close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    assert_eq!(actual.size(), expected.size(), "{what}");
    let error = (&actual - &expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]);
    assert!(error <= tolerance * (1.0 + size), "{what}: error {error}, size {size}");
}

#[test]
fn agrees_with_the_formula_in_tensor_operations() {
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for (reduction, mean_over) in [
            (Reduction::Mean, MeanOver::Active),
            (Reduction::Mean, MeanOver::Valid),
            (Reduction::Sum, MeanOver::Active),
        ] {
            for normalize in [false, true] {
                for (kind, tolerance) in
                    [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)]
                {
                    let options = BatchAllTripletLoss { margin: 0.5, distance, normalize, ..Default::default() };
                    let loss_fn = BatchAllTripletLoss { reduction, mean_over, ..options };
                    let (x, labels) = batch(24, 10, kind);
                    let what = format!("{loss_fn:?} {kind:?}");
                    let ours = loss_fn.forward(&x, &labels);
                    let expected = in_operations(&loss_fn, &x, &labels);
                    assert_eq!(ours.kind(), if kind == Kind::Double { Kind::Double } else { Kind::Float });
                    close(&ours, &expected, f64::min(tolerance, 1e-5), &what);
                    // An upstream gradient other than 1.
                    let gradient =
                        |loss: Tensor| Tensor::run_backward(&[loss * 0.75], &[&x], false, false).swap_remove(0);
                    let (ours, expected) = (gradient(ours), gradient(expected));
                    assert_eq!(ours.kind(), kind);
                    close(&ours, &expected, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn labels_may_be_any_integers_and_rows_any_view() {
    let loss_fn = BatchAllTripletLoss::default();
    let (x, labels) = batch(16, 6, Kind::Float);
    let expected = loss_fn.forward(&x, &labels);
    for other in [labels.to_kind(Kind::Int), &labels * 1_000_000_007i64 - 5, labels.repeat([2]).slice(0, 0, 16, 1)] {
        assert_eq!(loss_fn.forward(&x, &other), expected);
    }
    let transposed = x.detach().tr().contiguous().tr();
    assert_eq!(transposed.stride(), [1, 16]);
    assert_eq!(loss_fn.forward(&transposed, &labels), expected);
}

#[test]
fn a_retained_graph_runs_backward_again() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss = BatchAllTripletLoss { margin: 100.0, ..Default::default() }.forward(&x, &labels);
    let once = Tensor::run_backward(&[&loss], &[&x], true, false);
    let twice = Tensor::run_backward(&[&loss * 2.0], &[&x], true, false);
    assert_eq!(&once[0] * 2.0, twice[0]);
    assert_eq!(Tensor::run_backward(&[&loss], &[&x], false, false)[0], once[0]);
    assert!(Tensor::f_run_backward(&[&loss], &[&x], false, false).is_err(), "the graph is gone");
}

#[test]
fn a_gradient_of_the_gradient_is_refused() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss = BatchAllTripletLoss { margin: 100.0, ..Default::default() }.forward(&x, &labels);
    let grad = Tensor::run_backward(&[&loss], &[&x], true, true).swap_remove(0);
    assert!(Tensor::f_run_backward(&[grad.sum(Kind::Float)], &[&x], false, false).is_err());
}

/// The forward pass has already computed the gradient: backward does not read the embeddings again.
#[test]
fn a_change_in_place_after_the_forward_pass_changes_nothing() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss_fn = BatchAllTripletLoss::default();
    let expected = Tensor::run_backward(&[loss_fn.forward(&x, &labels)], &[&x], false, false);
    let mut y = &x * 1.0;
    let loss = loss_fn.forward(&y, &labels);
    let _ = y.f_add_(&Tensor::from(1.0f32)).unwrap();
    assert_eq!(Tensor::run_backward(&[&loss], &[&x], false, false)[0], expected[0]);
}

#[test]
fn without_gradients_there_is_no_graph() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss_fn = BatchAllTripletLoss::default();
    let expected = loss_fn.forward(&x, &labels);
    assert!(expected.requires_grad());
    for loss in [loss_fn.forward(&x.detach(), &labels), tch::no_grad(|| loss_fn.forward(&x, &labels))] {
        assert!(!loss.requires_grad());
        assert_eq!(loss, expected);
    }
}

#[test]
fn without_a_triplet_the_loss_is_zero_and_has_a_gradient() {
    let (x, _) = batch(8, 3, Kind::Float);
    let labels = Tensor::arange(8, (Kind::Int64, Device::Cpu));
    let out = BatchAllTripletLoss::default().on(&x, &labels).forward_with_stats();
    assert_eq!((out.loss.double_value(&[]), out.stats.valid.int64_value(&[])), (0.0, 0));
    out.loss.backward();
    assert_eq!(x.grad(), x.detach().zeros_like());
}

#[test]
fn statistics_are_those_of_the_slices() {
    let (x, labels) = batch(32, 5, Kind::Double);
    let loss_fn = BatchAllTripletLoss { margin: 1.0, ..Default::default() };
    let out = loss_fn.on(&x, &labels).forward_with_stats();
    let numbers = Vec::<f64>::try_from(x.flatten(0, 1)).unwrap();
    let labels = Vec::<i64>::try_from(&labels).unwrap();
    let (loss, stats) = loss_fn.on(tercet::Matrix::new(&numbers, 5).unwrap(), &labels).loss_with_stats().unwrap();
    assert_eq!(out.loss.double_value(&[]), loss);
    assert_eq!(out.stats.valid.int64_value(&[]) as u64, stats.valid);
    assert_eq!(out.stats.active.int64_value(&[]) as u64, stats.active);
    assert_eq!(out.stats.mean_positive_distance.double_value(&[]), stats.mean_positive_distance);
    assert_eq!(out.stats.mean_negative_distance.double_value(&[]), stats.mean_negative_distance);
    assert_eq!(bool::try_from(out.stats.too_many_pairs).unwrap(), stats.too_many_pairs);
}

#[test]
fn wrong_arguments_are_named() {
    let loss_fn = BatchAllTripletLoss::default();
    let (x, labels) = batch(8, 3, Kind::Float);
    let refused = |loss_fn: &BatchAllTripletLoss, x: &Tensor, labels: &Tensor| {
        loss_fn.f_forward(x, labels).expect_err("accepted").to_string()
    };
    let error = refused(&loss_fn, &x, &labels.slice(0, 0, 7, 1));
    assert_eq!(error, "labels: expected shape [8], got [7]");
    let error = refused(&loss_fn, &x.to_kind(Kind::Int64), &labels);
    assert_eq!(error, "embeddings: expected dtype f32, f64, f16 or bf16, got Int64");
    let error = refused(&BatchAllTripletLoss { reduction: Reduction::None, ..loss_fn }, &x, &labels);
    assert_eq!(error, "reduction: expected Mean or Sum, got None");
    let panic = std::panic::catch_unwind(|| loss_fn.forward(&x.to_kind(Kind::Int64), &labels)).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().starts_with("BatchAllTripletLoss: embeddings: expected dtype"));
}
