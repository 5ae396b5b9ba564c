//! ResNet-18/34/50/101/152 (He et al., 2015), with torchvision's variable names and initial values.
//!
//! Written on `tch::nn` rather than taken from `tch::vision` for three reasons: batch norm's weights
//! start at 1 (tch draws them from 0..1), its running statistics can be re-estimated, and convolutions
//! start as torchvision's do (`kaiming_normal`, fan out).

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Init, Module};
use tch::{Kind, Tensor};
use tercet::torch::distributed::{ProcessGroup, batch_norm};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum Architecture {
    /// 18 layers, basic blocks.
    Resnet18,
    /// 34 layers, basic blocks.
    Resnet34,
    /// 50 layers, bottleneck blocks.
    Resnet50,
    /// 101 layers, bottleneck blocks.
    Resnet101,
    /// 152 layers, bottleneck blocks.
    Resnet152,
}

impl Architecture {
    fn blocks(self) -> [i64; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
            Self::Resnet101 => [3, 4, 23, 3],
            Self::Resnet152 => [3, 8, 36, 3],
        }
    }

    fn bottleneck(self) -> bool {
        !matches!(self, Self::Resnet18 | Self::Resnet34)
    }
}

/// The type in which convolutions are computed while training. Batch norm's statistics, the last layer, the weights and
/// their gradients are f32 at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")] // as on the command line
pub enum Precision {
    /// 32 bits
    F32,
    /// 16 bits with the range of f32
    Bf16,
    /// 16 bits of a small range: the loss is scaled
    F16,
    /// 64 bits for weights, convolutions and the loss: slow, to check numbers by
    F64,
}

impl Precision {
    /// The dtype of the tensors.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
            Self::F64 => Kind::Double,
        }
    }

    /// The dtype of the weights, and of the embeddings that the loss gets.
    pub fn of_weights(self) -> Kind {
        if self == Self::F64 { Kind::Double } else { Kind::Float }
    }
}

/// What batch norm does in a forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Pass {
    /// Normalise by the batch; running statistics follow with momentum 0.1.
    Train,
    /// Normalise by the batch; running statistics become the plain mean over this batch and the `before` batches before
    /// it (momentum `1 / (before + 1)`: the first one overwrites what was there).
    Estimate {
        /// How many batches have been seen.
        before: usize,
    },
    /// Normalise by the running statistics.
    Evaluate,
}

/// The share of a batch's statistics in the running ones.
const MOMENTUM: f64 = 0.1;
/// What is added to a variance, which may be 0.
const EPSILON: f64 = 1e-5;

struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    /// The processes whose images a training batch is made of, if it is normalised by all of them.
    group: Option<ProcessGroup>,
}

impl BatchNorm {
    fn new(p: &nn::Path, channels: i64, weight: f64) -> Self {
        Self {
            weight: p.var("weight", &[channels], Init::Const(weight)),
            bias: p.var("bias", &[channels], Init::Const(0.0)),
            mean: p.zeros_no_train("running_mean", &[channels]),
            var: p.ones_no_train("running_var", &[channels]),
            group: None,
        }
    }

    fn forward(&self, xs: &Tensor, pass: Pass) -> Result<Tensor> {
        if let (Pass::Train, Some(group)) = (pass, &self.group) {
            let (affine, running) = ([&self.weight, &self.bias], [&self.mean, &self.var]);
            return Ok(batch_norm(xs, Some(affine), Some(running), MOMENTUM, EPSILON, group)?);
        }
        if let Pass::Estimate { before: 0 } = pass {
            // Momentum 1 multiplies the old statistics by 0, which makes NaN of an infinity that an overflow in 16 bits
            // has left.
            let _guard = tch::no_grad_guard();
            let _ = (self.mean.shallow_clone().zero_(), self.var.shallow_clone().zero_());
        }
        let (training, momentum) = match pass {
            Pass::Train => (true, MOMENTUM),
            Pass::Estimate { before } => (true, 1.0 / (before as f64 + 1.0)),
            Pass::Evaluate => (false, 0.0),
        };
        let (w, b) = (Some(&self.weight), Some(&self.bias));
        let (mean, var) = (Some(&self.mean), Some(&self.var));
        Ok(xs.f_batch_norm(w, b, mean, var, training, momentum, EPSILON, true)?)
    }
}

/// A convolution and its batch norm.
struct ConvNorm {
    weight: Tensor,
    stride: i64,
    padding: i64,
    norm: BatchNorm,
}

impl ConvNorm {
    /// `names` are those of the convolution and of the batch norm below `p`.
    fn new(p: &nn::Path, names: [&str; 2], io: [i64; 2], side: i64, stride: i64, gain: f64) -> Self {
        // N(0, 2 / (c_out k k)): `kaiming_normal_(mode="fan_out", nonlinearity="relu")`.
        let stdev = (2.0 / (io[1] * side * side) as f64).sqrt();
        let init = Init::Randn { mean: 0.0, stdev };
        Self {
            weight: (p / names[0]).var("weight", &[io[1], io[0], side, side], init),
            stride,
            padding: side / 2,
            norm: BatchNorm::new(&(p / names[1]), io[1], gain),
        }
    }

    /// Computes in the dtype of `xs`: tch's autocast knows f16 on CUDA and nothing else.
    fn forward(&self, xs: &Tensor, pass: Pass) -> Result<Tensor> {
        let weight = self.weight.to_kind(xs.kind());
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        self.norm.forward(&xs.f_conv2d(&weight, None::<Tensor>, stride, padding, [1i64, 1], 1)?, pass)
    }
}

/// `relu(shortcut(x) + branch(x))`.
struct Block {
    branch: Vec<ConvNorm>,
    shortcut: Option<ConvNorm>,
}

impl Block {
    fn new(p: &nn::Path, bottleneck: bool, inputs: i64, width: i64, stride: i64) -> Self {
        let outputs = if bottleneck { 4 * width } else { width };
        let layer = |i: usize, io, side, stride, gain| {
            let names = [format!("conv{i}"), format!("bn{i}")];
            ConvNorm::new(p, [&names[0], &names[1]], io, side, stride, gain)
        };
        let branch = if bottleneck {
            // The stride is on the 3x3 convolution: torchvision's "v1.5".
            vec![
                layer(1, [inputs, width], 1, 1, 1.0),
                layer(2, [width, width], 3, stride, 1.0),
                layer(3, [width, outputs], 1, 1, LAST_GAIN),
            ]
        } else {
            vec![layer(1, [inputs, width], 3, stride, 1.0), layer(2, [width, width], 3, 1, LAST_GAIN)]
        };
        let shortcut = (stride != 1 || inputs != outputs)
            .then(|| ConvNorm::new(&(p / "downsample"), ["0", "1"], [inputs, outputs], 1, stride, 1.0));
        Self { branch, shortcut }
    }

    fn forward(&self, xs: &Tensor, pass: Pass) -> Result<Tensor> {
        let (last, first) = self.branch.split_last().expect("a block has layers");
        let mut ys = xs.shallow_clone();
        for layer in first {
            ys = layer.forward(&ys, pass)?.relu_();
        }
        let ys = last.forward(&ys, pass)?;
        let shortcut = match &self.shortcut {
            Some(layer) => layer.forward(xs, pass)?,
            None => xs.shallow_clone(),
        };
        Ok((ys + shortcut).relu_())
    }
}

/// Batch norm's initial weight at the end of each residual branch. At 0 every block starts as its shortcut, so an
/// untrained ResNet-152 is a shallow network that grows deep as it learns (torchvision's `zero_init_residual`). Loaded
/// weights overwrite it.
const LAST_GAIN: f64 = 0.0;

/// Images `[N, 3, H, W]` to embeddings `[N, D]`.
pub struct Encoder {
    stem: ConvNorm,
    blocks: Vec<Block>,
    fc: nn::Linear,
    precision: Precision,
}

impl Encoder {
    /// A new encoder, whose initial weights come from libtorch's generator: call `tch::manual_seed` before.
    pub fn new(root: &nn::Path, architecture: Architecture, embedding_dim: i64) -> Self {
        let stem = ConvNorm::new(root, ["conv1", "bn1"], [3, 64], 7, 2, 1.0);
        let mut blocks = Vec::new();
        let mut channels = 64;
        for (stage, count) in architecture.blocks().into_iter().enumerate() {
            let width = 64 << stage;
            for i in 0..count {
                let path = root / format!("layer{}", stage + 1) / i.to_string();
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let bottleneck = architecture.bottleneck();
                blocks.push(Block::new(&path, bottleneck, channels, width, stride));
                channels = if bottleneck { 4 * width } else { width };
            }
        }
        let fc = nn::linear(root / "fc", channels, embedding_dim, Default::default());
        Self { stem, blocks, fc, precision: Precision::F32 }
    }

    /// Sets the precision of [`Pass::Train`]. The other passes measure, in the weights' precision.
    pub fn train_in(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Normalises training batches by the images of all processes of the group.
    pub fn normalise_over(&mut self, group: &ProcessGroup) {
        self.layers_mut().for_each(|layer| layer.norm.group = Some(group.clone()));
    }

    /// Batch norm's running means and variances; no copies.
    pub fn statistics(&self) -> Vec<Tensor> {
        let of_layer = |layer: &ConvNorm| [&layer.norm.mean, &layer.norm.var].map(Tensor::shallow_clone);
        self.layers().flat_map(of_layer).collect()
    }

    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        let of_blocks = self.blocks.iter().flat_map(|block| block.branch.iter().chain(&block.shortcut));
        std::iter::once(&self.stem).chain(of_blocks)
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut ConvNorm> {
        let of_blocks = self.blocks.iter_mut().flat_map(|block| block.branch.iter_mut().chain(&mut block.shortcut));
        std::iter::once(&mut self.stem).chain(of_blocks)
    }

    /// The numbers of an embedding.
    pub fn dim(&self) -> i64 {
        self.fc.ws.size()[0]
    }

    /// The embeddings in the weights' dtype, not normalised.
    ///
    /// # Errors
    /// libtorch's, and those of the other processes where batches are normalised over them.
    pub fn forward(&self, xs: &Tensor, pass: Pass) -> Result<Tensor> {
        let exact = self.fc.ws.kind();
        let kind = if matches!(pass, Pass::Train) { self.precision.kind() } else { exact };
        let xs = self.stem.forward(&xs.to_kind(kind), pass)?.relu_();
        let mut xs = xs.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        for block in &self.blocks {
            xs = block.forward(&xs, pass)?;
        }
        Ok(self.fc.forward(&xs.mean_dim([2i64, 3].as_slice(), false, exact)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn names(architecture: Architecture) -> Vec<(String, Vec<i64>)> {
        let vs = nn::VarStore::new(Device::Cpu);
        Encoder::new(&vs.root(), architecture, 128);
        let mut names: Vec<_> = vs.variables().into_iter().map(|(n, t)| (n, t.size())).collect();
        names.sort();
        names
    }

    #[test]
    fn names_and_shapes_are_torchvisions() {
        // The names and shapes of tch's own models, by which torchvision's weights load.
        let vs = nn::VarStore::new(Device::Cpu);
        let _model = tch::vision::resnet::resnet50(&vs.root(), 128);
        let mut theirs: Vec<_> = vs.variables().into_iter().map(|(n, t)| (n, t.size())).collect();
        theirs.sort();
        assert_eq!(names(Architecture::Resnet50), theirs);
        let vs = nn::VarStore::new(Device::Cpu);
        let _model = tch::vision::resnet::resnet18(&vs.root(), 128);
        let mut theirs: Vec<_> = vs.variables().into_iter().map(|(n, t)| (n, t.size())).collect();
        theirs.sort();
        assert_eq!(names(Architecture::Resnet18), theirs);
    }

    fn far(a: &Tensor, b: &Tensor) -> f64 {
        let square = (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).square().mean(Kind::Double);
        f64::try_from(square.sqrt()).unwrap()
    }

    #[test]
    fn a_block_in_sixteen_bits_comes_near() {
        let _guard = tch::no_grad_guard();
        let vs = nn::VarStore::new(Device::Cpu);
        let block = Block::new(&vs.root(), true, 16, 8, 2);
        let mut last = block.branch[2].norm.weight.shallow_clone();
        let _ = last.fill_(1.0); // it starts at 0, and the branch would not count
        let xs = Tensor::randn([4, 16, 8, 8], (Kind::Float, Device::Cpu));
        let exact = block.forward(&xs, Pass::Train).unwrap();
        for kind in [Kind::BFloat16, Kind::Half] {
            let narrow = block.forward(&xs.to_kind(kind), Pass::Train).unwrap();
            assert_eq!(narrow.kind(), kind);
            // One rounding, of the input, against some twelve: of weights, outputs and norms of four layers.
            let bound = 6.0 * far(&exact, &block.forward(&xs.to_kind(kind).to_kind(Kind::Float), Pass::Train).unwrap());
            let error = far(&exact, &narrow);
            assert!(error > 0.0 && error <= bound, "{kind:?}: {error} of {bound}");
        }
    }

    #[test]
    fn sixteen_bits_are_for_training_alone() {
        let _guard = tch::no_grad_guard();
        let vs = nn::VarStore::new(Device::Cpu);
        let mut encoder = Encoder::new(&vs.root(), Architecture::Resnet18, 8);
        let xs = Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let mut embed = |precision, pass| {
            encoder.precision = precision;
            encoder.forward(&xs, pass).unwrap()
        };
        let [exact, narrow] = [Precision::F32, Precision::Bf16].map(|p| embed(p, Pass::Train));
        assert_eq!(narrow.kind(), Kind::Float);
        assert_ne!(exact, narrow);
        let [exact, narrow] = [Precision::F32, Precision::Bf16].map(|p| embed(p, Pass::Evaluate));
        assert_eq!(exact, narrow);
    }

    #[test]
    fn estimated_statistics_are_the_mean_over_batches() {
        tch::manual_seed(0);
        let vs = nn::VarStore::new(Device::Cpu);
        let norm = BatchNorm::new(&vs.root(), 2, 1.0);
        let batches: Vec<_> = (0..3).map(|i| Tensor::randn([4, 2, 3, 3], (Kind::Float, Device::Cpu)) + i).collect();
        for (before, xs) in batches.iter().enumerate() {
            let _ = norm.forward(xs, Pass::Estimate { before }).unwrap();
        }
        let means: Vec<_> = batches.iter().map(|xs| xs.mean_dim([0i64, 2, 3].as_slice(), false, None)).collect();
        let expected = Tensor::stack(&means, 0).mean_dim([0i64].as_slice(), false, None);
        assert!(norm.mean.allclose(&expected, 1e-5, 1e-6, false));
    }
}
