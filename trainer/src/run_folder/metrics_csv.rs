//! `metrics.csv`: one line per step, written at once, so that a stopped run keeps its curve.

use crate::process::atomic;
use crate::process::bad_input::bad_input;
use anyhow::{Context, Result};
use csv::ByteRecord;
use std::fs::File;
use std::io::Write;
use std::path::Path;

const NAME: &str = "metrics.csv";
/// The first line.
const HEADER: &str = "epoch,step,loss,seconds,images_per_second,active,learning_rate,waited";

/// The file, open at its end.
pub struct MetricsCsv(File);

/// A line of `metrics.csv`.
pub struct Line {
    /// The epoch, from 1.
    pub epoch: u64,
    /// The step, from 1, over the whole run.
    pub step: u64,
    /// The batch's loss.
    pub loss: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Training images per second since training began.
    pub images_per_second: f64,
    /// The share of the batch's triplets with a loss.
    pub active: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Seconds of `seconds` spent waiting for images that were not ready.
    pub waited: f64,
}

impl MetricsCsv {
    /// Starts a new file with its header.
    pub fn create(folder: &Path) -> Result<Self> {
        let file = folder.join(NAME);
        atomic::write(&file, format!("{HEADER}\n").as_bytes())?;
        open(&file)
    }

    /// Goes on after the lines of `steps` steps; later lines, and one that was cut off, are dropped.
    ///
    /// An editor, a spreadsheet or git may have changed line ends, put a byte order mark in front or removed the last
    /// line end: the lines that stay are written again in this program's form. A file whose lines are not these steps
    /// is refused and stays as it is.
    pub fn resume(folder: &Path, steps: u64) -> Result<Self> {
        let file = folder.join(NAME);
        let wrong = |what: String| bad_input(format!("--resume: {}: {what}", file.display()));
        let bytes = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && steps == 0 => return Self::create(folder),
            read => read.map_err(|error| wrong(error.to_string()))?,
        };
        let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&bytes[..]);
        let mut records = reader.into_byte_records();
        let mut next = || records.next().transpose().map_err(|error| wrong(error.to_string()));
        let columns = HEADER.split(',').count();
        let mut text = Vec::with_capacity(bytes.len());
        let mut keep = |record: &ByteRecord| {
            text.extend(record.iter().collect::<Vec<_>>().join(&b','));
            text.push(b'\n');
        };
        let header = next()?.filter(|header| header.iter().eq(HEADER.split(',').map(str::as_bytes)));
        keep(&header.ok_or_else(|| wrong(format!("does not start with {HEADER}")))?);
        for step in 1..=steps {
            let is_its = |line: &ByteRecord| line.len() == columns && line[1] == *step.to_string().as_bytes();
            match next()?.filter(is_its) {
                Some(line) => keep(&line),
                None => {
                    let here = "is not in its place";
                    return Err(wrong(format!("the checkpoint is of step {steps}, and step {step} {here}")));
                }
            }
        }
        if text != bytes {
            atomic::write(&file, &text)?;
        }
        open(&file)
    }

    /// Adds a line to the file.
    pub fn line(&mut self, line: &Line) -> Result<()> {
        let Line { epoch, step, loss, seconds, images_per_second, active, learning_rate, waited } = line;
        // Written in one piece: a full disk leaves no half of a line whose end a resumed run would not find.
        let text = format!(
            "{epoch},{step},{loss:.6},{seconds:.3},{images_per_second:.2},{active:.4},{learning_rate:.3e},{waited:.3}\n"
        );
        self.0.write_all(text.as_bytes()).context("cannot write metrics.csv")
    }

    /// Returns when the lines are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.0.sync_data().context("cannot write metrics.csv")
    }
}

fn open(file: &Path) -> Result<MetricsCsv> {
    let csv = File::options().append(true).open(file);
    csv.map(MetricsCsv).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        let (loss, seconds, images_per_second) = (0.5, step as f64, 9.0);
        Line { epoch: 1, step, loss, seconds, images_per_second, active: 0.25, learning_rate: 1e-3, waited: 0.125 }
    }

    #[track_caller]
    fn refused(folder: &Path, steps: u64, words: &str) {
        let error = MetricsCsv::resume(folder, steps).map(|_| ()).unwrap_err();
        assert_eq!(crate::process::bad_input::exit_code(&error), 2);
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn metrics_are_cut_back_to_the_checkpoint_and_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NAME);
        let text = || std::fs::read_to_string(&file).unwrap();
        let mut csv = MetricsCsv::create(dir.path()).unwrap();
        (1..=3).for_each(|step| csv.line(&line(step)).unwrap());
        let three = text();
        assert_eq!(three.lines().last(), Some("1,3,0.500000,3.000,9.00,0.2500,1.000e-3,0.125"));

        // Two steps more than the checkpoint has, of which the second is torn.
        csv.line(&line(4)).unwrap();
        std::fs::write(&file, text() + "1,5,0.5").unwrap();
        let mut csv = MetricsCsv::resume(dir.path(), 3).unwrap();
        assert_eq!(text(), three);
        csv.line(&line(4)).unwrap();
        csv.sync().unwrap();
        assert_eq!(text().lines().count(), 5);

        // Fewer steps than the checkpoint has.
        refused(dir.path(), 5, "step 5 is not in its place");
        assert_eq!(text().lines().count(), 5, "nothing is cut from a file that does not fit");
    }

    #[test]
    fn what_editors_and_git_do_to_lines_does_not_tear_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NAME);
        let mut csv = MetricsCsv::create(dir.path()).unwrap();
        (1..=3).for_each(|step| csv.line(&line(step)).unwrap());
        let three = std::fs::read_to_string(&file).unwrap();
        for (what, changed) in [
            ("git's autocrlf", three.replace('\n', "\r\n")),
            ("CRLF in some lines alone", three.replacen('\n', "\r\n", 2)),
            ("lines of old Macs", three.replace('\n', "\r")),
            ("a byte order mark", format!("\u{feff}{three}")),
            ("both", format!("\u{feff}{}", three.replace('\n', "\r\n"))),
            ("no last end of line", three.trim_end().into()),
            ("blank lines at the end", format!("{three}\n\r\n\n")),
            ("a spreadsheet's quotes", three.replace(",0.125", ",\"0.125\"")),
            (
                "steps after the checkpoint",
                three.replace('\n', "\r\n") + "1,4,0.1,4.000,9.00,0.2500,1.000e-3,0.125\r\n",
            ),
        ] {
            std::fs::write(&file, changed).unwrap();
            let mut csv = MetricsCsv::resume(dir.path(), 3).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), three, "{what}");
            csv.line(&line(4)).unwrap();
            let last = std::fs::read_to_string(&file).unwrap();
            assert!(last.ends_with(",0.125\n1,4,0.500000,4.000,9.00,0.2500,1.000e-3,0.125\n"), "{what}: {last}");
        }
        // A file that cannot be read as these steps is not changed.
        let utf16: Vec<u8> = three.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let semicolons = three.replace(',', ";");
        for (bytes, words) in [
            (&utf16[..], "does not start with"),
            (semicolons.as_bytes(), "does not start with"),
            (b"", "does not start with"),
            (&three.as_bytes()[..three.len() - 7], "step 3 is not in its place"),
            (three.replace("\n1,2", "\n1,7").as_bytes(), "step 2 is not in its place"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            refused(dir.path(), 3, words);
            assert_eq!(std::fs::read(&file).unwrap(), bytes);
        }
    }

    #[test]
    fn a_run_that_has_not_begun_its_curve_begins_it() {
        let dir = tempfile::tempdir().unwrap();
        MetricsCsv::resume(dir.path(), 0).unwrap().line(&line(1)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(NAME)).unwrap().lines().count(), 2);
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        refused(dir.path(), 1, NAME);
    }
}
