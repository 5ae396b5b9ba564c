//! What a run's charts show, whoever draws them: `plot.rs` draws pictures, and SVG for the report.

use crate::evaluation::metrics::{Comparison, Measured, RocPoint, Verification, text_of};
use crate::evaluation::open_set::{OpenSet, Point};
use crate::model::distance::Distance;
use crate::model::vectors::Vectors;
use anyhow::Result;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// A chart.
pub struct Chart {
    /// The name of its file, without an extension.
    pub name: &'static str,
    /// The text above the chart.
    pub title: String,
    /// The axis along the bottom.
    pub x: Axis,
    /// The axis up the side.
    pub y: Axis,
    /// The series, in the order in which they are drawn.
    pub series: Vec<Series>,
    /// What a reader should know about the chart.
    pub note: String,
    /// The legend's place, where the curves leave room.
    pub legend: Corner,
}

/// One axis.
pub struct Axis {
    /// The text beside the axis.
    pub label: String,
    /// The axis' first and last value.
    pub range: (f64, f64),
}

impl Axis {
    fn new(label: impl Into<String>, from: f64, to: f64) -> Self {
        Self { label: label.into(), range: (from, to) }
    }
}

/// A place for the legend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Corner {
    UpperRight,
    LowerRight,
}

/// Points that are drawn alike and share a label.
pub struct Series {
    /// The text in the legend; empty for none.
    pub label: String,
    /// The colour.
    pub tone: Tone,
    /// The form.
    pub mark: Mark,
    /// The points, in the axes' units.
    pub points: Vec<(f64, f64)>,
}

/// Colours by meaning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tone {
    Before,
    After,
    Faint,
    Guide,
    Genuine,
    Impostor,
    Skilled,
    /// The colour of one of [`COLOURS`] identities.
    Identity(u8),
}

/// How many identities have a colour of their own on a map.
pub const COLOURS: usize = 8;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    Line,
    Thin,
    Dashed,
    /// A line with its points marked.
    Knots,
    /// The surface below a line.
    Area,
    Dots,
}

/// The loss of each step, and its running mean.
pub fn loss(losses: &[f64], title: &str, name: &str) -> Chart {
    // The first losses may be ten times the rest: the axis ends at the running mean's maximum or, if that is higher, at
    // the 98th percentile, and single spikes leave through the top.
    let mean = running_mean(losses, (losses.len() / 20).max(1));
    let mut sorted: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let high = sorted.get(sorted.len() * 98 / 100).copied().unwrap_or(1.0);
    let top = mean.iter().copied().fold(high, f64::max).max(1e-6) * 1.1;
    Chart {
        name: "loss",
        title: title.into(),
        x: Axis::new("step", 1.0, losses.len().max(2) as f64),
        y: Axis::new(name, 0.0, top),
        series: each_and_mean(losses, &mean, top),
        note: String::new(),
        legend: Corner::UpperRight,
    }
}

/// The share of a step's triplets or pairs that still had a loss. `None` if it was not measured.
pub fn active_fraction(fractions: &[f64], title: &str) -> Option<Chart> {
    if fractions.is_empty() {
        return None;
    }
    let mean = running_mean(fractions, (fractions.len() / 20).max(1));
    Some(Chart {
        name: "active",
        title: title.into(),
        x: Axis::new("step", 1.0, fractions.len().max(2) as f64),
        y: Axis::new("active fraction", 0.0, 1.0),
        series: each_and_mean(fractions, &mean, 1.0),
        note:
            "The share of the batch's terms that had something left to teach: whose loss was above 0, or, with a soft \
               margin, whose negative was not farther than the positive."
                .into(),
        legend: Corner::UpperRight,
    })
}

fn each_and_mean(values: &[f64], mean: &[f64], top: f64) -> Vec<Series> {
    let points = |values: &[f64]| {
        // A step that was left out has no finite loss.
        let there = values.iter().enumerate().filter(|(_, y)| y.is_finite());
        let all = there.map(|(i, &y)| ((i + 1) as f64, y.min(top)));
        extremes(all.collect(), 1200)
    };
    vec![
        Series { label: "each step".into(), tone: Tone::Faint, mark: Mark::Thin, points: points(values) },
        Series { label: "running mean".into(), tone: Tone::After, mark: Mark::Line, points: points(mean) },
    ]
}

/// The equal error rate at each evaluation.
pub fn eer(measured: &[Measured], title: &str) -> Option<Chart> {
    let last = measured.last()?;
    let random: Vec<_> = measured.iter().map(|m| (m.step as f64, m.eer)).collect();
    let skilled: Vec<_> = measured.iter().filter_map(|m| Some((m.step as f64, m.eer_skilled?))).collect();
    let top = random.iter().chain(&skilled).map(|p| p.1).fold(0.0, f64::max);
    let mut series =
        vec![Series { label: "random impostors".into(), tone: Tone::After, mark: Mark::Knots, points: random }];
    if !skilled.is_empty() {
        series.push(Series {
            label: "skilled forgeries".into(),
            tone: Tone::Skilled,
            mark: Mark::Knots,
            points: skilled,
        });
    }
    Some(Chart {
        name: "eer",
        title: title.into(),
        x: Axis::new("step", 0.0, last.step.max(1) as f64),
        y: Axis::new("equal error rate", 0.0, (top * 1.15).clamp(0.01, 1.0)),
        series,
        note: "On identities that were never trained on; lower is better, 0.5 is chance.".into(),
        legend: Corner::LowerRight,
    })
}

/// ROC curves, with the diagonal on which both errors are equal. `before` may be absent.
pub fn roc(before: Option<&Verification>, after: &Verification, title: &str) -> Chart {
    let line = |name: &str, tone, c: &Comparison| Series {
        label: format!("{name}: EER {:.1} %, AUC {:.3}", 100.0 * c.eer, c.auc),
        tone,
        mark: Mark::Line,
        points: thinned(&c.roc),
    };
    let mut series = Vec::new();
    if let Some(before) = before {
        series.push(line("before training", Tone::Before, &before.random));
    }
    let name = if before.is_some() { "after training" } else { "random impostors" };
    series.push(line(name, Tone::After, &after.random));
    if let Some(skilled) = &after.skilled {
        let name = if before.is_some() { "after, skilled forgeries" } else { "skilled forgeries" };
        series.push(line(name, Tone::Skilled, skilled));
    }
    let points = vec![(0.0, 1.0), (1.0, 0.0)];
    series.push(Series { label: "equal error rates".into(), tone: Tone::Guide, mark: Mark::Thin, points });
    Chart {
        name: "roc",
        title: title.into(),
        x: Axis::new("false accept rate", 0.0, 1.0),
        y: Axis::new("true accept rate", 0.0, 1.0),
        series,
        note: "Of every two images of unseen identities: how many genuine pairs a threshold accepts, for each share \
               of impostors that it lets through."
            .into(),
        legend: Corner::LowerRight,
    }
}

/// How many enrolled people are missed at each share of strangers that are taken for somebody.
pub fn open_set(measured: &OpenSet) -> Chart {
    let points = |curve: &[Point]| curve.iter().map(|point| (point.fpir, point.fnir)).collect();
    let mut series = vec![Series {
        label: format!("rank 1 {:.1} %", 100.0 * measured.rank_1()),
        tone: Tone::After,
        mark: Mark::Line,
        points: points(&measured.det),
    }];
    if let Some(at) = &measured.at_threshold {
        let label = format!("the model's threshold, {}", text_of(at.threshold));
        series.push(Series { label, tone: Tone::Guide, mark: Mark::Knots, points: points(std::slice::from_ref(at)) });
    }
    Chart {
        name: "open-set",
        title: format!("Recognition among {} people", measured.people),
        x: Axis::new("false positive identification rate", 0.0, 1.0),
        y: Axis::new("false negative identification rate", 0.0, 1.0),
        series,
        note: "Searches in a gallery of half of the identities: how many of its people are missed, for each share of \
               strangers that find somebody."
            .into(),
        legend: Corner::UpperRight,
    }
}

/// Distances of genuine pairs, impostors and forgeries, and the threshold.
pub fn distances(scores: &Verification, measure: Distance, name: &'static str, title: &str) -> Chart {
    const BINS: usize = 60;
    // A few far pairs would press all others into one corner.
    let end = scores.random.tally.quantile(0.998).clamp(1e-6, f32::MAX).max(1.25 * scores.operating.threshold);
    let outline = |shares: Vec<f64>| {
        let at = |bin: usize| f64::from(end) * bin as f64 / BINS as f64;
        shares.iter().enumerate().flat_map(|(bin, &y)| [(at(bin), y), (at(bin + 1), y)]).collect::<Vec<_>>()
    };
    let (genuine, impostor): (Vec<_>, Vec<_>) = scores.random.tally.histogram(BINS, end).into_iter().unzip();
    let top = genuine.iter().chain(&impostor).copied().fold(0.0, f64::max);
    let area =
        |label: &str, tone, shares| Series { label: label.into(), tone, mark: Mark::Area, points: outline(shares) };
    let mut series =
        vec![area("impostor pairs", Tone::Impostor, impostor), area("genuine pairs", Tone::Genuine, genuine)];
    let mut top = top;
    if let Some(skilled) = &scores.skilled {
        let shares: Vec<f64> = skilled.tally.histogram(BINS, end).into_iter().map(|s| s.1).collect();
        top = shares.iter().copied().fold(top, f64::max);
        let points = outline(shares);
        series.push(Series { label: "skilled forgeries".into(), tone: Tone::Skilled, mark: Mark::Line, points });
    }
    let top = top * 1.1;
    let threshold = f64::from(scores.operating.threshold);
    series.push(Series {
        label: format!("threshold {}", text_of(scores.operating.threshold)),
        tone: Tone::Guide,
        mark: Mark::Dashed,
        points: vec![(threshold, 0.0), (threshold, top)],
    });
    Chart {
        name,
        title: title.into(),
        x: Axis::new(format!("{} distance", measure.title()), 0.0, f64::from(end)),
        y: Axis::new("share of the pairs", 0.0, top),
        series,
        note: "Pairs to the left of the threshold are accepted as the same identity. The last bar holds all that is farther."
            .into(),
        legend: Corner::UpperRight,
    }
}

/// The embeddings in the plane of their first two principal components. The identities with most images have colours
/// and are named; `identity` is each row's index into `names`. `None` for fewer than three images.
pub fn map(vectors: &Vectors, identity: &[usize], names: &[String], title: &str) -> Result<Option<Chart>> {
    const POINTS: usize = 800;
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    identity.iter().enumerate().for_each(|(row, &owner)| members.entry(owner).or_default().push(row));
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len())); // stable: by identity among equals
    let shown: Vec<(usize, usize)> = members
        .iter()
        .enumerate()
        .flat_map(|(place, (_, rows))| rows.iter().map(move |&row| (place, row)))
        .take(POINTS)
        .collect();
    if shown.len() < 3 {
        return Ok(None);
    }
    let rows: Vec<f32> = shown.iter().flat_map(|&(_, row)| vectors.row(row)).copied().collect();
    let (points, shares) = principal_components(&rows, vectors.dim())?;
    let of = |wanted: &dyn Fn(usize) -> bool| -> Vec<(f64, f64)> {
        let chosen = shown.iter().zip(&points).filter(|((place, _), _)| wanted(*place));
        chosen.map(|(_, &point)| point).collect()
    };
    let others = of(&|place| place >= COLOURS);
    let mut series = Vec::new();
    if !others.is_empty() {
        series.push(Series { label: "others".into(), tone: Tone::Faint, mark: Mark::Dots, points: others });
    }
    for (place, (owner, _)) in members.iter().enumerate().take(COLOURS) {
        series.push(Series {
            label: names[*owner].clone(),
            tone: Tone::Identity(place as u8),
            mark: Mark::Dots,
            points: of(&|p| p == place),
        });
    }
    let axis = |k: usize, name: &str| {
        let value = |p: &(f64, f64)| if k == 0 { p.0 } else { p.1 };
        let reach = points.iter().map(value).fold(1e-9, |most: f64, v| most.max(v.abs())) * 1.08;
        Axis::new(format!("{name} ({:.0} % of variance)", 100.0 * shares[k]), -reach, reach)
    };
    Ok(Some(Chart {
        name: "map",
        title: title.into(),
        x: axis(0, "PC 1"),
        y: axis(1, "PC 2"),
        series,
        note: "Principal component analysis of the embeddings of unseen identities, one dot an image. Distances in \
               the plane are not the distances that decide: the other components are not shown."
            .into(),
        legend: Corner::UpperRight,
    }))
}

/// Points in the plane of two principal components, and the shares of the variance that these explain.
type Plane = (Vec<(f64, f64)>, [f64; 2]);

/// Projects rows of `dim` numbers onto their first two principal components; also returns the shares of the variance
/// that these explain. Each component's sign makes its largest coordinate positive.
fn principal_components(rows: &[f32], dim: usize) -> Result<Plane> {
    let xs = Tensor::from_slice(rows).view([-1, dim as i64]).to_kind(Kind::Double);
    let centred = &xs - xs.f_mean_dim([0i64].as_slice(), true, Kind::Double)?;
    let (u, s, _) = centred.f_svd(true, true)?;
    let (u, s): (Tensor, Vec<f64>) = (u.contiguous(), s.try_into()?);
    let n = xs.size()[0];
    let column = |k: usize| -> Result<Vec<f64>> {
        let Some(&scale) = s.get(k) else { return Ok(vec![0.0; n as usize]) };
        let column: Vec<f64> = u.f_select(1, k as i64)?.contiguous().try_into()?;
        let largest = column.iter().copied().fold(0.0, |most: f64, v| if v.abs() > most.abs() { v } else { most });
        Ok(column.into_iter().map(|v| v * scale * if largest < 0.0 { -1.0 } else { 1.0 }).collect())
    };
    let all: f64 = s.iter().map(|s| s * s).sum();
    let share = |k: usize| s.get(k).map_or(0.0, |s| s * s / all.max(f64::MIN_POSITIVE));
    let (first, second) = (column(0)?, column(1)?);
    Ok((first.into_iter().zip(second).collect(), [share(0), share(1)]))
}

/// Leaves out points too near to each other to be seen: a line through thousands of steps smaller than a pixel comes
/// out ragged.
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

/// The lowest and the highest point of each stretch of a long line: more cannot be seen.
fn extremes(points: Vec<(f64, f64)>, at_most: usize) -> Vec<(f64, f64)> {
    if points.len() <= at_most {
        return points;
    }
    let stretches = points.chunks(points.len().div_ceil(at_most / 2));
    let both = |stretch: &[(f64, f64)]| {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) =
            (*stretch.iter().min_by(by).expect("not empty"), *stretch.iter().max_by(by).expect("not empty"));
        if low.0 <= high.0 { [low, high] } else { [high, low] }
    };
    stretches.flat_map(both).collect()
}

/// The mean over the last `width` values, or all so far. Values that are not finite are left out.
fn running_mean(values: &[f64], width: usize) -> Vec<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    let mut means = Vec::with_capacity(values.len());
    for (i, &value) in values.iter().enumerate() {
        if value.is_finite() {
            (sum, count) = (sum + value, count + 1);
        }
        if let Some(&gone) = i.checked_sub(width).map(|first| &values[first]).filter(|gone| gone.is_finite()) {
            (sum, count) = (sum - gone, count - 1);
        }
        means.push(if count > 0 { sum / count as f64 } else { f64::NAN });
    }
    means
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
    fn a_step_that_was_left_out_leaves_the_curve_whole() {
        let losses = [2.0, f64::NAN, 4.0, f64::INFINITY, f64::NAN, 6.0];
        let means = running_mean(&losses, 2);
        assert_eq!([0, 1, 2, 3, 5].map(|i| means[i]), [2.0, 2.0, 4.0, 4.0, 6.0]);
        assert!(means[4].is_nan());
        let chart = loss(&losses, "Loss", "loss");
        assert!(
            chart.y.range.1.is_finite() && chart.series.iter().flat_map(|one| &one.points).all(|p| p.1.is_finite())
        );
        assert_eq!(chart.series[0].points.len(), 3);
    }

    #[test]
    fn a_long_line_keeps_its_spikes() {
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), if i == 7_777 { 5.0 } else { 1.0 })).collect();
        let kept = extremes(points.clone(), 100);
        assert!(kept.len() <= 100 && kept.contains(&(7_777.0, 5.0)));
        assert!(kept.windows(2).all(|w| w[0].0 <= w[1].0));
        assert_eq!(extremes(points[..100].to_vec(), 100), points[..100]);
    }

    #[test]
    fn principal_components_of_points_on_a_line_are_their_places_on_it() {
        // x = 3 t, y = 4 t, z = 1: the line's direction is (3, 4, 0) / 5.
        let rows: Vec<f32> = [0.0f32, 1.0, 5.0].iter().flat_map(|t| [3.0 * t, 4.0 * t, 1.0]).collect();
        let (points, shares) = principal_components(&rows, 3).unwrap();
        for ((x, y), expected) in points.into_iter().zip([-10.0, -5.0, 15.0]) {
            assert!((x - expected).abs() < 1e-9 && y.abs() < 1e-9, "{x} {y}");
        }
        assert!((shares[0] - 1.0).abs() < 1e-12 && shares[1] < 1e-12);
        // With one number per row, and all rows equal, nothing fails.
        assert_eq!(principal_components(&[2.0, 2.0, 2.0], 1).unwrap(), (vec![(0.0, 0.0); 3], [0.0, 0.0]));
    }

    #[test]
    fn what_was_not_measured_is_not_drawn() {
        assert!(active_fraction(&[], "").is_none());
        assert!(eer(&[], "").is_none());
        let points =
            [Measured { step: 0, eer: 0.5, eer_skilled: None }, Measured { step: 9, eer: 0.2, eer_skilled: None }];
        let chart = eer(&points, "").unwrap();
        assert_eq!(chart.series.len(), 1);
        assert_eq!(chart.series[0].points, [(0.0, 0.5), (9.0, 0.2)]);
        assert_eq!(loss(&[], "", "").series[0].points, []);
    }
}
