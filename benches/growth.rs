//! How time and memory of the mined losses grow with the batch, on slices: forward and backward, 128 numbers a row, eight
//! rows a class, margin 0.2.
//!
//! `cargo bench -p tercet -- growth` prints a table; with `--draw` it also draws docs/images/growth.svg, and with
//! `--large` it runs N = 65536 with 64 numbers a row and four rows a class.

use std::time::{Duration, Instant};

use plotters::prelude::*;
use tercet::{
    BatchAllTripletLoss, BatchContrastiveLoss, BatchHardTripletLoss, BatchNegativeTripletLoss,
    BatchSemiHardTripletLoss, Matrix,
};

use crate::support::{asked, peak_bytes, root, testing};

const SIZES: [usize; 6] = [512, 1024, 2048, 4096, 8192, 16384];

/// A loss at one size of the batch.
struct Measured {
    rows: usize,
    ms: f64,
    /// The most memory held beyond the embeddings, the labels and the gradient.
    peak_bytes: Option<u64>,
}

/// Embeddings, numbers of a fixed sequence, about uniform in [-1, 1), and labels with `each` rows a class.
fn batch(rows: usize, dim: usize, each: usize) -> (Vec<f32>, Vec<i64>) {
    let mut state = 1u64;
    let mut number = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    ((0..rows * dim).map(|_| number()).collect(), (0..rows).map(|i| (i % (rows / each).max(1)) as i64).collect())
}

type Loss = fn(&[f32], &[i64], usize, &mut [f32]) -> f32;

macro_rules! of_default {
    ($($loss:ident),*) => {
        [$((stringify!($loss), |x: &[f32], labels: &[i64], dim: usize, grad: &mut [f32]| {
            $loss::default().on(Matrix::new(x, dim).expect("rows"), labels).loss_and_grad(grad).expect("valid")
        })),*]
    };
}

fn losses() -> [(&'static str, Loss); 5] {
    of_default!(
        BatchAllTripletLoss,
        BatchHardTripletLoss,
        BatchSemiHardTripletLoss,
        BatchNegativeTripletLoss,
        BatchContrastiveLoss
    )
}

fn measure(loss: Loss, rows: usize, dim: usize, each: usize) -> Measured {
    let (x, labels) = batch(rows, dim, each);
    let mut grad = vec![1.0f32; x.len()];
    let mut times = Vec::new();
    let start = Instant::now();
    let peak_bytes = peak_bytes(|| loss(&x, &labels, dim, &mut grad));
    while times.len() < 3 || (start.elapsed() < Duration::from_secs(2) && times.len() < 50) {
        let start = Instant::now();
        std::hint::black_box(loss(&x, &labels, dim, &mut grad));
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if start.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Measured { rows, ms: times[times.len() / 2], peak_bytes }
}

fn print(name: &str, dim: usize, each: usize, m: &Measured) {
    let peak = m.peak_bytes.map_or("-".into(), |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
    println!("{name:<25} N = {:>6}  D = {dim}  {each} a class  {:>10.2} ms  {peak:>11} at most", m.rows, m.ms);
}

/// Draws time and memory against N, both axes logarithmic.
fn draw(all: &[(&str, Vec<Measured>)]) -> Result<(), Box<dyn std::error::Error>> {
    let path = root().join("docs/images/growth.svg");
    let area = SVGBackend::new(&path, (860, 380)).into_drawing_area();
    area.fill(&WHITE)?;
    let sizes = SIZES[0] as f64 * 0.9..SIZES[SIZES.len() - 1] as f64 * 1.1;
    let colours = [
        RGBColor(9, 105, 218),
        RGBColor(207, 34, 46),
        RGBColor(26, 127, 55),
        RGBColor(130, 80, 223),
        RGBColor(191, 135, 0),
    ];
    type Figure = fn(&Measured) -> f64;
    let charts: [(&str, Figure); 2] = [
        ("milliseconds, forward and backward", |m| m.ms),
        ("MiB beside embeddings and gradient", |m| m.peak_bytes.unwrap_or(0) as f64 / f64::from(1 << 20)),
    ];
    for (panel, (title, figure)) in area.split_evenly((1, 2)).iter().zip(charts) {
        let figures = || all.iter().flat_map(|(_, measured)| measured.iter().map(figure)).filter(|y| *y > 0.0);
        let lowest = figures().fold(f64::INFINITY, f64::min);
        let highest = figures().fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(panel)
            .caption(title, ("sans-serif", 17))
            .margin(14)
            .x_label_area_size(36)
            .y_label_area_size(52)
            // Room for the names below the curves.
            .build_cartesian_2d(sizes.clone().log_scale(), (lowest / 20.0..highest * 2.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("rows of the batch")
            .x_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| if *y < 1.0 { format!("{y:.1}") } else { format!("{y:.0}") })
            .light_line_style(WHITE)
            .label_style(("sans-serif", 13))
            .draw()?;
        for ((name, measured), colour) in all.iter().zip(colours) {
            let points: Vec<(f64, f64)> = measured.iter().map(|m| (m.rows as f64, figure(m))).collect();
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
        }
        // What N and N² would be, from the first figure of the first loss.
        let start = all[0].1.first().map_or(1.0, figure);
        for (power, text) in [(1, "N"), (2, "N²")] {
            let line = SIZES.map(|rows| (rows as f64, start * (rows as f64 / SIZES[0] as f64).powi(power)));
            let line: Vec<_> = line.into_iter().filter(|(_, y)| *y <= highest * 2.0).collect();
            if let Some(last) = line.last().copied() {
                chart.draw_series(LineSeries::new(line, RGBColor(140, 149, 159).stroke_width(1)))?;
                let style = ("sans-serif", 13).into_font().color(&RGBColor(87, 96, 106));
                chart.draw_series([Text::new(text, (last.0 * 0.8, last.1 * 0.95), style)])?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(RGBColor(208, 215, 222))
            .background_style(WHITE)
            .label_font(("sans-serif", 14))
            .draw()?;
    }
    area.present()?;
    println!("{}", path.display());
    Ok(())
}

pub fn bench() {
    if testing() {
        for (_, loss) in losses() {
            assert!(measure(loss, 64, 8, 4).ms > 0.0);
        }
        return;
    }
    if asked("--large") {
        for (name, loss) in losses() {
            print(name, 64, 4, &measure(loss, 65536, 64, 4));
        }
        return;
    }
    let all = losses().map(|(name, loss)| {
        // The first call begins threads, and they take memory.
        measure(loss, 64, 8, 4);
        let measured = SIZES.map(|rows| {
            let measured = measure(loss, rows, 128, 8);
            print(name, 128, 8, &measured);
            measured
        });
        (name, Vec::from(measured))
    });
    if asked("--draw") {
        draw(&all).expect("docs/images is writable");
    }
}
