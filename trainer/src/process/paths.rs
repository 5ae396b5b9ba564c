//! Paths in JSON: as text or, if they are not UTF-8, as `{"bytes": [...]}`. serde refuses such paths, but old archives
//! and file systems have them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

/// Writes a path, for `#[serde(with = "paths")]`.
pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    let stored = path.as_ref().map(|path| match path.to_str() {
        Some(text) => Stored::Text(text.into()),
        None => Stored::Bytes { bytes: path.as_os_str().as_encoded_bytes().to_vec() },
    });
    stored.serialize(serializer)
}

/// Reads a path, for `#[serde(with = "paths")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(match Option::<Stored>::deserialize(deserializer)? {
        None => None,
        Some(Stored::Text(text)) => Some(text.into()),
        Some(Stored::Bytes { bytes }) => Some(from_bytes(bytes).map_err(serde::de::Error::custom)?),
    })
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> Result<PathBuf, &'static str> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn from_bytes(_: Vec<u8>) -> Result<PathBuf, &'static str> {
    Err("a path of another system")
}
