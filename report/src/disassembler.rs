//! NVIDIA's disassembler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, fs};

use crate::elf::Cubin;

/// An `nvdisasm` that was found.
#[derive(Clone, Debug)]
pub struct Disassembler(PathBuf);

/// The machine code of a kernel as text.
#[derive(Debug)]
pub struct Listing {
    /// The kernel's name.
    pub kernel: String,
    /// The lines of its section.
    pub text: String,
}

impl Disassembler {
    /// That of a CUDA toolkit, or the one that Triton installs beside libtorch.
    ///
    /// # Errors
    /// If there is none; says how to get one.
    pub fn find(checkout: &Path) -> Result<Self, String> {
        let libtorch = env::var_os("LIBTORCH").map_or_else(|| checkout.join(".libtorch"), |path| checkout.join(path));
        let beside = fs::canonicalize(libtorch).ok().and_then(|torch| Some(torch.parent()?.to_path_buf()));
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let folders = toolkits.chain(["/usr/local/cuda".into()]).map(|home| home.join("bin"));
        let beside = beside.map(|site| site.join("triton/backends/nvidia/bin"));
        let mut files = folders.chain(beside).map(|bin| bin.join("nvdisasm"));
        files.find(|file| file.is_file()).map(Self).ok_or_else(|| {
            "no nvdisasm: `cargo xtask setup` installs one beside libtorch (Triton's), and a CUDA toolkit has one, which \
             CUDA_HOME names"
                .into()
        })
    }

    /// Disassembles the kernels of a cubin that are `wanted`.
    ///
    /// # Errors
    /// If the cubin is none, or the disassembler fails.
    pub fn list(&self, cubin: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Vec<Listing>, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut kernels = Cubin::parse(cubin)?.kernels()?;
        kernels.retain(|(_, name)| wanted(name));
        if kernels.is_empty() {
            return Ok(Vec::new());
        }
        let name = format!("tercet-{}-{}.cubin", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = env::temp_dir().join(name);
        let indices: Vec<String> = kernels.iter().map(|(index, _)| index.to_string()).collect();
        fs::write(&file, cubin).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = Command::new(&self.0);
        // Its analysis of data flow stays on: it names the targets of branches by a table.
        let output = command.args(["-c", "-fun", &indices.join(",")]).arg(&file).output();
        fs::remove_file(&file).ok();
        let output = output.map_err(|error| format!("{}: {error}", self.0.display()))?;
        if !output.status.success() {
            return Err(format!("{}: {}", self.0.display(), String::from_utf8_lossy(&output.stderr)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut listings = Vec::new();
        for section in text.split(".section\t.text.").skip(1) {
            let kernel = section.split([',', '\n']).next().unwrap_or_default().trim_matches('"');
            // The next section begins with a comment, and data may follow.
            let code = section.split("\n//------").next().unwrap_or_default();
            listings.push(Listing { kernel: kernel.into(), text: code.into() });
        }
        match kernels.iter().find(|(_, name)| !listings.iter().any(|listing| listing.kernel == **name)) {
            None => Ok(listings),
            Some((_, name)) => Err(format!("{}: expected the code of {name}, got none", self.0.display())),
        }
    }
}
