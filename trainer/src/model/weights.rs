//! Encoder weights as `.safetensors` files with torchvision's names.

use crate::process::atomic;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::Fingerprint;
use anyhow::Result;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::Path;
use tch::{TchError, Tensor, nn};

/// Copies a file's tensors into the encoder. `fc` is left out if it has another shape (a classifier's), and so is
/// `num_batches_tracked`. Everything else must be there in the right shape: one error names all that is not.
pub fn load(vs: &nn::VarStore, file: &Path) -> Result<()> {
    copy(vs, file, "--weights", |name| name.starts_with("fc."))
}

/// Copies a file's tensors into the encoder, all of which must fit, `fc` included. `option` is named in errors.
pub fn load_all(vs: &nn::VarStore, file: &Path, option: &str) -> Result<()> {
    copy(vs, file, option, |_| false)
}

/// A hash of the file of weights.
pub fn fingerprint(file: &Path) -> Result<Fingerprint> {
    let bytes = std::fs::read(file).map_err(|error| bad_input(format!("--weights {}: {error}", file.display())))?;
    Ok(Fingerprint::of(&bytes))
}

fn copy(vs: &nn::VarStore, file: &Path, option: &str, may_differ: impl Fn(&str) -> bool) -> Result<()> {
    let wrong = |what: &dyn std::fmt::Display| bad_input(format!("{option} {}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| wrong(&error))?;
    let tensors = parse(&bytes).map_err(|error| wrong(&error))?;
    let mut variables: Vec<_> = vs.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));

    let mut wrong = Vec::new();
    let mut copies = Vec::new();
    for (name, variable) in variables {
        match tensors.get(&name) {
            Some(tensor) if tensor.size() == variable.size() => copies.push((variable, tensor)),
            _ if may_differ(&name) => {}
            Some(tensor) => {
                wrong.push(format!("{name}: {:?} in the file, {:?} wanted", tensor.size(), variable.size()))
            }
            None => wrong.push(format!("{name}: missing")),
        }
    }
    if !wrong.is_empty() {
        return Err(bad_input(format!(
            "{option} {} does not fit the encoder; {} tensors are missing or misshapen:\n  {}",
            file.display(),
            wrong.len(),
            wrong.join("\n  ")
        )));
    }
    // `copy_` keeps the variable's dtype and device, whatever the file's.
    let _guard = tch::no_grad_guard();
    for (mut variable, tensor) in copies {
        variable.f_copy_(tensor)?;
    }
    Ok(())
}

/// The tensors in the bytes of a `.safetensors` file by their names; an error says what is wrong with them.
pub fn parse(bytes: &[u8]) -> Result<HashMap<String, Tensor>, String> {
    // A zip archive or, before PyTorch 1.6, a pickle of protocol 2.
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0x80, 2]) {
        return Err("a file of torch.save; trainer/convert_weights.py makes a .safetensors file of it".into());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("no .safetensors file: {error:?}"))?;
    let tensor = |(name, view)| Ok((name, Tensor::try_from(view).map_err(|error: TchError| error.to_string())?));
    file.tensors().into_iter().map(tensor).collect()
}

/// Writes the weights into a file that a reader never sees half of.
pub fn save(vs: &nn::VarStore, file: &Path) -> Result<()> {
    let variables: Vec<_> = vs.variables().into_iter().collect();
    atomic::write_by(file, |temporary| Ok(Tensor::write_safetensors(&variables, temporary.path())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::encoder::{Architecture, Encoder};
    use tch::Device;

    fn resnet18(seed: i64, dim: i64) -> nn::VarStore {
        tch::manual_seed(seed);
        let vs = nn::VarStore::new(Device::Cpu);
        Encoder::new(&vs.root(), Architecture::Resnet18, dim);
        vs
    }

    fn get(vs: &nn::VarStore, name: &str) -> Tensor {
        vs.variables().remove(name).unwrap()
    }

    #[test]
    fn saved_weights_come_back_and_a_classifiers_head_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("encoder.safetensors");
        let from = resnet18(1, 128);
        save(&from, &file).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

        let same = resnet18(2, 128);
        load(&same, &file).unwrap();
        assert_eq!(get(&same, "conv1.weight"), get(&from, "conv1.weight"));
        assert_eq!(get(&same, "fc.weight"), get(&from, "fc.weight"));

        let other = resnet18(2, 16);
        let head = get(&other, "fc.weight").copy();
        load(&other, &file).unwrap();
        assert_eq!(get(&other, "layer4.1.conv2.weight"), get(&from, "layer4.1.conv2.weight"));
        assert_eq!(get(&other, "fc.weight"), head);
    }

    #[test]
    fn one_error_names_everything_that_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("odd.safetensors");
        let vs = resnet18(1, 128);
        let mut tensors: Vec<_> = vs.variables().into_iter().collect();
        tensors.retain(|(name, _)| name != "bn1.bias");
        for (name, tensor) in &mut tensors {
            if name == "layer2.0.conv1.weight" {
                *tensor = Tensor::zeros([2, 2], (tch::Kind::Float, Device::Cpu));
            }
        }
        Tensor::write_safetensors(&tensors, &file).unwrap();
        let before = get(&vs, "conv1.weight").copy();
        let error = load(&vs, &file).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("bn1.bias: missing"), "{text}");
        assert!(text.contains("layer2.0.conv1.weight: [2, 2] in the file, [128, 64, 3, 3]"), "{text}");
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        assert_eq!(get(&vs, "conv1.weight"), before, "nothing is copied from a file that does not fit");
        assert!(load(&vs, &dir.path().join("absent.safetensors")).is_err());
        for start in [&b"PK\x03\x04 and more"[..], b"\x80\x02\x8a\x0a"] {
            std::fs::write(&file, start).unwrap();
            let error = load(&vs, &file).unwrap_err();
            assert!(error.to_string().contains("convert_weights.py"), "{error}");
            assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        }
    }
}
