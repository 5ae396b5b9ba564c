//! NVRTC, NVIDIA's compiler as a library: where it may lie, which one is fit, and calls of the one that was opened.
//!
//! Trap: who asks the dynamic linker for `libnvrtc.so` gets the one on the system's path, if there is one, although
//! another is open already: container images of CUDA 12 have theirs there, and the pinned packages have none of that
//! bare name. So each function is looked up in the library that was opened, and nowhere else.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

/// `nvrtcProgram`: a pointer to what only NVRTC knows.
type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
type Status = c_int;

/// The functions of nvrtc.h that are needed, with its signatures.
struct Functions {
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        source: *const c_char,
        name: *const c_char,
        headers: c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, count: c_int, options: *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    log: Text,
    cubin: Text,
    ptx: Text,
}

/// A pair of functions: one gives the size of a text in bytes, the other writes it into a buffer.
#[derive(Clone, Copy)]
struct Text {
    size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// An open NVRTC.
pub struct Nvrtc {
    functions: Functions,
    /// The release of CUDA it is of, such as 13 and 0.
    pub version: (u32, u32),
    /// The library's file.
    pub file: PathBuf,
    /// The architectures that it compiles for, such as 80.
    pub supported: Vec<u32>,
    /// Keeps the library open that `functions` lie in.
    _library: Library,
    /// Keeps libnvrtc-builtins open: NVRTC opens it by its bare name, which finds a library of that name that is open.
    _builtins: Option<Library>,
}

/// The result of a compilation.
pub struct Compiled {
    /// A cubin, or PTX with a final NUL.
    pub image: Vec<u8>,
    /// What the compiler and the assembler said.
    pub log: String,
}

/// Folders that NVRTC may lie in, in the order they are tried: a named toolkit, beside libtorch, the usual place.
/// `variable` is `std::env::var_os`.
pub fn folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut folders = Vec::new();
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(named) {
        folders
            .extend(["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"].map(|lib| home.join(lib)));
    }
    // A pip installation: site-packages/torch beside site-packages/nvidia. `.libtorch` is a link into it, and so may be
    // the folder of libraries that torch-sys was given.
    let real = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
    let of_lib = named("DEP_TCH_LIBTORCH_LIB").and_then(|lib| Some(real(lib).parent()?.to_path_buf()));
    for torch in [named("LIBTORCH").map(real), of_lib].into_iter().flatten() {
        if let Some(site) = torch.parent() {
            folders.extend(beside_torch(&site.join("nvidia")));
        }
        folders.push(torch.join("lib"));
    }
    folders.push("/usr/local/cuda/lib64".into());
    let mut seen = Vec::new();
    folders.retain(|folder| {
        let new = !seen.contains(folder);
        seen.push(folder.clone());
        new
    });
    folders
}

/// The folders of pip's packages: first `cuda_nvrtc/lib`, which requirements.txt asks for by its version, so that torch's own
/// release does not choose the kernels' compiler; then those of torch since CUDA 13, `cu13/lib`, the newest CUDA first.
fn beside_torch(nvidia: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(nvidia).into_iter().flatten().flatten();
    let mut releases: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let release = entry.file_name().to_str()?.strip_prefix("cu")?.parse().ok()?;
            Some((release, entry.path().join("lib")))
        })
        .collect();
    releases.sort_by_key(|(release, _)| std::cmp::Reverse(*release));
    [nvidia.join("cuda_nvrtc/lib")].into_iter().chain(releases.into_iter().map(|(_, lib)| lib)).collect()
}

/// The first NVRTC in the folders, else on the system's path, that compiles for all of `archs`. The error says, a line
/// each, what was found and what it lacks; it is empty if nothing was found.
pub fn find(folders: &[PathBuf], archs: &[u32]) -> Result<Nvrtc, Vec<String>> {
    let in_folders = folders.iter().filter_map(|folder| library_in(folder));
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from);
    let of_the_system = names.into_iter().filter(|name| is_there(name));
    let mut refused = Vec::new();
    for file in in_folders.chain(of_the_system) {
        match Nvrtc::open(&file).and_then(|nvrtc| nvrtc.fit(archs)) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(why) => refused.push(why),
        }
    }
    Err(refused)
}

/// Whether the dynamic linker finds a library of this name.
fn is_there(name: &Path) -> bool {
    // SAFETY: NVIDIA's library; its initialisers have no preconditions.
    unsafe { Library::new(name) }.is_ok()
}

/// The `libnvrtc.so` in a folder with the highest version in its name. libtorch's archives put a hash into the name;
/// NVIDIA's `.alt` variants are left alone.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let versions = entries.filter_map(|entry| Some((nvrtc_version(entry.file_name().to_str()?)?, entry.path())));
    versions.max().map(|(_, path)| path)
}

/// The version in a file's name: 13, 0 and 88 of `libnvrtc.so.13.0.88`. As numbers, because 9 is less than 13.
fn nvrtc_version(name: &str) -> Option<Vec<u32>> {
    let (stem, version) = name.split_once(".so")?;
    let hash = stem.strip_prefix("libnvrtc")?;
    let hash = hash.strip_prefix('-').unwrap_or(hash);
    if !hash.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    version.split('.').skip(1).map(|number| number.parse().ok()).collect()
}

impl Nvrtc {
    /// Opens a file, or by a bare name the library on the system's path.
    pub fn open(file: &Path) -> Result<Self, String> {
        // What the dynamic linker said is the cause of libloading's error.
        let said = |error: libloading::Error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("{} cannot be opened: {cause}", file.display())
        };
        // SAFETY: NVIDIA's library; its initialisers have no preconditions.
        let library = unsafe { Library::new(file) }.map_err(said)?;
        // SAFETY: each has the signature that nvrtc.h gives it, in every release since 11.1.
        let (functions, version, supported) = unsafe {
            let functions = Functions {
                error_string: symbol(&library, c"nvrtcGetErrorString").map_err(said)?,
                create: symbol(&library, c"nvrtcCreateProgram").map_err(said)?,
                compile: symbol(&library, c"nvrtcCompileProgram").map_err(said)?,
                destroy: symbol(&library, c"nvrtcDestroyProgram").map_err(said)?,
                log: text(&library, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog").map_err(said)?,
                cubin: text(&library, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN").map_err(said)?,
                ptx: text(&library, c"nvrtcGetPTXSize", c"nvrtcGetPTX").map_err(said)?,
            };
            (functions, version(&library).map_err(said)?, supported(&library).map_err(said)?)
        };
        // libnvrtc-builtins lies beside it; for the system's own NVRTC the dynamic linker finds both.
        let builtins = match file.parent().filter(|folder| *folder != Path::new("")) {
            None => None,
            Some(folder) => {
                let name = format!("libnvrtc-builtins.so.{}.{}", version.0, version.1);
                let found = Some(folder.join(&name)).filter(|file| file.is_file());
                let found = found.ok_or_else(|| format!("{} has no {name} beside it", file.display()))?;
                // SAFETY: NVIDIA's library; its initialisers have no preconditions.
                Some(unsafe { Library::new(found) }.map_err(said)?)
            }
        };
        Ok(Self { functions, version, file: file.into(), supported, _library: library, _builtins: builtins })
    }

    /// This NVRTC, if it compiles for all of `archs`; else what it lacks.
    fn fit(self, archs: &[u32]) -> Result<Self, String> {
        let unknown: Vec<_> = archs.iter().filter(|arch| !self.supported.contains(arch)).collect();
        if unknown.is_empty() {
            return Ok(self);
        }
        Err(format!("{self} cannot compile for {unknown:?}; it knows {:?}", self.supported))
    }

    /// Compiles a file of kernels to a cubin, or without `cubin` to PTX.
    pub fn compile(&self, source: &CStr, name: &CStr, options: &[String], cubin: bool) -> Result<Compiled, String> {
        let options: Vec<CString> =
            options.iter().map(|option| CString::new(option.as_str()).expect("options hold no NUL")).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: pointers to texts that live until the call returns; no headers, so no lists of them.
        let status = unsafe {
            let none = std::ptr::null();
            (self.functions.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none)
        };
        self.check(status).map_err(|error| format!("{self}: {error}"))?;
        // SAFETY: the program was made above; as many options as are counted.
        let status = unsafe { (self.functions.compile)(program, options.len() as c_int, options.as_ptr()) };
        let log = self.bytes(program, self.functions.log).map(|bytes| {
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        });
        let log = log.unwrap_or_default();
        let compiled = match self.check(status) {
            Err(error) => Err(format!("does not compile ({error})\n{log}")),
            Ok(()) => {
                let image = self.bytes(program, if cubin { self.functions.cubin } else { self.functions.ptx });
                image.map(|image| Compiled { image, log }).map_err(|error| format!("{self} gave no image: {error}"))
            }
        };
        // SAFETY: nothing of the program is used afterwards.
        let _ = unsafe { (self.functions.destroy)(&mut program) };
        compiled
    }

    fn bytes(&self, program: Program, of: Text) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: a live program, and an out-pointer to a live integer.
        self.check(unsafe { (of.size)(program, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: the buffer has the size that NVRTC announced.
        self.check(unsafe { (of.get)(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it returns a constant text for every number.
        let text = unsafe { CStr::from_ptr((self.functions.error_string)(status)) };
        Err(text.to_string_lossy().into_owned())
    }
}

impl std::fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (major, minor) = self.version;
        match self.file.parent().filter(|folder| *folder != Path::new("")) {
            Some(folder) => write!(f, "NVRTC {major}.{minor} in {}", folder.display()),
            None => write!(f, "the system's NVRTC {major}.{minor}"),
        }
    }
}

/// A function of the library.
///
/// # Safety
/// `T` is a pointer to a function with the symbol's signature, and is not called after the library was closed.
unsafe fn symbol<T: Copy>(library: &Library, name: &CStr) -> Result<T, libloading::Error> {
    // SAFETY: the caller's contract.
    unsafe { library.get::<T>(name) }.map(|symbol| *symbol)
}

/// The two functions of a text.
///
/// # Safety
/// The functions have the signatures of [`Text`], and are not called after the library was closed.
unsafe fn text(library: &Library, size: &CStr, get: &CStr) -> Result<Text, libloading::Error> {
    // SAFETY: the caller's contract.
    unsafe { Ok(Text { size: symbol(library, size)?, get: symbol(library, get)? }) }
}

/// The release of CUDA that an NVRTC is of.
///
/// # Safety
/// The library is an NVRTC.
unsafe fn version(library: &Library) -> Result<(u32, u32), libloading::Error> {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: nvrtc.h's signature; two out-pointers to live integers.
    unsafe {
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status = symbol(library, c"nvrtcVersion")?;
        let _ = version(&mut major, &mut minor);
    }
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// The architectures that an NVRTC compiles for; empty if it does not say.
///
/// # Safety
/// The library is an NVRTC.
unsafe fn supported(library: &Library) -> Result<Vec<u32>, libloading::Error> {
    // SAFETY: nvrtc.h's signatures; the second call writes as many integers as the first one announced.
    unsafe {
        let count: unsafe extern "C" fn(*mut c_int) -> Status = symbol(library, c"nvrtcGetNumSupportedArchs")?;
        let get: unsafe extern "C" fn(*mut c_int) -> Status = symbol(library, c"nvrtcGetSupportedArchs")?;
        let mut number = 0;
        if count(&mut number) != 0 {
            return Ok(Vec::new());
        }
        let mut archs = vec![0; number.unsigned_abs() as usize];
        if get(archs.as_mut_ptr()) != 0 {
            return Ok(Vec::new());
        }
        Ok(archs.into_iter().map(c_int::unsigned_abs).collect())
    }
}
