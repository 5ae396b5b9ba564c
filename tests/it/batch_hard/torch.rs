//! `BatchHardTripletLoss` on tch tensors: the same numbers as the formula in tch operations, and what autograd expects.
use tch::{Device, Kind, Tensor};
use tercet::{BatchHardTripletLoss, Distance, Reduction};

fn batch(rows: i64, dim: i64, kind: Kind) -> (Tensor, Tensor) {
    tch::manual_seed(7);
    let x = Tensor::randn([rows, dim], (kind, Device::Cpu)).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder((rows / 4).max(1)))
}

/// The formula, in f64, for every option.
fn in_operations(loss: &BatchHardTripletLoss, x: &Tensor, labels: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Double);
    let x = match loss.normalize || loss.distance == Distance::Cosine {
        true => &x / x.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12),
        false => x,
    };
    let squared = || (x.unsqueeze(0) - x.unsqueeze(1)).square().sum_dim_intlist(2, false, Kind::Double);
    let d = match loss.distance {
        Distance::Cosine => 1.0 - x.matmul(&x.tr()),
        // The root has no gradient at 0: 1 is added on the diagonal, which is never selected.
        Distance::Euclidean => (squared() + Tensor::eye(x.size()[0], (Kind::Double, Device::Cpu))).sqrt(),
        _ => squared(),
    };
    let same = labels.unsqueeze(0).eq_tensor(&labels.unsqueeze(1));
    let own = Tensor::eye(x.size()[0], (Kind::Bool, Device::Cpu));
    let farthest =
        d.masked_fill(&same.logical_and(&own.logical_not()).logical_not(), f64::NEG_INFINITY).amax([1], false);
    let nearest = d.masked_fill(&same, f64::INFINITY).amin([1], false);
    let losses = match loss.soft_margin {
        // Torch's `softplus` would leave out terms below 2e-9.
        true => (&farthest - nearest).logaddexp(&farthest.zeros_like()),
        false => (farthest - nearest + loss.margin).relu(),
    };
    match loss.reduction {
        Reduction::None => losses,
        Reduction::Mean => losses.mean(Kind::Double),
        Reduction::Sum => losses.sum(Kind::Double),
        _ => unreachable!("a reduction without a formula here"),
    }
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
        for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
            for (normalize, soft_margin) in [(false, false), (true, false), (false, true)] {
                for (kind, tolerance) in
                    [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)]
                {
                    let loss_fn = BatchHardTripletLoss {
                        margin: 0.5,
                        distance,
                        normalize,
                        soft_margin,
                        reduction,
                        ..Default::default()
                    };
                    let (x, labels) = batch(24, 10, kind);
                    let what = format!("{loss_fn:?} {kind:?}");
                    let ours = loss_fn.forward(&x, &labels);
                    let expected = in_operations(&loss_fn, &x, &labels);
                    assert_eq!(ours.kind(), if kind == Kind::Double { Kind::Double } else { Kind::Float });
                    close(&ours, &expected, f64::min(tolerance, 1e-5), &what);
                    // Upstream gradients other than 1: one per row for `Reduction::None`.
                    let weights =
                        Tensor::arange(ours.numel() as i64, (Kind::Double, Device::Cpu)).reshape(ours.size()) + 0.5;
                    let ours = Tensor::run_backward(
                        &[(ours * weights.to_kind(Kind::Float)).sum(Kind::Double)],
                        &[&x],
                        false,
                        false,
                    );
                    let expected = Tensor::run_backward(&[(expected * weights).sum(Kind::Double)], &[&x], false, false);
                    assert_eq!(ours[0].kind(), kind);
                    close(&ours[0], &expected[0], tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn labels_may_be_any_integers_and_rows_any_view() {
    let loss_fn = BatchHardTripletLoss::default();
    let (x, labels) = batch(16, 6, Kind::Float);
    let expected = loss_fn.forward(&x, &labels);
    for other in [labels.to_kind(Kind::Int), &labels * -1_000_000_007i64 + 5, labels.repeat([2]).slice(0, 0, 16, 1)] {
        assert_eq!(loss_fn.forward(&x, &other), expected);
    }
    let every_second = Tensor::stack(&[&labels, &labels], 1).flatten(0, 1).slice(0, 0, 32, 2);
    assert_eq!(loss_fn.forward(&x, &every_second), expected);
    let transposed = x.detach().tr().contiguous().tr();
    assert_eq!(transposed.stride(), [1, 16]);
    assert_eq!(loss_fn.forward(&transposed, &labels), expected);
}

#[test]
fn a_retained_graph_runs_backward_again() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss = BatchHardTripletLoss { margin: 100.0, ..Default::default() }.forward(&x, &labels);
    let once = Tensor::run_backward(&[&loss], &[&x], true, false);
    let twice = Tensor::run_backward(&[&loss * 2.0], &[&x], true, false);
    assert_eq!(&once[0] * 2.0, twice[0]);
    assert_eq!(Tensor::run_backward(&[&loss], &[&x], false, false)[0], once[0]);
    assert!(Tensor::f_run_backward(&[&loss], &[&x], false, false).is_err(), "the graph is gone");
}

/// On the CPU the forward pass saves what the gradient needs, and not the embeddings.
#[test]
fn a_change_in_place_after_the_forward_pass_changes_nothing() {
    let (x, labels) = batch(16, 6, Kind::Float);
    let loss_fn = BatchHardTripletLoss { margin: 9.0, ..Default::default() };
    let expected = Tensor::run_backward(&[loss_fn.forward(&x, &labels)], &[&x], false, false);
    let mut y = &x * 1.0;
    let loss = loss_fn.forward(&y, &labels);
    let _ = y.f_mul_(&Tensor::from(7.0f32)).unwrap();
    assert_eq!(Tensor::run_backward(&[&loss], &[&x], false, false)[0], expected[0]);
    assert!(expected[0].abs().sum(Kind::Float).double_value(&[]) > 0.0);
}

#[test]
fn without_a_triplet_the_loss_is_zero_and_has_a_gradient() {
    let (x, _) = batch(8, 3, Kind::Float);
    let labels = Tensor::arange(8, (Kind::Int64, Device::Cpu));
    let out = BatchHardTripletLoss::default().on(&x, &labels).forward_with_stats();
    assert_eq!((out.loss.double_value(&[]), out.stats.valid.int64_value(&[])), (0.0, 0));
    out.loss.backward();
    assert_eq!(x.grad(), x.detach().zeros_like());
}

#[test]
fn statistics_are_those_of_the_slices() {
    let (x, labels) = batch(32, 5, Kind::Double);
    let loss_fn = BatchHardTripletLoss { margin: 1.0, ..Default::default() };
    let out = loss_fn.on(&x, &labels).forward_with_stats();
    let numbers = Vec::<f64>::try_from(x.flatten(0, 1)).unwrap();
    let labels = Vec::<i64>::try_from(&labels).unwrap();
    let (loss, stats) = loss_fn.on(tercet::Matrix::new(&numbers, 5).unwrap(), &labels).loss_with_stats().unwrap();
    assert_eq!(out.loss.double_value(&[]), loss);
    assert_eq!(out.stats.valid.int64_value(&[]) as u64, stats.valid);
    assert_eq!(out.stats.active.int64_value(&[]) as u64, stats.active);
    assert_eq!(out.stats.mean_positive_distance.double_value(&[]), stats.mean_positive_distance);
    assert_eq!(out.stats.mean_negative_distance.double_value(&[]), stats.mean_negative_distance);
}

#[test]
fn wrong_arguments_are_named() {
    let loss_fn = BatchHardTripletLoss::default();
    let (x, labels) = batch(8, 3, Kind::Float);
    for (embeddings, labels, expected) in [
        (x.shallow_clone(), labels.slice(0, 0, 7, 1), "labels: expected shape [8], got [7]"),
        (x.shallow_clone(), labels.to_kind(Kind::Float), "labels: expected dtype i64 or i32, got Float"),
        (x.shallow_clone(), labels.reshape([2, 4]), "labels: expected shape [8], got [2, 4]"),
        (x.shallow_clone(), Tensor::new(), "labels: expected a tensor, got an undefined one"),
        (x.to_kind(Kind::Int64), labels.shallow_clone(), "embeddings: expected dtype f32, f64, f16 or bf16, got Int64"),
        (x.flatten(0, 1), labels.shallow_clone(), "embeddings: expected shape [B, D], got [24]"),
        (
            x.slice(0, 0, 0, 1),
            labels.slice(0, 0, 0, 1),
            "embeddings: expected at least one row and one column, got [0, 3]",
        ),
    ] {
        let error = loss_fn.f_forward(&embeddings, &labels).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
    let error = BatchHardTripletLoss { margin: -1.0, ..loss_fn }.f_forward(&x, &labels).unwrap_err().to_string();
    assert_eq!(error, "margin: expected a finite number, 0 or more, got -1");
    let panic = std::panic::catch_unwind(|| loss_fn.forward(&x.to_kind(Kind::Int64), &labels)).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().starts_with("BatchHardTripletLoss: embeddings: expected dtype"));
}
