//! Room for the positive pairs of a batch. Some losses list them on a CUDA device, where the room is limited: beyond it
//! the loss is NaN, because their number is known on the device alone, and asking for it would be waiting for it. Here
//! the labels are known.

use crate::process::bad_input::bad_input;
use crate::training::batch::BatchShape;
use crate::training::loss::Loss;
use anyhow::Result;
use std::collections::HashMap;
use tch::Device;

/// Refuses a run whose batches have more positive pairs than there is room for. `members` are the images of each
/// identity, `memory` the rows of the memory.
///
/// For the batch alone this is the fullest that could be drawn; with a memory it is the expected number: the memory has
/// as many rows of each identity as of another, and each anchor is paired with all of its own.
pub fn check(loss: &Loss, shape: BatchShape, members: &[Vec<usize>], memory: usize, device: Device) -> Result<()> {
    let mut sizes: Vec<usize> = members.iter().map(|images| images.len().min(shape.images)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.truncate(shape.identities);
    let rows: usize = sizes.iter().sum();
    let of_batch: usize = sizes.iter().map(|&size| size.saturating_mul(size)).sum();
    let with_memory = rows.saturating_mul(memory) / members.len().max(1);
    for (what, pairs, others) in [
        (format!("--samples-per-class {}: a batch", shape.images), of_batch, rows),
        (format!("--memory {memory}: a batch and the memory"), with_memory, memory),
    ] {
        if let Some(room) = loss.room(rows, others).filter(|&room| device.is_cuda() && pairs > room) {
            return Err(bad_input(format!(
                "{what} of {rows} images has up to {pairs} pairs of one identity, and on a CUDA device this loss has room for \
                 {room}; --pairs-at-once {pairs} makes more, --loss batch-hard and batch-contrastive list none, and --device \
                 cpu has room for all"
            )));
        }
    }
    Ok(())
}

/// Why a device had no room for a batch with `labels`, mined among rows with the labels `others`: the loss is NaN for that.
pub fn too_many(loss: &Loss, labels: &[i64], others: &[i64]) -> String {
    let mut of_class: HashMap<i64, usize> = HashMap::new();
    others.iter().for_each(|&label| *of_class.entry(label).or_default() += 1);
    let pairs: usize = labels.iter().map(|label| of_class.get(label).copied().unwrap_or(0)).sum();
    let room = loss.room(labels.len(), others.len()).unwrap_or(0);
    format!(
        "the batch has {pairs} pairs of one identity, and on a CUDA device this loss has room for {room}: --pairs-at-once {pairs}, \
         fewer --samples-per-class, or less --memory; the run goes on with --resume and --pairs-at-once"
    )
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
        let room = |pairs_at_once| {
            let all = Loss::BatchAll(BatchAllTripletLoss { pairs_at_once: Some(pairs_at_once), ..Default::default() });
            check(&all, [2, 1450], &[1450, 1450], 0, cuda)
        };
        assert!(error.to_string().contains("--pairs-at-once 4205000"), "{error}");
        room(4_205_000).unwrap();
        assert!(room(4_204_999).unwrap_err().to_string().contains("room for 4204999"));
        // Each of two identities has half of the memory.
        let error = check(&all, [2, 50], &[99, 99], 131_072, cuda).unwrap_err();
        assert!(error.to_string().contains("--memory 131072"), "{error}");
        check(&all, [2, 50], &[99; 4], 131_072, cuda).unwrap();
    }

    #[test]
    fn what_did_not_fit_is_said_with_what_to_do() {
        let labels: Vec<i64> = (0..2900).map(|i| i % 2).collect();
        let all = Loss::BatchAll(BatchAllTripletLoss::default());
        let text = too_many(&all, &labels, &labels);
        for words in
            ["has 4205000 pairs", "room for 4194304", "--pairs-at-once 4205000", "--samples-per-class", "--resume"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        // Ten rows of which class 1 has 1450 others.
        let little = Loss::BatchAll(BatchAllTripletLoss { pairs_at_once: Some(99), ..Default::default() });
        let text = too_many(&little, &[1; 10], &labels);
        assert!(text.contains("has 14500 pairs") && text.contains("room for 99"), "{text}");
    }
}
