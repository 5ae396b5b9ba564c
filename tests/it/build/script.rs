//! What the build script finds on a machine, NVRTC, libtorch's headers and files that other processes have open; and what it says of
//! arguments that host and kernels declare differently.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs};

use super::{arguments, assembler, cache, headers, nvrtc, releases};
use crate::support;
use crate::support::made_up::shared_object;
use crate::support::process;
use crate::support::skipped::skipped;

/// A fake NVRTC `major`.0 that knows the architectures 50, 80 and 90 and compiles nothing.
fn made_up_nvrtc(folder: &Path, name: &str, major: u32) {
    let source = "
        int nvrtcVersion(int *major, int *minor) { *major = MAJOR; *minor = 0; return 0; }
        int nvrtcGetNumSupportedArchs(int *count) { *count = 3; return 0; }
        int nvrtcGetSupportedArchs(int *archs) { archs[0] = 50; archs[1] = 80; archs[2] = 90; return 0; }
        const char *nvrtcGetErrorString(int status) { return \"made up\"; }
        int nvrtcCreateProgram() { return 1; }
        int nvrtcCompileProgram() { return 1; }
        int nvrtcDestroyProgram() { return 1; }
        int nvrtcGetProgramLogSize() { return 1; }
        int nvrtcGetProgramLog() { return 1; }
        int nvrtcGetCUBINSize() { return 1; }
        int nvrtcGetCUBIN() { return 1; }
        int nvrtcGetPTXSize() { return 1; }
        int nvrtcGetPTX() { return 1; }";
    shared_object(folder, name, &source.replace("MAJOR", &major.to_string()));
    shared_object(folder, &format!("libnvrtc-builtins.so.{major}.0"), "int made_up;");
}

/// The NVRTC that a build of this package finds; `None` in a test bundle, which compiles nothing.
fn found(test: &str) -> Option<nvrtc::Nvrtc> {
    if nothing_is_compiled_here(test) {
        return None;
    }
    Some(nvrtc::find(&nvrtc::folders(variable), &[90]).unwrap_or_else(|refused| panic!("{refused:?}")))
}

fn nothing_is_compiled_here(test: &str) -> bool {
    let bundle = env::var_os("TERCET_BUNDLE").is_some();
    if bundle {
        skipped(&format!("nothing is compiled here: {test}"));
    }
    bundle
}

/// The build's environment variables: `.cargo/config.toml` sets LIBTORCH to the link `.libtorch`.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).or_else(|| (name == "LIBTORCH").then(|| support::checkout().join(".libtorch").into()))
}

#[test]
fn nvrtc_is_called_in_the_library_that_was_opened() {
    let test = "nvrtc_is_called_in_the_library_that_was_opened";
    let folder = tempfile::tempdir().unwrap();
    if nothing_is_compiled_here(test) {
        return;
    }
    made_up_nvrtc(folder.path(), "libnvrtc.so", 1);
    if process::again(module_path!(), test, &[("LD_LIBRARY_PATH", folder.path())]).is_some() {
        return;
    }
    // The bare name finds the fake library.
    let by_name = nvrtc::Nvrtc::open(Path::new("libnvrtc.so")).unwrap();
    assert_eq!(by_name.version, (1, 0));
    let nvrtc = found(test).unwrap();
    assert!(nvrtc.version >= (12, 8), "{nvrtc}");
    let source = c"extern \"C\" __global__ void zero(float *x) { x[threadIdx.x] = 0; }";
    let compile = |target: &str, cubin| {
        let options = [format!("--gpu-architecture={target}")];
        let compiled = nvrtc.compile(source, c"zero.cu", &options, cubin)?;
        assert!(!compiled.log.contains("error"), "{}", compiled.log);
        Ok::<_, String>(compiled.image)
    };
    assert!(compile("sm_90", true).unwrap().starts_with(b"\x7fELF"));
    let ptx = String::from_utf8(compile("compute_80", false).unwrap()).unwrap();
    assert!(ptx.contains(".target sm_80") && ptx.contains("zero"), "{ptx}");
    let error = nvrtc.compile(c"nonsense", c"nonsense.cu", &[], true).err().unwrap();
    assert!(error.contains("nonsense.cu(1)"), "{error}");
}

#[test]
fn an_nvrtc_that_is_too_old_is_passed_over_and_named() {
    let Some(fit) = found("an_nvrtc_that_is_too_old_is_passed_over_and_named") else { return };
    let old = tempfile::tempdir().unwrap();
    made_up_nvrtc(old.path(), "libnvrtc.so.9", 9);
    made_up_nvrtc(old.path(), "libnvrtc.so.12", 12);
    let folders = [old.path().into(), fit.file.parent().unwrap().to_path_buf()];
    assert_eq!(nvrtc::find(&folders, &[80, 120]).unwrap().file, fit.file);
    // Versions compare as numbers: 12 is newer than 9.
    let first = nvrtc::find(&folders, &[80, 90]).unwrap();
    assert_eq!((first.version, first.file.parent()), ((12, 0), Some(old.path())));
    let refused = nvrtc::find(&folders[..1], &[80, 999]).err().unwrap();
    let line = format!("NVRTC 12.0 in {} cannot compile for [999]; it knows [50, 80, 90]", old.path().display());
    assert_eq!(refused.first(), Some(&line), "{refused:?}");
}

#[test]
fn a_file_that_is_no_nvrtc_is_refused_by_name() {
    let Some(fit) = found("a_file_that_is_no_nvrtc_is_refused_by_name") else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libnvrtc.so.13"), "version https://git-lfs").unwrap();
    let folders = [folder.path().into(), fit.file.parent().unwrap().to_path_buf()];
    assert_eq!(nvrtc::find(&folders, &[90]).unwrap().file, fit.file);
    let refused = nvrtc::find(&folders[..1], &[999]).err().unwrap();
    assert!(refused[0].contains("libnvrtc.so.13 cannot be opened") && refused[0].contains("too short"), "{refused:?}");
    // Without its builtins library, NVRTC would fail at the first file of kernels.
    let alone = tempfile::tempdir().unwrap();
    made_up_nvrtc(alone.path(), "libnvrtc.so.14", 14);
    fs::remove_file(alone.path().join("libnvrtc-builtins.so.14.0")).unwrap();
    let refused = nvrtc::Nvrtc::open(&alone.path().join("libnvrtc.so.14")).err().unwrap();
    assert!(refused.contains("no libnvrtc-builtins.so.14.0 beside it"), "{refused}");
    // libtorch's archives put a hash into the library's name.
    let archive = tempfile::tempdir().unwrap();
    made_up_nvrtc(archive.path(), "libnvrtc-672ee683.so.12", 12);
    let found = nvrtc::find(&[archive.path().into()], &[90]).unwrap();
    assert_eq!(found.file, archive.path().join("libnvrtc-672ee683.so.12"));
}

#[test]
fn nvrtc_is_looked_for_by_each_variable() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    fs::create_dir_all(root.join("site/torch/lib")).unwrap();
    fs::create_dir_all(root.join("site/nvidia/cu13/lib")).unwrap();
    fs::create_dir_all(root.join("site/nvidia/cu14/lib")).unwrap();
    symlink(root.join("site/torch/lib"), root.join("lib")).unwrap();
    let folders = |variables: &[(&str, PathBuf)]| {
        nvrtc::folders(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone().into()))
    };
    let beside: Vec<PathBuf> =
        ["site/nvidia/cuda_nvrtc/lib", "site/nvidia/cu14/lib", "site/nvidia/cu13/lib", "site/torch/lib"]
            .map(|folder| root.join(folder))
            .into();
    let last = [PathBuf::from("/usr/local/cuda/lib64")];
    assert_eq!(folders(&[]), last);
    // torch-sys reports the folder of the libraries, which may be a link.
    for named in [("LIBTORCH", root.join("site/torch")), ("DEP_TCH_LIBTORCH_LIB", root.join("lib"))] {
        assert_eq!(folders(&[named]), [&beside[..], &last].concat());
    }
    // A toolkit named by CUDA_HOME or CUDA_PATH comes first, for x86 or Arm; an empty variable names none.
    let toolkit =
        folders(&[("CUDA_HOME", "/cuda".into()), ("CUDA_PATH", "".into()), ("LIBTORCH", root.join("site/torch"))]);
    assert_eq!(toolkit[0], Path::new("/cuda/lib64"));
    assert!(toolkit.contains(&"/cuda/targets/sbsa-linux/lib".into()));
    assert_eq!(toolkit[4], beside[0]);
}

#[test]
fn headers_are_where_torch_sys_takes_them() {
    let lib = Path::new("/torch/lib");
    let folder = |variables: &[(&str, &str)]| {
        headers::folder(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()), lib)
    };
    assert_eq!(folder(&[]), Path::new("/torch/include"));
    assert_eq!(folder(&[("LIBTORCH", "/other")]), Path::new("/other/include"));
    assert_eq!(folder(&[("LIBTORCH", "/other"), ("LIBTORCH_INCLUDE", "/dev")]), Path::new("/dev/include"));
    let python = [("LIBTORCH_USE_PYTORCH", "1"), ("LIBTORCH", "/other"), ("LIBTORCH_INCLUDE", "/dev")];
    assert_eq!(folder(&python), Path::new("/torch/include"));
}

#[test]
fn headers_of_a_release_that_does_not_fit_name_those_that_do() {
    let folder = tempfile::tempdir().unwrap();
    let include = folder.path();
    let header = |name: &str, text: &str| {
        fs::create_dir_all(include.join(name).parent().unwrap()).unwrap();
        fs::write(include.join(name), text).unwrap();
    };
    let missing = headers::unfit(include).unwrap();
    assert!(missing.contains("no autograd headers") && missing.contains("LIBTORCH_INCLUDE"), "{missing}");
    header("torch/csrc/autograd/function.h", "");
    assert!(headers::unfit(include).unwrap().contains("does not say its release"));
    let of = |minor: &str| {
        header(
            "torch/headeronly/version.h",
            &format!("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n"),
        );
        headers::unfit(include)
    };
    for fit in ["11", "12", "13"] {
        assert_eq!(of(fit), None);
    }
    for unfit in ["1", "10", "14", "110"] {
        let said = of(unfit).unwrap();
        assert!(said.contains(&format!("libtorch 2.{unfit}, which")), "{said}");
        assert!(said.contains("libtorch 2.11 with tch 0.24") && said.contains("2.13 with tch 0.26"), "{said}");
    }
    // The header where older libtorch releases keep their version.
    fs::remove_dir_all(include.join("torch/headeronly")).unwrap();
    let old = "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 4\n";
    header("torch/csrc/api/include/torch/version.h", old);
    assert_eq!(releases::release(include).as_deref(), Some("2.4"));
}

#[test]
#[cfg(feature = "distributed")]
fn a_libtorch_without_process_groups_is_told_from_one_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let include = folder.path();
    let header = |name: &str, text: &str| {
        fs::create_dir_all(include.join(name).parent().unwrap()).unwrap();
        fs::write(include.join(name), text).unwrap();
    };
    let said = headers::without_c10d(include).unwrap();
    assert_eq!(said, "libtorch was built without c10d: it has no ProcessGroupGloo.hpp");
    header("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp", "");
    let said = headers::without_c10d(include).unwrap();
    assert!(said.starts_with("libtorch of an unknown release has no gloo headers of its own"), "{said}");
    let of = |minor: &str| {
        let numbers = format!("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n");
        header("torch/headeronly/version.h", &numbers);
        headers::without_c10d(include)
    };
    for pair in releases::PAIRS {
        assert_eq!(of(pair.libtorch.strip_prefix("2.").unwrap()), None, "{}", pair.libtorch);
    }
    let said = of("99").unwrap();
    let expected = "libtorch 2.99 has no gloo headers of its own, and those of Tercet are for 2.11, 2.12, 2.13";
    assert_eq!(said, expected);
    // A libtorch that was built from source may have gloo's own.
    header("gloo/algorithm.h", "");
    assert_eq!(headers::without_c10d(include), None);
}

#[test]
#[cfg(feature = "distributed")]
fn ncclless_machines_say_which_header_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let include = root.join("site/torch/include");
    fs::create_dir_all(&include).unwrap();
    let made = |path: &str| {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), "").unwrap();
        root.join(path).parent().unwrap().to_path_buf()
    };
    let of = |homes: &[(&str, &str)]| {
        let home = |name: &str| homes.iter().find(|(n, _)| *n == name).map(|(_, home)| root.join(home).into());
        headers::of_nccl(home, &include)
    };
    let (cuda, nccl) = (made("cuda/include/cuda_runtime.h"), made("own/include/nccl.h"));
    assert_eq!(of(&[("CUDA_HOME", "cuda"), ("NCCL_HOME", "own")]).unwrap(), [cuda, nccl]);
    if !Path::new("/usr/local/cuda/include").exists() && !Path::new("/usr/include/nccl.h").exists() {
        assert!(
            of(&[]).unwrap_err().starts_with("cuda_runtime.h was not found: not beside libtorch, nor by NCCL_HOME")
        );
        assert!(of(&[("CUDA_HOME", "cuda")]).unwrap_err().starts_with("nccl.h was not found"));
    }
    // What lies beside libtorch is of the CUDA that it was built with.
    let (cuda, nccl) = (made("site/nvidia/cu13/include/cuda_runtime.h"), made("site/nvidia/nccl/include/nccl.h"));
    assert_eq!(of(&[("CUDA_HOME", "cuda"), ("NCCL_HOME", "own")]).unwrap(), [cuda, nccl]);
}

#[test]
fn what_is_open_keeps_its_bytes_when_it_is_written_anew() {
    // Overwriting in place a library that a running test has mapped would crash the test.
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch.detect.so");
    cache::write_whole(&path, b"the first").unwrap();
    let mut open = fs::File::open(&path).unwrap();
    cache::write_whole(&path, b"").unwrap();
    let mut bytes = String::new();
    open.read_to_string(&mut bytes).unwrap();
    assert_eq!(bytes, "the first");
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
    assert!(cache::folder(folder.path(), "x").unwrap().starts_with(folder.path()));
}

// ---- the structs that kernels take ----

/// A host's declaration and the kernels'; each is changed in the tests below.
const HOST: &str = "
    /// What all rows share: `Row` of kernels/rows.cuh.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(crate) struct Row<const K: usize> {
        pub data: [Address; K],
    }

    /// Part of `Args` of kernels/loss.cu: all but the rows.
    #[repr(C)]
    struct Places {
        /// A comment; with more.
        from: Address,
        to: Address,
        stride: i64,
        seed: u64,
        margin: f64,
        eps: f32,
        at: [u32; 3],
        splits: u32,
        kind: u32,
    }

    /// `Args` of kernels/loss.cu.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct Args {
        rows: super::Row<2>,
        places: Places,
    }";
const ROWS: &str = "
    template <int K> struct Row {
        const void* data[K];
        DEVICE bool any() const { if (data[0]) { return true; } return false; }
    };";
const LOSS: &str = "
    #include \"rows.cuh\"
    struct Other { float x[2]; bool y; };
    struct Args {
        Row<2> rows;
        const float* from;  // a comment; with more
        Other *to;
        long long stride;
        unsigned long long seed;
        double margin;
        float eps;
        u32 at[3];
        /* two at a time */ u32 splits, kind;
    };
    KERNEL(loss, 256, const Args args) { struct { int x; } local; }";

/// What is said of the three texts.
fn arguments_of(host: &str, rows: &str, loss: &str) -> Result<(), String> {
    let source = |path: &str, text: &str| arguments::Source { path: path.into(), text: text.into() };
    arguments::check(
        &[source("src/loss/cuda.rs", host)],
        &[source("kernels/loss.cu", loss), source("kernels/rows.cuh", rows)],
    )
}

/// What is said where `from` is changed `to` in the text of `text` that has it.
fn said_of_a_change(from: &str, to: &str) -> String {
    let texts = [HOST, ROWS, LOSS];
    let held: usize = texts.iter().map(|text| text.matches(from).count()).sum();
    assert_eq!(held, 1, "{from}");
    let [host, rows, loss] = texts.map(|text| text.replace(from, to));
    arguments_of(&host, &rows, &loss).err().unwrap_or_else(|| panic!("`{to}` in place of `{from}` goes unnoticed"))
}

#[test]
fn arguments_declared_alike_pass() {
    assert_eq!(arguments_of(HOST, ROWS, LOSS), Ok(()));
}

#[test]
fn arguments_declared_differently_name_the_field() {
    let ours = "src/loss/cuda.rs, `Args`: field";
    let theirs = "as in kernels/loss.cu, `Args`, and is";
    for (from, to, said) in [
        // Swapped, on either side.
        (
            "splits: u32,\n        kind: u32,",
            "kind: u32, splits: u32,",
            "8 should be `splits: u32`, THEIRS `kind: u32`",
        ),
        ("u32 splits, kind;", "u32 kind, splits;", "8 should be `kind: u32`, THEIRS `splits: u32`"),
        // Missing.
        ("to: Address,", "", "2 should be `to: pointer`, THEIRS `stride: i64`"),
        ("u32 splits, kind;", "u32 splits;", "9 should be none, THEIRS `kind: u32`"),
        ("Row<2> rows;", "", "0 should be `from: pointer`, THEIRS `rows: Row<2>`"),
        ("kind: u32,", "", "9 should be `kind: u32`, THEIRS none"),
        // Renamed.
        ("double margin;", "double gap;", "5 should be `gap: f64`, THEIRS `margin: f64`"),
        // Of another type.
        ("long long stride;", "u32 stride;", "3 should be `stride: u32`, THEIRS `stride: i64`"),
        ("seed: u64,", "seed: Address,", "4 should be `seed: u64`, THEIRS `seed: pointer`"),
        ("Other *to;", "double to;", "2 should be `to: f64`, THEIRS `to: pointer`"),
        ("float eps;", "double eps;", "6 should be `eps: f64`, THEIRS `eps: f32`"),
        ("u32 at[3];", "u32 at[2];", "7 should be `at: [u32; 2]`, THEIRS `at: [u32; 3]`"),
        ("Row<2> rows;", "Row<3> rows;", "0 should be `rows: Row<3>`, THEIRS `rows: Row<2>`"),
    ] {
        let said = format!("{ours} {}", said.replace("THEIRS", theirs));
        assert_eq!(said_of_a_change(from, to), said);
    }
    let said = said_of_a_change("void* data[K]", "void* data");
    assert!(said.starts_with("src/loss/cuda.rs, `Row`: field 0") && said.contains("kernels/rows.cuh"), "{said}");
}

#[test]
fn arguments_that_nothing_is_compared_with_are_refused() {
    for (from, to, said) in [
        (
            "/// `Args` of kernels/loss.cu.",
            "/// The argument.",
            "src/loss/cuda.rs, `Args`: its documentation does not say",
        ),
        ("/// `Args` of kernels/loss.cu.", "/// `Args` of kernels/other.cu.", "there is no kernels/other.cu"),
        ("Part of `Args`", "Part of `Other`", "`Args`: it holds `Places`, which is part of another struct"),
        ("places: Places", "places: Other", "field 1 should be `from: pointer`"),
        (
            "struct Args {\n        Row",
            "struct Argument {\n        Row",
            "kernels/loss.cu, `Args`: expected one such struct",
        ),
        ("struct Row<", "struct Line<", "its name should be that of kernels/rows.cuh, `Row`"),
        ("template <int K>", "template <int N>", "its parameters are [\"K\"]"),
        ("struct Other {", "struct Row { int x; };\n struct Other {", "which 2 files of kernels define"),
        // Beyond the grammar.
        ("double margin;", "bool margin;", "kernels/loss.cu, `Args`: cannot read the field `bool margin;`"),
        ("double margin;", "const Other& margin;", "cannot read the field"),
        ("double margin;", "double margin = 0;", "cannot read the field"),
        ("double margin;", "union { double margin; };", "cannot read `union {`"),
        ("margin: f64,", "margin: usize,", "src/loss/cuda.rs, `Places`: cannot read the field `margin : usize`"),
    ] {
        let all = said_of_a_change(from, to);
        assert!(all.contains(said), "`{to}` in place of `{from}`: {all}");
    }
    let unnamed = arguments_of(&HOST[..HOST.find("/// `Args` of").unwrap()], ROWS, LOSS).unwrap_err();
    assert!(unnamed.contains("`Places`: 0 structs of its file hold this part"), "{unnamed}");
    let unnamed = arguments_of("", ROWS, LOSS).unwrap_err();
    assert_eq!(unnamed, "kernels/loss.cu, `Args`: 0 host structs name it; expected one");
}

/// This package's own structs as they are, and with each pair of neighbours exchanged.
#[test]
fn no_two_fields_of_the_arguments_can_be_exchanged() {
    if !support::checkout().join("kernels").is_dir() {
        skipped("no sources here: no_two_fields_of_the_arguments_can_be_exchanged");
        return;
    }
    let [host, kernels] = arguments::sources(&support::checkout()).unwrap();
    assert_eq!(arguments::check(&host, &kernels), Ok(()));
    let mut exchanged = 0;
    for (which, source) in host.iter().enumerate() {
        let lines: Vec<&str> = source.text.lines().collect();
        for start in (0..lines.len()).filter(|&at| lines[at] == "#[repr(C)]") {
            let end = (start..lines.len()).find(|&at| lines[at] == "}").unwrap();
            let fields: Vec<usize> =
                (start..end).filter(|&at| lines[at].ends_with(',') && !lines[at].trim().starts_with("//")).collect();
            for pair in fields.windows(2) {
                let mut changed = host.clone();
                let mut lines = lines.clone();
                lines.swap(pair[0], pair[1]);
                changed[which].text = lines.join("\n");
                let said = arguments::check(&changed, &kernels).unwrap_err();
                assert!(said.starts_with(&format!("{}, `", source.path)), "{said}");
                exchanged += 1;
            }
        }
    }
    assert!(exchanged > 100, "{exchanged}");
}

#[test]
fn the_assemblers_log_names_each_kernel_and_what_it_serialised() {
    let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a_one' for 'sm_90a'
ptxas info    : Function properties for a_one
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 63 registers, used 1 barriers, 68 bytes smem
ptxas info    : Compiling entry function 'a_two' for 'sm_90a'
ptxas info    : Function properties for a_two
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers
";
    let one = |kernel: &str, registers, shared_bytes, stack_bytes, spill_bytes| assembler::Report {
        kernel: kernel.into(),
        registers,
        shared_bytes,
        stack_bytes,
        spill_bytes,
        serialized: false,
    };
    let both = vec![one("a_one", 63, 68, 8, 16), one("a_two", 255, 0, 0, 0)];
    assert_eq!(assembler::checked(log, "kernels/a.cu", "sm_90a"), Ok(both));

    let line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                insufficient register resources for the wgmma pipeline in the function 'a_two'";
    // The assembler says it before or after it reports on the kernel.
    for log in [format!("{line}\n{log}"), format!("{log}{line}\n")] {
        let serialized = |report: &assembler::Report| report.serialized;
        assert_eq!(assembler::reports(&log).unwrap().iter().map(serialized).collect::<Vec<_>>(), [false, true]);
        let error = assembler::checked(&log, "kernels/a.cu", "sm_90a").unwrap_err();
        for part in ["kernels/a.cu for sm_90a", "a_two", "insufficient register resources"] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }
    let unknown = format!("{log}{}", line.replace("a_two", "a_three"));
    assert!(assembler::checked(&unknown, "kernels/a.cu", "sm_90a").unwrap_err().contains("of none of the kernels"));
    // Other losses that the assembler speaks of are not about products.
    let other = format!("{log}ptxas info : Potential Performance Loss: 'setmaxnreg' ignored to allow debugging.\n");
    assert!(assembler::checked(&other, "kernels/a.cu", "sm_90a").is_ok());
}
