//! How many things of a kind there were, with the names of the first.

use crate::process::say::note;

/// How many names are kept as examples.
const EXAMPLES: usize = 3;

/// A count, with the first names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    count: usize,
    first: Vec<String>,
}

impl Named {
    pub fn add(&mut self, name: impl Into<String>) {
        self.count += 1;
        if self.first.len() < EXAMPLES {
            self.first.push(name.into());
        }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The examples as text: `a, b, c and 4 more`.
    pub fn examples(&self) -> String {
        let more = self.count - self.first.len();
        let first = self.first.join(", ");
        if more == 0 { first } else { format!("{first} and {more} more") }
    }

    /// Notes `before`, the count, `after` and the examples on a line of its own, unless the count is 0.
    pub fn say(&self, before: &str, after: &str) {
        if self.count > 0 {
            note(&format!("{before}{} {after}: {}", self.count, self.examples()));
        }
    }
}

impl<S: Into<String>> FromIterator<S> for Named {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut named = Self::default();
        names.into_iter().for_each(|name| named.add(name));
        named
    }
}

/// `one` if the count is 1, else `many`.
pub fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_named_and_all_are_counted() {
        assert_eq!(["a"].into_iter().collect::<Named>().examples(), "a");
        let named: Named = ["a", "b", "c", "d", "e"].into_iter().collect();
        assert_eq!((named.count(), named.examples().as_str()), (5, "a, b, c and 2 more"));
        assert_eq!(Named::default().examples(), "");
    }
}
