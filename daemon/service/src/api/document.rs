//! `API.md`, written from the endpoints and the table of errors.

use std::fmt::Write;

use finetuned_engine::ErrorKind;
use strum::IntoEnumIterator;

use super::ENDPOINTS;
use crate::error::meaning;

const HEAD: &str = "\
# The daemon's control interface

JSON over HTTP/1.1 on the Unix socket `control.socket` (`finetuned.sock` in the state
folder). `finetune` is one client, `curl` another:

```
curl --unix-socket ~/finetuned/finetuned.sock http://finetuned/status
```

This page is written from `src/api`; a test compares the two.

| request | query | body | answer |
| --- | --- | --- | --- |
";

const ERRORS: &str = "
## Errors

Every error is `{\"error\": {\"code\", \"message\", \"remedy\"}}`; `remedy` is absent if the message
says it all. The code is the kind of the error. A job's `error_kind` is the same word,
and `finetune` ends with the kind's exit code.

| code | HTTP status | exit code |
| --- | --- | --- |
";

const TAIL: &str = "
Wrong usage ends with 64, a configuration with mistakes with 78, a state folder that
cannot be used with 73, and a daemon that does not answer with 69. A path that does not
exist is 404, a method that a path does not have is 405.
";

/// The text of `API.md`.
pub fn document() -> String {
    let mut text = HEAD.to_string();
    for facts in ENDPOINTS {
        let _ = writeln!(
            text,
            "| `{} {}` | {} | {} | {} |",
            facts.method.name(),
            facts.path,
            facts.query,
            facts.body,
            facts.answer
        );
    }
    text += ERRORS;
    for kind in ErrorKind::iter() {
        let _ = writeln!(text, "| `{kind}` | {} | {} |", meaning(kind).http, meaning(kind).exit);
    }
    text + TAIL
}

#[cfg(test)]
mod tests {
    /// After a change of the interface: `UPDATE_API=1 cargo test` writes the page.
    #[test]
    fn the_page_is_what_the_endpoints_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/API.md");
        if std::env::var_os("UPDATE_API").is_some() {
            std::fs::write(path, super::document()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), super::document());
    }
}
