//! `report.html`: a run or an evaluation on one page, with all pictures inside the file.

use crate::evaluation::metrics::{Measured, Verification, text_of};
use crate::evaluation::mistakes::{Pair, hardest, hardest_forgeries};
use crate::model::vectors::Vectors;
use crate::process::atomic;
use crate::report::chart::{self, Chart, Mark};
use crate::report::plot::{self, Compared};
use crate::report::svg::{class, escape, svg};
use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use std::fmt::Write;
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
        let mut out = String::new();
        let put = &mut out;
        let title = escape(&self.title);
        write!(put, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")?;
        write!(put, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
        write!(put, "<meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>")?;
        write!(put, "<style>{}</style></head>\n<body><main>", include_str!("report.css"))?;
        write!(put, "<h1>{title}</h1><p class=\"soft\">{}</p>", escape(&self.lead))?;
        if let Some(warning) = &self.warning {
            write!(put, "<p class=\"card warning\"><b>Warning:</b> {}</p>", escape(warning))?;
        }
        write!(put, "\n<div class=\"numbers\">")?;
        for number in &self.numbers {
            let before = number.before.as_ref().map(|before| format!("<span>before: {before}</span>"));
            let before = before.unwrap_or_default();
            write!(put, "<div class=\"card\"><span>{}</span><b>{}</b>{before}</div>", number.label, number.now)?;
        }
        write!(put, "</div>\n<div class=\"charts\">")?;
        for chart in &self.charts {
            write!(put, "<figure class=\"card\"><h3>{}</h3><ul class=\"legend\">", escape(&chart.title))?;
            for one in chart.series.iter().filter(|one| !one.label.is_empty()) {
                let form = match one.mark {
                    Mark::Dots => "dot",
                    Mark::Area => "area",
                    Mark::Dashed => "dashed",
                    Mark::Line | Mark::Thin | Mark::Knots => "",
                };
                write!(put, "<li><i class=\"{form} {}\"></i>{}</li>", class(one.tone), escape(&one.label))?;
            }
            writeln!(put, "</ul>{}<figcaption>{}</figcaption></figure>", svg(chart), escape(&chart.note))?;
        }
        write!(
            put,
            "</div>\n<h2>The hardest pairs</h2><p class=\"soft\">As the encoder sees them, each image at most "
        )?;
        write!(put, "once. The number is the distance; wrong is what the threshold decides wrongly.</p>")?;
        for (title, pairs) in &self.hardest {
            write!(put, "<h3>{}</h3><div class=\"pairs\">", escape(title))?;
            for pair in pairs {
                let (kind, names) = (if pair.wrong { "wrong" } else { "right" }, escape(&pair.names));
                write!(put, "<div class=\"card pair\"><div class=\"two\">")?;
                for picture in [&pair.first, &pair.second] {
                    write!(
                        put,
                        "<img alt=\"\" src=\"data:image/png;base64,{}\">",
                        STANDARD.encode(plot::png(picture)?)
                    )?;
                }
                write!(put, "</div><div><b>{}</b> <span class=\"{kind}\">{kind}</span><br>", text_of(pair.distance))?;
                writeln!(put, "<span class=\"soft\">{names}</span></div></div>")?;
            }
            write!(put, "</div>")?;
        }
        write!(put, "<h2>What it was</h2><div class=\"card\"><table>")?;
        for (name, value) in &self.settings {
            writeln!(put, "<tr><td>{name}</td><td>{}</td></tr>", escape(value))?;
        }
        write!(put, "</table></div>\n<h2>What to do with it</h2><div class=\"card\"><pre>")?;
        writeln!(put, "{}</pre></div></main></body></html>", escape(&self.commands.join("\n")))?;
        Ok(out)
    }
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
        let name = |row: usize| self.names[self.identity[row]].as_str();
        let group = |what: &str, how: &str, pairs: Vec<Compared>| {
            let wrong = pairs.iter().filter(|pair| pair.wrong).count();
            (format!("{what}: {wrong} of {} falsely {how}", pairs.len()), pairs)
        };
        let compared = |pair: &Pair, second: RgbImage, genuine: bool, names: String| -> Result<Compared> {
            let wrong = (pair.distance <= threshold) != genuine;
            Ok(Compared { first: (self.picture)(pair.first)?, second, distance: pair.distance, wrong, names })
        };
        let own = |pair: &Pair, genuine: bool| {
            let (first, second) = (name(pair.first), name(pair.second));
            let names = if genuine { first.to_owned() } else { format!("{first} and {second}") };
            compared(pair, (self.picture)(pair.second)?, genuine, names)
        };
        let of =
            |pairs: &[Pair], genuine: bool| pairs.iter().map(|pair| own(pair, genuine)).collect::<Result<Vec<_>>>();
        let mut groups = vec![
            group("Nearest impostors", "accepted", of(&hardest.impostor, false)?),
            group("Farthest genuine pairs", "rejected", of(&hardest.genuine, true)?),
        ];
        let (forged, owners) = self.forged;
        if !owners.is_empty() {
            let distance = |i: usize, f: usize| self.vectors.distance_to(i, forged, f);
            let nearest = hardest_forgeries(self.identity, owners, distance, HARDEST);
            let pairs = nearest.iter().map(|pair| {
                compared(pair, (self.forgery)(pair.second)?, false, format!("{}, and a forgery", name(pair.first)))
            });
            groups.push(group("Nearest skilled forgeries", "accepted", pairs.collect::<Result<Vec<_>>>()?));
        }
        Ok(groups)
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
        // RFC 4648, section 10.
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in cases {
            assert_eq!(STANDARD.encode(bytes), text);
        }
        assert_eq!(STANDARD.encode([255, 254, 253]), "//79");
    }
}
