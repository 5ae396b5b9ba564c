//! The run's pictures: the loss curve, the ROC curves, and a sheet of the validation images.
//!
//! Text is drawn with a font that is part of the binary, so a machine needs none.

use crate::images::Images;
use crate::metrics::{RocPoint, Verification};
use anyhow::{Result, anyhow};
use image::imageops::{FilterType, resize};
use image::{ImageFormat, RgbImage};
use plotters::prelude::*;
use plotters::style::register_font;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

/// Drawn at twice the final size: plotters has no smooth thick lines of its own.
const SIZE: (u32, u32) = (1920, 1280);
const BEFORE: RGBColor = RGBColor(150, 150, 150);
const AFTER: RGBColor = RGBColor(20, 90, 170);
const LIGHT: RGBColor = RGBColor(150, 180, 220);

/// The loss of each step, and its running mean.
pub fn loss_curve(file: &Path, losses: &[f64], title: &str) -> Result<()> {
    // The first steps may be ten times the rest: the axis ends at the running mean's maximum, or
    // at the 98th percentile where that is higher, and single spikes leave through the top.
    let mean = running_mean(losses, (losses.len() / 20).max(1));
    let mut sorted = losses.to_vec();
    sorted.sort_by(f64::total_cmp);
    let high = sorted.get(sorted.len() * 98 / 100).copied().unwrap_or(1.0);
    let top = mean.iter().copied().fold(high, f64::max).max(1e-6) * 1.1;
    let points = |values: &[f64]| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(i, &y)| ((i + 1) as f64, y.min(top))).collect()
    };
    let series = [
        Series { label: "each step".into(), style: LIGHT.stroke_width(2), points: points(losses) },
        Series { label: "running mean".into(), style: AFTER.stroke_width(6), points: points(&mean) },
    ];
    let axes = Axes {
        title,
        x: ("step", 1.0..losses.len().max(2) as f64),
        y: ("triplet loss", 0.0..top),
        legend: SeriesLabelPosition::UpperRight,
    };
    draw(file, &axes, &series)
}

/// Before and after on one picture, with the diagonal where the errors are equal.
pub fn roc_curves(file: &Path, before: &Verification, after: &Verification, title: &str) -> Result<()> {
    let label = |name: &str, v: &Verification| format!("{name}: EER {:.1} %, AUC {:.3}", 100.0 * v.eer, v.auc);
    let equal = RGBColor(210, 170, 120).stroke_width(2);
    let series = [
        Series { label: label("before training", before), style: BEFORE.stroke_width(6), points: thinned(&before.roc) },
        Series { label: label("after training", after), style: AFTER.stroke_width(6), points: thinned(&after.roc) },
        Series { label: "equal error rates".into(), style: equal, points: vec![(0.0, 1.0), (1.0, 0.0)] },
    ];
    let axes = Axes {
        title,
        x: ("false accept rate", 0.0..1.0),
        y: ("true accept rate", 0.0..1.0),
        legend: SeriesLabelPosition::LowerRight,
    };
    draw(file, &axes, &series)
}

/// Points at least a pixel apart: a thick line through thousands of steps smaller than a pixel
/// comes out ragged.
fn thinned(roc: &[RocPoint]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, p) in roc.iter().enumerate() {
        let far_enough = kept.last().is_none_or(|l| (p.far - l.0).hypot(p.tar - l.1) > 0.002);
        if far_enough || i + 1 == roc.len() {
            kept.push((p.far, p.tar));
        }
    }
    kept
}

/// One row per identity, `columns` of its images each, as the encoder sees them.
pub fn sheet(file: &Path, images: &Images, rows: &[Vec<usize>], columns: usize) -> Result<()> {
    let (size, gap) = (images.size() as u32, 2);
    let side = |n: usize| n as u32 * (size + gap) + gap;
    let blue = image::Rgb([150, 170, 200]);
    let mut picture = RgbImage::from_pixel(side(columns), side(rows.len()), blue);
    for (row, members) in rows.iter().enumerate() {
        for (column, &member) in members.iter().take(columns).enumerate() {
            let bytes = images.get(member);
            for (i, pixel) in bytes.chunks_exact(images.channels()).enumerate() {
                let (x, y) = (i as u32 % size, i as u32 / size);
                let rgb = image::Rgb([pixel[0], pixel[pixel.len() / 2], pixel[pixel.len() - 1]]);
                picture.put_pixel(side(column) + x, side(row) + y, rgb);
            }
        }
    }
    save(file, &picture)
}

struct Series {
    label: String,
    style: ShapeStyle,
    points: Vec<(f64, f64)>,
}

struct Axes<'a> {
    title: &'a str,
    x: (&'a str, Range<f64>),
    y: (&'a str, Range<f64>),
    legend: SeriesLabelPosition,
}

fn draw(file: &Path, axes: &Axes, series: &[Series]) -> Result<()> {
    // Twice is harmless: the name is then replaced by itself.
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font cannot be read"))?;
    let mut bytes = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
    draw_into(&mut bytes, axes, series).map_err(|e| anyhow!("{}: {e}", file.display()))?;
    let picture = RgbImage::from_raw(SIZE.0, SIZE.1, bytes).expect("the buffer has this size");
    save(file, &resize(&picture, SIZE.0 / 2, SIZE.1 / 2, FilterType::Triangle))
}

fn draw_into(bytes: &mut [u8], axes: &Axes, series: &[Series]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = BitMapBackend::with_buffer(bytes, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(axes.title, ("sans-serif", 52))
        .margin(32)
        .margin_right(56)
        .x_label_area_size(104)
        .y_label_area_size(144)
        .build_cartesian_2d(axes.x.1.clone(), axes.y.1.clone())?;
    let small = axes.y.1.end < 0.1;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(215, 215, 215).stroke_width(2))
        .axis_style(BLACK.stroke_width(2))
        .x_desc(axes.x.0)
        .y_desc(axes.y.0)
        .axis_desc_style(("sans-serif", 44))
        .label_style(("sans-serif", 36))
        .x_label_formatter(&|x| if axes.x.1.end > 2.0 { format!("{x:.0}") } else { format!("{x:.1}") })
        .y_label_formatter(&|y| if small { format!("{y:.3}") } else { format!("{y:.2}") })
        .draw()?;
    for one in series {
        let style = one.style;
        chart
            .draw_series(LineSeries::new(one.points.iter().copied(), style))?
            .label(one.label.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 48, y)], style));
    }
    chart
        .configure_series_labels()
        .position(axes.legend.clone())
        .margin(32)
        .legend_area_size(68)
        .label_font(("sans-serif", 40))
        .background_style(WHITE.mix(0.9))
        .border_style(RGBColor(180, 180, 180))
        .draw()?;
    root.present()?;
    Ok(())
}

fn save(file: &Path, picture: &RgbImage) -> Result<()> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png)?;
    crate::run_folder::atomically(file, png.get_ref())
}

/// The mean over the last `width` values, or all so far.
fn running_mean(values: &[f64], width: usize) -> Vec<f64> {
    let window = |end: usize| &values[(end + 1).saturating_sub(width)..=end];
    (0..values.len()).map(|i| window(i).iter().sum::<f64>() / window(i).len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_mean_starts_with_what_there_is() {
        assert_eq!(running_mean(&[1.0, 3.0, 5.0, 7.0], 2), [1.0, 2.0, 4.0, 6.0]);
        assert!(running_mean(&[], 3).is_empty());
    }

    #[test]
    fn text_is_drawn_without_any_system_font() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("loss.png");
        loss_curve(&file, &[1.0, 0.5, 0.25], "a title").unwrap();
        let picture = image::open(&file).unwrap().to_luma8();
        // The caption's place has dark pixels only if glyphs were drawn.
        assert!((16..44).any(|y| (300..660).any(|x| picture.get_pixel(x, y).0[0] < 100)));
        loss_curve(&file, &[], "no step at all").unwrap();
    }
}
