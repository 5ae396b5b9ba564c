//! The assembler's log: what it says of each kernel.

use std::fmt;

/// What the assembler said about one kernel; `KernelReport` of src/cuda/images.rs.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    pub kernel: String,
    pub registers: u64,
    pub shared_bytes: u64,
    pub stack_bytes: u64,
    pub spill_bytes: u64,
    pub serialized: bool,
}

/// The literal that the table of images has.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { kernel, registers, shared_bytes, stack_bytes, spill_bytes, serialized } = self;
        write!(
            f,
            "KernelReport {{ kernel: {kernel:?}, registers: {registers}, shared_bytes: {shared_bytes}, \
             stack_bytes: {stack_bytes}, spill_bytes: {spill_bytes}, serialized: {serialized} }}"
        )
    }
}

/// Reads lines such as
///
/// ```text
/// ptxas info    : Function properties for triplet_margin_difference_f32_l32
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 63 registers, used 1 barriers, 68 bytes smem
/// ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ill formed
///                 pipeline stage in the function 'a_kernel'
/// ```
///
/// the last of which is one line, anywhere in the log. An error is such a line that names none of the kernels.
pub fn reports(log: &str) -> Result<Vec<Report>, String> {
    let mut reports: Vec<Report> = Vec::new();
    let mut now = Report::default();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            now.kernel = name.trim().into();
        } else if line.contains("bytes stack frame") {
            now.stack_bytes = number_before(line, " bytes stack frame");
            now.spill_bytes = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        } else if line.contains(" registers,") || line.ends_with(" registers") {
            now.registers = number_before(line, " registers");
            now.shared_bytes = number_before(line, " bytes smem");
            reports.push(std::mem::take(&mut now));
        }
    }
    for line in log.lines().filter(|line| is_of_serialisation(line)) {
        let named = line.rsplit_once("function '").and_then(|(_, rest)| rest.split_once('\''));
        let report = named.and_then(|(name, _)| reports.iter_mut().find(|report| report.kernel == name));
        report.ok_or_else(|| format!("of none of the kernels: {line}"))?.serialized = true;
    }
    Ok(reports)
}

/// Whether a line says that the assembler made products of a warpgroup wait for each other.
fn is_of_serialisation(line: &str) -> bool {
    line.contains("wgmma") && (line.contains("Potential Performance Loss") || line.contains("serialized"))
}

/// [`reports`] of a file's kernels.
///
/// # Errors
/// If the assembler serialised a kernel's products: each then waits for the one before, and the kernel is several times as slow
/// as it was written to be.
pub fn checked(log: &str, file: &str, target: &str) -> Result<Vec<Report>, String> {
    let reports = reports(log).map_err(|error| format!("{file} for {target}: the assembler's log: {error}"))?;
    match reports.iter().find(|report| report.serialized) {
        None => Ok(reports),
        Some(report) => {
            let why = log.lines().find(|line| is_of_serialisation(line) && line.contains(&report.kernel));
            Err(format!(
                "{file} for {target}: the assembler serialised the wgmma instructions of {}:\n{}",
                report.kernel,
                why.unwrap_or_default()
            ))
        }
    }
}

/// The number that stands before `unit`, or 0.
fn number_before(line: &str, unit: &str) -> u64 {
    let Some((before, _)) = line.split_once(unit) else {
        return 0;
    };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
