//! Charts as SVG for the report. Colours come from the page's style sheet, so that they follow its light and dark
//! modes, and text stays readable at the width of a phone.

use crate::report::chart::{Axis, Chart, Mark, Tone};
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 320.0;
/// The margins of the plot: left, top, right, bottom.
const MARGIN: [f64; 4] = [74.0, 10.0, 16.0, 54.0];

/// The class by which the style sheet colours a series.
pub fn class(tone: Tone) -> String {
    match tone {
        Tone::Identity(which) => format!("t-id{which}"),
        other => format!("t-{}", format!("{other:?}").to_lowercase()),
    }
}

/// The chart without its title and legend, which are text of the page.
pub fn svg(chart: &Chart) -> String {
    let [left, top, right, bottom] = MARGIN;
    let place = |axis: &Axis, from: f64, to: f64| {
        let (low, high) = axis.range;
        move |value: f64| from + (value - low) / (high - low) * (to - from)
    };
    let x = place(&chart.x, left, WIDTH - right);
    let y = place(&chart.y, HEIGHT - bottom, top);
    let mut out = String::new();
    let put = &mut out;
    let title = escape(&chart.title);
    let _ = write!(put, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    for (value, label) in ticks(&chart.x, 6) {
        let at = x(value);
        let (end, text) = (HEIGHT - bottom, HEIGHT - bottom + 20.0);
        let _ = write!(put, "<path class=\"grid\" d=\"M{at:.1} {top}V{end}\"/>");
        let _ = write!(put, "<text x=\"{at:.1}\" y=\"{text}\" text-anchor=\"middle\">{label}</text>");
    }
    for (value, label) in ticks(&chart.y, 5) {
        let at = y(value);
        let (end, text) = (WIDTH - right, left - 8.0);
        let _ = write!(put, "<path class=\"grid\" d=\"M{left} {at:.1}H{end}\"/>");
        let _ = write!(put, "<text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", at + 4.5);
    }
    let (middle, below) = ((left + WIDTH - right) / 2.0, HEIGHT - 8.0);
    let _ = write!(put, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>", escape(&chart.x.label));
    let height = (top + HEIGHT - bottom) / 2.0;
    let (label, turned) = (escape(&chart.y.label), format!("rotate(-90 15 {height})"));
    let _ = write!(put, "<text x=\"15\" y=\"{height}\" text-anchor=\"middle\" transform=\"{turned}\">{label}</text>");
    for one in &chart.series {
        let class = class(one.tone);
        let line = || {
            let points = one.points.iter().map(|&(px, py)| format!("{:.1} {:.1}", x(px), y(py)));
            points.collect::<Vec<_>>().join("L")
        };
        let path = |put: &mut String, kind: &str| {
            if !one.points.is_empty() {
                let _ = write!(put, "<path class=\"{kind} {class}\" d=\"M{}\"/>", line());
            }
        };
        let dots = |put: &mut String, radius: f64| {
            for &(px, py) in &one.points {
                let _ = write!(
                    put,
                    "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"/>",
                    x(px),
                    y(py)
                );
            }
        };
        match one.mark {
            Mark::Line => path(put, "line"),
            Mark::Thin => path(put, "thin"),
            Mark::Dashed => path(put, "dashed"),
            Mark::Dots => dots(put, 3.0),
            Mark::Knots => {
                path(put, "line");
                dots(put, 3.5);
            }
            Mark::Area => {
                if let (Some(first), Some(last)) = (one.points.first(), one.points.last()) {
                    let (from, to, floor) = (x(first.0), x(last.0), y(chart.y.range.0));
                    let _ = write!(
                        put,
                        "<path class=\"area {class}\" d=\"M{from:.1} {floor:.1}L{}L{to:.1} {floor:.1}Z\"/>",
                        line()
                    );
                }
                path(put, "thin");
            }
        }
    }
    let (w, h) = (WIDTH - left - right, HEIGHT - top - bottom);
    let _ = write!(put, "<rect class=\"frame\" x=\"{left}\" y=\"{top}\" width=\"{w}\" height=\"{h}\"/></svg>");
    out
}

/// About `about` round values within the axis, and their texts.
fn ticks(axis: &Axis, about: usize) -> Vec<(f64, String)> {
    let (low, high) = axis.range;
    let rough = (high - low) / about as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    // As many decimals as the step has.
    let decimals =
        (0..12).find(|&d| (step * 10f64.powi(d)).fract().abs() < 1e-6 || (step * 10f64.powi(d)).fract() > 1.0 - 1e-6);
    let decimals = decimals.unwrap_or(12) as usize;
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let text = |value: f64| format!("{:.decimals$}", if value.abs() < step * 1e-9 { 0.0 } else { value });
    (first..=last).map(|i| i as f64 * step).map(|value| (value, text(value))).collect()
}

/// Escapes text for use between tags or in an attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{Corner, Series};

    #[test]
    fn ticks_are_round_and_within() {
        let texts = |low, high| {
            let axis = Axis { label: String::new(), range: (low, high) };
            ticks(&axis, 5).into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(texts(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(-1.1, 1.1), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(texts(1.0, 156.0), ["50", "100", "150"]);
        assert_eq!(texts(0.0, 0.0123), ["0.0000", "0.0025", "0.0050", "0.0075", "0.0100"]);
        assert_eq!(texts(0.0, 1e6), ["0", "200000", "400000", "600000", "800000", "1000000"]);
    }

    #[test]
    fn points_lie_where_the_axes_say_and_text_is_escaped() {
        let axis = |label: &str| Axis { label: label.into(), range: (0.0, 2.0) };
        let points = vec![(0.0, 0.0), (2.0, 2.0)];
        let chart = Chart {
            name: "x",
            title: "a < b".into(),
            x: axis("\"x\""),
            y: axis("y"),
            series: vec![Series { label: String::new(), tone: Tone::Identity(3), mark: Mark::Line, points }],
            note: String::new(),
            legend: Corner::UpperRight,
        };
        let text = svg(&chart);
        assert!(text.contains("class=\"line t-id3\" d=\"M74.0 266.0L464.0 10.0\""), "{text}");
        assert!(text.contains("a &lt; b") && text.contains("&quot;x&quot;"));
    }
}
