//! What people brought, after public reports: each file of `cases/` is read right, or
//! refused with its cause, its line and a remedy. None is wrong in silence.

use std::path::{Path, PathBuf};

use finetuned_data::{ChatTokenizer, DataError, DataKind, DataOptions, Document, Prepared, TooLong, prepare, what_is};
use finetuned_formats::TokenizerSource;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn case(file: &str) -> PathBuf {
    root().join("cases").join(file)
}

/// The golden tokenizer of bytes with the template of a model.
fn source(template: &str) -> TokenizerSource {
    let golden = root().join("golden");
    let (bos, eos) = match template {
        "smollm2" => (Some("<|im_start|>"), "<|im_end|>"),
        "gemma3" => (Some("<bos>"), "<eos>"),
        _ => (None, "<|im_end|>"),
    };
    TokenizerSource {
        json: std::fs::read_to_string(golden.join("bytes.json")).unwrap(),
        chat_template: Some(std::fs::read_to_string(golden.join(format!("templates/{template}.jinja"))).unwrap()),
        bos_token: bos.map(str::to_owned),
        eos_token: Some(eos.to_owned()),
        pad_token: None,
        unk_token: None,
        add_bos: false,
        add_eos: false,
        eos_ids: Vec::new(),
        extra_files: Vec::new(),
    }
}

fn tokenizer(template: &str) -> ChatTokenizer {
    ChatTokenizer::new(&source(template)).unwrap()
}

fn options() -> DataOptions {
    DataOptions { sequence_length: 4096, ..DataOptions::default() }
}

fn read(file: &str, template: &str) -> Result<Prepared, DataError> {
    prepare(&case(file), None, &tokenizer(template), &options())
}

fn good(file: &str, template: &str) -> Prepared {
    read(file, template).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Reads bytes as a file of this name.
fn read_bytes(name: &str, bytes: impl AsRef<[u8]>) -> Result<Prepared, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    prepare(&path, None, &tokenizer("smollm2"), &options())
}

fn read_rows(rows: &[Value]) -> Prepared {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    read_bytes("rows.jsonl", lines).unwrap_or_else(|error| panic!("{rows:?}: {error}"))
}

fn documents(prepared: &Prepared) -> Vec<&Document> {
    prepared.train.list.iter().flat_map(|example| &example.documents).collect()
}

fn text(template: &str, document: &Document) -> String {
    tokenizer(template).decode(&document.tokens, false).unwrap()
}

/// The text of each run of trained tokens.
fn runs(template: &str, document: &Document) -> Vec<String> {
    let tokenizer = tokenizer(template);
    let mut runs = vec![Vec::new()];
    for (index, &id) in document.tokens.iter().enumerate() {
        match (document.trained[index], runs.last_mut()) {
            (true, Some(run)) => run.push(id),
            (false, Some(run)) if !run.is_empty() => runs.push(Vec::new()),
            _ => {}
        }
    }
    runs.iter().filter(|run| !run.is_empty()).map(|run| tokenizer.decode(run, false).unwrap()).collect()
}

fn reasons(prepared: &Prepared) -> Vec<(usize, &str)> {
    prepared.report.bad_rows.iter().map(|bad| (bad.line, bad.reason.as_str())).collect()
}

#[track_caller]
fn assert_notes(prepared: &Prepared, part: &str) {
    let notes = &prepared.report.warnings;
    assert!(notes.iter().any(|note| note.contains(part)), "no {part:?} in {notes:?}");
}

#[track_caller]
fn assert_refused(result: Result<Prepared, DataError>, part: &str) {
    let error = result.map(|prepared| prepared.report).unwrap_err().to_string();
    assert!(error.contains(part), "no {part:?} in {error}");
    // "problem. Remedy."
    assert!(error.ends_with('.') && error.matches(". ").count() >= 1, "no remedy in {error}");
}

/// What transformers renders, and what is trained of it: each answer from behind its
/// header through its end token.
#[track_caller]
fn assert_as_transformers(file: &str, template: &str, note: &str) -> Prepared {
    let (header, end) = match template {
        "gemma3" => ("<start_of_turn>model\n", "<end_of_turn>"),
        _ => ("<|im_start|>assistant\n", "<|im_end|>"),
    };
    let folder = case(file).parent().unwrap().to_owned();
    let oracle: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("oracle.json")).unwrap()).unwrap();
    let model = if template == "smollm2" { "smol" } else { &template.trim_end_matches(char::is_numeric).to_owned() };
    let entry = oracle
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["model"] == model && entry["note"].as_str().unwrap().contains(note))
        .unwrap();
    let prepared = good(file, template);
    assert_eq!(prepared.report.used as u64, entry["rows"].as_u64().unwrap(), "{file}");
    let texts = entry["texts"].as_array().unwrap();
    for (document, expected) in documents(&prepared).iter().zip(texts) {
        let expected = expected.as_str().unwrap();
        assert_eq!(text(template, document), expected, "{file}");
        let answers: Vec<String> = expected
            .split(header)
            .skip(1)
            .map(|answer| format!("{}{end}", answer.split(end).next().unwrap_or_default()))
            .collect();
        assert_eq!(runs(template, document), answers, "{file}");
    }
    prepared
}

#[test]
fn a_passage_stands_in_the_prompt() {
    let prepared = assert_as_transformers("01-instruction-context/rows.jsonl", "smollm2", "context as input");
    assert!(prepared.report.unused_keys.is_empty(), "{:?}", prepared.report.unused_keys);
}

#[test]
fn calls_that_the_template_does_not_write_are_refused() {
    assert_refused(
        read("04-tool-calls-unrendered/rows.jsonl", "smollm2"),
        "line 1: the chat template does not write the tool call of message 2 (assistant)",
    );
    let with = good("04-tool-calls-unrendered/rows.jsonl", "qwen3");
    assert_eq!(with.report.used, 2);
    assert!(runs("qwen3", documents(&with)[1])[0].contains("\"arguments\": {\"town\": \"Oslo\"}"));
}

#[test]
fn several_lists_in_one_object_are_refused_by_their_names() {
    assert_refused(
        read("06-splits-in-one-json/tea.json", "smollm2"),
        "the file holds 3 lists of rows: `train`, `validation`, `test`",
    );
    assert_refused(
        read("06-splits-in-one-json/dev-first.json", "smollm2"),
        "the file holds 2 lists of rows: `test`, `train`",
    );
}

#[test]
fn a_list_of_messages_is_a_conversation_on_each_line() {
    let prepared = good("08-lists-as-lines/chats.jsonl", "smollm2");
    assert_eq!((prepared.report.rows, prepared.report.used), (3, 3));
    assert_as_transformers("08-lists-as-lines/chats.jsonl", "smollm2", "");
}

#[test]
fn a_rendered_text_has_no_second_end_token() {
    for template in ["smollm2", "qwen3"] {
        let prepared = good("09-rendered-text-eos/rows.jsonl", template);
        for document in documents(&prepared) {
            let text = text(template, document);
            assert_eq!(text.matches("<|im_end|>").count(), 3, "{text}");
            let plain = tokenizer(template).encode(&text, false).unwrap();
            assert_eq!(document.tokens, plain, "nothing is added");
        }
        assert_eq!(prepared.report.without_end_of_turn, 0);
    }
}

#[test]
fn empty_cells_of_pandas_are_empty() {
    let prepared = good("11-nan-cell/rows.jsonl", "smollm2");
    assert_eq!((prepared.report.used, prepared.report.bad_row_count), (3, 0));
    let texts: Vec<String> = documents(&prepared).iter().map(|document| text("smollm2", document)).collect();
    assert!(texts[0].contains("user\nSay hello.<|im_end|>"), "{}", texts[0]);
    assert!(texts[1].contains("user\nTranslate.\n\ngato<|im_end|>"), "{}", texts[1]);
}

#[test]
fn a_verdict_beside_rows_to_imitate_is_refused() {
    assert_refused(read("12-text-and-label/rows.jsonl", "smollm2"), "line 1: `label` judges the row");
    assert_refused(read("37-label-on-messages/rating.jsonl", "smollm2"), "line 1: `rating` judges the row");
}

#[test]
fn files_of_other_kinds_are_read_or_named() {
    for (file, expected) in [
        ("columns.json", "the file holds columns, each a list"),
        ("cut.jsonl.gz", "the compressed file ends too early"),
        ("file.arrow", "this is an Arrow file"),
        ("gb18030.jsonl", "line 1: not UTF-8"),
        ("hub-viewer.json", "an answer of the hub's dataset viewer"),
        ("huggingface-lfs-pointer.jsonl", "this is a Git LFS pointer"),
        ("keyed.json", "each row is the value of a key"),
        ("page.jsonl", "this is a web page (HTML)"),
        ("pandas-default.json", "each row's value under its number"),
        ("python-repr.jsonl", "rows as Python prints them"),
        ("rows.feather", "this is an Arrow file"),
        ("rows.jsonl.bz2", "this is a bzip2 file"),
        ("rows.jsonl.xz", "this is an xz file"),
        ("rows.jsonl.zst", "this is a zstd file"),
        ("rows.parquet", "this is a Parquet file"),
        ("rows.tar.gz", "this is a tar archive"),
        ("rows.zip", "this is a zip archive"),
        ("save_to_disk.arrow", "this is an Arrow file"),
        ("tail-garbage.jsonl.gz", "the compressed file is damaged"),
        ("twice.jsonl.gz", "a gzip file inside a gzip file"),
        ("utf16-bom.jsonl", "this is text in UTF-16"),
        ("utf16-nobom.jsonl", "this is text in UTF-16"),
        ("utf32.jsonl", "this is text in UTF-32"),
    ] {
        assert_refused(read(&format!("13-other-containers/{file}"), "smollm2"), expected);
    }
    for file in ["braces.csv", "plain.csv", "quoted.csv", "semicolon.csv"] {
        assert_refused(read(&format!("14-quoted-csv/{file}"), "smollm2"), "this is a CSV table");
    }
    assert_refused(read("14-quoted-csv/tabs.tsv", "smollm2"), "this is a table of columns between tabs");
    for file in [
        "comma-lines.jsonl",
        "cr-only.jsonl",
        "glued.jsonl",
        "members.jsonl.gz",
        "no-comma-array.json",
        "pretty-stream.json",
        "rows.jsonl.gz",
    ] {
        let prepared = good(&format!("13-other-containers/{file}"), "smollm2");
        assert_eq!((prepared.report.rows, prepared.report.used), (5, 5), "{file}");
        let last = documents(&prepared)[4];
        assert_eq!(runs("smollm2", last), ["Answer 4.<|im_end|>"], "{file}");
    }
}

#[test]
fn what_an_inbox_would_pass_over_is_named() {
    for (file, expected) in [
        ("13-other-containers/rows.parquet", "a Parquet file"),
        ("13-other-containers/rows.jsonl.xz", "an xz file"),
        ("13-other-containers/rows.tar.gz", "a tar archive"),
        ("14-quoted-csv/quoted.csv", "a CSV table"),
    ] {
        let mut open = std::fs::File::open(case(file)).unwrap();
        let found = what_is(file.rsplit('/').next().unwrap(), &mut open).unwrap().unwrap();
        assert_eq!((found.is, found.is_text), (expected, false), "{file}");
        assert!(found.remedy.ends_with('.'), "{}", found.remedy);
    }
    let mut rows = std::fs::File::open(case("13-other-containers/rows.jsonl.gz")).unwrap();
    assert_eq!(what_is("rows.jsonl.gz", &mut rows).unwrap(), None);
}

#[test]
fn rows_that_json_lets_pass_are_told() {
    let twice = good("13-other-containers/dup-keys.jsonl", "smollm2");
    let expected = [
        (1, "not JSON: the key `completion` stands twice in one object at column 59"),
        (2, "not JSON: the key `messages` stands twice in one object at column 93"),
    ];
    assert_eq!(reasons(&twice), expected);
    let empty = good("13-other-containers/empty-rows.jsonl", "smollm2");
    assert_eq!(empty.report.row_counts().to_string(), "8 rows: 2 used, 6 left out (6 bad)");
    let latin = good("13-other-containers/latin1.jsonl", "smollm2");
    assert_eq!(reasons(&latin), [(1, "not UTF-8: byte 0xe9 at column 15; save the file as UTF-8")]);
    let row = r#"{"prompt": "a", "completion": "b"}"#;
    let nul = read_bytes("rows.jsonl", format!("{row}\n{row}\n{}", "\0".repeat(4096))).unwrap();
    assert_eq!(nul.report.used, 2);
    assert!(reasons(&nul)[0].1.contains("a run of NUL bytes"), "{nul:?}");
    let deep = format!(
        "{{\"prompt\": \"a\", \"completion\": \"b\", \"meta\": {}{}}}\n{row}",
        "[".repeat(3000),
        "]".repeat(3000)
    );
    assert!(reasons(&read_bytes("rows.jsonl", deep).unwrap())[0].1.contains("recursion limit"));
    let tar = [b"rows.jsonl".to_vec(), vec![0; 247], b"ustar\x0000".to_vec(), vec![0; 248], row.into()].concat();
    assert_refused(read_bytes("rows.jsonl", tar), "this is a tar archive");
    assert_refused(read_bytes("rows.jsonl", "SQLite format 3\0\x10\0"), "this is a SQLite database");
}

#[test]
fn a_file_of_two_formats_does_not_look_like_a_good_one() {
    let first: String =
        (0..70).map(|row| format!("{{\"prompt\": \"p{row}\", \"completion\": \"c{row}\"}}\n")).collect();
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let mixed = format!("{first}{}", format!("{chat}\n").repeat(500));
    assert_refused(
        read_bytes("rows.jsonl", mixed),
        "70 prompt/completion (the first on line 1), 500 chat messages (the first on line 71)",
    );
}

#[test]
fn a_list_or_an_object_is_read_to_its_end() {
    let row = r#"{"prompt": "a", "completion": "b"}"#;
    let joined = read_bytes("rows.json", format!("[{row}, {row}]\n[{row}]\n")).unwrap();
    assert_eq!(joined.report.used, 3, "lists joined by cat");
    assert_refused(read_bytes("rows.json", format!("[{row}] trailing")), "something else follows on line 1");
    assert_refused(
        read_bytes("rows.json", format!("{{\"data\":\n[{row}]}}\n</html>")),
        "something else follows on line 3",
    );
    let inside = read_bytes("rows.json", format!("{{\"version\": 1, \"data\": [{row}], \"notes\": [\"x\"]}}")).unwrap();
    assert_eq!(inside.report.used, 1);
}

#[test]
fn role_names_are_read_whatever_their_case() {
    let chat = good("15-role-names/chat.jsonl", "smollm2");
    assert_eq!(chat.report.used, 3);
    assert!(text("smollm2", documents(&chat)[2]).contains("<|im_start|>user\nHi<|im_end|>"));
    let pairs = good("15-role-names/pairs.jsonl", "smollm2");
    assert_eq!((pairs.train.kind, pairs.report.used), (DataKind::Pairs, 1));
}

#[test]
fn a_byte_order_mark_changes_no_token() {
    assert_as_transformers("16-bom-varying-keys/bom.jsonl", "qwen3", "bom");
    let [bom, plain] = ["bom", "plain"].map(|file| good(&format!("16-bom-varying-keys/{file}.jsonl"), "qwen3").train);
    assert_eq!(bom, plain);
    assert!(!text("qwen3", &bom.list[0].documents[0]).contains("null"));
}

#[test]
fn lines_end_at_newlines_alone() {
    assert_as_transformers("17-unicode-line-ends/rows.jsonl", "smollm2", "");
}

#[test]
fn thoughts_are_written_once_however_they_come() {
    assert_as_transformers("19-think-closed-only/rows.jsonl", "qwen3", "");
}

#[test]
fn thoughts_that_the_template_leaves_out_are_told() {
    let prepared = assert_as_transformers("20-think-in-history/rows.jsonl", "qwen3", "");
    assert_notes(&prepared, "leaves out the reasoning of earlier answers (in 2 rows)");
}

#[test]
fn tools_are_the_same_as_a_list_and_as_json() {
    let list = assert_as_transformers("21-tools-as-string/list.jsonl", "qwen3", "list");
    let string = good("21-tools-as-string/string.jsonl", "qwen3");
    assert_eq!(list.train, string.train);
    let bad = good("21-tools-as-string/bad.jsonl", "qwen3");
    let expected = [
        (1, "`tools` is a string that is no JSON list"),
        (
            2,
            "`messages`: message 2: call 1: its arguments are no JSON object (EOF while parsing a value at line 1 column 8)",
        ),
        (4, "`messages`: message 2: the assistant's text is empty"),
        (5, "`messages`: message 2: `tool_calls` is no list of calls, and no JSON of one"),
    ];
    assert_eq!(reasons(&bad), expected);
    let rows: Vec<String> = documents(&bad).iter().map(|document| runs("qwen3", document).concat()).collect();
    assert!(rows[0].contains("\"arguments\": {}}"), "{}", rows[0]);
    assert!(rows[1].contains("fine") && rows[1].contains("\"arguments\": {\"town\": \"Lund\"}}"), "{}", rows[1]);
}

#[test]
fn an_answer_that_is_no_text_is_refused_with_what_it_is() {
    let prepared = good("24-output-not-text/rows.json", "smollm2");
    let expected = [
        (2, "`output` is an object: expected a string; write it as a string of JSON"),
        (11, "`output` is a number: expected a string; write it in quotes"),
        (16, "`output` is true or false: expected a string; write it in quotes"),
        (21, "`output` is a list: expected a string; write it as a string of JSON"),
    ];
    assert_eq!(reasons(&prepared), expected);
    assert_eq!(prepared.report.used, 1);
}

#[test]
fn special_tokens_in_the_users_text_are_counted() {
    let prepared = good("25-special-tokens-in-user/rows.jsonl", "smollm2");
    assert_notes(
        &prepared,
        "3 rows hold special tokens of the model, written out in a text that is not the assistant's",
    );
    let trained: Vec<Vec<String>> = documents(&prepared).iter().map(|document| runs("smollm2", document)).collect();
    assert_eq!(trained[0], ["No.<|im_end|>"]);
    assert_eq!(trained[1], ["It ends a turn.<|im_end|>"]);
}

#[test]
fn the_tokens_of_a_long_document_are_counted_when_they_are_lost() {
    let long = "the lamp of the harbour burns ".repeat(2000);
    let rows = format!("{{\"text\": \"A short note.\"}}\n{{\"text\": \"{long}\"}}\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docs.jsonl");
    std::fs::write(&path, rows).unwrap();
    for too_long in [TooLong::Drop, TooLong::Truncate] {
        let options = DataOptions { sequence_length: 512, too_long, ..DataOptions::default() };
        let prepared = prepare(&path, None, &tokenizer("smollm2"), &options).unwrap();
        assert!(prepared.report.tokens_left_out > 10_000, "{too_long:?}");
        assert_notes(&prepared, "of the file's) are lost because rows are longer than the sequence length");
    }
}

#[test]
fn turns_in_any_order_are_read_or_refused_by_the_template() {
    let prepared = assert_as_transformers("28-turn-order/rows.jsonl", "smollm2", "");
    let answers: Vec<usize> = documents(&prepared).iter().map(|document| runs("smollm2", document).len()).collect();
    assert_eq!(answers, [1, 2, 3, 1, 1]);
    assert_notes(&prepared, "1 row has messages behind the last answer, which are left out");
    let gemma = good("28-turn-order/rows.jsonl", "gemma3");
    assert_eq!(reasons(&gemma).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(gemma.report.used, 1);
}

#[test]
fn a_list_of_two_answers_is_a_pair() {
    let prepared = good("29-output-list-pair/pairs.json", "smollm2");
    assert_eq!((prepared.train.kind, prepared.report.used), (DataKind::Pairs, 2));
    let sides = &prepared.train.list[0].documents;
    assert_eq!(runs("smollm2", &sides[0]), ["chosen answer<|im_end|>"]);
    assert_eq!(runs("smollm2", &sides[1]), ["rejected answer<|im_end|>"]);
    let text = text("smollm2", &sides[0]);
    assert!(text.contains("user\nHello<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"), "{text}");
}

#[test]
fn huge_rows_are_left_out_without_becoming_tokens() {
    let huge = "the lamp burns over the harbour. ".repeat(100_000);
    let rows = format!("{{\"text\": \"{huge}\"}}\n{{\"text\": \"short one\"}}\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.jsonl");
    std::fs::write(&path, rows).unwrap();
    let options = DataOptions { sequence_length: 1024, ..DataOptions::default() };
    let report = prepare(&path, None, &tokenizer("smollm2"), &options).unwrap().report;
    assert_eq!(report.row_counts().to_string(), "2 rows: 1 used, 1 left out (1 too long)");
    assert!(report.is_uncounted && report.tokens_left_out > 1024);
}

#[test]
fn a_prompt_inside_the_completions_stands_once() {
    let prepared = good("31-prompt-inside-chosen/pairs.jsonl", "smollm2");
    assert_eq!(prepared.report.used, 4);
    let prompts: Vec<String> = prepared
        .train
        .list
        .iter()
        .map(|example| tokenizer("smollm2").decode(example.documents[0].prompt(), false).unwrap())
        .collect();
    for (row, question) in [(0, "Two plus two?"), (1, "Three plus three?"), (3, "Four plus four?")] {
        assert_eq!(prompts[row].matches(question).count(), 1, "{}", prompts[row]);
    }
    assert!(prompts[3].starts_with("<|im_start|>system\nBe brief.<|im_end|>"), "{}", prompts[3]);
    assert_notes(&prepared, "1 row has a completion that begins with the prompt's text");
    let unused: Vec<&str> = prepared.report.unused_keys.keys().map(String::as_str).collect();
    assert_eq!(unused, ["score_chosen", "score_rejected"], "`messages` only repeats the chosen side");
}

#[test]
fn what_the_template_writes_before_an_answer_is_told() {
    let prepared = assert_as_transformers("32-empty-thought/rows.jsonl", "qwen3", "");
    assert_notes(&prepared, r#"writes "<think>\n\n</think>" before answers that do not have it (in 1 row)"#);
}

#[test]
fn every_row_is_in_one_count() {
    let smollm = tokenizer("smollm2");
    let weights = case("34-rows-left-out-untold/weights.jsonl");
    let validation = case("34-rows-left-out-untold/validation.jsonl");
    let report = prepare(&weights, Some(&validation), &smollm, &options()).unwrap().report;
    assert_eq!(report.row_counts().to_string(), "4 rows: 2 used, 2 left out (2 without a message to train on)");
    assert_eq!(report.validation_counts.unwrap().to_string(), "4 rows: 2 used, 2 left out (2 bad)");
    let cut = DataOptions { sequence_length: 64, too_long: TooLong::Truncate, ..DataOptions::default() };
    let report = prepare(&case("34-rows-left-out-untold/cut.jsonl"), None, &smollm, &cut).unwrap().report;
    let counts = report.row_counts();
    assert_eq!((counts.rows, counts.used + counts.left_out(), counts.cut_away), (4, 4, 2));
}

#[test]
fn a_token_without_an_embedding_is_named() {
    let mut source = source("smollm2");
    let mut json: Value = serde_json::from_str(&source.json).unwrap();
    for (id, content) in [(471, "<note>"), (472, "</note>")] {
        json["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false
        }));
    }
    source.json = json.to_string();
    let options = DataOptions { vocab_size: Some(471), ..options() };
    let tokenizer = ChatTokenizer::new(&source).unwrap();
    let report = prepare(&case("35-added-tokens/rows.jsonl"), None, &tokenizer, &options).unwrap().report;
    let bad = &report.bad_rows[0];
    assert!(bad.line == 1 && bad.reason.starts_with("the token \"</note>\" has the id 472"), "{}", bad.reason);
    assert!(bad.reason.contains("471 rows"), "{}", bad.reason);
    assert_eq!(report.used, 1);
}

#[test]
fn a_label_on_a_conversation_judges_its_last_answer() {
    let prepared = good("37-label-on-messages/rows.jsonl", "smollm2");
    assert_eq!((prepared.train.kind, prepared.report.used), (DataKind::Labelled, 6));
    assert!(documents(&prepared).iter().all(|document| document.label == Some(false)));
}

/// What other trainers' rows carry: every key reaches the model, or is named.
mod keys_of_other_trainers {
    use serde_json::json;

    use super::*;

    fn only(row: Value) -> (Prepared, String) {
        let prepared = read_rows(std::slice::from_ref(&row));
        assert!(prepared.report.unused_keys.is_empty(), "{row}: {:?}", prepared.report.unused_keys);
        let text = text("smollm2", documents(&prepared)[0]);
        (prepared, text)
    }

    #[test]
    fn what_belongs_into_the_prompt_stands_in_it() {
        let asked =
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ\n\nC<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n";
        for row in [
            json!({"system": "S", "instruction": "Q", "input": "C", "output": "A", "id": 7, "source": "x"}),
            json!({"system_prompt": "S", "question": "Q", "context": "C", "response": "A", "split": "train"}),
            json!({"system_prompt": "S", "question": "Q", "context": "C", "answer": "A"}),
            json!({"system": "S", "prompt": "Q", "context": "C", "completion": "A"}),
            json!({"system": "S", "query": "Q", "knowledge": "C", "response": "A", "chosen": null, "history": []}),
            json!({"system": "S", "instruction": "Q", "passage": "C", "response": "A", "label": null, "images": []}),
        ] {
            assert_eq!(only(row.clone()).1, asked, "{row}");
        }
        let (_, text) = only(json!({"instruction": "Q", "output": "A", "history": [["q", "a"]]}));
        assert!(
            text.contains("user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nQ<|im_end|>"),
            "{text}"
        );
        let (_, text) = only(json!({"input": "Q", "output": "A"}));
        assert!(text.contains("user\nQ<|im_end|>"), "{text}");
    }

    #[test]
    fn pairs_and_labels_keep_their_passage_and_system() {
        let prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ\n\nC<|im_end|>\n<|im_start|>assistant\n";
        let user = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\nC"}]);
        let from = json!([{"from": "system", "value": "S"}, {"from": "human", "value": "Q\n\nC"}]);
        for row in [
            json!({"system": "S", "instruction": "Q", "input": "C", "chosen": "A", "rejected": "B"}),
            json!({"system": "S", "question": "Q", "context": "C", "chosen": "A", "rejected": "B"}),
            json!({"conversations": from, "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}),
            json!({"messages": user, "chosen": {"role": "assistant", "content": "A"}, "rejected": {"role": "assistant", "content": "B"}}),
            json!({"input": {"messages": user}, "preferred_output": [{"role": "assistant", "content": "A"}],
                   "non_preferred_output": [{"role": "assistant", "content": "B"}]}),
            json!({"system": "S", "instruction": "Q", "input": "C", "output": "A", "kto_tag": true}),
            json!({"conversations": [from[0], from[1], {"from": "gpt", "value": "A"}], "kto_tag": false}),
        ] {
            let (prepared, _) = only(row.clone());
            let document = documents(&prepared)[0];
            assert_eq!(tokenizer("smollm2").decode(document.prompt(), false).unwrap(), prompt, "{row}");
            assert_eq!(runs("smollm2", document), ["A<|im_end|>"], "{row}");
        }
    }

    #[test]
    fn what_nothing_reads_is_named_with_its_rows() {
        let rows = [
            json!({"prompt": "a", "completion": "b", "title": "T", "score": 3, "lang": "en"}),
            json!({"prompt": "c", "completion": "d", "title": "", "score": 4}),
            json!({"prompt": "e", "completion": "f"}),
        ];
        let unused = read_rows(&rows).report.unused_keys;
        assert_eq!(unused, [("score".to_owned(), 2), ("title".to_owned(), 1)].into());
        let chat = json!({"prompt": "q", "messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "citations": ["x"], "name": "n"}
        ]});
        let unused = read_rows(&[chat]).report.unused_keys;
        assert_eq!(unused, [("messages[].citations".to_owned(), 1)].into(), "the prompt repeats the question");
    }

    #[test]
    fn keys_that_contradict_the_format_refuse() {
        let chat = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        let good = json!({"prompt": "a", "completion": "b"});
        for (row, expected) in [
            (json!({"prompt": "a", "completion": "b", "reward": 0.1}), "`reward` judges the row"),
            (json!({"messages": chat, "rating": 2}), "`rating` judges the row"),
            (json!({"prompt": "a", "completion": "b", "weight": 0}), "`weight` says what of the row is learned"),
            (json!({"prompt": "a", "completion": "b", "images": ["x.png"]}), "`images` is not text"),
            (json!({"text": "hello", "role": "prompter", "parent_id": "x"}), "`parent_id` beside `text`"),
            (
                json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b", "context": "c"}),
                "`context` has no place",
            ),
            (
                json!({"prompt": "x", "chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "c"}]}),
                "`prompt` is not the question",
            ),
            (json!({"prompt": "a", "completion": "b", "label": "spam"}), "`label` is \"spam\": expected true or false"),
        ] {
            let lines = format!("{row}\n{row}\n{good}\n");
            let error = match read_bytes("rows.jsonl", &lines) {
                Ok(prepared) => prepared.report.bad_rows.first().map(|bad| bad.reason.clone()).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(expected), "{row}: {error}");
        }
    }

    #[test]
    fn calls_of_every_form_are_one_call() {
        let modern = json!({"messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"town": "Lund"}}}]},
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ]});
        let legacy = json!({"messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"town\": \"Lund\"}"}},
            {"role": "function", "name": "f", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ]});
        let sharegpt = json!({"conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"town\": \"Lund\"}}"},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Rain."},
        ]});
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let tokens = |row: &Value| {
            std::fs::write(&path, row.to_string()).unwrap();
            let prepared = prepare(&path, None, &tokenizer("qwen3"), &options()).unwrap();
            prepared.train.list[0].documents[0].tokens.clone()
        };
        let expected = tokens(&modern);
        assert_eq!(tokens(&legacy), expected);
        assert_eq!(tokens(&sharegpt), expected);
    }

    #[test]
    fn reasoning_that_the_template_does_not_write_is_told() {
        let row = json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "because"}
        ]});
        assert_notes(&read_rows(&[row]), "does not write `reasoning_content` (in 1 row)");
    }

    #[test]
    fn masks_of_tokenised_rows_are_read() {
        let row = json!({"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0]});
        assert_eq!(read_rows(&[row]).train.list[0].documents[0].trained, [false, false, true, false]);
    }
}
