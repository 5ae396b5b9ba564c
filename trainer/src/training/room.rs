//! Room for the positive pairs of a batch. Some losses list them on a CUDA device, where the room is limited: beyond it
//! the loss is NaN, because their number is known on the device alone, and asking for it would be waiting for it. Here
//! the labels are known.

use crate::process::bad_input::bad_input;
use crate::training::batch::BatchShape;
use crate::training::loss::Loss;
use anyhow::Result;
use std::collections::HashMap;
use tch::Device;
use tercet::internal::capacity;

/// Refuses a run whose batches have more positive pairs than there is room for. `members` are the images of each
/// identity, `memory` the rows of the memory.
///
/// For the batch alone this is the fullest that could be drawn; with a memory it is the expected number: the memory has
/// as many rows of each identity as of another, and each anchor is paired with all of its own.
pub fn check(loss: &Loss, shape: BatchShape, members: &[Vec<usize>], memory: usize, device: Device) -> Result<()> {
    if !(device.is_cuda() && loss.lists_pairs()) {
        return Ok(());
    }
    let mut sizes: Vec<usize> = members.iter().map(|images| images.len().min(shape.images)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.truncate(shape.identities);
    let rows: usize = sizes.iter().sum();
    let of_batch: usize = sizes.iter().map(|&size| size.saturating_mul(size)).sum();
    let with_memory = rows.saturating_mul(memory) / members.len().max(1);
    for (what, pairs, room) in [
        (format!("--samples-per-class {}: a batch", shape.images), of_batch, capacity(rows, rows)),
        (format!("--memory {memory}: a batch and the memory"), with_memory, capacity(rows, memory)),
    ] {
        if pairs > room {
            return Err(bad_input(format!(
                "{what} of {rows} images has up to {pairs} pairs of one identity, and on a CUDA device this loss has room for \
                 {room}; --loss batch-hard and batch-contrastive list none, and --device cpu has room for all"
            )));
        }
    }
    Ok(())
}

/// Why the loss of a batch with `labels`, mined among rows with the labels `others`, is NaN on a device; `None` if the
/// pairs fit.
pub fn overfull(labels: &[i64], others: &[i64]) -> Option<String> {
    let mut of_class: HashMap<i64, usize> = HashMap::new();
    others.iter().for_each(|&label| *of_class.entry(label).or_default() += 1);
    let pairs: usize = labels.iter().map(|label| of_class.get(label).copied().unwrap_or(0)).sum();
    let room = capacity(labels.len(), others.len());
    (pairs > room).then(|| {
        format!(
            "the batch has {pairs} pairs of one identity, and on a CUDA device this loss has room for {room}: fewer \
             --samples-per-class, or less --memory"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tercet::{BatchAllTripletLoss, BatchHardTripletLoss};

    #[test]
    fn batches_that_do_not_fit_are_refused_before_the_run_on_cuda_alone() {
        let check = |loss: &Loss, shape: [usize; 2], members: &[usize], memory, device| {
            let members: Vec<Vec<usize>> = members.iter().map(|&n| vec![0; n]).collect();
            check(loss, BatchShape { identities: shape[0], images: shape[1], triplets: 0 }, &members, memory, device)
        };
        let all = Loss::BatchAll(BatchAllTripletLoss::default());
        let hard = Loss::BatchHard(BatchHardTripletLoss::default());
        let cuda = Device::Cuda(0);
        // 2 x 1450² = 4,205,000 pairs, with room for 4,194,304.
        let error = check(&all, [2, 1450], &[1450, 1450, 1450], 0, cuda).unwrap_err();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        for word in ["--samples-per-class 1450", "2900 images", "4205000", "4194304", "batch-hard"] {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        check(&all, [2, 1450], &[1450, 1440, 1440], 0, cuda).unwrap(); // 4,176,100
        check(&all, [2, 1450], &[1450, 1450], 0, Device::Cpu).unwrap();
        check(&hard, [2, 1450], &[1450, 1450], 0, cuda).unwrap();
        // Each of two identities has half of the memory.
        let error = check(&all, [2, 50], &[99, 99], 131_072, cuda).unwrap_err();
        assert!(error.to_string().contains("--memory 131072"), "{error}");
        check(&all, [2, 50], &[99; 4], 131_072, cuda).unwrap();
    }

    #[test]
    fn a_batch_that_did_not_fit_is_told_from_another_nan() {
        let labels: Vec<i64> = (0..2900).map(|i| i % 2).collect();
        assert!(overfull(&labels, &labels).unwrap().contains("4205000 pairs"));
        assert_eq!(overfull(&labels[..2800], &labels[..2800]), None);
        assert_eq!(overfull(&[5; 10], &labels), None);
    }
}
