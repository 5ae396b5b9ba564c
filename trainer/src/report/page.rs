//! `report.html`: a run or an evaluation on one page, with all pictures inside the file.

use crate::evaluation::metrics::{Measured, Verification, text_of};
use crate::evaluation::mistakes::{Pair, hardest, hardest_forgeries, once_each};
use crate::evaluation::open_set::{HardestSearches, OpenSet};
use crate::model::vectors::Vectors;
use crate::process::atomic;
use crate::report::chart::{self, Chart, Mark};
use crate::report::plot::{self, Compared};
use anyhow::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::path::Path;

/// How many pairs of each kind are on the sheet of the hardest.
const HARDEST: usize = 8;

/// A number in large type.
pub struct Number {
    pub label: &'static str,
    pub before: Option<String>,
    pub now: String,
}

impl Number {
    /// A number that is a share, in per cent.
    pub fn share(label: &'static str, before: Option<f64>, now: f64) -> Self {
        let text = |v: f64| format!("{:.1} %", 100.0 * v);
        Self { label, before: before.map(text), now: text(now) }
    }
}

/// The whole page.
pub struct Page {
    pub title: String,
    /// Text after the titles of pictures that stand alone.
    pub context: String,
    pub lead: String,
    /// What went wrong, if anything.
    pub warning: Option<String>,
    pub numbers: Vec<Number>,
    pub charts: Vec<Chart>,
    /// Groups of the hardest pairs, with their titles.
    pub hardest: Vec<(String, Vec<Compared>)>,
    pub settings: Vec<(&'static str, String)>,
    /// Commands to type next.
    pub commands: Vec<String>,
}

impl Page {
    /// Writes the charts, the sheet of the hardest pairs and, last, the page.
    pub fn write(&self, folder: &Path) -> Result<()> {
        use rayon::prelude::*;
        self.charts.par_iter().try_for_each(|chart| plot::chart(folder, chart, &self.context))?;
        plot::contact_sheet(&folder.join("mistakes.png"), &self.hardest)?;
        atomic::write(&folder.join("report.html"), self.html()?.as_bytes())
    }

    fn html(&self) -> Result<String> {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (PreEscaped(include_str!("report.css"))) }
                }
                body { main {
                    h1 { (self.title) }
                    p.soft { (self.lead) }
                    @if let Some(warning) = &self.warning {
                        p.card.warning { b { "Warning:" } " " (warning) }
                    }
                    div.numbers {
                        @for number in &self.numbers {
                            div.card {
                                span { (number.label) } b { (number.now) }
                                @if let Some(before) = &number.before { span { "before: " (before) } }
                            }
                        }
                    }
                    div.charts { @for chart in &self.charts { (figure(chart)?) } }
                    h2 { "The hardest pairs" }
                    p.soft {
                        "As the encoder sees them, each image at most once. The number is the distance; wrong is what the "
                        "threshold decides wrongly."
                    }
                    @for (title, pairs) in &self.hardest {
                        h3 { (title) }
                        div.pairs { @for pair in pairs { (compared(pair)?) } }
                    }
                    h2 { "What it was" }
                    div.card { table {
                        @for (name, value) in &self.settings { tr { td { (name) } td { (value) } } }
                    } }
                    h2 { "What to do with it" }
                    div.card { pre { (self.commands.join("\n")) } }
                } }
            }
        };
        Ok(page.into_string())
    }
}

/// A chart with its title, its legend and its note.
fn figure(chart: &Chart) -> Result<Markup> {
    let form = |mark| match mark {
        Mark::Dots => "dot",
        Mark::Area => "area",
        Mark::Dashed => "dashed",
        Mark::Line | Mark::Thin | Mark::Knots => "",
    };
    Ok(html! {
        figure.card {
            h3 { (chart.title) }
            ul.legend {
                @for one in chart.series.iter().filter(|one| !one.label.is_empty()) {
                    li { i.(form(one.mark)) style={ "color: " (plot::variable(one.tone)) } {} (one.label) }
                }
            }
            div role="img" aria-label=(chart.title) { (PreEscaped(plot::svg(chart)?)) }
            figcaption { (chart.note) }
        }
    })
}

/// A pair, with both pictures inside the page.
fn compared(pair: &Compared) -> Result<Markup> {
    let source = |picture| Ok::<_, Error>(format!("data:image/png;base64,{}", STANDARD.encode(plot::png(picture)?)));
    let kind = if pair.wrong { "wrong" } else { "right" };
    Ok(html! {
        div.card.pair {
            div.two { img alt="" src=(source(&pair.first)?); img alt="" src=(source(&pair.second)?); }
            div {
                b { (text_of(pair.distance)) } " " span.(kind) { (kind) } br;
                span.soft { (pair.names) }
            }
        }
    })
}

/// What was compared, for the page's pictures.
pub struct Compare<'a> {
    pub scores: &'a Verification,
    pub vectors: &'a Vectors,
    pub identity: &'a [usize],
    /// The names of the identities.
    pub names: &'a [String],
    /// The forgeries, and the identity that each imitates.
    pub forged: (&'a Vectors, &'a [usize]),
    /// The picture of a row.
    pub picture: &'a dyn Fn(usize) -> Result<RgbImage>,
    /// The picture of a forgery.
    pub forgery: &'a dyn Fn(usize) -> Result<RgbImage>,
}

impl Compare<'_> {
    /// The charts of ROC, distances and map; `before` is the evaluation before training.
    pub fn charts(&self, before: Option<&Verification>) -> Result<Vec<Chart>> {
        let measure = self.vectors.measure();
        let mut charts = vec![chart::roc(before, self.scores, "Verification of unseen identities")];
        if let Some(before) = before {
            charts.push(chart::distances(before, measure, "distances-before", "Distances before training"));
        }
        let title = if before.is_some() { "Distances after training" } else { "Distances" };
        charts.push(chart::distances(self.scores, measure, "distances", title));
        charts.extend(chart::map(self.vectors, self.identity, self.names, "The embeddings, by PCA")?);
        Ok(charts)
    }

    /// The pairs that are decided wrongly, or nearly so.
    pub fn hardest(&self) -> Result<Vec<(String, Vec<Compared>)>> {
        let threshold = self.scores.operating.threshold;
        let hardest = hardest(self.identity, |i, j| self.vectors.distance(i, j), HARDEST);
        let group = |what: &str, how: &str, pairs: Vec<Compared>| {
            let wrong = pairs.iter().filter(|pair| pair.wrong).count();
            (format!("{what}: {wrong} of {} falsely {how}", pairs.len()), pairs)
        };
        let of = |pairs: &[Pair], genuine| self.pairs(pairs, |distance| (distance <= threshold) != genuine);
        let mut groups = vec![
            group("Nearest impostors", "accepted", of(&hardest.impostor, false)?),
            group("Farthest genuine pairs", "rejected", of(&hardest.genuine, true)?),
        ];
        let (forged, owners) = self.forged;
        if !owners.is_empty() {
            let distance = |i: usize, f: usize| self.vectors.distance_to(i, forged, f);
            let nearest = hardest_forgeries(self.identity, owners, distance, HARDEST);
            let pairs = nearest.iter().map(|pair| -> Result<Compared> {
                Ok(Compared {
                    first: (self.picture)(pair.first)?,
                    second: (self.forgery)(pair.second)?,
                    distance: pair.distance,
                    wrong: pair.distance <= threshold,
                    names: format!("{}, and a forgery", self.name(pair.first)),
                })
            });
            groups.push(group("Nearest skilled forgeries", "accepted", pairs.collect::<Result<Vec<_>>>()?));
        }
        Ok(groups)
    }

    /// The searches in a gallery that go wrong, or nearly so.
    pub fn hardest_searches(&self, open: &OpenSet) -> Result<Vec<(String, Vec<Compared>)>> {
        let HardestSearches { strangers, confused, far } = &open.hardest;
        let threshold = open.threshold();
        let (near, far_off) = (|distance: f32| distance <= threshold, |distance: f32| distance > threshold);
        let group = |what: &str, how: &str, pairs: &[Pair], counts: &dyn Fn(f32) -> bool| -> Result<_> {
            let pairs = self.pairs(&once_each(pairs, HARDEST), counts)?;
            let count = pairs.iter().filter(|pair| pair.wrong).count();
            Ok((format!("Search at {}: {what}, {count} of {} {how}", text_of(threshold), pairs.len()), pairs))
        };
        let mut groups = vec![group("strangers near to somebody", "taken for them", strangers, &near)?];
        if !confused.is_empty() {
            let (title, mut pairs) = group("people nearer to somebody else", "taken for them", confused, &near)?;
            // Whoever is not taken for somebody else is not found.
            pairs.iter_mut().for_each(|pair| pair.wrong = true);
            groups.push((title, pairs));
        }
        groups.push(group("people far from their samples", "not found", far, &far_off)?);
        Ok(groups)
    }

    fn name(&self, row: usize) -> &str {
        &self.names[self.identity[row]]
    }

    /// The pictures of pairs; `wrong` says it of a distance.
    fn pairs(&self, pairs: &[Pair], wrong: impl Fn(f32) -> bool) -> Result<Vec<Compared>> {
        let compared = |pair: &Pair| -> Result<Compared> {
            let (first, second) = (self.name(pair.first), self.name(pair.second));
            Ok(Compared {
                first: (self.picture)(pair.first)?,
                second: (self.picture)(pair.second)?,
                distance: pair.distance,
                wrong: wrong(pair.distance),
                names: if first == second { first.to_owned() } else { format!("{first} and {second}") },
            })
        };
        pairs.iter().map(compared).collect()
    }
}

/// How a run went: the curves of its steps and evaluations.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The loss of each step.
    pub losses: Vec<f64>,
    /// The active fraction of each step; empty if it was not measured.
    pub active: Vec<f64>,
    /// The error rates of each evaluation, of which the first is before training.
    pub measured: Vec<Measured>,
}

impl History {
    /// The charts of the curves.
    pub fn charts(&self, loss_title: &str) -> Vec<Chart> {
        let mut charts = vec![chart::loss(&self.losses, loss_title, "loss")];
        charts.extend(chart::active_fraction(&self.active, "What is left to learn"));
        charts.extend(chart::eer(&self.measured, "Equal error rate over time"));
        charts
    }
}

/// A folder's own name: a title has no room for a path.
pub fn data_title(description: &str) -> String {
    let name = Path::new(description).file_name();
    name.map_or(description.into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_by_the_rfc() {
        // RFC 4648, section 10: what is drawn depends on the alphabet and on the padding.
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in cases {
            assert_eq!(STANDARD.encode(bytes), text);
        }
        assert_eq!(STANDARD.encode([255, 254, 253]), "//79");
    }

    #[test]
    fn names_of_people_and_folders_are_text_and_never_tags() {
        let evil = "<b onload=\"x\">&'";
        let picture = || RgbImage::from_pixel(2, 2, image::Rgb([1, 2, 3]));
        let (first, second, names) = (picture(), picture(), evil.to_owned());
        let pair = Compared { first, second, distance: 0.5, wrong: true, names };
        let page = Page {
            title: evil.into(),
            context: String::new(),
            lead: evil.into(),
            warning: Some(evil.into()),
            numbers: vec![Number::share("a share", Some(0.25), 0.125)],
            charts: vec![chart::loss(&[1.0, 0.5], evil, evil)],
            hardest: vec![(evil.into(), vec![pair])],
            settings: vec![("a setting", evil.into())],
            commands: vec![evil.into()],
        };
        let text = page.html().unwrap();
        assert!(!text.contains("<b onload"), "{text}");
        let escaped = text.matches("&lt;b onload=&quot;x&quot;&gt;&amp;").count();
        assert!(escaped >= 9, "{escaped} times in: {text}");
        for words in
            ["before: 25.0 %", "12.5 %", "<span class=\"wrong\">wrong</span>", "src=\"data:image/png;base64,iVBOR"]
        {
            assert!(text.contains(words), "{words:?} is not in: {text}");
        }
    }
}
