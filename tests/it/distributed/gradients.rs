//! The weights: alike at the start, and moved by the mean of the processes' gradients.

use tch::nn::{self, LinearConfig, Module, ModuleT, VarStore};
use tch::{Device, Kind, Tensor};
use tercet::BatchHardTripletLoss;
use tercet::torch::distributed::{BatchNorm, ProcessGroup, Shards, average};

use super::setting::{assert_same_everywhere, error, over};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

#[test]
fn gradients_over_three() {
    over(module_path!(), "gradients_over_three", 3, |group| {
        means_of_any_tensors(group);
        what_cannot_be_averaged(group);
        an_encoder_begins_alike_and_steps_alike(group);
        a_variable_without_a_gradient(group);
        batch_norm_is_that_of_the_whole_batch(group);
        batch_norm_refuses(group);
    });
}

/// Of one large tensor, of mixed dtypes, of views, of none.
fn means_of_any_tensors(group: &ProcessGroup) {
    let rank = group.rank() as f64;
    average(&mut [], group).unwrap();
    let tensor = |size: &[i64], kind| {
        let count: i64 = size.iter().product();
        (Tensor::arange(count, DOUBLE).reshape(size).remainder(97.0) * (rank + 1.0)).to_kind(kind)
    };
    // 7 million f32 are more than a bucket; the next ones begin another.
    let sizes: [(&[i64], Kind); 7] = [
        (&[3], Kind::Float),
        (&[7_000_000], Kind::Float),
        (&[2, 3, 4], Kind::Float),
        (&[5], Kind::Double),
        (&[0, 4], Kind::Double),
        (&[6], Kind::Half),
        (&[6], Kind::BFloat16),
    ];
    let mut gradients: Vec<Tensor> = sizes.iter().map(|(size, kind)| tensor(size, *kind)).collect();
    gradients.push(tensor(&[4, 6], Kind::Float).tr());
    let before: Vec<Tensor> = gradients.iter().map(Tensor::copy).collect();
    average(&mut gradients, group).unwrap();
    for (mean, before) in gradients.iter().zip(&before) {
        assert_eq!((mean.kind(), mean.size()), (before.kind(), before.size()));
        // (1 + 2 + 3) / 3 times that of rank 0, all of which are integers that even bf16 holds.
        let expected = before.to_kind(Kind::Double) / (rank + 1.0) * 2.0;
        assert_eq!(mean.to_kind(Kind::Double), expected, "{:?} {:?}", before.kind(), before.size());
    }
    // 16-bit gradients whose sum is beyond f16.
    let mut large = [Tensor::from_slice(&[60000f32]).to_kind(Kind::Half)];
    average(&mut large, group).unwrap();
    assert_eq!(large[0].double_value(&[0]), 60000.0 - 60000.0 % 32.0);
}

fn what_cannot_be_averaged(group: &ProcessGroup) {
    let odd = group.rank() == 2;
    let error = average(&mut [Tensor::zeros([if odd { 3 } else { 4 }], DOUBLE)], group).unwrap_err().to_string();
    assert!(error.ends_with("average: processes 0 and 2 differ in how many numbers there are: 4 and 3"), "{error}");
    let shape: &[i64] = if odd { &[2, 2] } else { &[4] };
    let error = average(&mut [Tensor::zeros(shape, DOUBLE)], group).unwrap_err().to_string();
    assert!(error.ends_with("average: processes 0 and 2 differ in shapes or dtypes"), "{error}");
    let tensor = if odd { Tensor::new() } else { Tensor::zeros([4], DOUBLE) };
    let error = average(&mut [tensor], group).unwrap_err().to_string();
    let own = "gradients: expected tensors, got an undefined one, 0";
    let others = "process 2 has an error of its own, and takes no part";
    assert!(error.ends_with(if odd { own } else { others }), "{error}");
    let constant = Tensor::zeros([4], DOUBLE);
    let error = group.averaging(&[&constant]).err().unwrap().to_string();
    assert!(error.contains("variables: expected tensors that require a gradient"), "{error}");
}

struct Encoder {
    vs: VarStore,
    layers: nn::Sequential,
}

impl Encoder {
    fn new(extra: bool) -> Self {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let layer =
            |name: &str, i, o, bias| nn::linear(&root / name, i, o, LinearConfig { bias, ..Default::default() });
        // A bias at the end would have no gradient but roundings, of which Adam makes steps: distances do not depend on it.
        let layers = nn::seq().add(layer("a", 10, 24, true)).add_fn(|xs| xs.tanh()).add(layer("b", 24, 8, false));
        let _buffer = root.zeros_no_train("buffer", &[3]);
        if extra {
            let _more = root.zeros("more", &[3]);
        }
        let mut vs = vs;
        vs.double();
        Self { vs, layers }
    }

    fn named(&self) -> Vec<(String, Tensor)> {
        let mut named: Vec<_> = self.vs.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        named
    }
}

/// By `average`, by `Averaging`, and in one process: 50 steps of Adam on a loss over the processes.
fn an_encoder_begins_alike_and_steps_alike(group: &ProcessGroup) {
    let rank = group.rank();
    let encoders = [0; 3].map(|_| {
        tch::manual_seed(100 + rank as i64); // other weights in each process
        let encoder = Encoder::new(false);
        encoder.named().into_iter().filter(|(name, _)| name == "buffer").for_each(|(_, mut buffer)| {
            let _ = tch::no_grad(|| buffer.fill_(rank as f64));
        });
        group.broadcast_all(&encoder.vs).unwrap();
        encoder
    });
    for (name, variable) in encoders[0].named() {
        assert_same_everywhere(&[&variable], group, &name);
        assert!(name != "buffer" || variable.double_value(&[0]) == 0.0);
    }
    let refused = group.broadcast_all(&Encoder::new(rank == 1).vs).unwrap_err().to_string();
    assert!(
        refused.ends_with("a broadcast: processes 0 and 1 differ in how many tensors there are: 4 and 5"),
        "{refused}"
    );

    let variables = encoders.each_ref().map(|encoder| encoder.vs.trainable_variables());
    let variables: Vec<Vec<&Tensor>> = variables.iter().map(|all| all.iter().collect()).collect();
    let averaging = group.averaging(&variables[1]).unwrap();
    let counts = [5i64, 0, 9];
    let first: i64 = counts[..rank].iter().sum();
    let shards = group.shards(counts[rank] as usize).unwrap();
    let loss_fn = BatchHardTripletLoss { margin: 1.0, ..Default::default() };
    let zeros = |variable: &&Tensor| [variable.detach().zeros_like(), variable.detach().zeros_like()];
    let moments: Vec<Vec<[Tensor; 2]>> = variables.iter().map(|all| all.iter().map(zeros).collect()).collect();
    for step in 0..50 {
        tch::manual_seed(step);
        let inputs = Tensor::randn([14, 10], DOUBLE);
        let labels = Tensor::arange(14, (Kind::Int64, Device::Cpu)).remainder(4);
        let own = |of: &Tensor| of.narrow(0, first, counts[rank]);
        let loss = |encoder: &Encoder, shards: Option<&Shards>| match shards {
            None => loss_fn.f_forward(&encoder.layers.forward(&inputs), &labels).unwrap(),
            Some(shards) => {
                let (x, y) = (encoder.layers.forward(&own(&inputs)), own(&labels));
                loss_fn.on(&x, &y).over(shards).f_forward().unwrap()
            }
        };
        let one = Tensor::f_run_backward(&[&loss(&encoders[0], None)], &variables[0], false, false).unwrap();
        averaging.prepare().unwrap();
        loss(&encoders[1], Some(&shards)).f_backward().unwrap();
        let reduced: Vec<Tensor> = variables[1].iter().map(|variable| variable.grad().copy()).collect();
        variables[1].iter().for_each(|variable| variable.shallow_clone().zero_grad());
        let ours = loss(&encoders[2], Some(&shards));
        let mut averaged = Tensor::f_run_backward(&[&ours], &variables[2], false, false).unwrap();
        average(&mut averaged, group).unwrap();
        for ((variables, moments), gradients) in variables.iter().zip(&moments).zip([&one, &reduced, &averaged]) {
            for ((variable, moments), gradient) in variables.iter().zip(moments).zip(gradients) {
                adam(variable, moments, gradient, step as i32 + 1);
            }
        }
    }
    for (i, expected) in variables[0].iter().enumerate() {
        for got in [variables[1][i], variables[2][i]] {
            let error = error(got, expected);
            println!("weights after 50 steps of Adam: error {error:.1e}");
            assert!(error <= 1e-9, "variable {i}: {error:e}");
            assert_same_everywhere(&[got], group, "weights after 50 steps");
        }
    }
}

/// One step of Adam (Kingma & Ba, 2015): `x -= rate m̂ / (√v̂ + ε)`. Its division makes much of roundings in small gradients.
fn adam(variable: &Tensor, [mean, square]: &[Tensor; 2], gradient: &Tensor, step: i32) {
    const BETAS: [f64; 2] = [0.9, 0.999];
    let _guard = tch::no_grad_guard();
    let _ = mean.shallow_clone().lerp_(gradient, 1.0 - BETAS[0]);
    let _ = square.shallow_clone().lerp_(&gradient.square(), 1.0 - BETAS[1]);
    let corrected = |moment: &Tensor, beta: f64| moment / (1.0 - beta.powi(step));
    let moved = corrected(mean, BETAS[0]) / (corrected(square, BETAS[1]).sqrt() + 1e-8) * 0.01;
    let _ = variable.shallow_clone().subtract_(&moved);
}

/// c10d leaves its bucket as it is; the next step says so.
fn a_variable_without_a_gradient(group: &ProcessGroup) {
    let [used, unused] = [0; 2].map(|_| Tensor::ones([3], DOUBLE).set_requires_grad(true));
    let averaging = group.averaging(&[&used, &unused]).unwrap();
    averaging.prepare().unwrap();
    used.sum(Kind::Double).f_backward().unwrap();
    let error = averaging.prepare().unwrap_err().to_string();
    assert!(error.contains("Expected to have finished reduction in the prior iteration"), "{error}");
}

/// Against libtorch's own, of all rows in one process: unequal shards, one of them empty.
fn batch_norm_is_that_of_the_whole_batch(group: &ProcessGroup) {
    let rank = group.rank();
    for (counts, size, affine) in
        [([4i64, 1, 3], vec![5i64, 3, 4], true), ([2, 0, 6], vec![4, 2, 3], true), ([1, 1, 2], vec![6], false)]
    {
        tch::manual_seed(21);
        let n: i64 = counts.iter().sum();
        let mut shape = vec![n];
        shape.extend(&size);
        // Far from 0, where a variance from sums of squares would cancel.
        let images = Tensor::randn(&shape, DOUBLE) * 3.0 + 1000.0;
        let upstream = Tensor::randn(&shape, DOUBLE);
        let first: i64 = counts[..rank].iter().sum();
        let own = |of: &Tensor| of.narrow(0, first, counts[rank]);

        let vs = VarStore::new(Device::Cpu);
        let config = nn::BatchNormConfig { affine, momentum: 0.3, eps: 1e-3, ..Default::default() };
        let theirs = {
            let path = vs.root() / "theirs";
            let [weight, bias] = ["weight", "bias"].map(|name| path.randn(name, &size[..1], 1.0, 1.0));
            let running = [path.zeros_no_train("mean", &size[..1]), path.ones_no_train("var", &size[..1])];
            ([weight, bias], running)
        };
        let layer = BatchNorm::new(vs.root() / "ours", size[0], config, group);
        let mut vs = vs;
        vs.double();
        let ([weight, bias], [mean, var]) = &theirs;
        if let Some(affine) = &layer.affine {
            tch::no_grad(|| {
                affine[0].shallow_clone().copy_(weight);
                affine[1].shallow_clone().copy_(bias);
            });
        }
        let whole = images.copy().set_requires_grad(true);
        let given = |tensor| affine.then_some(tensor);
        let expected = whole.batch_norm(given(weight), given(bias), Some(mean), Some(var), true, 0.3, 1e-3, false);
        (&expected * &upstream).sum(Kind::Double).f_backward().unwrap();

        let x = own(&images).copy().set_requires_grad(true);
        let ys = layer.f_forward_t(&x, true).unwrap();
        (&ys * own(&upstream)).sum(Kind::Double).f_backward().unwrap();
        let check = |got: &Tensor, expected: &Tensor, what: &str| {
            let error = error(got, expected);
            assert!(error <= 1e-10, "{what}, {counts:?}: {error:e}");
        };
        check(&ys, &own(&expected), "output");
        check(&x.grad(), &own(&whole.grad()), "gradient");
        check(&layer.running_mean, mean, "running mean");
        check(&layer.running_var, var, "running variance");
        assert_same_everywhere(&[&layer.running_mean, &layer.running_var], group, "running statistics");
        if let Some([ours_weight, ours_bias]) = &layer.affine {
            // The mean over processes of their parts is a third of the sum.
            let mut gradients = [ours_weight.grad().copy(), ours_bias.grad().copy()];
            average(&mut gradients, group).unwrap();
            check(&(&gradients[0] * 3.0), &weight.grad(), "gradient of the weight");
            check(&(&gradients[1] * 3.0), &bias.grad(), "gradient of the bias");
        }
        let measured = whole.batch_norm(given(weight), given(bias), Some(mean), Some(var), false, 0.3, 1e-3, false);
        check(&layer.forward_t(&images, false), &measured, "output of an evaluation");
    }
    // 16-bit activations keep their dtype, and their statistics are those of f32.
    let layer = BatchNorm::new(VarStore::new(Device::Cpu).root(), 2, Default::default(), group);
    let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)) * (1000.0 + rank as f64);
    let ys = layer.f_forward_t(&x.to_kind(Kind::BFloat16), true).unwrap();
    assert_eq!(ys.kind(), Kind::BFloat16);
}

fn batch_norm_refuses(group: &ProcessGroup) {
    let odd = group.rank() == 1;
    let layer = |channels| BatchNorm::new(VarStore::new(Device::Cpu).root(), channels, Default::default(), group);
    let channels = if odd { 3 } else { 2 };
    let x = Tensor::ones([2, channels], (Kind::Float, Device::Cpu));
    let error = layer(channels).f_forward_t(&x, true).unwrap_err().to_string();
    assert!(error.ends_with("batch norm: processes 0 and 1 differ in the channels: 2 and 3"), "{error}");
    let none = Tensor::ones([0, 2], (Kind::Float, Device::Cpu));
    let error = layer(2).f_forward_t(&none, true).unwrap_err().to_string();
    assert_eq!(error, "xs: expected a row in at least one process, got none");
    let error = layer(2).f_forward_t(&Tensor::ones([2], (Kind::Float, Device::Cpu)), true).unwrap_err().to_string();
    assert_eq!(error, "xs: expected [N, C, ..] of floating point numbers, got Float [2]");
}
