//! Adam (Kingma & Ba, 2015) with its moments in our own tensors: tch's optimiser cannot save its state, and a run that
//! goes on without it goes on to other numbers.

use anyhow::{Result, ensure};
use tch::{Tensor, nn};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// One variable and its moments.
struct Slot {
    name: String,
    variable: Tensor,
    /// Running mean of the gradient.
    mean: Tensor,
    /// Running mean of the gradient's square.
    square: Tensor,
}

/// The optimiser of all variables that require a gradient.
pub struct Adam {
    slots: Vec<Slot>,
    /// Updates done, on which the bias corrections depend.
    steps: u64,
    weight_decay: f64,
}

impl Adam {
    /// An optimiser whose moments start at 0. `weight_decay` times a variable is added to its gradient.
    pub fn new(vs: &nn::VarStore, weight_decay: f64) -> Self {
        let mut variables: Vec<_> = vs.variables().into_iter().filter(|(_, v)| v.requires_grad()).collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0)); // a map's order changes from run to run
        let slot = |(name, variable): (String, Tensor)| {
            let zeros = || variable.detach().zeros_like();
            Slot { mean: zeros(), square: zeros(), name, variable }
        };
        Self { slots: variables.into_iter().map(slot).collect(), steps: 0, weight_decay }
    }

    /// The gradients of a scalar loss, in the order that [`Adam::step`] takes them.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        // Unlike `backward`, this neither adds to old gradients nor needs them set to zero.
        let variables: Vec<&Tensor> = self.slots.iter().map(|slot| &slot.variable).collect();
        Ok(Tensor::f_run_backward(&[loss], &variables, false, false)?)
    }

    /// One update at learning rate `rate`.
    ///
    /// `x -= rate m̂ / (√v̂ + ε)` with `m̂ = m / (1 - β₁ᵗ)`, `v̂ = v / (1 - β₂ᵗ)`, as one quotient of tensors:
    /// `m / ((√v + ε √(1 - β₂ᵗ)) scale)`.
    pub fn step(&mut self, gradients: &[Tensor], rate: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let root = correction(BETA2).sqrt();
        let scale = -correction(BETA1) / (rate * root); // rate 0: infinite, and x stays as it is
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let decayed = (self.weight_decay != 0.0).then(|| gradient + &slot.variable * self.weight_decay);
            let gradient = decayed.as_ref().unwrap_or(gradient);
            let _ = slot.mean.f_lerp_(gradient, 1.0 - BETA1)?;
            let _ = slot.square.f_lerp_(&gradient.f_square()?, 1.0 - BETA2)?;
            let mut divisor = slot.square.f_sqrt()?;
            let _ = divisor.f_add_scalar_(EPSILON * root)?;
            let _ = divisor.f_mul_scalar_(scale)?;
            let _ = slot.variable.f_addcdiv_(&slot.mean, &divisor)?;
        }
        Ok(())
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments with their names; the tensors are not copies.
    pub fn moments(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.slots.iter().flat_map(|slot| {
            let name = |what| format!("{what}/{}", slot.name);
            [(name("mean"), &slot.mean), (name("square"), &slot.square)]
        })
    }

    /// Goes on after `steps` updates, from the moments that `take` returns for each name.
    pub fn restore(&mut self, steps: u64, mut take: impl FnMut(&str) -> Result<Tensor>) -> Result<()> {
        self.steps = steps;
        for slot in &mut self.slots {
            for (what, tensor) in [("mean", &mut slot.mean), ("square", &mut slot.square)] {
                let stored = take(&format!("{what}/{}", slot.name))?;
                let (there, wanted) = (stored.size(), tensor.size());
                ensure!(there == wanted, "{what}/{}: {there:?} is stored, {wanted:?} wanted", slot.name);
                tensor.f_copy_(&stored)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tch::nn::OptimizerConfig;
    use tch::{Device, Kind};

    /// Two layers and the loss of a fixed batch.
    struct Problem {
        vs: nn::VarStore,
        layers: [nn::Linear; 2],
        xs: Tensor,
    }

    impl Problem {
        fn new() -> Self {
            let vs = nn::VarStore::new(Device::Cpu);
            let root = vs.root();
            let layers = [(7, 5), (5, 3)].map(|(i, o)| nn::linear(&root / i, i, o, Default::default()));
            // Torch's generator would not do: tests on other threads draw from it too.
            let waves = |size: &[i64], speed: f64| {
                let count = size.iter().product::<i64>();
                (Tensor::arange(count, (Kind::Float, Device::Cpu)) * speed).sin().reshape(size)
            };
            let _guard = tch::no_grad_guard();
            for (_, mut variable) in vs.variables() {
                variable.copy_(&(waves(&variable.size(), 1.7) * 0.4));
            }
            Self { layers, xs: waves(&[11, 7], 2.3), vs }
        }

        fn loss(&self) -> Tensor {
            let ys = self.xs.apply(&self.layers[0]).tanh().apply(&self.layers[1]);
            (ys.square() - ys).mean(Kind::Float)
        }

        fn values(&self) -> Vec<f32> {
            let mut named: Vec<_> = self.vs.variables().into_iter().collect();
            named.sort_by(|a, b| a.0.cmp(&b.0));
            named.iter().flat_map(|(_, v)| Vec::<f32>::try_from(v.detach().reshape([-1])).unwrap()).collect()
        }

        fn update(&self, adam: &mut Adam, rate: f64) {
            let gradients = adam.gradients(&self.loss()).unwrap();
            adam.step(&gradients, rate).unwrap();
        }
    }

    #[test]
    fn equals_torchs_adam_to_rounding() {
        for weight_decay in [0.0, 0.1] {
            let (ours, theirs) = (Problem::new(), Problem::new());
            let mut adam = Adam::new(&ours.vs, weight_decay);
            let mut torchs = nn::Adam { wd: weight_decay, ..Default::default() }.build(&theirs.vs, 0.0).unwrap();
            let start = ours.values();
            for step in 0..60 {
                let rate = if step < 30 { 1e-2 } else { 1e-3 };
                ours.update(&mut adam, rate);
                torchs.set_lr(rate);
                torchs.backward_step(&theirs.loss());
            }
            let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            let error = far(&ours.values(), &theirs.values());
            assert!(far(&start, &ours.values()) > 0.1, "it moved");
            // Each step rounds x, of size 1, and a move of 1e-2 with some ten roundings: 60 (2⁻²⁴ + 1e-2 10 2⁻²⁴).
            assert!(error <= 4e-6, "weight decay {weight_decay}: {error}");
        }
    }

    #[test]
    fn restored_moments_go_on_to_the_same_bits() {
        let (whole, parts) = (Problem::new(), Problem::new());
        let mut adam = Adam::new(&whole.vs, 0.01);
        (0..7).for_each(|_| whole.update(&mut adam, 1e-2));

        let mut first = Adam::new(&parts.vs, 0.01);
        (0..3).for_each(|_| parts.update(&mut first, 1e-2));
        let stored: HashMap<String, Tensor> = first.moments().map(|(name, t)| (name, t.copy())).collect();
        let mut second = Adam::new(&parts.vs, 0.01);
        second.restore(first.steps(), |name| Ok(stored[name].shallow_clone())).unwrap();
        (0..4).for_each(|_| parts.update(&mut second, 1e-2));
        assert_eq!(whole.values(), parts.values());

        let error = second.restore(1, |_| Ok(Tensor::zeros([2], (Kind::Float, Device::Cpu)))).unwrap_err();
        assert!(error.to_string().contains("[2] is stored"), "{error}");
    }

    #[test]
    fn a_rate_of_zero_changes_no_variable() {
        let problem = Problem::new();
        let before = problem.values();
        problem.update(&mut Adam::new(&problem.vs, 0.0), 0.0);
        assert_eq!(problem.values(), before);
    }
}
