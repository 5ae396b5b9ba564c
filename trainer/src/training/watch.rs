//! Signs that a run goes wrong.

/// How many steps a sign must last.
const WINDOW: usize = 50;
/// How near the loss must be to that of equal embeddings: this share of it, and at most this number. Beside a margin of
/// 1000 all distances of unit vectors are nothing, and the encoder may learn nevertheless.
const NEAR: f64 = 0.01;
/// The share of active terms that counts as all of them.
const ALL: f64 = 0.99;

/// Whether the last steps look like a collapse: on average nearly all terms are active, at the loss that equal
/// embeddings have (`level`). If `level` is 0, nothing can be told.
pub fn collapsed(losses: &[f64], active: &[f64], level: f64) -> bool {
    let (Some(losses), Some(active)) = (last(losses), last(active)) else { return false };
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / WINDOW as f64;
    let off = mean(&mut losses.iter().map(|loss| (loss - level).abs()));
    level > 0.0 && off <= NEAR * level.min(1.0) && mean(&mut active.iter().copied()) >= ALL
}

/// The first step after which the losses looked like a collapse.
pub fn collapsed_at(losses: &[f64], active: &[f64], level: f64) -> Option<u64> {
    let so_far = |step: &usize| collapsed(&losses[..*step], &active[..*step], level);
    (WINDOW..=losses.len().min(active.len())).find(so_far).map(|step| step as u64)
}

fn last(values: &[f64]) -> Option<&[f64]> {
    values.len().checked_sub(WINDOW).map(|first| &values[first..])
}

/// The text that explains a collapse, and what helps.
pub fn collapse(step: u64, level: f64) -> String {
    format!(
        "at step {step} the loss has stayed at {level:.4} for {WINDOW} steps, which it is where all embeddings are the \
         same, and nearly all terms are active: the embeddings have collapsed, or have not begun to part. A lower \
         --learning-rate, --warmup-steps, --distance euclidean, or --loss batch-all instead of batch-hard often helps"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_stays_at_the_margin_is_a_collapse() {
        // The encoder learns, then falls back to the margin from above.
        let learning = (0..100).map(|i| 0.2 - 0.001 * f64::from(i));
        let losses: Vec<f64> = learning.chain(std::iter::repeat_n(0.2004, 80)).collect();
        let active = vec![1.0; 180];
        assert_eq!(collapsed_at(&losses, &active, 0.2), Some(150));
        assert!(collapsed(&losses, &active, 0.2) && !collapsed(&losses[..120], &active[..120], 0.2));
        // With some terms at no loss, the same mean loss is no collapse.
        assert_eq!(collapsed_at(&losses, &vec![0.9; 180], 0.2), None);
        // Distances that are small only beside the margin are no collapse.
        assert_eq!(collapsed_at(&[999.5; 99], &[1.0; 99], 1000.0), None);
        // A loss of 0 at a margin of 0 is no collapse.
        assert_eq!(collapsed_at(&[0.0; 200], &[1.0; 200], 0.0), None);
        assert_eq!(collapsed_at(&[0.2; 49], &[1.0; 49], 0.2), None);
        assert_eq!(collapsed_at(&[0.2; 50], &[1.0; 50], 0.2), Some(50));
        assert_eq!(collapsed_at(&[], &[], 0.2), None);
    }
}
