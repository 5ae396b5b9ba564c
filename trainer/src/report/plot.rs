//! The run's pictures: charts, a sheet of the validation images, and a sheet of the hardest pairs.
//!
//! Text is drawn with a font that is part of the binary, so a machine needs none.

use crate::data::images::Images;
use crate::evaluation::metrics::text_of;
use crate::report::chart::{Chart, Corner, Mark, Tone};
use anyhow::{Result, anyhow};
use image::imageops::{FilterType, resize};
use image::{ImageFormat, RgbImage};
use plotters::coord::Shift;
use plotters::coord::ranged1d::BoldPoints;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::register_font;
use std::io::Cursor;
use std::path::Path;

/// Charts are drawn at twice the final size: plotters has no smooth thick lines of its own.
const SIZE: (u32, u32) = (1920, 1280);

/// The size of a chart in the report, which is shown at a third of it or less: plotters' coordinates are whole numbers.
const REPORT_SIZE: (u32, u32) = (1440, 960);

/// The colours of grid lines, and of axes and text, in a chart.
const GRID: RGBColor = RGBColor(215, 215, 215);
const INK: RGBColor = BLACK;

/// Each tone with its colour in the style sheet, which has a light and a dark one by that name, and its colour in
/// pictures.
fn palette(tone: Tone) -> (&'static str, RGBColor) {
    const IDENTITIES: [(&str, RGBColor); crate::report::chart::COLOURS] = [
        ("id0", RGBColor(31, 119, 180)),
        ("id1", RGBColor(255, 127, 14)),
        ("id2", RGBColor(44, 160, 44)),
        ("id3", RGBColor(214, 39, 40)),
        ("id4", RGBColor(148, 103, 189)),
        ("id5", RGBColor(140, 86, 75)),
        ("id6", RGBColor(227, 119, 194)),
        ("id7", RGBColor(23, 170, 190)),
    ];
    match tone {
        Tone::Before | Tone::Impostor => ("before", RGBColor(150, 150, 150)),
        Tone::After | Tone::Genuine => ("after", RGBColor(20, 90, 170)),
        Tone::Faint => ("faint", RGBColor(150, 180, 220)),
        Tone::Guide => ("guide", RGBColor(210, 170, 120)),
        Tone::Skilled => ("skilled", RGBColor(200, 70, 40)),
        Tone::Identity(which) => IDENTITIES[usize::from(which) % IDENTITIES.len()],
    }
}

fn colour(tone: Tone) -> RGBColor {
    palette(tone).1
}

/// The colour of a tone in the report's style sheet.
pub fn variable(tone: Tone) -> String {
    format!("var(--{})", palette(tone).0)
}

/// The chart as SVG for the report, whose text its title and its legend are. Colours are those of the style sheet, so
/// that they follow its light and dark modes.
pub fn svg(chart: &Chart) -> Result<String> {
    register()?;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, REPORT_SIZE).into_drawing_area();
        let drawn = draw_chart(&root, chart, None).and_then(|()| Ok(root.present()?));
        drawn.map_err(|e| anyhow!("{}: {e}", chart.title))?;
    }
    let tones = chart.series.iter().map(|one| palette(one.tone));
    for (name, RGBColor(r, g, b)) in tones.chain([("grid", GRID), ("soft", INK)]) {
        text = text.replace(&format!("\"#{r:02X}{g:02X}{b:02X}\""), &format!("\"var(--{name})\""));
    }
    // In HTML an <svg> needs no namespace, and the page has no address of another place.
    Ok(text.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""))
}

/// Writes `NAME.png` into the folder; `context` follows the chart's title.
pub fn chart(folder: &Path, chart: &Chart, context: &str) -> Result<()> {
    let file = folder.join(chart.name).with_extension("png");
    let picture = canvas(SIZE, &file, |root| draw_chart(root, chart, Some(&format!("{}: {context}", chart.title))))?;
    save(&file, &resize(&picture, SIZE.0 / 2, SIZE.1 / 2, FilterType::Triangle))
}

/// One panel of [`bars`].
pub struct Bars {
    /// The title above the panel.
    pub title: String,
    /// One value per bar, from 0 to 1.
    pub values: Vec<f64>,
    /// A line across all bars: the value that they began with.
    pub mark: Option<f64>,
}

/// Two panels of horizontal bars beside each other, with one label per row.
pub fn bars(file: &Path, title: &str, labels: &[String], panels: &[Bars; 2]) -> Result<()> {
    const ROW: i32 = 72;
    const TOP: i32 = 190;
    const WIDTH: i32 = 1920;
    let height = TOP + ROW * labels.len() as i32 + 60;
    let characters = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0) as i32;
    let left = 60 + 19 * characters;
    let (panel, gap) = ((WIDTH - left) / 2, 130);
    let picture = canvas((WIDTH as u32, height as u32), file, |root| {
        root.draw(&Text::new(title, (60, 36), ("sans-serif", 42).into_font()))?;
        for (n, bars) in panels.iter().enumerate() {
            let start = left + n as i32 * panel;
            let top = bars.values.iter().copied().chain(bars.mark).fold(1e-9, f64::max);
            let at = |value: f64| start + (value / top * f64::from(panel - gap)) as i32;
            root.draw(&Text::new(bars.title.as_str(), (start, 120), ("sans-serif", 34).into_font()))?;
            for (row, &value) in bars.values.iter().enumerate() {
                let y = TOP + ROW * row as i32;
                let corners = [(start, y), (at(value).max(start + 2), y + ROW - 26)];
                root.draw(&Rectangle::new(corners, colour(Tone::After).filled()))?;
                let text = format!("{value:.3}");
                // Text that the mark would go through is put beyond the mark.
                let (place, wide) = (at(value) + 12, 90);
                let beyond = bars.mark.map(at).filter(|mark| (place - 12..place + wide).contains(mark));
                let place = beyond.map_or(place, |mark| mark + 12);
                root.draw(&Text::new(text, (place, y + 8), ("sans-serif", 32).into_font()))?;
                if n == 0 {
                    root.draw(&Text::new(labels[row].as_str(), (60, y + 8), ("sans-serif", 34).into_font()))?;
                }
            }
            if let Some(mark) = bars.mark {
                let (from, to) = (TOP - 12, TOP + ROW * bars.values.len() as i32 - 14);
                let line = PathElement::new([(at(mark), from), (at(mark), to)], colour(Tone::Skilled).stroke_width(4));
                root.draw(&line)?;
                let text = format!("before training {mark:.3}");
                let place = ((at(mark) - 150).max(start), to + 8);
                root.draw(&Text::new(text, place, ("sans-serif", 28).into_font().color(&colour(Tone::Skilled))))?;
            }
        }
        Ok(())
    })?;
    save(file, &resize(&picture, WIDTH as u32 / 2, height as u32 / 2, FilterType::Triangle))
}

/// A sheet of one row per identity, `columns` of its images each, as the encoder sees them.
pub fn sheet(file: &Path, images: &Images, rows: &[Vec<usize>], columns: usize) -> Result<()> {
    let (size, gap) = (images.size() as u32, 2);
    let side = |n: usize| n as u32 * (size + gap) + gap;
    let blue = image::Rgb([150, 170, 200]);
    let mut picture = RgbImage::from_pixel(side(columns), side(rows.len()), blue);
    for (row, members) in rows.iter().enumerate() {
        for (column, &member) in members.iter().take(columns).enumerate() {
            let (x, y) = (i64::from(side(column)), i64::from(side(row)));
            image::imageops::replace(&mut picture, &thumbnail(images, member)?, x, y);
        }
    }
    save(file, &picture)
}

/// An image as the encoder sees it.
pub fn thumbnail(images: &Images, index: usize) -> Result<RgbImage> {
    let ((bytes, channels), size) = (images.get(index)?, images.size());
    Ok(RgbImage::from_fn(size as u32, size as u32, |x, y| {
        let pixel = &bytes[(y as usize * size + x as usize) * channels..][..channels];
        image::Rgb([pixel[0], pixel[channels / 2], pixel[channels - 1]])
    }))
}

/// Two images side by side, and what is said about them.
pub struct Compared {
    pub first: RgbImage,
    pub second: RgbImage,
    pub distance: f32,
    /// Whether the threshold decides the pair wrongly.
    pub wrong: bool,
    /// The names of the identities.
    pub names: String,
}

/// A contact sheet: for each group a title and its pairs, with their distances.
pub fn contact_sheet(file: &Path, groups: &[(String, Vec<Compared>)]) -> Result<()> {
    const COLUMNS: usize = 4;
    const SIDE: u32 = 112;
    const GAP: u32 = 12;
    const LINE: u32 = 30;
    let cell = (2 * SIDE + 2 + GAP, SIDE + LINE + GAP);
    let rows = |group: &[Compared]| group.len().div_ceil(COLUMNS) as u32;
    let height = groups.iter().map(|(_, pairs)| 2 * LINE + rows(pairs) * cell.1).sum::<u32>() + GAP;
    let size = (COLUMNS as u32 * cell.0 + GAP, height);
    let mut places = Vec::new();
    let mut picture = canvas(size, file, |root| {
        let mut top = GAP;
        for (title, pairs) in groups {
            let at = |x: u32, y: u32| (x as i32, y as i32);
            root.draw(&Text::new(title.as_str(), at(GAP, top + LINE / 3), ("sans-serif", 26).into_font()))?;
            top += 2 * LINE;
            for (n, pair) in pairs.iter().enumerate() {
                let (x, y) = (GAP + (n % COLUMNS) as u32 * cell.0, top + (n / COLUMNS) as u32 * cell.1);
                places.push((x, y, pair));
                let tone = if pair.wrong { colour(Tone::Skilled) } else { BLACK };
                let text = format!("{} {}", text_of(pair.distance), if pair.wrong { "wrong" } else { "right" });
                root.draw(&Text::new(text, at(x, y + SIDE + 4), ("sans-serif", 20).into_font().color(&tone)))?;
            }
            top += rows(pairs) * cell.1;
        }
        Ok(())
    })?;
    for (x, y, pair) in places {
        for (image, x) in [(&pair.first, x), (&pair.second, x + SIDE + 2)] {
            let filter = if image.width() < SIDE { FilterType::CatmullRom } else { FilterType::Triangle };
            image::imageops::replace(&mut picture, &resize(image, SIDE, SIDE, filter), x.into(), y.into());
        }
    }
    save(file, &picture)
}

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Makes the built-in font known to plotters. Doing it again is harmless: the font replaces itself.
fn register() -> Result<()> {
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font cannot be read"))
}

/// A white picture that `draw` draws on.
fn canvas(size: (u32, u32), file: &Path, draw: impl FnOnce(&Canvas) -> Drawn) -> Result<RgbImage> {
    register()?;
    let mut bytes = vec![255; size.0 as usize * size.1 as usize * 3];
    {
        let root = BitMapBackend::with_buffer(&mut bytes, size).into_drawing_area();
        let drawn = draw(&root).and_then(|()| Ok(root.present()?));
        drawn.map_err(|e| anyhow!("{}: {e}", file.display()))?;
    }
    Ok(RgbImage::from_raw(size.0, size.1, bytes).expect("the buffer has this size"))
}

/// Draws a chart, with a legend and a `caption` if there is one: a page has both as text.
fn draw_chart<B: DrawingBackend<ErrorType: 'static>>(
    root: &DrawingArea<B, Shift>,
    chart: &Chart,
    caption: Option<&str>,
) -> Drawn {
    let (mut x, y) = (chart.x.range, chart.y.range);
    if caption.is_some() && chart.series.iter().any(|one| one.mark == Mark::Dots) {
        x.1 += 0.4 * (x.1 - x.0); // dots are everywhere: the legend gets a place of its own
    }
    let mut builder = ChartBuilder::on(root);
    // In a page a chart is narrower, and so has larger text and fewer labels.
    let (text, labels) = match caption {
        Some(caption) => {
            builder.caption(caption, ("sans-serif", 48)).margin(32).margin_right(56);
            builder.x_label_area_size(104).y_label_area_size(144);
            ((36, 44), 11)
        }
        None => {
            builder.margin(24).margin_right(48).x_label_area_size(132).y_label_area_size(228);
            ((50, 50), 6)
        }
    };
    let mut area = builder.build_cartesian_2d(x.0..x.1, y.0..y.1)?;
    let (x_decimals, y_decimals) = (decimals(x, labels), decimals(y, labels));
    area.configure_mesh()
        .x_labels(labels)
        .y_labels(labels)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(2))
        .axis_style(INK.stroke_width(2))
        .x_desc(&chart.x.label)
        .y_desc(&chart.y.label)
        .axis_desc_style(("sans-serif", text.1).with_color(INK))
        .label_style(("sans-serif", text.0).with_color(INK))
        .x_label_formatter(&|x| format!("{:.x_decimals$}", unsigned_zero(*x)))
        .y_label_formatter(&|y| format!("{:.y_decimals$}", unsigned_zero(*y)))
        .draw()?;
    for one in &chart.series {
        draw_series(&mut area, one)?;
    }
    if caption.is_none() {
        return Ok(());
    }
    let position = match chart.legend {
        Corner::UpperRight => SeriesLabelPosition::UpperRight,
        Corner::LowerRight => SeriesLabelPosition::LowerRight,
    };
    area.configure_series_labels()
        .position(position)
        .margin(32)
        .legend_area_size(68)
        .label_font(("sans-serif", 40))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(180, 180, 180))
        .draw()?;
    Ok(())
}

/// As many decimals as the labels of an axis need, of which there are at most `labels`.
fn decimals((low, high): (f64, f64), labels: usize) -> usize {
    let ticks = RangedCoordf64::from(low..high).key_points(BoldPoints(labels));
    let exact = |digits: i32| {
        let scale = 10f64.powi(digits);
        ticks.iter().all(|tick| ((tick * scale).round() / scale - tick).abs() <= 1e-9 * (high - low))
    };
    (0..12).find(|&digits| exact(digits)).unwrap_or(12) as usize
}

/// Makes 0 of a tiny number: labels in steps of a tenth come back to zero as one, which would be written as -0.0.
fn unsigned_zero(value: f64) -> f64 {
    if value.abs() < 1e-9 { 0.0 } else { value }
}

fn draw_series<'a, B: DrawingBackend<ErrorType: 'static> + 'a>(
    area: &mut ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    one: &crate::report::chart::Series,
) -> Drawn {
    let tone = colour(one.tone);
    let points = || one.points.iter().copied();
    let line = tone.stroke_width(match one.mark {
        Mark::Thin | Mark::Area => 2,
        Mark::Dashed => 4,
        _ => 6,
    });
    let drawn = match one.mark {
        Mark::Line | Mark::Thin => area.draw_series(LineSeries::new(points(), line))?,
        Mark::Dashed => area.draw_series(DashedLineSeries::new(points(), 16, 10, line))?,
        Mark::Knots => {
            area.draw_series(points().map(|at| Circle::new(at, 10, tone.filled())))?;
            area.draw_series(LineSeries::new(points(), line))?
        }
        Mark::Dots => area.draw_series(points().map(|at| Circle::new(at, 8, tone.mix(0.8).filled())))?,
        Mark::Area => {
            let ends = [one.points.last(), one.points.first()];
            let closed: Vec<_> = points().chain(ends.into_iter().flatten().map(|end| (end.0, 0.0))).collect();
            area.draw_series([Polygon::new(closed, tone.mix(0.3))])?;
            area.draw_series(LineSeries::new(points(), line))?
        }
    };
    if !one.label.is_empty() {
        let dots = one.mark == Mark::Dots;
        drawn.label(one.label.clone()).legend(move |(x, y)| {
            let style = if dots { tone.stroke_width(14) } else { line };
            let ends = if dots { vec![(x + 18, y), (x + 32, y)] } else { vec![(x, y), (x + 48, y)] };
            PathElement::new(ends, style)
        });
    }
    Ok(())
}

fn save(file: &Path, picture: &RgbImage) -> Result<()> {
    crate::process::atomic::write(file, &png(picture)?)
}

/// The picture as the bytes of a PNG file.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{Axis, Series};

    #[test]
    fn text_is_drawn_without_any_system_font() {
        let dir = tempfile::tempdir().unwrap();
        chart(dir.path(), &crate::report::chart::loss(&[1.0, 0.5, 0.25], "a title", "loss"), "a context").unwrap();
        let picture = image::open(dir.path().join("loss.png")).unwrap().to_luma8();
        // The caption's place has dark pixels only if glyphs were drawn.
        assert!((16..44).any(|y| (300..660).any(|x| picture.get_pixel(x, y).0[0] < 100)));
        chart(dir.path(), &crate::report::chart::loss(&[], "no step at all", "loss"), "").unwrap();
    }

    #[test]
    fn every_mark_leaves_its_colour() {
        let dir = tempfile::tempdir().unwrap();
        for mark in [Mark::Line, Mark::Thin, Mark::Dashed, Mark::Knots, Mark::Area, Mark::Dots] {
            let series = Series {
                label: "x".into(),
                tone: Tone::Skilled,
                mark,
                points: vec![(0.2, 0.3), (0.5, 0.5), (0.7, 0.4)],
            };
            let axis = || Axis { label: "axis".into(), range: (0.0, 1.0) };
            let title = format!("{mark:?}");
            let (x, y, legend) = (axis(), axis(), Corner::UpperRight);
            chart(
                dir.path(),
                &Chart { name: "mark", title, x, y, series: vec![series], note: String::new(), legend },
                "",
            )
            .unwrap();
            let picture = image::open(dir.path().join("mark.png")).unwrap().to_rgb8();
            let red = |p: &image::Rgb<u8>| p.0[0] > p.0[2] + 40;
            // Left of the legend.
            let count = picture.enumerate_pixels().filter(|(x, _, p)| *x < 720 && red(p)).count();
            assert!(count > 40, "{mark:?}: {count}");
        }
    }

    /// A chart of one series, from corner to corner of axes with these ranges.
    fn diagonal(x: (f64, f64), y: (f64, f64)) -> Chart {
        let axis = |range| Axis { label: "\"a\" < b & c".into(), range };
        let points = vec![(x.0, y.0), (x.1, y.1)];
        Chart {
            name: "x",
            title: "x".into(),
            x: axis(x),
            y: axis(y),
            series: vec![Series { label: String::new(), tone: Tone::Identity(3), mark: Mark::Line, points }],
            note: String::new(),
            legend: Corner::UpperRight,
        }
    }

    /// The texts of the labels along the bottom, from left to right, and those up the side.
    fn labels(text: &str) -> [Vec<String>; 2] {
        let texts = text.split("<text ").skip(1).filter(|one| !one.contains("&lt;"));
        let (side, bottom): (Vec<_>, Vec<_>) = texts.partition(|one| one.contains("text-anchor=\"end\""));
        [bottom, side].map(|of| of.iter().map(|one| one.lines().nth(1).unwrap().to_owned()).collect())
    }

    #[test]
    fn ticks_are_round_and_within() {
        for (range, expected) in [
            ((0.0, 1.0), &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"][..]),
            ((-1.1, 1.1), &["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
            ((1.0, 156.0), &["50", "100", "150"]),
            ((0.0, 0.0123), &["0.000", "0.005", "0.010"]),
            ((0.0, 1e6), &["0", "200000", "400000", "600000", "800000", "1000000"]),
        ] {
            let [bottom, side] = labels(&svg(&diagonal(range, range)).unwrap());
            assert_eq!(bottom, expected, "{range:?}");
            let values = |texts: &[String]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<f64>>();
            assert!(side.len() > 1 && values(&side).iter().all(|&at| range.0 <= at && at <= range.1), "{side:?}");
        }
    }

    #[test]
    fn labels_are_in_equal_steps_and_end_in_no_zero_of_all() {
        for (tenths, power) in (10..100).flat_map(|tenths| [-4, -1, 0, 3].map(|power| (tenths, power))) {
            let end = f64::from(tenths) / 10.0 * 10f64.powi(power);
            for texts in labels(&svg(&diagonal((0.0, end), (0.0, end))).unwrap()) {
                let values: Vec<f64> = texts.iter().map(|text| text.parse().unwrap()).collect();
                let step = values[1] - values[0];
                let equal = values.windows(2).all(|two| (two[1] - two[0] - step).abs() <= 1e-9 * end);
                assert!(step > 0.0 && equal, "{texts:?}");
                let needless = |text: &String| text.contains('.') && text.ends_with('0');
                assert!(!texts.iter().all(needless), "{texts:?}");
            }
        }
    }

    #[test]
    fn points_lie_where_the_axes_say_and_text_is_escaped() {
        let text = svg(&diagonal((0.0, 2.0), (0.0, 2.0))).unwrap();
        assert_eq!(text.matches("&quot;a&quot; &lt; b &amp; c").count(), 2, "{text}");
        let points = |colour: &str| -> Vec<Vec<i32>> {
            let lines = text.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour));
            let pairs =
                |line: &str| line.split("points=\"").nth(1).unwrap().trim_end_matches(" \"/>").replace(' ', ",");
            lines.map(|line| pairs(line).split(',').map(|at| at.parse().unwrap()).collect()).collect()
        };
        let axes = points("var(--soft)");
        // The other lines of this colour are the little ones at the labels.
        let upright = axes.iter().find(|line| line.len() == 4 && line[3] - line[1] > 100).unwrap();
        let level = axes.iter().find(|line| line.len() == 4 && line[2] - line[0] > 100).unwrap();
        let [from_x, from_y, to_x, to_y] = points("var(--id3)")[0][..] else { panic!("{text}") };
        let ends = [(from_x, upright[0]), (from_y, level[1]), (to_x, level[2]), (to_y, upright[1])];
        assert!(ends.iter().all(|(point, axis)| (point - axis).abs() <= 2), "{ends:?} in {text}");
    }

    #[test]
    fn every_colour_of_a_chart_in_the_report_is_one_of_the_style_sheets() {
        let css = include_str!("report.css");
        let mut tones = vec![Tone::Before, Tone::After, Tone::Faint, Tone::Guide, Tone::Skilled];
        tones.extend([Tone::Genuine, Tone::Impostor]);
        tones.extend((0..crate::report::chart::COLOURS as u8).map(Tone::Identity));
        for tone in tones {
            let mut chart = diagonal((0.0, 1.0), (0.0, 1.0));
            for mark in [Mark::Line, Mark::Thin, Mark::Dashed, Mark::Knots, Mark::Area, Mark::Dots] {
                (chart.series[0].tone, chart.series[0].mark) = (tone, mark);
                let text = svg(&chart).unwrap();
                assert!(text.contains(&variable(tone)) && !text.contains("\"#"), "{tone:?} {mark:?}: {text}");
            }
            // A light one and a dark one.
            assert_eq!(css.matches(&format!("--{}:", palette(tone).0)).count(), 2, "{tone:?}");
        }
    }

    #[test]
    fn a_contact_sheet_shows_both_images_of_each_pair() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mistakes.png");
        let plain = |red, blue| RgbImage::from_pixel(32, 32, image::Rgb([red, 0, blue]));
        let pair = || Compared {
            first: plain(255, 0),
            second: plain(0, 255),
            distance: 0.5,
            wrong: true,
            names: String::new(),
        };
        contact_sheet(&file, &[("first".into(), (0..5).map(|_| pair()).collect()), ("second".into(), vec![])]).unwrap();
        let picture = image::open(&file).unwrap().to_rgb8();
        let count = |colour: [u8; 3]| picture.pixels().filter(|p| p.0 == colour).count();
        assert_eq!((count([255, 0, 0]), count([0, 0, 255])), (5 * 112 * 112, 5 * 112 * 112));
    }
}
