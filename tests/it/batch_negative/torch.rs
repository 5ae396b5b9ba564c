//! `BatchSemiHardTripletLoss` and `BatchNegativeTripletLoss` on tch tensors: the same numbers as the formula in tch
//! operations, and what autograd expects.
use tch::{Device, Kind, Tensor};
use tercet::torch::CrossBatchMemory;
use tercet::{
    BatchNegativeTripletLoss, BatchSemiHardTripletLoss, Distance, Matrix, Negative, Own, Reduction, Reference,
};

fn batch(rows: i64, dim: i64, kind: Kind) -> (Tensor, Tensor) {
    tch::manual_seed(7);
    let x = Tensor::randn([rows, dim], (kind, Device::Cpu)).set_requires_grad(true);
    (x, Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder((rows / 4).max(1)))
}

/// For N anchors and M rows, in f64: d_ap `[N, M, 1]`, d_an `[N, 1, M]`, and the mask of the valid triplets `[N, M,
/// M]`.
fn triplets(distance: Distance, x: &Tensor, y: &Tensor, labels: &Tensor, others: &Tensor, own: &Tensor) -> [Tensor; 3] {
    let [x, y] = [x, y].map(|x| x.to_kind(Kind::Double));
    let squared = || (x.unsqueeze(1) - y.unsqueeze(0)).square().sum_dim_intlist(2, false, Kind::Double);
    let unit = |x: &Tensor| x / x.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12);
    let d = match distance {
        Distance::Cosine => 1.0 - unit(&x).matmul(&unit(&y).tr()),
        // The root has no gradient at 0: 1 is added for a row with itself, which is in no triplet.
        Distance::Euclidean => (squared() + own.to_kind(Kind::Double)).sqrt(),
        _ => squared(),
    };
    let same = labels.unsqueeze(1).eq_tensor(&others.unsqueeze(0));
    let positive = same.logical_and(&own.logical_not()).unsqueeze(2);
    [d.unsqueeze(2), d.unsqueeze(1), positive.logical_and(&same.logical_not().unsqueeze(1))]
}

/// The hinge of the `chosen` triplets: summed per anchor, over all of them, or averaged over their number.
fn hinge([d_ap, d_an, _]: &[Tensor; 3], chosen: &Tensor, margin: f64, reduction: Reduction) -> Tensor {
    let terms = ((d_ap - d_an + margin).relu() * chosen.to_kind(Kind::Double)).sum_dim_intlist(
        [1, 2].as_slice(),
        false,
        Kind::Double,
    );
    match reduction {
        Reduction::None => terms,
        Reduction::Sum => terms.sum(Kind::Double),
        Reduction::Mean => terms.sum(Kind::Double) / chosen.sum(Kind::Double),
        _ => unreachable!("a reduction without a formula here"),
    }
}

/// One-hot along the last axis: the place among `valid` where `d` is least; all false if nothing is valid.
fn least(d: &Tensor, valid: &Tensor) -> Tensor {
    let d = d.detach().expand_as(valid).masked_fill(&valid.logical_not(), f64::INFINITY);
    let place = d.argmin(2, true);
    let one = Tensor::zeros(valid.size(), (Kind::Bool, Device::Cpu)).scatter_value(2, &place, 1i64);
    one.logical_and(valid)
}

fn semi_hard(loss: &BatchSemiHardTripletLoss, all: &[Tensor; 3]) -> Tensor {
    let [d_ap, d_an, valid] = all;
    let beyond = valid.logical_and(&d_an.gt_tensor(d_ap));
    let nearest = least(d_an, &beyond);
    let has = beyond.any_dim(2, true);
    let farthest = least(&-d_an, &valid.logical_and(&has.logical_not()));
    hinge(all, &nearest.logical_or(&farthest), loss.margin, loss.reduction)
}

fn hardest(loss: &BatchNegativeTripletLoss, all: &[Tensor; 3]) -> Tensor {
    let [d_ap, d_an, valid] = all;
    let chosen = least(d_an, valid).logical_and(&(d_ap - d_an + loss.margin).gt(0.0));
    hinge(all, &chosen, loss.margin, loss.reduction)
}

fn close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    assert_eq!(actual.size(), expected.size(), "{what}");
    let error = (&actual - &expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]);
    assert!(error <= tolerance * (1.0 + size), "{what}: error {error}, size {size}");
}

/// The gradients of the loss with respect to each of `of`, for an upstream of 3.
fn gradients(loss: &Tensor, of: &[&Tensor]) -> Vec<Tensor> {
    let of: Vec<Tensor> = of.iter().map(|x| x.shallow_clone()).collect();
    Tensor::run_backward(&[(loss * 3.0).sum(Kind::Double)], &of, true, false)
}

#[test]
fn agrees_with_the_formula_in_tensor_operations() {
    let dtypes = [(Kind::Double, 1e-12), (Kind::Float, 1e-5), (Kind::Half, 2e-3), (Kind::BFloat16, 2e-2)];
    for distance in [Distance::SquaredEuclidean, Distance::Euclidean, Distance::Cosine] {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            for (kind, tolerance) in dtypes {
                let (x, labels) = batch(24, 6, kind);
                let (bank, bank_labels) = batch(40, 6, kind);
                let bank = (bank.detach() * 0.5 + 0.1).set_requires_grad(true);
                let nobody = Tensor::zeros([24, 40], (Kind::Bool, Device::Cpu));
                let itself = Tensor::eye(24, (Kind::Bool, Device::Cpu));
                let reference = Reference { embeddings: &bank, labels: &bank_labels, own: Own::None };
                let by_itself = triplets(distance, &x, &x, &labels, &labels, &itself);
                let against = triplets(distance, &x, &bank, &labels, &bank_labels, &nobody);
                let semi = BatchSemiHardTripletLoss { margin: 1.0, distance, reduction, ..Default::default() };
                let hard = BatchNegativeTripletLoss {
                    margin: 1.0,
                    distance,
                    reduction,
                    negative: Negative::Hardest,
                    ..Default::default()
                };
                let what = format!("{distance:?} {reduction:?} {kind:?}");
                for (ours, expected, of) in [
                    (semi.forward(&x, &labels), semi_hard(&semi, &by_itself), vec![&x]),
                    (semi.on(&x, &labels).against(&reference).forward(), semi_hard(&semi, &against), vec![&x, &bank]),
                    (hard.forward(&x, &labels), hardest(&hard, &by_itself), vec![&x]),
                    (hard.on(&x, &labels).against(&reference).forward(), hardest(&hard, &against), vec![&x, &bank]),
                ] {
                    close(&ours, &expected, tolerance, &what);
                    for (ours, expected) in gradients(&ours, &of).iter().zip(gradients(&expected, &of)) {
                        close(ours, &expected, 4.0 * tolerance, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_detached_reference_gets_no_gradient_and_may_be_changed_after_the_forward_pass() {
    let (x, labels) = batch(16, 4, Kind::Float);
    let mut bank = Tensor::randn([12, 4], (Kind::Float, Device::Cpu));
    let bank_labels = Tensor::arange(12, (Kind::Int, Device::Cpu)).remainder(4);
    let loss_fn = BatchSemiHardTripletLoss { margin: 1.0, ..Default::default() };
    let of = |bank: &Tensor| {
        loss_fn.on(&x, &labels).against(&Reference { embeddings: bank, labels: &bank_labels, own: Own::None }).forward()
    };
    of(&bank).backward();
    assert!(x.grad().defined() && !bank.grad().defined());
    let expected = Tensor::run_backward(&[of(&bank)], &[&x], false, false);
    let loss = of(&bank);
    let _ = bank.fill_(0.0);
    assert_eq!(Tensor::run_backward(&[loss], &[&x], false, false)[0], expected[0]);
}

#[test]
fn the_step_draws_as_the_slices_do_at_step_zero_and_anew_at_others() {
    let (x, labels) = batch(32, 4, Kind::Float);
    let loss_fn = BatchNegativeTripletLoss { margin: 4.0, negative: Negative::Random, seed: 5, ..Default::default() };
    let numbers: Vec<f32> = Vec::try_from(x.detach().reshape([-1])).unwrap();
    let label_numbers: Vec<i64> = Vec::try_from(&labels).unwrap();
    let on_slices = loss_fn.on(Matrix::new(&numbers, 4).unwrap(), &label_numbers).loss().unwrap();
    let at = |step: i64| loss_fn.on(&x, &labels).step(&Tensor::from(step)).forward().double_value(&[]);
    assert_eq!(f64::from(on_slices), at(0));
    assert_eq!(at(0), loss_fn.forward(&x, &labels).double_value(&[]));
    let slices_at =
        |step: i64| loss_fn.on(Matrix::new(&numbers, 4).unwrap(), &label_numbers).step(step).loss().unwrap();
    assert_eq!(f64::from(slices_at(9)), at(9));
    // The draws of a step with a memory are those against what is in it.
    let mut memory = CrossBatchMemory::new(64, 4, Kind::Float, Device::Cpu);
    let step = Tensor::from(9i64);
    let with_memory = memory.forward(loss_fn.on(&x, &labels).step(&step));
    let own = memory.newest(32);
    let reference = Reference { own: Own::Rows(&own), ..memory.reference() };
    let against = loss_fn.on(&x, &labels).against(&reference);
    assert_eq!(with_memory, against.step(&step).forward());
    assert_ne!(with_memory, against.forward());
    assert_eq!(at(9), at(9));
    assert!(at(9) != at(0) && at(9) != at(10));
    for (step, expected) in [
        (Tensor::from(1.0), "step: expected dtype Int64"),
        (Tensor::from_slice(&[1i64, 2]), "step: expected one number"),
    ] {
        let error = loss_fn.on(&x, &labels).step(&step).f_forward().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn wrong_reference_sets_are_named() {
    let (x, labels) = batch(8, 4, Kind::Float);
    let loss_fn = BatchSemiHardTripletLoss::default();
    let like = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    let float = |shape: &[i64]| like(shape, Kind::Float);
    let own = like(&[3], Kind::Int64);
    for (embeddings, bank_labels, own, argument) in [
        (float(&[5, 3]), like(&[5], Kind::Int64), Own::None, "reference.embeddings"),
        (like(&[5, 4], Kind::Double), like(&[5], Kind::Int64), Own::None, "reference.embeddings"),
        (float(&[0, 4]), like(&[0], Kind::Int64), Own::None, "reference.embeddings"),
        (float(&[5, 4]), like(&[4], Kind::Int64), Own::None, "reference.labels"),
        (float(&[5, 4]), float(&[5]), Own::None, "reference.labels"),
        (float(&[5, 4]), like(&[5], Kind::Int64), Own::Rows(&own), "reference.own"),
    ] {
        let reference = Reference { embeddings: &embeddings, labels: &bank_labels, own };
        let error = loss_fn.on(&x, &labels).against(&reference).f_forward().unwrap_err().to_string();
        assert!(error.starts_with(argument), "{error} for {argument}");
    }
}
