//! Cuts a stream of bytes into lines, or into the elements of a JSON list,
//! without holding more than one of them.

use std::io::{self, BufRead};

use crate::rows::input::Input;

/// What comes next in a list.
#[derive(Debug)]
pub(super) enum Element {
    /// The bytes of one element, which begins on `line`.
    Value { line: usize, bytes: Vec<u8> },
    /// The list is closed.
    End,
    /// An element beyond the limit; reading cannot go on.
    TooLarge { line: usize },
    /// The file ends before the list does.
    CutOff { line: usize },
}

/// What a value is, by its first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A list of objects.
    Objects,
    /// A list of lists.
    Lists,
    /// A list of texts, numbers or flags.
    Scalars,
    EmptyList,
    /// An object, perhaps empty.
    Object {
        first_key: String,
    },
    Scalar,
}

/// How far a value was copied.
enum Copied {
    Whole,
    /// It is longer than the limit.
    TooLarge,
    /// The file ends inside it.
    CutOff,
}

/// A longer key is none that is looked for.
const LONGEST_KEY_BYTES: usize = 1 << 16;

/// A line without its end: its number, its bytes (`None` if they are more than the
/// limit), and whether it had an end.
pub(super) type Line = (usize, Option<Vec<u8>>, bool);

/// A reader that counts lines.
pub(super) struct Scanner<R = Input> {
    input: R,
    /// Line of the next byte, from 1.
    line: usize,
}

impl<R: BufRead> Scanner<R> {
    pub fn new(input: R) -> Self {
        Self { input, line: 1 }
    }

    pub fn into_input(self) -> R {
        self.input
    }

    /// Line of the next byte, from 1.
    pub fn at_line(&self) -> usize {
        self.line
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    fn bump(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.input.consume(1);
            self.line += usize::from(byte == b'\n');
        }
        Ok(byte)
    }

    pub fn peek_past_blanks(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.bump()?;
        }
        Ok(None)
    }

    pub fn skip_byte_order_mark(&mut self) -> io::Result<()> {
        if self.input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
            self.input.consume(3);
        }
        Ok(())
    }

    /// The next line.
    pub fn line(&mut self, limit: usize) -> io::Result<Option<Line>> {
        let number = self.line;
        let (mut bytes, mut fits, mut any) = (Vec::new(), true, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(any.then_some((number, fits.then_some(bytes), false)));
            }
            any = true;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            if fits && bytes.len() + part.len() > limit {
                (fits, bytes) = (false, Vec::new());
            }
            if fits {
                bytes.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                self.line += 1;
                return Ok(Some((number, fits.then_some(bytes), true)));
            }
        }
    }

    /// Everything that is left, with the line it begins on; `None` if it is
    /// longer than `limit`.
    pub fn rest(&mut self, limit: usize) -> io::Result<(usize, Option<Vec<u8>>)> {
        self.peek_past_blanks()?;
        let (line, mut bytes) = (self.line, Vec::new());
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok((line, Some(bytes)));
            }
            if bytes.len() + chunk.len() > limit {
                return Ok((line, None));
            }
            bytes.extend_from_slice(chunk);
            let used = chunk.len();
            self.input.consume(used);
        }
    }

    /// Steps behind the `[` that opens the file's list.
    pub fn enter_array(&mut self) -> io::Result<()> {
        if self.peek_past_blanks()? == Some(b'[') {
            self.bump()?;
        }
        Ok(())
    }

    /// In an object, steps behind the `[` of the list at `key`. Stays at the object's
    /// end if there is none.
    pub fn enter_list(&mut self, key: &str) -> io::Result<()> {
        self.enter_object()?;
        while let Some(found) = self.key()? {
            if found == key && self.peek()? == Some(b'[') {
                self.bump()?;
                return Ok(());
            }
            self.skip_value()?;
        }
        Ok(())
    }

    /// Steps behind the `{` of an object.
    pub fn enter_object(&mut self) -> io::Result<()> {
        if self.peek_past_blanks()? == Some(b'{') {
            self.bump()?;
        }
        Ok(())
    }

    /// The next key of the object entered before, and the place before its value.
    /// `None` at the object's end, and for what is no key.
    pub fn key(&mut self) -> io::Result<Option<String>> {
        while self.peek_past_blanks()? == Some(b',') {
            self.bump()?;
        }
        if self.peek()? != Some(b'"') {
            return Ok(None);
        }
        let mut key = Vec::new();
        self.value(Some(&mut key), LONGEST_KEY_BYTES)?;
        if self.peek_past_blanks()? != Some(b':') {
            return Ok(None);
        }
        self.bump()?;
        self.peek_past_blanks()?;
        Ok(Some(serde_json::from_slice(&key).unwrap_or_default()))
    }

    /// What the next value is, by its first bytes. Takes them: what is left of the
    /// value is for [`Self::leave`].
    pub fn shape(&mut self) -> io::Result<Shape> {
        let Some(first @ (b'[' | b'{')) = self.peek_past_blanks()? else {
            self.skip_value()?;
            return Ok(Shape::Scalar);
        };
        self.bump()?;
        let inner = self.peek_past_blanks()?;
        let shape = match (first, inner) {
            (b'[', Some(b'{')) => Shape::Objects,
            (b'[', Some(b'[')) => Shape::Lists,
            (b'[', Some(b']')) => Shape::EmptyList,
            (b'[', _) => Shape::Scalars,
            _ => Shape::Object { first_key: self.key()?.unwrap_or_default() },
        };
        self.through(None, usize::MAX, 1)?;
        Ok(shape)
    }

    /// The next element of the list entered before, or, with `loose`, the next of the
    /// values that stand one after another up to the file's end.
    pub fn element(&mut self, limit: usize, loose: bool) -> io::Result<Element> {
        loop {
            match self.peek_past_blanks()? {
                None if loose => return Ok(Element::End),
                None => return Ok(Element::CutOff { line: self.line }),
                Some(b']') if !loose => {
                    self.bump()?;
                    return Ok(Element::End);
                }
                Some(b',') => {
                    self.bump()?;
                }
                Some(_) => break,
            }
        }
        let (line, mut bytes) = (self.line, Vec::new());
        // A bracket or colon that belongs to nothing is the start of a bad element:
        // `value` stops before it and would never go on.
        if let Some(stray @ (b'}' | b':' | b']')) = self.peek()? {
            bytes.push(stray);
            self.bump()?;
        }
        Ok(match self.value(Some(&mut bytes), limit)? {
            Copied::Whole => Element::Value { line, bytes },
            Copied::TooLarge => Element::TooLarge { line },
            Copied::CutOff => Element::CutOff { line },
        })
    }

    /// Steps behind the next value. False if the file ends inside it.
    pub fn skip_value(&mut self) -> io::Result<bool> {
        self.peek_past_blanks()?;
        Ok(matches!(self.value(None, usize::MAX)?, Copied::Whole))
    }

    /// Copies one value to `out`, if there is one. An object, a list and a string end
    /// with their last byte; anything else ends before a comma, a colon, a closing
    /// bracket or a line's end. Brackets and quotes are counted; the parser that reads
    /// the copy judges the rest.
    fn value(&mut self, out: Option<&mut Vec<u8>>, limit: usize) -> io::Result<Copied> {
        self.through(out, limit, 0)
    }

    /// [`Self::value`], from inside of `depth` brackets.
    fn through(&mut self, mut out: Option<&mut Vec<u8>>, limit: usize, mut depth: usize) -> io::Result<Copied> {
        let (mut in_string, mut escaped) = (false, false);
        // Whether the value is an object, a list or a string; not known at first.
        let mut bounded = (depth > 0).then_some(true);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(if bounded == Some(false) && depth == 0 { Copied::Whole } else { Copied::CutOff });
            }
            let (mut used, mut done) = (0, false);
            for &byte in chunk {
                let is_bounded = *bounded.get_or_insert(matches!(byte, b'{' | b'[' | b'"'));
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => {
                            in_string = false;
                            done = is_bounded && depth == 0;
                        }
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'[' | b'{' => depth += 1,
                        b']' | b'}' | b',' | b':' | b'\n' if depth == 0 => {
                            done = true;
                            break;
                        }
                        b']' | b'}' => {
                            depth -= 1;
                            done = is_bounded && depth == 0;
                        }
                        _ => {}
                    }
                }
                self.line += usize::from(byte == b'\n');
                used += 1;
                if done {
                    break;
                }
            }
            if let Some(out) = &mut out {
                out.extend_from_slice(&chunk[..used]);
            }
            self.input.consume(used);
            let copied = out.as_deref().map_or(0, Vec::len);
            if copied > limit {
                return Ok(Copied::TooLarge);
            }
            if done {
                while let Some(out) = &mut out
                    && out.last().is_some_and(u8::is_ascii_whitespace)
                {
                    out.pop();
                }
                return Ok(Copied::Whole);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Vec<String> {
        // A buffer of three bytes cuts every token somewhere.
        let mut scanner = Scanner::new(io::BufReader::with_capacity(3, text.as_bytes()));
        scanner.enter_array().unwrap();
        let mut found = Vec::new();
        loop {
            match scanner.element(1000, false).unwrap() {
                Element::Value { line, bytes } => {
                    found.push(format!("{line}:{}", String::from_utf8(bytes).unwrap()));
                }
                Element::End => return found,
                other => {
                    found.push(format!("{other:?}"));
                    return found;
                }
            }
        }
    }

    #[test]
    fn elements_are_cut_at_commas_outside_strings_and_brackets() {
        assert_eq!(
            elements("[ {\"a\": [1, 2]},\n{\"b\": \"],\\\"}{\"} ,\n\n 7, \"x,y\" ]"),
            ["1:{\"a\": [1, 2]}", "2:{\"b\": \"],\\\"}{\"}", "4:7", "4:\"x,y\""]
        );
        assert_eq!(elements("[]"), Vec::<String>::new());
        assert_eq!(elements("[1, {\"a\": "), ["1:1", "CutOff { line: 1 }"]);
    }

    #[test]
    fn brackets_and_colons_that_belong_to_nothing_are_bad_elements() {
        assert_eq!(
            elements("[{\"a\": 1}}, {\"b\": 2},\n:}:, \"c\": 3]"),
            ["1:{\"a\": 1}", "1:}", "1:{\"b\": 2}", "2::", "2:}", "2::", "2:\"c\"", "2:: 3"]
        );
    }

    #[test]
    fn elements_need_no_commas_and_values_may_stand_alone() {
        assert_eq!(elements("[{\"a\": 1}\n{\"b\": 2}{\"c\": 3}]"), ["1:{\"a\": 1}", "2:{\"b\": 2}", "2:{\"c\": 3}"]);
        let text = "{\"a\":\n1}\n{\"b\": 2},\r{\"c\": \"}\"}{\"d\": 4} oops\n]{";
        let mut scanner = Scanner::new(io::BufReader::with_capacity(3, text.as_bytes()));
        let mut found = Vec::new();
        loop {
            match scanner.element(1000, true).unwrap() {
                Element::Value { line, bytes } => found.push(format!("{line}:{}", String::from_utf8(bytes).unwrap())),
                end => {
                    found.push(format!("{end:?}"));
                    break;
                }
            }
        }
        let expected =
            ["1:{\"a\":\n1}", "3:{\"b\": 2}", "3:{\"c\": \"}\"}", "3:{\"d\": 4}", "3:oops", "CutOff { line: 4 }"];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_shapes_of_an_objects_values_are_told_and_a_list_is_entered() {
        let text = "{\"version\": 1, \"tags\": [\"a\"], \"meta\": {\"data\": [{}]}, \"none\": [],\n \"data\": [ {\"x\": 1}], \"rows\": [[1]]} ";
        let scanner = || Scanner::new(io::BufReader::with_capacity(5, text.as_bytes()));
        let mut whole = scanner();
        whole.enter_object().unwrap();
        let mut shapes = Vec::new();
        while let Some(key) = whole.key().unwrap() {
            shapes.push((key, whole.shape().unwrap()));
        }
        let shapes: Vec<(&str, &Shape)> = shapes.iter().map(|(key, shape)| (key.as_str(), shape)).collect();
        let meta = Shape::Object { first_key: "data".into() };
        assert_eq!(
            shapes,
            [
                ("version", &Shape::Scalar),
                ("tags", &Shape::Scalars),
                ("meta", &meta),
                ("none", &Shape::EmptyList),
                ("data", &Shape::Objects),
                ("rows", &Shape::Lists),
            ]
        );
        let mut scanner = scanner();
        scanner.enter_list("data").unwrap();
        assert!(matches!(
            scanner.element(100, false).unwrap(),
            Element::Value { line: 2, bytes } if bytes == b"{\"x\": 1}"
        ));
        assert!(matches!(scanner.element(100, false).unwrap(), Element::End));
    }

    #[test]
    fn lines_keep_their_numbers_and_know_whether_they_ended() {
        let mut scanner = Scanner::new(io::BufReader::with_capacity(4, &b"one\r\n\nthree long\nx"[..]));
        let mut next = || {
            scanner
                .line(8)
                .unwrap()
                .map(|(line, bytes, ended)| (line, bytes.map(|bytes| String::from_utf8(bytes).unwrap()), ended))
        };
        assert_eq!(next(), Some((1, Some("one\r".into()), true)));
        assert_eq!(next(), Some((2, Some(String::new()), true)));
        assert_eq!(next(), Some((3, None, true)));
        assert_eq!(next(), Some((4, Some("x".into()), false)));
        assert_eq!(next(), None);
    }
}
