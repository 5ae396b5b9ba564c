//! The table of `target/bench.json`, to which each bench adds its rows.

use std::fs;
use std::path::PathBuf;

use crate::checkout::Checkout;
use crate::error::{Doing, Error, Result};
use crate::json::{self, Value};

/// The fields of a row that are texts: they say what was measured.
const TEXTS: [&str; 5] = ["op", "size", "dtype", "backend", "pass"];
const HEADER: [&str; 11] =
    ["op", "size", "dtype", "backend", "pass", "ms", "peer", "peer ms", "ratio", "of floor", "peak"];

fn file(checkout: &Checkout) -> PathBuf {
    checkout.root.join("target/bench.json")
}

/// Removes the rows of an earlier run: the table shows what this run measured and nothing else.
pub fn forget(checkout: &Checkout) -> Result<()> {
    match fs::remove_file(file(checkout)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing("remove the old target/bench.json")
        }
        _ => Ok(()),
    }
}

pub fn print(checkout: &Checkout) -> Result<()> {
    let path = file(checkout);
    if !path.exists() {
        return Err(Error::failed("no target/bench.json: no bench has written a row (`cargo xtask bench`)"));
    }
    let source = fs::read_to_string(&path).doing("read target/bench.json")?;
    let table = table(&source).map_err(|error| Error::Failed(format!("target/bench.json: {error}")))?;
    print!("\n{table}");
    Ok(())
}

/// The rows of `source` as an aligned table.
fn table(source: &str) -> Result<String, String> {
    let Value::List(rows) = json::parse(source)? else {
        return Err("expected a list of rows".into());
    };
    let mut cells = vec![HEADER.map(String::from)];
    for (index, row) in rows.iter().enumerate() {
        cells.push(line(row).map_err(|error| format!("row {index}: {error}"))?);
    }
    Ok(aligned(&cells))
}

/// A row as the cells of the table.
fn line(row: &Value) -> Result<[String; 11], String> {
    let text = |key: &str| row.get(key).text().map(String::from).ok_or(format!("`{key}` is not a text"));
    let number = |key: &str| match row.get(key) {
        Value::Number(number) => Ok(Some(*number)),
        Value::Null => Ok(None), // no peer, no floor, or not measured
        _ => Err(format!("`{key}` is neither a number nor null")),
    };
    let [op, size, dtype, backend, pass] = TEXTS.map(text);
    let ms = number("ms")?.ok_or("`ms` is missing")?;
    let peer = match row.get("peer") {
        Value::Null => "-".into(),
        _ => text("peer")?,
    };
    Ok([
        op?,
        size?,
        dtype?,
        backend?,
        pass?,
        milliseconds(ms),
        peer,
        number("peer_ms")?.map_or("-".into(), milliseconds),
        number("ratio")?.map_or("-".into(), |ratio| format!("{ratio:.2} x")),
        number("floor_ms")?.map_or("-".into(), |floor| format!("{:.0} %", 100.0 * floor / ms)),
        number("peak_bytes")?.map_or("-".into(), bytes),
    ])
}

/// Milliseconds with four significant digits, below 1 with five decimals.
fn milliseconds(ms: f64) -> String {
    let digits = match ms {
        _ if ms >= 1000.0 => 0,
        _ if ms >= 100.0 => 1,
        _ if ms >= 10.0 => 2,
        _ if ms >= 1.0 => 3,
        _ => 5,
    };
    format!("{ms:.digits$}")
}

fn bytes(count: f64) -> String {
    match count {
        _ if count >= (1u64 << 30) as f64 => format!("{:.2} GiB", count / (1u64 << 30) as f64),
        _ if count >= (1u64 << 20) as f64 => format!("{:.1} MiB", count / (1u64 << 20) as f64),
        _ if count >= 1024.0 => format!("{:.1} KiB", count / 1024.0),
        _ => format!("{count:.0} B"),
    }
}

/// The cells as lines of text, aligned: texts to the left, numbers to the right.
fn aligned(cells: &[[String; 11]]) -> String {
    let mut widths = [0; 11];
    for row in cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for (index, row) in cells.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let left = column < TEXTS.len() || HEADER[column] == "peer";
            let gap = if column == 0 { "" } else { "  " };
            line += &if left { format!("{gap}{cell:<width$}") } else { format!("{gap}{cell:>width$}") };
        }
        table += &(line.trim_end().to_string() + "\n");
        if index == 0 {
            table += &("-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)) + "\n");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = r#"[
        {"op": "triplet_margin", "size": "65536x128", "dtype": "f32", "backend": "cpu", "pass": "both",
         "ms": 12.5, "peer": "tch", "peer_ms": 1500.0, "ratio": 120.0, "floor_ms": 10.0, "peak_bytes": 262144},
        {"op": "triplet_margin", "size": "1x1", "dtype": "bf16", "backend": "cpu", "pass": "forward",
         "ms": 0.00125, "peer": null, "peer_ms": null, "ratio": null, "floor_ms": null, "peak_bytes": null}
    ]"#;

    #[test]
    fn aligns_rows_and_shows_the_share_of_the_floor() {
        let table = table(ROWS).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(
            words(lines[2]),
            "triplet_margin 65536x128 f32 cpu both 12.50 tch 1500 120.00 x 80 % 256.0 KiB"
                .split(' ')
                .collect::<Vec<_>>()
        );
        assert_eq!(
            words(lines[3]),
            "triplet_margin 1x1 bf16 cpu forward 0.00125 - - - - -".split(' ').collect::<Vec<_>>()
        );
        // Columns stand under each other.
        let column = lines[0].find("dtype").unwrap();
        assert!(lines[2][column..].starts_with("f32") && lines[3][column..].starts_with("bf16"), "{table}");
    }

    #[test]
    fn an_empty_list_is_a_table_of_no_rows() {
        assert_eq!(table("[]").unwrap().lines().count(), 2);
    }

    #[test]
    fn errors_name_the_row_and_the_field() {
        assert_eq!(table("{}").unwrap_err(), "expected a list of rows");
        let no_ms = ROWS.replace("\"ms\": 0.00125, ", "");
        assert_eq!(table(&no_ms).unwrap_err(), "row 1: `ms` is missing");
        let wrong = ROWS.replace("\"f32\"", "32");
        assert_eq!(table(&wrong).unwrap_err(), "row 0: `dtype` is not a text");
        let wrong = ROWS.replace("120.0", "\"fast\"");
        assert_eq!(table(&wrong).unwrap_err(), "row 0: `ratio` is neither a number nor null");
        assert!(table("[{").unwrap_err().starts_with("byte 2"));
    }
}
