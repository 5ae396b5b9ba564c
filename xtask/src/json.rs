//! A small JSON reader (RFC 8259): enough for `target/bench.json` and cargo's messages.

use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

impl Value {
    /// The member of an object; `Null` if there is none.
    pub fn get(&self, key: &str) -> &Value {
        match self {
            Value::Object(members) => members.get(key).unwrap_or(&Value::Null),
            _ => &Value::Null,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads one JSON value; the error names the byte at which something is wrong.
pub fn parse(source: &str) -> Result<Value, String> {
    let mut reader = Reader { source, at: 0 };
    let value = reader.value(0)?;
    reader.blanks();
    if reader.at < source.len() { Err(reader.wrong("the end")) } else { Ok(value) }
}

/// Deeper nesting than any real message has: a bound, so that a damaged file cannot exhaust the stack.
const DEEPEST: usize = 64;

struct Reader<'a> {
    source: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, expected: &str) -> String {
        let found = self.source[self.at..].chars().next().map_or("the end".into(), |c| format!("{c:?}"));
        format!("byte {}: expected {expected}, found {found}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.source.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes `token` after blanks, if it is there.
    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let there = self.source[self.at..].starts_with(token);
        if there {
            self.at += token.len();
        }
        there
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(self.wrong(&format!("`{token}`"))) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        self.blanks();
        match self.peek() {
            _ if depth > DEEPEST => Err(self.wrong("less nesting")),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Value::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ if self.take("null") => Ok(Value::Null),
            _ => Err(self.wrong("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        let mut members = BTreeMap::new();
        self.expect("{")?;
        if !self.take("}") {
            loop {
                self.blanks();
                let key = self.string()?;
                self.expect(":")?;
                members.insert(key, self.value(depth + 1)?);
                if !self.take(",") {
                    break;
                }
            }
            self.expect("}")?;
        }
        Ok(Value::Object(members))
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        self.expect("[")?;
        if !self.take("]") {
            loop {
                items.push(self.value(depth + 1)?);
                if !self.take(",") {
                    break;
                }
            }
            self.expect("]")?;
        }
        Ok(Value::List(items))
    }

    fn number(&mut self) -> Result<Value, String> {
        let rest = &self.source[self.at..];
        let length = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        let number: f64 = rest[..length].parse().map_err(|_| self.wrong("a number"))?;
        self.at += length;
        Ok(Value::Number(number))
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut text = String::new();
        loop {
            let rest = &self.source[self.at..];
            let plain = rest.find(['"', '\\']).ok_or_else(|| format!("byte {}: a text without its end", self.at))?;
            text.push_str(&rest[..plain]);
            self.at += plain + 1;
            if rest.as_bytes()[plain] == b'"' {
                return Ok(text);
            }
            text.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or_else(|| self.wrong("an escape"))?;
        let meant = match c {
            b'"' | b'\\' | b'/' => c as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.wrong("an escape")),
        };
        self.at += 1;
        Ok(meant)
    }

    /// The digits after `\u`, and a second `\uXXXX` if the first is half of a pair.
    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !self.source[self.at..].starts_with("\\u") {
                return Err(self.wrong("the second half of a pair"));
            }
            self.at += 2;
            let second = self.hex4()?;
            0x10000 + ((first - 0xd800) << 10) + (second.wrapping_sub(0xdc00) & 0x3ff)
        } else {
            first
        };
        char::from_u32(code).ok_or_else(|| self.wrong("a Unicode character"))
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let digits = self.source.get(self.at..self.at + 4);
        let code = digits.filter(|four| four.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = code.and_then(|four| u32::from_str_radix(four, 16).ok());
        let code = code.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_kind_of_value() {
        let value = parse(r#" {"a": [1, -2.5e-3, true, false, null, "x"], "b": {}, "c": [] } "#).unwrap();
        let list = [
            Value::Number(1.0),
            Value::Number(-0.0025),
            Value::Bool(true),
            Value::Bool(false),
            Value::Null,
            Value::Text("x".into()),
        ];
        assert_eq!(value.get("a"), &Value::List(list.into()));
        assert_eq!(value.get("b"), &Value::Object(BTreeMap::new()));
        assert_eq!(value.get("c"), &Value::List(vec![]));
        assert_eq!(value.get("nothing"), &Value::Null);
    }

    #[test]
    fn reads_escapes() {
        let value = parse(r#""a\"b\\c\/d\n\t\u00e9\ud83d\ude00 é""#).unwrap();
        assert_eq!(value.text(), Some("a\"b\\c/d\n\té😀 é"));
    }

    #[test]
    fn says_where_the_error_is() {
        assert_eq!(parse("[1, x]").unwrap_err(), "byte 4: expected a value, found 'x'");
        assert_eq!(parse("[1").unwrap_err(), "byte 2: expected `]`, found the end");
        assert_eq!(parse("{\"a\" 1}").unwrap_err(), "byte 5: expected `:`, found '1'");
        assert_eq!(parse("1 2").unwrap_err(), "byte 2: expected the end, found '2'");
        for wrong in ["", "{", "\"abc", "\"\\q\"", "\"\\u12\"", "\"\\ud800x\"", "[1,]", "{a: 1}", "nul", "1.2.3", "-"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
