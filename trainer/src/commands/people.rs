//! `tercet list`, `rename` and `remove`: the people of a gallery.

use crate::commands::cli::{ListArgs, RemoveArgs, RenameArgs};
use crate::gallery::{Gallery, check_name};
use crate::process::named::plural;
use crate::process::say::say;
use anyhow::Result;
use std::fmt::Write as _;

/// Lists people by name, with how many samples each has.
pub fn list(args: &ListArgs) -> Result<()> {
    let people = Gallery::open(&args.gallery)?.people()?;
    if args.json {
        return say(&serde_json::to_string_pretty(&people)?);
    }
    let mut text = String::new();
    for person in &people {
        let _ = writeln!(text, "{:>6}  {}", person.samples, person.name);
    }
    let samples: usize = people.iter().map(|person| person.samples).sum();
    let _ = writeln!(
        text,
        "{samples} {} of {} {}",
        plural(samples, "sample", "samples"),
        people.len(),
        plural(people.len(), "person", "people")
    );
    say(&text)
}

/// Gives a person another name.
pub fn rename(args: &RenameArgs) -> Result<()> {
    check_name("NEW", &args.to)?;
    Gallery::open(&args.gallery)?.rename(&args.name, &args.to)?;
    say(&format!("{} is now {}", args.name, args.to))
}

/// Removes a person, or one of their samples.
pub fn remove(args: &RemoveArgs) -> Result<()> {
    let removed = Gallery::open(&args.gallery)?.remove(&args.name, args.sample.as_deref())?;
    let whom = if args.sample.is_some() { format!("of {}", args.name) } else { format!("and {}", args.name) };
    say(&format!("removed {removed} {} {whom}", plural(removed, "sample", "samples")))
}
