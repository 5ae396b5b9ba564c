//! Whether host and kernels declare the structs that kernels take alike: the same fields in the same order, of the same
//! types. With equal fields the layouts are equal too: `Pod` allows the host's struct no padding.
//!
//! The documentation of a host struct names the kernels' one, `` `Args` of kernels/batch_hard.cu ``. With "Part of" before
//! it the struct is a run of these fields, and another struct of its file has it in their place. No list says which struct
//! belongs to which: a `#[repr(C)]` struct that names none is an error, and so is an `Args` of kernels that no host struct
//! names.
//!
//! Both declarations are read as text, by the grammar that they use: numbers, pointers, arrays and other such structs.
//! Whatever else stands there is an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A source file; its path is from the package's folder.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: String,
    pub text: String,
}

/// Where the package's host code declares arguments, `src/**/cuda.rs` and `src/cuda/*.rs`, and the files of its kernels.
pub fn sources(root: &Path) -> io::Result<[Vec<Source>; 2]> {
    let mut host = files(root, "src")?;
    host.retain(|path| path.ends_with("cuda.rs") || path.parent().is_some_and(|folder| folder.ends_with("cuda")));
    let read = |paths: Vec<PathBuf>| {
        let sources = paths.into_iter().map(|path| {
            Ok(Source { text: fs::read_to_string(root.join(&path))?, path: path.to_string_lossy().into_owned() })
        });
        sources.collect::<io::Result<Vec<_>>>()
    };
    Ok([read(host)?, read(files(root, "kernels")?)?])
}

/// All files under `root/folder`, by their paths from `root`, in order.
fn files(root: &Path, folder: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(&folder))? {
        let entry = entry?;
        let path = folder.as_ref().join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(files(root, path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The error names the file, the struct and the field.
pub fn check(host: &[Source], kernels: &[Source]) -> Result<(), String> {
    let mut structs = Vec::new();
    for source in host {
        structs.extend(host_structs(source)?);
    }
    let mut theirs: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    let tokens: Vec<Vec<&str>> = kernels.iter().map(|source| tokens(&source.text)).collect();
    for (source, tokens) in kernels.iter().zip(&tokens) {
        for name in defined(tokens) {
            theirs.entry(name).or_default().push(source);
        }
    }
    for ours in structs.iter().filter(|ours| !ours.part) {
        let of_file = kernels.iter().position(|source| source.path == ours.of.1);
        let of_file = of_file.ok_or_else(|| format!("{ours}: there is no {}", ours.of.1))?;
        let their = kernel_struct(&kernels[of_file], &tokens[of_file], &ours.of.0)?;
        if ours.name != their.name {
            return Err(format!("{ours}: its name should be that of {their}"));
        }
        if ours.parameters != their.parameters {
            return Err(format!(
                "{ours}: its parameters are {:?}, and {their} has {:?}",
                ours.parameters, their.parameters
            ));
        }
        compare(ours, &whole(ours, &structs)?, &their)?;
        for name in their.fields.iter().filter_map(|field| field.of_struct()) {
            let declared = theirs.get(name).map_or(0, Vec::len);
            let checked = structs.iter().filter(|other| !other.part && other.name == name).count();
            if (declared, checked) != (1, 1) {
                return Err(format!(
                    "{ours}: it holds a `{name}`, which {declared} files of kernels define and {checked} host structs name; \
                     expected one of each"
                ));
            }
        }
    }
    for part in structs.iter().filter(|part| part.part) {
        let holders = structs.iter().filter(|other| other.file == part.file && !other.part && other.of == part.of);
        let held = holders.filter(|other| other.fields.iter().any(|field| field.kind == part.name)).count();
        if held != 1 {
            return Err(format!(
                "{part}: {held} structs of its file hold this part of `{}` of {}; expected one",
                part.of.0, part.of.1
            ));
        }
    }
    for source in theirs.get("Args").into_iter().flatten() {
        let named: Vec<_> =
            structs.iter().filter(|s| !s.part && s.of == ("Args".into(), source.path.clone())).collect();
        if named.len() != 1 {
            return Err(format!("{}, `Args`: {} host structs name it; expected one", source.path, named.len()));
        }
    }
    Ok(())
}

/// A field's name, and its type in the words of messages: `pointer`, `u32`, `Batch`, `[pointer; 2]`.
#[derive(Clone, Debug, PartialEq)]
struct Field {
    name: String,
    kind: String,
}

impl Field {
    /// The struct that it is of, or is an array of.
    fn of_struct(&self) -> Option<&str> {
        let element = self.kind.trim_start_matches('[').split([';', '<']).next()?;
        element.starts_with(|c: char| c.is_ascii_uppercase()).then_some(element)
    }
}

/// A declaration on either side.
#[derive(Debug)]
struct Struct {
    file: String,
    name: String,
    /// The parameters of a template, or of a generic struct.
    parameters: Vec<String>,
    fields: Vec<Field>,
    /// The struct that a host struct stands for, and its file.
    of: (String, String),
    part: bool,
}

impl std::fmt::Display for Struct {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}, `{}`", self.file, self.name)
    }
}

/// A host struct's fields, with those of a part in its place.
fn whole(ours: &Struct, all: &[Struct]) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    for field in &ours.fields {
        match all.iter().find(|part| part.part && part.file == ours.file && part.name == field.kind) {
            None => fields.push(field.clone()),
            Some(part) if part.of == ours.of => fields.extend(part.fields.iter().cloned()),
            Some(part) => return Err(format!("{ours}: it holds `{}`, which is part of another struct", part.name)),
        }
    }
    Ok(fields)
}

fn compare(ours: &Struct, fields: &[Field], their: &Struct) -> Result<(), String> {
    let said = |field: Option<&Field>| match field {
        Some(field) => format!("`{}: {}`", field.name, field.kind),
        None => "none".into(),
    };
    for at in 0..fields.len().max(their.fields.len()) {
        let (actual, expected) = (fields.get(at), their.fields.get(at));
        if actual != expected {
            let (expected, actual) = (said(expected), said(actual));
            return Err(format!("{ours}: field {at} should be {expected}, as in {their}, and is {actual}"));
        }
    }
    Ok(())
}

// ---- the host's declarations ----

fn host_structs(source: &Source) -> Result<Vec<Struct>, String> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let is_above = |line: &str| line.starts_with("///") || line.starts_with("#[");
    let mut found = Vec::new();
    for at in (0..lines.len()).filter(|&at| lines[at] == "#[repr(C)]") {
        let first = (0..at).rev().take_while(|&line| is_above(lines[line])).last().unwrap_or(at);
        let head = (at..lines.len()).find(|&line| !is_above(lines[line])).unwrap_or(at);
        let above: Vec<&str> = lines[first..head].iter().filter_map(|line| line.strip_prefix("///")).collect();
        let text = lines[head..].join("\n");
        let mut tokens = tokens(&text).into_iter().peekable();
        while tokens.next_if(|token| matches!(*token, "pub" | "(" | "crate" | ")")).is_some() {}
        let (Some("struct"), Some(name)) = (tokens.next(), tokens.next()) else {
            return Err(format!("{}: what is `#[repr(C)]` at line {} is no struct", source.path, at + 1));
        };
        let mut parsed = Struct {
            file: source.path.clone(),
            name: name.into(),
            parameters: Vec::new(),
            fields: Vec::new(),
            of: Default::default(),
            part: false,
        };
        (parsed.of, parsed.part) = counterpart(&above.join(" ")).ok_or_else(|| {
            format!("{parsed}: its documentation does not say of which struct it is, as in \"`Args` of kernels/batch_hard.cu\"")
        })?;
        let tokens: Vec<&str> = tokens.collect();
        let open = tokens.iter().position(|token| *token == "{").unwrap_or(tokens.len());
        let body = braced(&tokens[open..]).ok_or_else(|| format!("{parsed}: its fields are not in braces"))?;
        parsed.parameters = match &tokens[..open] {
            [] => Vec::new(),
            ["<", "const", parameter, ":", "usize", ">"] => vec![parameter.to_string()],
            _ => return Err(format!("{parsed}: cannot read `{}`", tokens[..open].join(" "))),
        };
        for field in split(body, ",") {
            let unread = || format!("{parsed}: cannot read the field `{}`", field.join(" "));
            let colon = field.iter().position(|token| *token == ":").filter(|colon| *colon > 0).ok_or_else(unread)?;
            let kind = host_kind(&field[colon + 1..]).ok_or_else(unread)?;
            parsed.fields.push(Field { name: field[colon - 1].into(), kind });
        }
        found.push(parsed);
    }
    Ok(found)
}

/// The struct and the file of "`Args` of kernels/batch_hard.cu", if it stands there once, and whether a part is meant.
fn counterpart(documentation: &str) -> Option<((String, String), bool)> {
    let mut of = documentation.match_indices("` of kernels/");
    let (Some((at, _)), None) = (of.next(), of.next()) else { return None };
    let (before, name) = documentation[..at].rsplit_once('`')?;
    let path = documentation[at..].split_whitespace().nth(2)?;
    let end = path.find(".cu")? + if path.contains(".cuh") { 4 } else { 3 };
    Some(((name.into(), path[..end].into()), before.trim_end().ends_with("Part of")))
}

fn host_kind(tokens: &[&str]) -> Option<String> {
    match tokens {
        ["[", element @ .., ";", count, "]"] => Some(format!("[{}; {count}]", host_kind(element)?)),
        ["Address"] => Some("pointer".into()),
        ["u64" | "i64" | "u32" | "i32" | "f64" | "f32"] => Some(tokens[0].into()),
        [_, ":", ":", rest @ ..] => host_kind(rest),
        [name, arguments @ ..] => struct_kind(name, arguments),
        [] => None,
    }
}

// ---- the kernels' declarations ----

/// The names of the structs that a file defines.
fn defined<'a>(tokens: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    tokens.windows(3).filter(|window| window[0] == "struct" && window[2] == "{").map(|window| window[1])
}

fn kernel_struct(source: &Source, tokens: &[&str], name: &str) -> Result<Struct, String> {
    let mut parsed = Struct {
        file: source.path.clone(),
        name: name.into(),
        parameters: Vec::new(),
        fields: Vec::new(),
        of: Default::default(),
        part: false,
    };
    let mut places = (0..tokens.len()).filter(|&at| tokens[at..].starts_with(&["struct", name, "{"]));
    let (Some(at), None) = (places.next(), places.next()) else {
        return Err(format!("{parsed}: expected one such struct"));
    };
    if let [.., "template", "<", "int", parameter, ">"] = &tokens[..at] {
        parsed.parameters.push(parameter.to_string());
    }
    let mut body = braced(&tokens[at + 2..]).ok_or_else(|| format!("{parsed}: it does not end"))?;
    while let Some(end) = body.iter().position(|token| matches!(*token, ";" | "{")) {
        let statement = &body[..end];
        if body[end] == "{" {
            // A function: its body is as long as its braces say.
            let inside = braced(&body[end..]).filter(|_| statement.contains(&"("));
            let inside = inside.ok_or_else(|| format!("{parsed}: cannot read `{} {{`", statement.join(" ")))?;
            body = &body[end + inside.len() + 2..];
            continue;
        }
        let fields = kernel_fields(statement);
        parsed
            .fields
            .extend(fields.ok_or_else(|| format!("{parsed}: cannot read the field `{};`", statement.join(" ")))?);
        body = &body[end + 1..];
    }
    match body.is_empty() {
        true => Ok(parsed),
        false => Err(format!("{parsed}: cannot read `{}`", body.join(" "))),
    }
}

/// The fields of a declaration such as `const float *x, y[2]`; the semicolon is left out.
fn kernel_fields(statement: &[&str]) -> Option<Vec<Field>> {
    let statement = statement.strip_prefix(&["const"]).unwrap_or(statement);
    // The type ends before a star; without one, before the first name.
    let arguments = statement.iter().position(|token| *token == "<");
    let after = statement.iter().position(|token| *token == ">").map_or(0, |at| at + 1);
    let words = statement[after..].iter().take_while(|token| is_word(token)).count();
    let star = statement.get(after + words) == Some(&"*");
    let end = if after > 0 { after } else { words.checked_sub(usize::from(!star))? };
    let (kind, declarators) = statement.split_at_checked(end)?;
    let kind = match kind {
        ["u64"] | ["unsigned", "long", "long"] => "u64".into(),
        ["i64"] | ["long", "long"] => "i64".into(),
        ["u32"] | ["unsigned"] | ["unsigned", "int"] => "u32".into(),
        ["int"] => "i32".into(),
        ["double"] => "f64".into(),
        ["float"] => "f32".into(),
        // Of no size of their own here: only a pointer may be to them.
        ["void" | "u8" | "u16"] => String::new(),
        _ => struct_kind(kind.first()?, &kind[arguments.unwrap_or(1)..])?,
    };
    let mut fields = Vec::new();
    for declarator in split(declarators, ",") {
        let (pointer, declarator) = match declarator {
            ["*", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let kind = if pointer { "pointer".to_string() } else { kind.clone() };
        let (name, kind) = match declarator {
            _ if kind.is_empty() => return None,
            [name] => (*name, kind),
            [name, "[", count, "]"] => (*name, format!("[{kind}; {count}]")),
            _ => return None,
        };
        fields.push(Field { name: is_word(name).then(|| name.to_string())?, kind });
    }
    Some(fields)
}

// ---- both ----

/// How messages write a struct's type, with its argument if it has one: `Matrices<K>`.
fn struct_kind(name: &str, arguments: &[&str]) -> Option<String> {
    let mut kind = name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| name.to_string())?;
    match arguments {
        [] => {}
        ["<", argument, ">"] => _ = write!(kind, "<{argument}>"),
        _ => return None,
    }
    Some(kind)
}

/// Words and single other characters, without comments and attributes.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") || rest.starts_with('#') {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = word.max(first.len_utf8());
            tokens.push(&rest[..length]);
            length
        };
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// What stands between the brace that the tokens begin with and the one that closes it.
fn braced<'a, 'b>(tokens: &'a [&'b str]) -> Option<&'a [&'b str]> {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        depth += i32::from(*token == "{") - i32::from(*token == "}");
        if depth == 0 {
            return tokens.get(1..at);
        }
    }
    None
}

/// The parts between separators, but for an empty one at the end.
fn split<'a, 'b>(tokens: &'a [&'b str], separator: &str) -> Vec<&'a [&'b str]> {
    let mut parts: Vec<_> = tokens.split(|token| *token == separator).collect();
    if parts.last().is_some_and(|part| part.is_empty()) {
        parts.pop();
    }
    parts
}
