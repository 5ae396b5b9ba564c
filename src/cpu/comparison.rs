//! Anchors, and the other rows that their positives and negatives are taken from: the batch itself, or a reference set.

use super::batch::{Batch, Both, Classes};
use super::distance_matrix::DistanceMatrix;
use crate::mined::Slices;
use crate::problem::{Options, Problem};
use crate::{Element, Scalar};

/// Stands for no row.
pub const NONE: u32 = u32::MAX;

/// The anchors and the rows they are compared with, both sorted by class.
pub struct Comparison<A> {
    pub anchors: Batch<A>,
    pub classes: Classes,
    reference: Option<Other<A>>,
}

/// A reference set, and where the anchors' classes and the anchors themselves lie in it.
struct Other<A> {
    batch: Batch<A>,
    classes: Classes,
    /// For each sorted anchor, the range of its class among the sorted reference rows.
    ranges: Vec<(u32, u32)>,
    /// For each sorted anchor, the sorted reference row that is the anchor itself, or [`NONE`].
    own: Vec<u32>,
}

impl<A: Scalar> Comparison<A> {
    pub fn new<T: Element<Scalar = A>, X>(problem: &Problem<X>, slices: &Slices<'_, T>) -> Self {
        let Slices { embeddings, labels, reference } = slices;
        let Options { distance, normalize, .. } = problem.options;
        let classes = Classes::new(labels);
        let anchors = Batch::new(embeddings, &classes.order, distance, normalize);
        let reference = reference.map(|reference| {
            let of = Classes::new(reference.labels);
            let batch = Batch::new(&reference.embeddings, &of.order, distance, normalize);
            let label = |&i: &u32| reference.labels[i as usize];
            let ranges = classes.order.iter().map(|&anchor| {
                let mine = labels[anchor as usize];
                let start = of.order.partition_point(|i| label(i) < mine);
                let end = start + of.order[start..].partition_point(|i| label(i) == mine);
                (start as u32, end as u32)
            });
            let ranges = ranges.collect();
            let own = classes.order.iter().map(|&anchor| {
                let own = reference.own.row(anchor as usize, batch.rows);
                own.map_or(NONE, |row| of.position[row])
            });
            Other { own: own.collect(), ranges, batch, classes: of }
        });
        Self { anchors, classes, reference }
    }

    /// Whether the batch is its own reference set.
    pub fn is_itself(&self) -> bool {
        self.reference.is_none()
    }

    /// The rows that anchors are compared with.
    pub fn others(&self) -> &Batch<A> {
        self.reference.as_ref().map_or(&self.anchors, |other| &other.batch)
    }

    /// The classes of the rows that anchors are compared with.
    pub fn other_classes(&self) -> &Classes {
        self.reference.as_ref().map_or(&self.classes, |other| &other.classes)
    }

    /// Whether any number of either side is NaN or infinite.
    pub fn poisoned(&self) -> bool {
        self.anchors.poisoned || self.others().poisoned
    }

    /// The range of anchor i's class among the rows it is compared with.
    pub fn class(&self, i: usize) -> std::ops::Range<usize> {
        let (start, end) = self.reference.as_ref().map_or(&self.classes.ranges, |other| &other.ranges)[i];
        start as usize..end as usize
    }

    /// The row that is anchor i itself, among those it is compared with.
    pub fn own(&self, i: usize) -> Option<usize> {
        match &self.reference {
            None => Some(i),
            Some(other) => Some(other.own[i]).filter(|&own| own != NONE).map(|own| own as usize),
        }
    }

    /// The rows of anchor i's class without its own, lowest given index first.
    pub fn positives(&self, i: usize) -> impl Iterator<Item = usize> + use<A> {
        let own = self.own(i);
        self.class(i).filter(move |&p| Some(p) != own)
    }

    pub fn count_positives(&self, i: usize) -> usize {
        let class = self.class(i);
        class.len() - usize::from(self.own(i).is_some_and(|own| class.contains(&own)))
    }

    pub fn count_negatives(&self, i: usize) -> usize {
        self.others().rows - self.class(i).len()
    }

    /// For each row that anchors are compared with, the range of the anchors of its class.
    pub fn anchors_of_others(&self) -> Vec<std::ops::Range<usize>> {
        let mut of_class = vec![0..0; self.others().rows];
        let mut start = 0;
        // Anchors of one class stand together.
        for class in self.classes.ranges.chunk_by(|one, next| one == next) {
            of_class[self.class(start)].fill(start..start + class.len());
            start += class.len();
        }
        of_class
    }

    /// Whether anchor i has both a positive and a negative.
    pub fn is_valid(&self, i: usize) -> bool {
        self.count_positives(i) > 0 && self.count_negatives(i) > 0
    }

    /// What the distance of anchor i and row j is [compared](Batch::direct) by, from the rows themselves.
    pub fn direct(&self, i: usize, j: usize) -> A {
        super::batch::direct(self.anchors.metric, self.anchors.row(i), self.others().row(j))
    }

    /// The products of the anchors with the rows they are compared with.
    pub fn products(&self) -> Both<A> {
        Both::new(&self.anchors, self.others())
    }

    /// The distances of the anchors to the rows they are compared with. `products`: its own.
    pub fn matrix<'a>(&'a self, products: &'a Both<A>) -> DistanceMatrix<'a, A> {
        DistanceMatrix::new(&self.anchors, self.others(), products)
    }

    /// The given index of a sorted row that anchors are compared with.
    pub fn given(&self, row: usize) -> u32 {
        self.other_classes().order[row]
    }
}

/// How many of a run of `columns` lie before `class`, and the position in the run of the first one behind it.
pub fn around_class(class: &std::ops::Range<usize>, columns: &std::ops::Range<usize>) -> (usize, usize) {
    let within = |at: usize| at.clamp(columns.start, columns.end) - columns.start;
    (within(class.start), within(class.end))
}
