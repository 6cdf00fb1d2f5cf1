//! What a file that is no dataset is, and how to make one of it.
//!
//! A kind is recognised by its first bytes, not by its name: a Parquet file may be
//! called `rows.jsonl`. A kind is a line of [`MAGIC`], or a function below for kinds
//! without fixed bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::input::{HEAD_BYTES, unpacked_head};

/// A file that is no dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, with an article: "a Parquet file".
    pub is: &'static str,
    /// How to make a dataset of it, a whole sentence.
    pub remedy: String,
    /// Whether it is text for people, like a note that lies beside datasets.
    pub is_text: bool,
}

/// How rows of another kind become JSON lines.
#[derive(Clone, Copy)]
enum Remedy {
    /// By this function of pandas.
    Pandas(&'static str),
    /// By this command, before `FILE`.
    Command(&'static str),
    /// Another sentence.
    Words(&'static str),
}

impl Remedy {
    fn words(self, name: &str) -> String {
        let stem = name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("rows");
        match self {
            Self::Pandas(read) => format!(
                "Convert it to JSON lines: python -c \"import pandas; pandas.{}.to_json('{stem}.jsonl', \
                 orient='records', lines=True, force_ascii=False)\".",
                read.replace("FILE", name)
            ),
            Self::Command(command) => format!("Unpack it first: {}.", command.replace("FILE", name)),
            Self::Words(words) => words.to_owned(),
        }
    }
}

const PARQUET: Remedy = Remedy::Pandas("read_parquet('FILE')");
const ARROW: Remedy = Remedy::Words(
    "Convert it to JSON lines: python -c \"import datasets; datasets.Dataset.from_file('FILE').to_json('rows.jsonl')\" \
     (a folder of save_to_disk: datasets.load_from_disk('FOLDER')).",
);
const FEATHER: Remedy = Remedy::Pandas("read_feather('FILE')");
const WEIGHTS: Remedy = Remedy::Words("It belongs to a model: name its folder as the base of a recipe.");
const DOCUMENT: Remedy = Remedy::Words("Write its text in rows like {\"text\": \"…\"}, one object per line.");
const PICTURE: Remedy = Remedy::Words("Models are trained on text alone here.");
const ARCHIVE: Remedy = Remedy::Words("Unpack it, and give the files of rows that are in it one by one.");
const DATABASE: Remedy = Remedy::Words(
    "Write the rows of its table as JSON lines: python -c \"import sqlite3, pandas; \
     pandas.read_sql('SELECT * FROM name', sqlite3.connect('FILE')).to_json('rows.jsonl', orient='records', \
     lines=True, force_ascii=False)\".",
);
const PICKLE: Remedy = Remedy::Words("Load it where it was written, and write its rows as JSON lines.");

/// Kinds by bytes at a place: place, bytes, name, remedy. Text in lower case is
/// compared without regard to case.
const MAGIC: &[(usize, &[u8], &str, Remedy)] = &[
    (0, b"PAR1", "a Parquet file", PARQUET),
    (0, b"ARROW1", "an Arrow file", FEATHER),
    (0, b"FEA1", "a Feather file", FEATHER),
    (0, b"\xff\xff\xff\xff", "an Arrow file (a stream, as datasets' save_to_disk writes it)", ARROW),
    (0, b"ORC", "an ORC file", Remedy::Pandas("read_orc('FILE')")),
    (0, b"Obj\x01", "an Avro file", Remedy::Words("Convert it to JSON lines.")),
    (0, b"\xfd7zXZ\x00", "an xz file", Remedy::Command("xz -d FILE")),
    (0, b"BZh", "a bzip2 file", Remedy::Command("bunzip2 FILE")),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", Remedy::Command("zstd -d FILE")),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", Remedy::Command("lz4 -d FILE")),
    (0, b"\x1f\x8b", "a gzip file inside a gzip file", Remedy::Command("gunzip FILE")),
    (0, b"\x1f\x9d", "a file of compress", Remedy::Command("uncompress FILE")),
    (0, b"LZIP", "an lzip file", Remedy::Command("lzip -d FILE")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", ARCHIVE),
    (0, b"Rar!", "a RAR archive", ARCHIVE),
    (0, b"PK\x05\x06", "an empty zip archive", ARCHIVE),
    (257, b"ustar", "a tar archive", ARCHIVE),
    (0, b"SQLite format 3\0", "a SQLite database", DATABASE),
    (
        8,
        b"DUCK",
        "a DuckDB database",
        Remedy::Words("Write its table as JSON lines: COPY name TO 'rows.jsonl' (FORMAT json)."),
    ),
    (0, b"\x89HDF", "an HDF5 file", Remedy::Words("Write its rows as JSON lines.")),
    (0, b"\x93NUMPY", "a NumPy array", Remedy::Words("Write its rows as JSON lines, token ids as `input_ids`.")),
    (0, b"\x80\x02", "a Python pickle", PICKLE),
    (0, b"\x80\x03", "a Python pickle", PICKLE),
    (0, b"\x80\x04", "a Python pickle", PICKLE),
    (0, b"\x80\x05", "a Python pickle", PICKLE),
    (0, b"%PDF-", "a PDF document", DOCUMENT),
    (0, b"{\\rtf", "an RTF document", DOCUMENT),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document (Excel: save it as CSV)", DOCUMENT),
    (0, b"\x89PNG", "a PNG picture", PICTURE),
    (0, b"\xff\xd8\xff", "a JPEG picture", PICTURE),
    (0, b"GIF8", "a GIF picture", PICTURE),
    (0, b"RIFF", "a sound, a film or a picture", PICTURE),
    (0, b"GGUF", "a model (GGUF)", WEIGHTS),
    (0, b"\x7fELF", "a program", Remedy::Words("It holds no rows.")),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        Remedy::Words("Fetch the file: git lfs pull, or download it from the hub's page again."),
    ),
    (
        0,
        b"/annex/objects/",
        "a git-annex pointer, not the file itself",
        Remedy::Words("Fetch the file: git annex get."),
    ),
];

/// Beginnings of text, in lower case, after blanks and a byte order mark.
const OPENINGS: &[(&str, &str, &str)] = &[
    ("<!doctype", "a web page (HTML)", "The download brought a page, not the dataset: fetch the file behind it."),
    ("<html", "a web page (HTML)", "The download brought a page, not the dataset: fetch the file behind it."),
    ("<?xml", "an XML document", "Write its rows as JSON lines."),
    ("%yaml", "a YAML document", "Write its rows as JSON lines."),
    (
        "{'",
        "rows as Python prints them (single quotes), not JSON",
        "Write them with json.dumps, or convert them: python -c \"import ast, json, sys; [print(json.dumps(\
         ast.literal_eval(line))) for line in sys.stdin]\" < FILE > rows.jsonl.",
    ),
    (
        "[{'",
        "rows as Python prints them (single quotes), not JSON",
        "Write them with json.dump, or convert them: python -c \"import ast, json, sys; print(json.dumps(\
         ast.literal_eval(sys.stdin.read())))\" < FILE > rows.json.",
    ),
];

/// What a file at rest is, if it is no dataset. `None` for what may be JSON, plain or
/// gzip, and for an empty file. The name, without folders, is used in the remedy, and
/// decides if the bytes alone cannot: `.csv` and `.tsv`.
///
/// # Errors
/// Reading.
pub fn what_is(name: &str, file: &mut File) -> io::Result<Option<Foreign>> {
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    Read::take(&mut *file, 4 * HEAD_BYTES as u64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(foreign(name, &unpacked_head(&head)))
}

/// What content that begins with `head` is, if it is no JSON.
pub(super) fn foreign(name: &str, head: &[u8]) -> Option<Foreign> {
    let named = |is: &'static str, remedy: String, is_text: bool| Some(Foreign { is, remedy, is_text });
    let fits =
        |(at, magic, ..): &&(usize, &[u8], &str, Remedy)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, is, remedy)) = MAGIC.iter().find(fits) {
        return named(is, remedy.words(name).replace("FILE", name), false);
    }
    if head.starts_with(b"PK\x03\x04") {
        return named(in_zip(head), if is_workbook(head) { excel(name) } else { ARCHIVE.words(name) }, false);
    }
    // Safetensors: the length of a header, then the header.
    if head.get(8) == Some(&b'{') && head.get(4..8) == Some(&[0; 4]) {
        return named("a model (safetensors)", WEIGHTS.words(name), false);
    }
    if let Some(encoding) = other_encoding(head) {
        let from = if encoding.contains("32") { "UTF-32" } else { "UTF-16" };
        return named(encoding, format!("Save it as UTF-8: iconv -f {from} -t UTF-8 {name} > rows.jsonl."), false);
    }
    let text = text_of(head)?;
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let opening = text.chars().take(16).collect::<String>().to_lowercase();
    if let Some((_, is, remedy)) = OPENINGS.iter().find(|(start, ..)| opening.starts_with(start)) {
        return named(is, remedy.replace("FILE", name), false);
    }
    let has_rows = text.lines().any(|line| line.trim_start().starts_with("{\""));
    if text.is_empty() || text.starts_with(['{', '[']) || has_rows {
        return None;
    }
    let name_says = |ending: &str| name.to_lowercase().trim_end_matches(".gz").ends_with(ending);
    let separator = separator(text);
    if name_says(".csv") || name_says(".tsv") || separator.is_some() {
        let separator = separator.unwrap_or(if name_says(".tsv") { '\t' } else { ',' });
        return named(
            if separator == '\t' { "a table of columns between tabs (TSV)" } else { "a CSV table" },
            Remedy::Pandas(match separator {
                '\t' => "read_csv('FILE', sep='\\t')",
                ';' => "read_csv('FILE', sep=';')",
                _ => "read_csv('FILE')",
            })
            .words(name),
            false,
        );
    }
    // A line that is damaged JSON rather than none: the rows say what is wrong with it.
    let first = text.lines().next().unwrap_or_default();
    if first.contains('{') || (first.contains('"') && first.contains(':')) {
        return None;
    }
    named("plain text", "Datasets are JSON lines or JSON: write the text in rows like {\"text\": \"…\"}.".into(), true)
}

fn excel(name: &str) -> String {
    Remedy::Pandas("read_excel('FILE')").words(name)
}

fn is_workbook(head: &[u8]) -> bool {
    contains(head, b"xl/")
}

/// What a zip archive holds, by the names in its beginning.
fn in_zip(head: &[u8]) -> &'static str {
    match head {
        _ if is_workbook(head) => "an Excel workbook",
        _ if contains(head, b"word/") => "a Word document",
        _ if contains(head, b"mimetypeapplication/vnd.oasis") => "an OpenDocument file",
        _ if contains(head, b"data.pkl") || contains(head, b".npy") => "an archive of arrays (PyTorch or NumPy)",
        _ => "a zip archive",
    }
}

fn contains(head: &[u8], part: &[u8]) -> bool {
    head.windows(part.len()).any(|window| window == part)
}

/// UTF-16 and UTF-32, with and without a byte order mark: without one, every second
/// byte (or three of four) of ASCII is zero.
fn other_encoding(head: &[u8]) -> Option<&'static str> {
    const UTF16: &str = "text in UTF-16";
    const UTF32: &str = "text in UTF-32";
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some(UTF32),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Some(UTF16),
        _ => {}
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match head.get(..8)? {
        [a, 0, 0, 0, b, 0, 0, 0] | [0, 0, 0, a, 0, 0, 0, b] if printable(a) && printable(b) => Some(UTF32),
        [a, 0, b, 0, c, 0, d, 0] | [0, a, 0, b, 0, c, 0, d] if [a, b, c, d].into_iter().all(printable) => Some(UTF16),
        _ => None,
    }
}

/// The beginning as text; a character that the end cuts is left out. `None` if it is
/// no UTF-8.
fn text_of(head: &[u8]) -> Option<&str> {
    match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok(),
        Err(_) => None,
    }
}

/// The separator of a table: the first line holds names of columns, and the second
/// has the separator as well.
fn separator(text: &str) -> Option<char> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let (header, first) = (lines.next()?, lines.next()?);
    let is_name = |field: &str| {
        let field = field.trim().trim_matches('"');
        !field.is_empty() && field.len() <= 64 && field.chars().all(|c| c.is_alphanumeric() || " _-./()#".contains(c))
    };
    ['\t', ';', ',', '|'].into_iter().find(|&separator| {
        let fields: Vec<&str> = header.split(separator).collect();
        fields.len() > 1 && fields.iter().all(|field| is_name(field)) && first.contains(separator)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(name: &str, head: &[u8]) -> Option<&'static str> {
        foreign(name, head).map(|foreign| foreign.is)
    }

    #[test]
    fn kinds_are_named_by_their_bytes_whatever_their_name() {
        let tar = [b"rows.jsonl".to_vec(), vec![0; 247], b"ustar\x00".to_vec()].concat();
        for (head, expected) in [
            (&b"PAR1\x15\x04"[..], "a Parquet file"),
            (b"\xff\xff\xff\xff\x58\x01\0\0", "an Arrow file (a stream, as datasets' save_to_disk writes it)"),
            (b"ARROW1\0\0", "an Arrow file"),
            (&tar, "a tar archive"),
            (b"PK\x03\x04\x14\0[Content_Types].xml xl/workbook.xml", "an Excel workbook"),
            (b"PK\x03\x04\x14\0rows.jsonl", "a zip archive"),
            (b"{\0\"\0a\0\"\0", "text in UTF-16"),
            (b"\0{\0\"\0a\0\"", "text in UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0", "text in UTF-32"),
            (b"\xff\xfe{\0", "text in UTF-16"),
            (b"\x40\0\0\0\0\0\0\0{\"a\":", "a model (safetensors)"),
            (b"  \n<!DOCTYPE html>", "a web page (HTML)"),
            (b"{'prompt': 'a'}", "rows as Python prints them (single quotes), not JSON"),
            (b"a,b\n1,2\n", "a CSV table"),
            (b"\"a\";\"b\"\n\"1\";\"2\"\n", "a CSV table"),
            (b"a\tb\n1\t2\n", "a table of columns between tabs (TSV)"),
            (b"Two lines, of prose,\nwith commas, and all.", "plain text"),
        ] {
            assert_eq!(is("rows.jsonl", head), Some(expected), "{}", String::from_utf8_lossy(head));
        }
        assert_eq!(is("rows.csv", b"only one line\n"), Some("a CSV table"));
        for json in [&b""[..], b"\n ", b"{\"a\": 1}", b"[", b"\xef\xbb\xbf{\"a\"", b"\"a\": 1}", b"caf\xe9 {"] {
            assert_eq!(is("rows.jsonl", json), None, "{}", String::from_utf8_lossy(json));
        }
    }

    #[test]
    fn a_remedy_names_the_file() {
        let remedy = foreign("my.parquet", b"PAR1").map(|foreign| foreign.remedy).unwrap();
        assert!(remedy.contains("read_parquet('my.parquet').to_json('my.jsonl'"), "{remedy}");
        for (at, magic, _, _) in MAGIC {
            let head = [vec![0; *at], magic.to_vec(), vec![1; 8]].concat();
            let remedy = foreign("f", &head).map(|foreign| foreign.remedy).unwrap();
            assert!(remedy.ends_with('.') && !remedy.contains("FILE"), "{remedy}");
        }
    }
}
