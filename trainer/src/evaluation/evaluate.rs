//! Verification of an encoder on identities it was not trained on.

use crate::data::dataset::Dataset;
use crate::data::view::{Affine, tensor};
use crate::data::workers::Workers;
use crate::evaluation::metrics::{Comparison, Verification, verify};
use crate::evaluation::tally::Tally;
use crate::model::distance::Distance;
use crate::model::encoder::{Encoder, Pass};
use crate::model::vectors::Vectors;
use crate::process::interrupt::Interrupt;
use crate::process::random::{Purpose, stream};
use crate::process::ranks::Ranks;
use anyhow::Result;
use rand::Rng;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Images per forward pass.
const BATCH: usize = 64;
/// Embeddings on the host.
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Batches that batch norm's statistics are estimated on.
const STATISTICS: u64 = 4;

/// Images that are compared: rows of [`Vectors`].
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// Each row's index into the images of its set.
    pub image: Vec<usize>,
    /// Each row's identity; for a forgery, that of the signature that it imitates.
    pub identity: Vec<usize>,
}

impl Subjects {
    fn new(sample: Vec<(usize, usize)>) -> Self {
        let (image, identity) = sample.into_iter().unzip();
        Self { image, identity }
    }
}

/// The validation images and how they are compared.
pub struct Evaluation {
    images: Subjects,
    forgeries: Option<(Dataset, Subjects)>,
    normalize: bool,
    distance: Distance,
    seed: u64,
    device: Device,
}

/// The results of one evaluation.
pub struct Evaluated {
    /// The metrics.
    pub scores: Verification,
    /// The embeddings of [`Evaluation::images`].
    pub vectors: Vectors,
    /// The embeddings of the forgeries.
    pub forged: Vectors,
}

impl Evaluation {
    /// An evaluation of at most `limit` images of `val`, as [`Vectors::from_tensor`] takes their embeddings.
    pub fn new(
        val: &Dataset,
        limit: usize,
        (normalize, distance): (bool, Distance),
        seed: u64,
        device: Device,
    ) -> Self {
        Self { images: Subjects::new(val.sample(limit, seed)), forgeries: None, normalize, distance, seed, device }
    }

    /// Compares with forgeries too, at most half as many as the validation images: `forged.members[i]` imitate the
    /// identity `i` of `val`.
    pub fn with_forgeries(mut self, forged: Dataset) -> Self {
        let sample = Subjects::new(forged.sample((self.len() / 2).max(1), self.seed));
        self.forgeries = Some((forged, sample));
        self
    }

    /// How many images are compared, without forgeries.
    pub fn len(&self) -> usize {
        self.images.image.len()
    }

    /// The validation images that are compared, row for row.
    pub fn images(&self) -> &Subjects {
        &self.images
    }

    /// The set of forgeries, if there is one, and which of them are compared.
    pub fn forgeries(&self) -> Option<(&Dataset, &Subjects)> {
        self.forgeries.as_ref().map(|(set, subjects)| (set, subjects))
    }

    /// First sets batch norm's running statistics from training images, then measures.
    ///
    /// With momentum 0.1 running statistics trail the weights by tens of steps. In 152 layers that compounds: after a
    /// short run the outputs in evaluation mode can be meaningless. So they are re-estimated before each evaluation;
    /// validation images have no part in it.
    ///
    /// Each process takes its share of the batches, and all have all the embeddings at the end.
    ///
    /// # Errors
    /// Among others [`Interrupted`](crate::process::interrupt::Interrupted), as soon as somebody asks to stop.
    pub fn run(
        &self,
        encoder: &Encoder,
        workers: &Workers,
        [train, val]: [&Dataset; 2],
        interrupt: &Interrupt,
        ranks: &Ranks,
    ) -> Result<Evaluated> {
        let _guard = tch::no_grad_guard();
        let make = |number: u64| {
            let mut rng = stream(self.seed, Purpose::Statistics, 0, number);
            let mut draw = || (rng.random_range(0..train.images.len()), Affine::IDENTITY);
            let views: Vec<_> = (0..BATCH).map(|_| draw()).collect();
            tensor(&train.images, &views, self.device)
        };
        let own = ranks.share().of(STATISTICS as usize);
        std::thread::scope(|scope| -> Result<()> {
            let mut batches = workers.ahead(scope, own.start as u64..own.end as u64, &make);
            for before in 0..ranks.share().most(STATISTICS as usize) {
                ranks.check(interrupt)?;
                if let Some(xs) = batches.next() {
                    let _ = encoder.forward(&xs?, Pass::Estimate { before })?;
                }
            }
            Ok(())
        })?;
        mean_statistics(encoder, own.len(), ranks)?;
        let embed = |set, subjects| self.embed(encoder, workers, set, subjects, (interrupt, ranks));
        let vectors = embed(val, &self.images)?;
        let forged = match &self.forgeries {
            Some((set, subjects)) => embed(set, subjects)?,
            None => Vectors::default(),
        };
        Ok(self.scored(vectors, forged))
    }

    /// What [`run`](Self::run) returned, restored from the tensors that a checkpoint has of it.
    pub fn restored(&self, vectors: &Tensor, forged: &Tensor) -> Result<Evaluated> {
        let restored = |rows| Vectors::restored(rows, self.distance);
        Ok(self.scored(restored(vectors)?, restored(forged)?))
    }

    /// Computes the metrics of these embeddings.
    fn scored(&self, vectors: Vectors, forged: Vectors) -> Evaluated {
        let identity = &self.images.identity;
        let mut scores = verify(identity, &vectors);
        if let Some((_, subjects)) = &self.forgeries {
            scores.skilled = skilled(&vectors, identity, &forged, &subjects.identity);
        }
        Evaluated { scores, vectors, forged }
    }

    fn embed(
        &self,
        encoder: &Encoder,
        workers: &Workers,
        set: &Dataset,
        subjects: &Subjects,
        (interrupt, ranks): (&Interrupt, &Ranks),
    ) -> Result<Vectors> {
        // Whole batches, the same for any number of processes.
        let all: Vec<&[usize]> = subjects.image.chunks(BATCH).collect();
        let batches = &all[ranks.share().of(all.len())];
        let make = |n: u64| {
            let views: Vec<_> = batches[n as usize].iter().map(|&image| (image, Affine::IDENTITY)).collect();
            tensor(&set.images, &views, self.device)
        };
        let mut vectors = Vectors::default();
        std::thread::scope(|scope| -> Result<()> {
            let mut ahead = workers.ahead(scope, 0..batches.len() as u64, &make);
            for _ in 0..ranks.share().most(all.len()) {
                ranks.check(interrupt)?;
                if let Some(xs) = ahead.next() {
                    let embeddings: Tensor = encoder.forward(&xs?, Pass::Evaluate)?;
                    vectors.extend(&Vectors::from_tensor(&embeddings, self.normalize, self.distance)?);
                }
            }
            Ok(())
        })?;
        if ranks.is_alone() {
            return Ok(vectors);
        }
        let own = if vectors.len() > 0 { vectors.to_tensor() } else { Tensor::f_zeros([0, encoder.dim()], FLOAT)? };
        Vectors::restored(&ranks.gather(&own)?, self.distance)
    }
}

/// The running statistics of all batches, of which this process has estimated them on so many.
fn mean_statistics(encoder: &Encoder, batches: usize, ranks: &Ranks) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let statistics = encoder.statistics();
    let flat: Vec<Tensor> = statistics.iter().map(|tensor| tensor.reshape([-1])).collect();
    let mut all = Tensor::f_cat(&flat, 0)?;
    // The mean over processes of what each has, weighed by its batches. Without a batch its numbers are old ones.
    let weight = (batches * ranks.size()) as f64 / STATISTICS as f64;
    all = if batches > 0 { all * weight } else { all.zeros_like() };
    let mut all = [all];
    ranks.average(&mut all)?;
    let lengths: Vec<i64> = statistics.iter().map(|tensor| tensor.numel() as i64).collect();
    for (mut tensor, mean) in statistics.into_iter().zip(all[0].f_split_with_sizes(lengths, 0)?) {
        tensor.f_copy_(&mean)?;
    }
    Ok(())
}

/// Compares genuine pairs with pairs of an image and a forgery of its identity: the question of a bank's clerk, whose
/// impostor has practised. `None` unless there are pairs of both kinds.
pub fn skilled(vectors: &Vectors, identity: &[usize], forged: &Vectors, of: &[usize]) -> Option<Comparison> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(i, &owner)| members.entry(owner).or_default().push(i));
    let mut pairs = Vec::new();
    for images in members.values() {
        let all = images.iter().enumerate().flat_map(|(n, &i)| images[..n].iter().map(move |&j| (i, j)));
        pairs.extend(all.map(|(i, j)| (vectors.distance(i, j), true)));
    }
    let genuine = pairs.len();
    for (forgery, owner) in of.iter().enumerate() {
        let images = members.get(owner).into_iter().flatten();
        pairs.extend(images.map(|&i| (vectors.distance_to(i, forged, forgery), false)));
    }
    let both = genuine > 0 && pairs.len() > genuine;
    both.then(|| Comparison::new(Tally::of_pairs(pairs)))
}
