//! The gallery's file: SQLite, with all that is known. What was committed survives a killed process and a power cut.
//!
//! ```text
//! about    one row: the model's fingerprint, how embeddings are compared, and how often people have changed
//! person   a name, once
//! sample   a picture of a person: its fingerprint, where it came from, its embedding (f32, little-endian), a note
//! ```

use crate::model::distance::Distance;
use crate::model::saved::Model;
use crate::model::vectors::Vectors;
use crate::process::bad_input::bad_input;
use crate::process::fingerprint::Fingerprint;
use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What SQLite's files of this program carry: "Terc".
const APPLICATION: i64 = 0x5465_7263;
/// The version of the tables that this program writes and reads.
const FORMAT: i64 = 1;
/// How long one process waits for another that writes.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "
CREATE TABLE about (
    model TEXT NOT NULL, encoder TEXT NOT NULL, dim INTEGER NOT NULL, distance TEXT NOT NULL, changes INTEGER NOT NULL
) STRICT;
CREATE TABLE person (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE sample (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    person INTEGER NOT NULL REFERENCES person (id) ON DELETE CASCADE,
    picture TEXT NOT NULL, source TEXT NOT NULL, embedding BLOB NOT NULL, note TEXT,
    UNIQUE (person, picture)
) STRICT;
";

/// How a gallery's embeddings were made.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// The fingerprint of the model.
    pub model: Fingerprint,
    /// Its network, for messages.
    pub encoder: String,
    /// The numbers of an embedding.
    pub dim: usize,
    pub distance: Distance,
}

impl Made {
    /// By this model.
    pub fn by(model: &Model) -> Result<Self> {
        Ok(Self {
            model: model.fingerprint()?,
            encoder: model.settings.encoder.clone(),
            dim: model.settings.embedding_dim as usize,
            distance: model.distance(),
        })
    }
}

/// A sample to be enrolled.
pub struct New<'a> {
    pub name: &'a str,
    pub picture: Fingerprint,
    pub source: &'a str,
    pub embedding: &'a [f32],
    pub note: Option<&'a str>,
}

/// A person, as `tercet list` shows them.
#[derive(Debug, PartialEq, Serialize)]
pub struct Person {
    pub name: String,
    pub samples: usize,
}

/// A sample, without its embedding.
pub struct Sample {
    pub name: String,
    pub source: String,
    /// The fingerprint of the picture.
    pub picture: String,
}

/// A gallery that is open.
pub struct Gallery {
    file: PathBuf,
    connection: Connection,
    pub made: Made,
}

impl Gallery {
    /// Opens a gallery that must be there.
    pub fn open(file: &Path) -> Result<Self> {
        if !file.is_file() {
            return Err(wrong(file, "no such gallery; `tercet enroll` makes one"));
        }
        let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY))
            .map_err(|error| wrong(file, &error))?;
        prepare(&connection).map_err(|error| wrong(file, &error))?;
        let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        if pragma("application_id").map_err(|error| wrong(file, &error))? != APPLICATION {
            return Err(wrong(file, "not a gallery of this program"));
        }
        let format = pragma("user_version")?;
        if format != FORMAT {
            return Err(wrong(file, &format!("format {format}; this program reads format {FORMAT}")));
        }
        let made = connection.query_row("SELECT model, encoder, dim, distance FROM about", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
        });
        let (model, encoder, dim, distance) = made.map_err(|error| wrong(file, &error))?;
        let made = Made {
            model: Fingerprint::try_from(model).map_err(|error| wrong(file, &error))?,
            encoder,
            dim: usize::try_from(dim).ok().filter(|dim| *dim > 0).ok_or_else(|| wrong(file, &format!("dim {dim}")))?,
            distance: distance.parse().map_err(|error: String| wrong(file, &error))?,
        };
        Ok(Self { file: file.into(), connection, made })
    }

    /// Opens a gallery, or makes it if there is none. A gallery of another model is refused.
    pub fn open_or_make(file: &Path, made: &Made) -> Result<Self> {
        let mut connection = Connection::open(file).map_err(|error| wrong(file, &error))?;
        prepare(&connection).map_err(|error| wrong(file, &error))?;
        // Two processes may make it at the same moment: one waits here, and finds the tables.
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| wrong(file, &error))?;
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        if tables == 0 {
            transaction.execute_batch(TABLES)?;
            transaction
                .execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};"))?;
            transaction.execute(
                "INSERT INTO about VALUES (?1, ?2, ?3, ?4, 0)",
                params![String::from(made.model), made.encoder, made.dim as i64, made.distance.name()],
            )?;
        }
        transaction.commit()?;
        drop(connection);
        let gallery = Self::open(file)?;
        gallery.check(made)?;
        Ok(gallery)
    }

    /// Refuses a model that has not made this gallery's embeddings: its distances would mean nothing.
    pub fn check(&self, by: &Made) -> Result<()> {
        let Made { model, encoder, dim, distance } = &self.made;
        if by.dim != *dim {
            let what = format!("embeddings of {dim} numbers; the model's have {}", by.dim);
            return Err(wrong(&self.file, &what));
        }
        if by.distance != *distance {
            let what = format!("compared by {}; the model compares by {}", distance.name(), by.distance.name());
            return Err(wrong(&self.file, &what));
        }
        if by.model != *model {
            let (there, here) = (String::from(*model), String::from(by.model));
            let what = format!("of another model ({encoder}, {there}), and this is {} ({here})", by.encoder);
            return Err(wrong(&self.file, &what));
        }
        Ok(())
    }

    /// The gallery's file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Enrols samples, all or none of them. Returns how many are new: a picture that a person has already is left out.
    pub fn enroll(&mut self, samples: &[New<'_>]) -> Result<usize> {
        let dim = self.made.dim;
        self.change(|transaction| {
            let mut added = 0;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO sample (person, picture, source, embedding, note) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )?;
            for sample in samples {
                ensure!(sample.embedding.len() == dim, "{} numbers, expected {dim}", sample.embedding.len());
                transaction
                    .prepare_cached("INSERT INTO person (name) VALUES (?1) ON CONFLICT DO NOTHING")?
                    .execute([sample.name])?;
                let person: i64 = transaction
                    .prepare_cached("SELECT id FROM person WHERE name = ?1")?
                    .query_row([sample.name], |row| row.get(0))?;
                let bytes: Vec<u8> = sample.embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
                let picture = String::from(sample.picture);
                added += insert.execute(params![person, picture, sample.source, bytes, sample.note])?;
            }
            Ok(added)
        })
    }

    /// All people, by name.
    pub fn people(&self) -> Result<Vec<Person>> {
        let mut select = self.connection.prepare(
            "SELECT name, count(sample.id) FROM person LEFT JOIN sample ON person = person.id
             GROUP BY person.id ORDER BY name",
        )?;
        let people =
            select.query_map([], |row| Ok(Person { name: row.get(0)?, samples: row.get::<_, i64>(1)? as usize }))?;
        Ok(people.collect::<Result<_, _>>()?)
    }

    /// Gives a person another name, which nobody may have.
    pub fn rename(&mut self, name: &str, to: &str) -> Result<()> {
        let file = self.file.clone();
        self.change(|transaction| {
            if person(transaction, to)?.is_some() {
                return Err(wrong(&file, &format!("{to:?} is enrolled already")));
            }
            match transaction.execute("UPDATE person SET name = ?2 WHERE name = ?1", [name, to])? {
                0 => Err(wrong(&file, &format!("nobody is called {name:?}"))),
                _ => Ok(()),
            }
        })
    }

    /// Removes a person with all samples, or the samples of one source. Returns how many samples are gone.
    pub fn remove(&mut self, name: &str, source: Option<&str>) -> Result<usize> {
        let file = self.file.clone();
        self.change(|transaction| {
            let Some(id) = person(transaction, name)? else {
                return Err(wrong(&file, &format!("nobody is called {name:?}")));
            };
            let removed = match source {
                Some(source) => {
                    let removed = transaction
                        .execute("DELETE FROM sample WHERE person = ?1 AND source = ?2", params![id, source])?;
                    if removed == 0 {
                        return Err(wrong(&file, &format!("{name:?} has no sample {source:?}")));
                    }
                    removed
                }
                None => transaction.execute("DELETE FROM sample WHERE person = ?1", [id])?,
            };
            if source.is_none() {
                transaction.execute("DELETE FROM person WHERE id = ?1", [id])?;
            }
            Ok(removed)
        })
    }

    /// How often people or samples have changed.
    pub fn changes(&self) -> Result<u64> {
        Ok(self.connection.query_row("SELECT changes FROM about", [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// All samples in the order of people, and how often the gallery had changed then: a person's and a sample's number for
    /// each row.
    pub fn samples(&self) -> Result<(Vectors, Vec<[i64; 2]>, u64)> {
        let transaction = self.connection.unchecked_transaction()?;
        let changes = transaction.query_row("SELECT changes FROM about", [], |row| row.get::<_, i64>(0))? as u64;
        let mut select = transaction.prepare("SELECT person, id, embedding FROM sample ORDER BY person, id")?;
        let (mut rows, mut of) = (Vec::new(), Vec::new());
        let mut found = select.query([])?;
        while let Some(row) = found.next()? {
            let embedding = row.get_ref(2)?.as_blob()?;
            let whole = embedding.len() == 4 * self.made.dim;
            ensure!(whole, "{}: a sample of {} bytes", self.file.display(), embedding.len());
            rows.extend(embedding.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])));
            of.push([row.get(0)?, row.get(1)?]);
        }
        Ok((Vectors::new(rows, self.made.dim, self.made.distance), of, changes))
    }

    /// All samples, and what is known of each.
    pub fn described(&self) -> Result<(Vectors, Vec<Sample>)> {
        let (vectors, of, _) = self.samples()?;
        let mut select = self.connection.prepare(
            "SELECT name, source, picture FROM sample JOIN person ON person = person.id WHERE sample.id = ?1",
        )?;
        let described = of.iter().map(|[_, sample]| {
            select
                .query_row([sample], |row| Ok(Sample { name: row.get(0)?, source: row.get(1)?, picture: row.get(2)? }))
        });
        let described = described.collect::<Result<_, _>>()?;
        Ok((vectors, described))
    }

    /// A person's name.
    pub fn name(&self, person: i64) -> Result<String> {
        let mut select = self.connection.prepare_cached("SELECT name FROM person WHERE id = ?1")?;
        select.query_row([person], |row| row.get(0)).context("a person of the index is gone")
    }

    /// Where a sample came from.
    pub fn source(&self, sample: i64) -> Result<String> {
        let mut select = self.connection.prepare_cached("SELECT source FROM sample WHERE id = ?1")?;
        select.query_row([sample], |row| row.get(0)).context("a sample of the index is gone")
    }

    /// Does something to people or samples, all or nothing of it.
    fn change<R>(&mut self, change: impl FnOnce(&Transaction<'_>) -> Result<R>) -> Result<R> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.execute("UPDATE about SET changes = changes + 1", [])?;
        transaction.commit()?;
        Ok(result)
    }
}

/// The number of a person.
fn person(transaction: &Transaction<'_>, name: &str) -> Result<Option<i64>> {
    let found = transaction.query_row("SELECT id FROM person WHERE name = ?1", [name], |row| row.get(0));
    Ok(found.optional()?)
}

/// Several processes wait for each other, and what is committed is on the disk.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Refuses what cannot be shown and typed as a name. `option` is how the user gave it.
pub fn check_name(option: &str, name: &str) -> Result<()> {
    match name.trim().is_empty() || name.chars().any(char::is_control) {
        true => Err(bad_input(format!("{option} {name:?}: expected a name"))),
        false => Ok(()),
    }
}

fn wrong(file: &Path, what: &(impl std::fmt::Display + ?Sized)) -> anyhow::Error {
    bad_input(format!("{}: {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dim: usize) -> Made {
        let model = Fingerprint::of(b"a model");
        Made { model, encoder: "resnet18".into(), dim, distance: Distance::Euclidean }
    }

    fn new<'a>(name: &'a str, source: &'a str, embedding: &'a [f32]) -> New<'a> {
        New { name, picture: Fingerprint::of(source.as_bytes()), source, embedding, note: None }
    }

    #[track_caller]
    fn refused<T>(result: Result<T>, words: &[&str]) {
        let error = result.err().expect("an error");
        let text = format!("{error:#}");
        assert_eq!(crate::process::bad_input::exit_code(&error), 2, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }

    #[test]
    fn people_are_enrolled_renamed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("people.gallery");
        let mut gallery = Gallery::open_or_make(&file, &made(2)).unwrap();
        let samples = [new("Ada", "a1", &[1.0, 2.0]), new("Emmy", "e1", &[3.0, 4.0]), new("Ada", "a2", &[5.0, 6.0])];
        assert_eq!(gallery.enroll(&samples).unwrap(), 3);
        assert_eq!(gallery.enroll(&samples[..1]).unwrap(), 0, "a picture is enrolled once");
        let names = |gallery: &Gallery| -> Vec<(String, usize)> {
            gallery.people().unwrap().into_iter().map(|person| (person.name, person.samples)).collect()
        };
        assert_eq!(names(&gallery), [("Ada".into(), 2), ("Emmy".into(), 1)]);
        let (vectors, of, changes) = gallery.samples().unwrap();
        assert_eq!(vectors.as_slice(), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0]);
        assert_eq!((of[0][0], of[1][0]), (of[0][0], of[0][0]));
        assert_eq!(gallery.source(of[1][1]).unwrap(), "a2");
        assert_eq!((gallery.name(of[2][0]).unwrap(), changes), ("Emmy".into(), 2));
        gallery.rename("Emmy", "Emmy Noether").unwrap();
        refused(gallery.rename("Emmy", "X"), &["nobody is called \"Emmy\""]);
        refused(gallery.rename("Ada", "Emmy Noether"), &["is enrolled already"]);
        refused(gallery.remove("X", None), &["nobody is called \"X\""]);
        refused(gallery.remove("Ada", Some("e1")), &["\"Ada\" has no sample \"e1\""]);
        assert_eq!(gallery.remove("Ada", Some("a1")).unwrap(), 1);
        assert_eq!(gallery.remove("Ada", None).unwrap(), 1);
        assert_eq!(names(&gallery), [("Emmy Noether".into(), 1)]);
        assert!(gallery.changes().unwrap() > changes);
    }

    #[test]
    fn what_is_no_gallery_of_this_model_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("people.gallery");
        refused(Gallery::open(&file), &["no such gallery", "tercet enroll"]);
        std::fs::write(&file, "a letter to grandmother, which is longer than the header of SQLite's files").unwrap();
        let before = std::fs::read(&file).unwrap();
        refused(Gallery::open_or_make(&file, &made(2)), &["people.gallery"]);
        assert_eq!(std::fs::read(&file).unwrap(), before);
        std::fs::remove_file(&file).unwrap();
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
        refused(Gallery::open_or_make(&file, &made(2)), &["not a gallery of this program"]);
        std::fs::remove_file(&file).unwrap();

        drop(Gallery::open_or_make(&file, &made(2)).unwrap());
        refused(Gallery::open_or_make(&file, &made(3)), &["embeddings of 2 numbers; the model's have 3"]);
        let other = Made { distance: Distance::Cosine, ..made(2) };
        refused(Gallery::open_or_make(&file, &other), &["compared by euclidean", "cosine"]);
        let other = Made { model: Fingerprint::of(b"another"), ..made(2) };
        refused(Gallery::open_or_make(&file, &other), &["of another model (resnet18"]);
        Connection::open(&file).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
        refused(Gallery::open(&file), &["format 9; this program reads format 1"]);
    }

    #[test]
    fn two_writers_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = &dir.path().join("people.gallery");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                scope.spawn(move || {
                    let mut gallery = Gallery::open_or_make(file, &made(1)).unwrap();
                    for i in 0..20 {
                        let source = format!("{writer}-{i}");
                        assert_eq!(gallery.enroll(&[new("Ada", &source, &[1.0])]).unwrap(), 1);
                    }
                });
            }
        });
        assert_eq!(Gallery::open(file).unwrap().people().unwrap()[0].samples, 80);
    }
}
