//! Batch norm by the statistics of all processes' rows.

use std::borrow::Borrow;

use tch::nn::{BatchNormConfig, ModuleT, Path};
use tch::{Kind, Tensor};

use super::ProcessGroup;
use super::agreement::{Notice, Op, Term};
use super::shards::is_narrow;
use crate::Error;
use crate::torch::CustomFunction;

/// Batch norm in training, by the mean and variance of the rows of all processes; `torch.nn.SyncBatchNorm` as a function.
///
/// ```text
/// y  = (x - mean) / sqrt(var + eps) w + b       mean, var of each channel: over all rows and places of all processes, n
/// dx = w / sqrt(var + eps) (dy - (Σ dy + x̂ Σ dy x̂) / n)      both sums over all processes: they exchange 2 C numbers
/// dw = Σ dy x̂,  db = Σ dy                       over this process's: they are averaged with the other gradients
/// running += momentum (new - running)           new: mean, and var n / (n - 1)
/// ```
///
/// `xs` is `[n, C, ..]`, and the processes may have different numbers of rows, or none. `affine` are `w` and `b`, `running` the running
/// mean and variance, which are changed in place; all are `[C]`. Each process sends 3 C numbers forward. [`BatchNorm`] is a
/// layer of it.
///
/// # Errors
/// If a shape is wrong, no process has a row, the processes' shapes or dtypes differ, they make different calls, or one is lost or
/// too late.
pub fn batch_norm(
    xs: &Tensor,
    affine: Option<[&Tensor; 2]>,
    running: Option<[&Tensor; 2]>,
    momentum: f64,
    eps: f64,
    group: &ProcessGroup,
) -> Result<Tensor, Error> {
    let all = group.agree(check(xs, affine, running, group))?;
    if all.is_some_and(|all| all.iter().all(|theirs| theirs[ROWS] == 0)) {
        return Err(Error::argument("xs", "a row in at least one process", "none"));
    }
    let size = xs.size();
    let (channels, dims) = (size[1], size.len());
    // 16-bit numbers are taken in f32, as are their sums.
    let arithmetic = if is_narrow(xs.kind()) { Kind::Float } else { xs.kind() };
    let as_channels = move |tensor: &Tensor| -> Result<Tensor, Error> {
        let mut shape = vec![1; dims];
        shape[1] = -1;
        Ok(tensor.f_reshape(shape)?)
    };
    let axes: Vec<i64> = (0..dims as i64).filter(|axis| *axis != 1).collect();

    let guard = tch::no_grad_guard();
    let count = xs.numel() as f64 / channels as f64;
    let of_channels = (Kind::Double, xs.device());
    let own = match count > 0.0 {
        true => {
            let (var, mean) = xs.f_to_kind(arithmetic)?.f_var_mean_dim(axes.as_slice(), false, false)?;
            let squares = var.f_to_kind(Kind::Double)? * count;
            [Tensor::f_full([channels], count, of_channels)?, mean.f_to_kind(Kind::Double)?, squares]
        }
        false => [0; 3].map(|_| Tensor::zeros([channels], of_channels)),
    };
    let all = group.gathered(&Tensor::f_stack(&own, 0)?.f_unsqueeze(0)?)?; // [W, 3, C]
    let [counts, means, squares] = [0, 1, 2].map(|i| all.select(1, i));
    // The parallel variance of Chan, Golub and LeVeque, which does not cancel.
    let sum = |of: &Tensor| of.f_sum_dim_intlist([0i64].as_slice(), false, None);
    let n = sum(&counts)?;
    let mean = sum(&(&counts * &means))? / &n;
    let squares = sum(&(squares + &counts * (&means - &mean).f_square()?))?;
    let var = &squares / &n;
    if let Some(running) = running {
        let unbiased = &squares / (&n - 1.0).f_clamp_min(1.0)?;
        for (running, new) in running.into_iter().zip([&mean, &unbiased]) {
            let _ = running.shallow_clone().f_lerp_(&new.f_to_kind(running.kind())?, momentum)?;
        }
    }
    let inverse = (&var + eps).f_rsqrt()?.f_to_kind(arithmetic)?;
    let (mean, var) = (mean.f_to_kind(arithmetic)?, var.f_to_kind(arithmetic)?);
    let [weight, bias] = [0, 1].map(|i| affine.map(|affine| affine[i]));
    let ys = xs.f_batch_norm(weight, bias, Some(&mean), Some(&var), false, 0.0, eps, false)?;
    drop(guard);

    let mut inputs = vec![xs];
    inputs.extend(affine.iter().flatten());
    let mut saved = vec![xs, &mean, &inverse];
    saved.extend(weight);
    let (group, n, has_weight) = (group.clone(), n.f_to_kind(arithmetic)?, affine.is_some());
    CustomFunction::new("BatchNormOverProcesses").inputs(&inputs).saved(&saved).attach(&ys, move |ctx| {
        let [xs, mean, inverse] = [0, 1, 2].map(|i| ctx.saved(i));
        let (xs, dy) = (xs.f_to_kind(arithmetic)?, ctx.upstream().f_to_kind(arithmetic)?);
        let normal = (xs - as_channels(mean)?) * as_channels(inverse)?;
        let sum = |of: &Tensor| of.f_sum_dim_intlist(axes.as_slice(), false, None);
        let own = Tensor::f_stack(&[sum(&(&dy * &normal))?, sum(&dy)?], 0)?;
        group.agree(Ok(Notice::new(Op::Backward, [Term::Same("the channels", own.size()[1])])))?;
        let all = group.begin_all_reduce(own.f_detach_copy()?, false)?.wait()? / &n;
        let dx = dy - as_channels(&all.f_get(1)?)? - normal * as_channels(&all.f_get(0)?)?;
        let scale = if has_weight { inverse * ctx.saved(3) } else { inverse.shallow_clone() };
        let mut grads = vec![Some(dx * as_channels(&scale)?)];
        if has_weight {
            grads.extend([Some(own.f_get(0)?), Some(own.f_get(1)?)]);
        }
        Ok(grads)
    })
}

/// The place of the rows in what the processes compare.
const ROWS: usize = 0;

/// The checks of a call, and what the processes compare of it.
fn check(
    xs: &Tensor,
    affine: Option<[&Tensor; 2]>,
    running: Option<[&Tensor; 2]>,
    group: &ProcessGroup,
) -> Result<Notice, Error> {
    group.takes("xs", xs)?;
    let size = xs.size();
    if size.len() < 2 || size[1] == 0 || !xs.is_floating_point() {
        return Err(Error::argument("xs", "[N, C, ..] of floating point numbers", format!("{:?} {size:?}", xs.kind())));
    }
    for (argument, given) in [("affine", affine), ("running", running)] {
        for tensor in given.into_iter().flatten() {
            if !tensor.defined() || tensor.size() != size[1..2] {
                return Err(Error::argument(argument, format!("[{}]", size[1]), "another shape"));
            }
        }
    }
    let of_row: i64 = size[2..].iter().product();
    Ok(Notice::new(
        Op::BatchNorm,
        [
            Term::Own(size[0]),
            Term::dtype(xs.kind()),
            Term::Same("the channels", size[1]),
            Term::Same("the places of a channel", of_row),
            Term::Same("whether it is on a CUDA device", xs.device().is_cuda().into()),
            Term::Same("whether a gradient is needed", crate::torch::needs_grad(xs).into()),
        ],
    ))
}

/// A layer of batch norm over the processes: `torch.nn.SyncBatchNorm`, with the variables of tch's own batch norms, so that
/// weights of the one can be loaded into the other.
///
/// In training it is [`batch_norm`]; otherwise it takes the running statistics, which are the same in all processes.
///
/// ```
/// use tch::nn::{self, ModuleT};
/// use tch::{Device, Kind, Tensor};
/// use tercet::torch::distributed::{BatchNorm, ProcessGroup};
///
/// let group = ProcessGroup::from_env()?;
/// let vs = nn::VarStore::new(Device::Cpu);
/// let layer = BatchNorm::new(vs.root() / "bn1", 3, Default::default(), &group);
/// let images = Tensor::randn([4, 3, 8, 8], (Kind::Float, Device::Cpu));
/// assert_eq!(layer.forward_t(&images, true).size(), [4, 3, 8, 8]);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Debug)]
pub struct BatchNorm {
    /// The weight and the bias of each channel; `None` if the configuration is not affine.
    pub affine: Option<[Tensor; 2]>,
    /// The running mean of each channel.
    pub running_mean: Tensor,
    /// The running variance of each channel.
    pub running_var: Tensor,
    config: BatchNormConfig,
    group: ProcessGroup,
}

impl BatchNorm {
    /// A layer for `channels` channels, whose variables are made in this path.
    pub fn new<'a>(vs: impl Borrow<Path<'a>>, channels: i64, config: BatchNormConfig, group: &ProcessGroup) -> Self {
        let vs = vs.borrow();
        let affine = config
            .affine
            .then(|| [vs.var("weight", &[channels], config.ws_init), vs.var("bias", &[channels], config.bs_init)]);
        Self {
            affine,
            running_mean: vs.zeros_no_train("running_mean", &[channels]),
            running_var: vs.ones_no_train("running_var", &[channels]),
            config,
            group: group.clone(),
        }
    }

    /// The layer's output, or an error.
    ///
    /// # Errors
    /// Those of [`batch_norm`].
    pub fn f_forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor, Error> {
        let Self { affine, running_mean, running_var, config, group } = self;
        let affine = affine.as_ref().map(|[weight, bias]| [weight, bias]);
        if train {
            return batch_norm(xs, affine, Some([running_mean, running_var]), config.momentum, config.eps, group);
        }
        let [weight, bias] = [0, 1].map(|i| affine.map(|affine| affine[i]));
        let running = [running_mean, running_var].map(Some);
        let [mean, var] = running;
        Ok(xs.f_batch_norm(weight, bias, mean, var, false, config.momentum, config.eps, config.cudnn_enabled)?)
    }
}

impl ModuleT for BatchNorm {
    /// # Panics
    /// If [`f_forward_t`](BatchNorm::f_forward_t) returns an error, with its text.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.f_forward_t(xs, train).unwrap_or_else(|error| panic!("BatchNorm: {error}"))
    }
}
