//! Who is on a picture if its folder does not say it: patterns for paths, and the collections of signatures that people
//! have.

use crate::process::bad_input::bad_input;
use anyhow::Result;
use clap::Args;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The options that say who is on a picture, the same for every command that reads folders of identities.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
pub struct PatternArgs {
    /// Who is on a picture: a regular expression for its path below the folder, such as original_(\d+)_, whose first
    /// group is the identity. Files that it does not match are left out [default: its folder's path]
    #[arg(long, value_name = "PATTERN", value_parser = identity, help_heading = "Data")]
    #[serde(default)]
    pub identity: Option<String>,

    /// Which pictures are skilled forgeries: a regular expression such as forgeries_(\d+)_, whose first group is the identity
    /// that is imitated; without a group --identity or the folder says whose. They are scored apart
    #[arg(long, value_name = "PATTERN", value_parser = pattern, help_heading = "Data")]
    #[serde(default)]
    pub forged: Option<String>,
}

fn pattern(text: &str) -> std::result::Result<String, String> {
    Regex::new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn identity(text: &str) -> std::result::Result<String, String> {
    match Regex::new(text).map_err(|error| error.to_string())?.captures_len() {
        1 => Err("expected a group in parentheses, which is the identity, such as original_(\\d+)_".into()),
        _ => Ok(text.to_owned()),
    }
}

/// The compiled patterns of [`PatternArgs`].
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    identity: Option<Regex>,
    forged: Option<Regex>,
}

/// What a path says of its picture.
#[derive(Debug, PartialEq)]
pub enum Owner {
    Genuine(String),
    /// A forgery, with the identity that is imitated.
    Forged(String),
    /// Neither pattern matches.
    Nobody,
}

impl Patterns {
    pub fn new(args: &PatternArgs) -> Result<Self> {
        let compiled = |option: &str, text: &Option<String>| {
            let wrong = |error| bad_input(format!("{option}: {error}"));
            text.as_deref().map(Regex::new).transpose().map_err(wrong)
        };
        Ok(Self { identity: compiled("--identity", &args.identity)?, forged: compiled("--forged", &args.forged)? })
    }

    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    pub fn has_forged(&self) -> bool {
        self.forged.is_some()
    }

    /// Whose the picture is. `path` is its path below the folder, and `folder` that of the folder it lies in.
    pub fn owner(&self, path: &str, folder: &str) -> Owner {
        let by_path = || match &self.identity {
            Some(pattern) => group(pattern, path),
            None => Some(folder.to_owned()),
        };
        // A forgery's path may also match the pattern of genuine pictures.
        if let Some(pattern) = self.forged.as_ref().filter(|pattern| pattern.is_match(path)) {
            let own = if pattern.captures_len() > 1 { group(pattern, path) } else { by_path() };
            return own.map_or(Owner::Nobody, Owner::Forged);
        }
        by_path().map_or(Owner::Nobody, Owner::Genuine)
    }
}

/// The text of the first group that takes part in the match: of `a(\d)|b(\d)` it is one or the other.
fn group(pattern: &Regex, path: &str) -> Option<String> {
    let captures = pattern.captures(path)?;
    let text = captures.iter().skip(1).flatten().next()?.as_str();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A collection as it unpacks: only the names tell genuine pictures and forgeries apart.
struct Collection {
    name: &'static str,
    identity: &'static str,
    forged: &'static str,
}

const COLLECTIONS: [Collection; 5] = [
    Collection { name: "CEDAR", identity: r"original_(\d+)_\d+", forged: r"forgeries_(\d+)_\d+" },
    Collection { name: "GPDS", identity: r"\bc-(\d+)-\d+", forged: r"\bcf-(\d+)-\d+" },
    Collection { name: "MCYT", identity: r"\b(\d{4})v\d\d\b", forged: r"\b(\d{4})f\d\d\b" },
    Collection { name: "BHSig260", identity: r"\b([BH]-S-\d+)-G-\d+", forged: r"\b([BH]-S-\d+)-F-\d+" },
    Collection {
        name: "a folder of forgeries beside each writer's",
        identity: r"(?:^|/)([^/]+)/[^/]+$",
        forged: r"(?:^|/)([^/]+?)_(?i:forg|forged|forgery|forgeries|fake)/[^/]+$",
    },
];

/// The options to suggest for these paths if the user gave none: the collection's name for people, and the options as
/// they are typed. `None` unless there are genuine pictures and forgeries of one writer.
pub fn hint(paths: &[String]) -> Option<(String, String)> {
    let typed = |identity: &str, forged: &str| format!("--identity '{identity}' --forged '{forged}'");
    for collection in &COLLECTIONS {
        let [identity, forged] = [collection.identity, collection.forged].map(|p| Regex::new(p).expect("tested"));
        let forgeries = paths.iter().filter_map(|path| group(&forged, path));
        let forgeries: BTreeSet<String> = forgeries.collect();
        let genuine =
            |path: &String| !forged.is_match(path) && group(&identity, path).is_some_and(|w| forgeries.contains(&w));
        if !forgeries.is_empty() && paths.iter().any(genuine) {
            return Some((collection.name.into(), typed(collection.identity, collection.forged)));
        }
    }
    // Two trees with the same writers: genuine/ada/1.png and forged/ada/1.png.
    let split = |path: &String| {
        let (top, below) = path.split_once('/')?;
        Some((top.to_owned(), below.rsplit_once('/')?.0.to_owned()))
    };
    let folders: BTreeSet<(String, String)> = paths.iter().filter_map(split).collect();
    let is_forged = Regex::new("(?i)forg|fake|fraud|skilled").expect("tested");
    let forged = folders.iter().filter(|(top, _)| is_forged.is_match(top));
    let both = forged.flat_map(|(top, writer)| {
        let genuine = folders.iter().filter(move |(other, same)| same == writer && other != top);
        genuine.filter(|(other, _)| !is_forged.is_match(other)).map(move |(other, _)| (other, top))
    });
    let (genuine, forged) = both.into_iter().next()?;
    let tree = |top: &str| format!("^{}/(.+)/[^/]+$", regex::escape(top));
    Some((format!("the folders {genuine} and {forged}"), typed(&tree(genuine), &tree(forged))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(identity: Option<&str>, forged: Option<&str>) -> Patterns {
        let args = PatternArgs { identity: identity.map(Into::into), forged: forged.map(Into::into) };
        Patterns::new(&args).unwrap()
    }

    #[test]
    fn a_forgery_belongs_to_the_identity_of_the_same_text() {
        let genuine = |text: &str| Owner::Genuine(text.into());
        let forged = |text: &str| Owner::Forged(text.into());
        let cedar = patterns(Some(r"original_(\d+)_"), Some(r"forgeries_(\d+)_"));
        assert_eq!(cedar.owner("full_org/original_12_3.png", "full_org"), genuine("12"));
        assert_eq!(cedar.owner("full_forg/forgeries_12_3.png", "full_forg"), forged("12"));
        assert_eq!(cedar.owner("full_org/Readme.png", "full_org"), Owner::Nobody);
        // Without a group in --forged, the folder or --identity says whose forgery it is.
        assert_eq!(patterns(None, Some("/cf-")).owner("001/cf-001-01.png", "001"), forged("001"));
        assert_eq!(patterns(None, Some("/cf-")).owner("001/c-001-01.png", "001"), genuine("001"));
        let both = patterns(Some(r"(\d+)-\d+\."), Some("/cf-"));
        assert_eq!(both.owner("x/cf-001-01.png", "x"), forged("001"));
        // The last folder alone, and a pattern of two groups.
        let leaf = patterns(Some("([^/]+)/[^/]+$"), None);
        assert_eq!(leaf.owner("train/ada/1.png", "train/ada"), genuine("ada"));
        assert_eq!(patterns(Some(r"a(\d)|b(\d)"), None).owner("b7", ""), genuine("7"));
        assert_eq!(patterns(Some(r"a(\d*)"), None).owner("ab", ""), Owner::Nobody, "an empty name is nobody's");
        assert_eq!(patterns(None, None).owner("x/1.png", "x"), genuine("x"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        assert!(pattern("a(").unwrap_err().contains("unclosed"));
        assert!(identity("abc").unwrap_err().contains("a group in parentheses"));
        assert!(identity("(abc)").is_ok() && pattern("abc").is_ok());
    }

    #[test]
    fn known_names_get_a_hint_whose_options_work() {
        for (name, paths, writer) in [
            ("CEDAR", ["full_org/original_1_1.png", "full_forg/forgeries_1_1.png"], "1"),
            ("GPDS", ["001/c-001-01.png", "001/cf-001-01.png"], "001"),
            ("GPDS", ["c-001-01.jpg", "cf-001-01.jpg"], "001"),
            ("MCYT", ["0000/0000v00.bmp", "0000/0000f00.bmp"], "0000"),
            ("BHSig260", ["Bengali/1/B-S-1-G-01.tif", "Bengali/1/B-S-1-F-01.tif"], "B-S-1"),
            ("a folder of forgeries", ["train/068/09_068.png", "train/068_forg/03_0113068.PNG"], "068"),
            ("the folders genuine and forged", ["genuine/p 1/a.png", "forged/p 1/b.png"], "p 1"),
            ("the folders gen(1) and Skilled Forgeries", ["gen(1)/7/a.png", "Skilled Forgeries/7/b.png"], "7"),
        ] {
            let (said, options) = hint(&paths.map(Into::into)).unwrap_or_else(|| panic!("{paths:?}"));
            assert!(said.starts_with(name), "{said}");
            let options: Vec<&str> = options.split('\'').collect();
            let patterns = patterns(Some(options[1]), Some(options[3]));
            assert_eq!(patterns.owner(paths[0], "?"), Owner::Genuine(writer.into()), "{options:?}");
            assert_eq!(patterns.owner(paths[1], "?"), Owner::Forged(writer.into()), "{options:?}");
        }
        for paths in [
            ["lfw/Ada_X/Ada_X_0001.jpg", "lfw/Bo_Y/Bo_Y_0001.jpg"],
            ["s1/1.pgm", "s2/1.pgm"],
            ["001/c-001-01.png", "002/cf-002-01.png"], // of two writers
            ["Greek/character01/0394_01.png", "Latin/character01/0682_01.png"],
            ["2021v10/a.png", "2021v11/a.png"],
        ] {
            assert_eq!(hint(&paths.map(Into::into)), None, "{paths:?}");
        }
    }
}
