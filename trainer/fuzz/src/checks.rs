//! What must hold for any bytes that a reader is given: it does not panic, and what it accepts is consistent and comes
//! back from its own writing. `tests/it` of the trainer includes this file too, for the files of `corpus`. A check
//! returns whether the bytes were accepted.

use serde::Serialize;
use std::collections::HashMap;
use tch::{Kind, Tensor};
use tercet_trainer::readers;
use tercet_trainer::readers::Written;

/// The side of decoded pictures.
const SIDE: usize = 16;

/// A decoded picture is square, grey or of three channels.
pub fn picture(bytes: &[u8]) -> bool {
    let Ok(decoded) = readers::picture(bytes, SIDE) else { return false };
    let expected = [SIDE * SIDE, 3 * SIDE * SIDE];
    assert!(expected.contains(&decoded.pixels.len()), "{} values of {SIDE} x {SIDE} pixels", decoded.pixels.len());
    true
}

/// No fold is empty, lines follow each other, a genuine pair has one name, and the pairs come back from CSV.
pub fn pairs(bytes: &[u8]) -> bool {
    let Ok(folds) = readers::pairs(bytes) else { return false };
    assert!(!folds.is_empty() && folds.iter().all(|fold| !fold.is_empty()), "an empty fold");
    let all: Vec<&Written> = folds.iter().flatten().collect();
    assert!(all[0].line > 0 && all.is_sorted_by_key(|pair| pair.line), "lines out of order");
    assert!(all.iter().all(|pair| !pair.genuine || pair.ends[0].0 == pair.ends[1].0), "a genuine pair of two names");

    // CSV drops the blanks around a field, empty fields at the end, and the `.0` of `1.0`.
    let is_kept = |field: &str| !field.is_empty() && field.trim() == field && !field.ends_with(".0");
    if !all.iter().flat_map(|pair| &pair.ends).all(|(name, image)| is_kept(name) && is_kept(image)) {
        return true;
    }
    let mut csv = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
    csv.write_record(["name", "imagenum1", "imagenum2"]).expect("a Vec takes all");
    for Written { ends: [(name, a), (other, b)], genuine, .. } in &all {
        let fields = [name, a, other, b];
        let fields = if *genuine { vec![name, a, b] } else { fields.to_vec() };
        csv.write_record(fields).expect("a Vec takes all");
    }
    let again = readers::pairs(&csv.into_inner().expect("a Vec takes all")).expect("CSV of pairs is read");
    let again: Vec<&Written> = again.iter().flatten().collect();
    let same = |(a, b): (&&Written, &&Written)| a.ends == b.ends && a.genuine == b.genuine;
    assert!(all.len() == again.len() && all.iter().zip(&again).all(same), "{all:?} came back as {again:?}");
    true
}

/// A checkpoint has a loss for each step, and comes back from [`readers::write_checkpoint`] with all tensors.
pub fn checkpoint(bytes: &[u8]) -> bool {
    let Ok(read) = readers::checkpoint(bytes) else { return false };
    let steps = read.state.step;
    assert_eq!([read.state.losses.len() as u64, read.state.active.len() as u64], [steps; 2], "of {steps} steps");
    assert!(read.state.skipped() <= steps, "{steps} steps, of which {} were left out", read.state.skipped());
    let tensors: Vec<_> = read.tensors().map(|(name, tensor)| (name.clone(), tensor)).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    readers::write_checkpoint(folder.path(), &read.origin, &read.state, tensors).expect("what was read is written");
    let file = folder.path().join("checkpoint.safetensors");
    let again = readers::checkpoint(&std::fs::read(file).expect("it is there")).expect("what was written is read");
    assert_eq!(read.origin, again.origin);
    let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read.state.losses), bits(&again.state.losses));
    assert_eq!(bits(&read.state.active), bits(&again.state.active));
    // All else, which a NaN among the losses would make unequal to itself.
    assert_eq!(json(&read.state), json(&again.state));
    let all = |of: &readers::Checkpoint| of.tensors().map(|(name, tensor)| (name.clone(), raw(tensor))).collect();
    let (before, after): (HashMap<_, _>, HashMap<_, _>) = (all(&read), all(&again));
    assert!(before == after, "tensors have changed");
    true
}

/// The tensors fill the file: what they hold, the header's length and the header are all of its bytes.
pub fn weights(bytes: &[u8]) -> bool {
    let Ok(tensors) = readers::weights(bytes) else { return false };
    let held: usize = tensors.values().map(|tensor| raw(tensor).2.len()).sum();
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert_eq!(8 + header as usize + held, bytes.len(), "{} tensors", tensors.len());
    true
}

/// Settings are in their bounds, and come back from their JSON.
pub fn settings(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok((read, architecture, distance)) = readers::settings(text) else { return false };
    assert!((1..=65_536).contains(&read.embedding_dim) && (8..=1024).contains(&read.image_size), "{read:?}");
    assert!(read.calibration.operating.threshold.is_finite(), "{read:?}");
    let again = readers::settings(&json(&read)).expect("settings that were read are read again");
    assert_eq!((&read, architecture, distance), (&again.0, again.1, again.2));
    true
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has JSON")
}

/// A tensor's type, shape and bytes: values that are not numbers are unequal to themselves.
pub fn raw(tensor: &Tensor) -> (Kind, Vec<i64>, Vec<u8>) {
    let (kind, size, count) = (tensor.kind(), tensor.size(), tensor.numel());
    let mut bytes = vec![0; count * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, count);
    (kind, size, bytes)
}
