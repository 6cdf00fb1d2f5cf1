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

    /// In an object, steps behind the `[` of the first value that is a list
    /// of objects, and returns its key. Stops at a key of `stop_at`, which it
    /// returns as well, and at the object's end.
    pub fn enter_first_list(&mut self, stop_at: &[&str]) -> io::Result<Option<String>> {
        if self.peek_past_blanks()? != Some(b'{') {
            return Ok(None);
        }
        self.bump()?;
        loop {
            while matches!(self.peek_past_blanks()?, Some(b',')) {
                self.bump()?;
            }
            if self.peek()? != Some(b'"') {
                return Ok(None);
            }
            let mut key = Vec::new();
            self.copy_value(&mut key, 1 << 16)?;
            let key: String = serde_json::from_slice(&key).unwrap_or_default();
            if self.peek_past_blanks()? != Some(b':') {
                return Ok(None);
            }
            self.bump()?;
            if stop_at.contains(&key.as_str()) {
                return Ok(Some(key));
            }
            if self.peek_past_blanks()? == Some(b'[') {
                self.bump()?;
                if self.peek_past_blanks()? == Some(b'{') {
                    return Ok(Some(key));
                }
                // Not a list of objects: run through to its end.
                while let Element::Value { .. } = self.element(super::LARGEST_ROW_BYTES)? {}
            } else if !self.copy_value(&mut Vec::new(), super::LARGEST_ROW_BYTES)? {
                return Ok(None);
            }
        }
    }

    /// The next element of the list entered before.
    pub fn element(&mut self, limit: usize) -> io::Result<Element> {
        loop {
            match self.peek_past_blanks()? {
                None => return Ok(Element::CutOff { line: self.line }),
                Some(b']') => {
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
        // A bracket or colon that belongs to nothing is taken as the start of
        // a bad element: `copy_value` stops before it and would never go on.
        if let Some(stray @ (b'}' | b':')) = self.peek()? {
            bytes.push(stray);
            self.bump()?;
        }
        if self.copy_value(&mut bytes, limit)? {
            Ok(Element::Value { line, bytes })
        } else if bytes.len() > limit {
            Ok(Element::TooLarge { line })
        } else {
            Ok(Element::CutOff { line })
        }
    }

    /// Copies one value, up to the comma, colon or bracket behind it. False if
    /// the file ends inside it or it is longer than `limit`. Brackets and
    /// quotes are counted; the parser that reads the copy judges the rest.
    fn copy_value(&mut self, out: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(false);
            }
            let (mut used, mut done) = (0, false);
            for &byte in chunk {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'[' | b'{' => depth += 1,
                        b']' | b'}' | b',' | b':' if depth == 0 => {
                            done = true;
                            break;
                        }
                        b']' | b'}' => depth -= 1,
                        _ => {}
                    }
                }
                self.line += usize::from(byte == b'\n');
                used += 1;
            }
            out.extend_from_slice(&chunk[..used]);
            self.input.consume(used);
            if out.len() > limit {
                return Ok(false);
            }
            if done {
                while out.last().is_some_and(u8::is_ascii_whitespace) {
                    out.pop();
                }
                return Ok(true);
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
            match scanner.element(1000).unwrap() {
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
    fn the_first_list_of_objects_in_an_object_is_found() {
        let text = "{\"version\": 1, \"tags\": [\"a\", \"b\"], \"meta\": {\"data\": [{}]},\n \"data\": [ {\"x\": 1}]}";
        let mut scanner = Scanner::new(io::BufReader::with_capacity(5, text.as_bytes()));
        assert_eq!(scanner.enter_first_list(&[]).unwrap().as_deref(), Some("data"));
        assert!(matches!(
            scanner.element(100).unwrap(),
            Element::Value { line: 2, bytes } if bytes == b"{\"x\": 1}"
        ));
        assert!(matches!(scanner.element(100).unwrap(), Element::End));
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
