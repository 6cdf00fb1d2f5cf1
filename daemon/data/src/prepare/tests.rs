use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::*;
use crate::BadRowKind;
use crate::example::{DataKind, Document};
use crate::options::{TooLong, TrainOn};
use crate::testing::tokenizer;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn lines(rows: &[Json]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn chatml() -> ChatTokenizer {
    tokenizer("bytes", Some("smollm2"))
}

fn run(content: impl AsRef<[u8]>, options: &DataOptions) -> Result<Prepared> {
    run_named("rows.jsonl", content, options)
}

fn run_named(name: &str, content: impl AsRef<[u8]>, options: &DataOptions) -> Result<Prepared> {
    let folder = Folder::new();
    let path = folder.write(name, content);
    prepare(&path, None, &chatml(), options)
}

fn good(content: impl AsRef<[u8]>) -> Prepared {
    run(content, &DataOptions::default()).unwrap()
}

fn reasons(prepared: &Prepared) -> Vec<(usize, String)> {
    prepared.report.bad_rows.iter().map(|bad| (bad.line, bad.reason.clone())).collect()
}

/// The targets' text of every row.
fn answers(prepared: &Prepared) -> Vec<String> {
    let tokenizer = chatml();
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    let answer = |document: &Document| {
        let trained = (0..document.len()).filter(|&index| document.is_trained(index));
        let ids: Vec<u32> = trained.map(|index| document.tokens[index]).collect();
        text(&ids) + &document.label.map(|label| label.to_string()).unwrap_or_default()
    };
    prepared.train.list.iter().map(|example| example.documents.iter().map(answer).collect()).collect()
}

fn chat(user: &str, assistant: &str) -> Json {
    json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]})
}

#[test]
fn every_format_is_recognised_and_says_the_same() {
    let same = "b<|im_end|>";
    let pair = "b<|im_end|>c<|im_end|>";
    let messages = |text: &str| json!([{"role": "assistant", "content": text}]);
    let both = |text: &str| json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]);
    for (name, row, expected) in [
        ("chat messages", chat("a", "b"), same),
        (
            "ShareGPT conversations",
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            same,
        ),
        ("instruction/output", json!({"instruction": "a", "input": "", "output": "b"}), same),
        ("instruction/output", json!({"instruction": "a", "response": "b"}), same),
        ("prompt/completion", json!({"prompt": "a", "completion": "b"}), same),
        ("prompt/completion", json!({"prompt": [{"role": "user", "content": "a"}], "completion": messages("b")}), same),
        ("question/answer", json!({"question": "a", "answer": "b"}), same),
        ("preference pairs", json!({"prompt": "a", "chosen": "b", "rejected": "c"}), pair),
        (
            "preference pairs",
            json!({"prompt": [{"role": "user", "content": "a"}], "chosen": messages("b"), "rejected": messages("c")}),
            pair,
        ),
        ("preference pairs", json!({"prompt": "a", "chosen": both("b"), "rejected": both("c")}), pair),
        (
            "preference pairs",
            json!({"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"}),
            " b<|im_end|> c<|im_end|>",
        ),
        ("preference pairs with the prompt inside", json!({"chosen": both("b"), "rejected": both("c")}), pair),
        (
            "preference pairs with the prompt inside",
            json!({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
            pair,
        ),
        ("labelled completions", json!({"prompt": "a", "completion": "b", "label": true}), "b<|im_end|>true"),
        ("labelled completions", json!({"prompt": "a", "completion": messages("b"), "label": 0}), "b<|im_end|>false"),
    ] {
        let prepared = good(lines(std::slice::from_ref(&row)));
        assert_eq!(prepared.report.format, name, "{row}");
        assert_eq!(answers(&prepared), [expected], "{row}");
        assert_eq!(prepared.report.without_end_of_turn, 0, "{row}");
        let prompt = chatml().encode_chat_prompt(&[crate::Message::user("a")]).unwrap();
        for document in &prepared.train.list[0].documents {
            assert_eq!(document.prompt(), prompt, "{row}");
        }
    }
    let text = good(lines(&[json!({"text": "ab"})]));
    assert_eq!((text.report.format.as_str(), answers(&text)), ("text", vec!["b<|im_end|>".to_owned()]));
}

#[test]
fn token_rows_are_taken_as_they_are() {
    let row = json!({"input_ids": [5, 6, 7, 2, 2], "labels": [5, -100, 7, 2, -100], "attention_mask": [1, 1, 1, 1, 0]});
    let document = &good(lines(&[row])).train.list[0].documents[0];
    assert_eq!(document.tokens, [5, 6, 7, 2]);
    // The first label has nothing it could be predicted from.
    assert_eq!(document.trained, [false, false, true, true]);
    let pairs = good(lines(&[json!({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]})]));
    assert_eq!(pairs.train.kind, DataKind::Pairs);
    assert_eq!(pairs.train.list, [Example::pair(&[1, 2], &[3], &[4, 5], 1)]);
    let labelled =
        good(lines(&[json!({"prompt_ids": [1, 2], "completion_ids": [3], "label": false, "KL_completion_ids": [9]})]));
    assert_eq!(labelled.train.kind, DataKind::Labelled);
    assert_eq!(labelled.train.list, [Example::labelled(&[1, 2], &[3], false, Some(&[9]), 1)]);
}

#[test]
fn token_rows_may_weigh_their_tokens() {
    let rows = [
        json!({"input_ids": [5, 6, 7, 8], "weights": [1, 0.5, 0, 2], "attention_mask": [1, 1, 1, 1]}),
        json!({"input_ids": [5, 6, 7, 8], "weights": [1, 1, 0, 1]}),
        json!({"input_ids": [5, 6], "weights": [1]}),
        json!({"input_ids": [5, 6], "weights": [1, -1]}),
        json!({"input_ids": [5, 6], "weights": [1, 0]}),
    ];
    let prepared = good(lines(&rows));
    let documents: Vec<&Document> = prepared.train.list.iter().map(|example| &example.documents[0]).collect();
    assert_eq!(documents[0].trained, [false, true, false, true]);
    assert_eq!(documents[0].weights, Some(vec![1.0, 0.5, 0.0, 2.0]));
    assert_eq!((documents[1].trained.as_slice(), &documents[1].weights), (&[false, true, false, true][..], &None));
    assert_eq!(
        reasons(&prepared),
        [
            (3, "`weights` has 1 entries, `input_ids` has 2".to_owned()),
            (4, "`weights` is -1: expected a number of 0 or more".into()),
            (5, "no token has a weight above 0: there is nothing to learn".into()),
        ]
    );
}

#[test]
fn bad_token_rows_say_where() {
    let rows = [
        json!({"input_ids": [1, 2, 3]}),
        json!({"input_ids": [1, 2, 3], "labels": [1, 2]}),
        json!({"input_ids": [1, 2, 3], "labels": [2, 3, -100]}),
        json!({"input_ids": [1, -2, 3]}),
        json!({"input_ids": [1, 2], "labels": [1, -100]}),
        json!({"input_ids": [7]}),
        json!({"input_ids": [1, 70000]}),
    ];
    let options = DataOptions { vocab_size: Some(60000), ..DataOptions::default() };
    let prepared = run(lines(&rows), &options).unwrap();
    assert_eq!(
        reasons(&prepared),
        [
            (2, "`labels` has 2 entries, `input_ids` has 3".to_owned()),
            (3, "`labels`[0] is 2 where `input_ids` has 1: a label is the token at its own place, or -100".into()),
            (4, "`input_ids`[1] is -2: expected a token id".into()),
            (5, "every label is -100: there is nothing to learn".into()),
            (6, "the row has fewer than two tokens: nothing can be predicted".into()),
            (
                7,
                "the token \"<70000>\" has the id 70000, and the model's embedding has 60000 rows: use the tokenizer \
                 that belongs to the model, or a model whose embedding was enlarged with it"
                    .into()
            ),
        ]
    );
}

#[test]
fn bad_rows_are_named_by_line_and_reason_and_the_others_go_on() {
    let mut content: Vec<u8> = Vec::new();
    content.extend(lines(&[chat("a", "b")]).bytes());
    content.extend(b"\n");
    content.extend(b"{\"messages\": [{\"role\": \"user\" \"content\": 1}]}\n");
    content.extend(b"{\"messages\": \"caf\xff\"}\n");
    content.extend(
        lines(&[
            json!({"mesages": []}),
            json!({"messages": "x"}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}),
            chat("a", "  "),
            json!({"messages": [{"role": "user", "content": "a"}]}),
            json!({"text": "abc"}),
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "b"}]}),
            json!({"messages": [{"role": "user", "contents": "a"}]}),
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": -0.5}]}),
        ])
        .bytes(),
    );
    content.extend(b"[1, 2]\n");
    content.extend(lines(&[chat("c", "d")]).bytes());
    content.extend(b"{\"messages\": [{\"role\": \"us");
    let prepared = good(content);
    assert_eq!(prepared.report.used, 2);
    assert_eq!(prepared.report.rows, 15);
    assert_eq!(prepared.report.bad_row_count, 13);
    let expected = [
        (3, "not JSON: expected `,` or `}` at column 31"),
        (4, "not UTF-8: byte 0xff at column 18; save the file as UTF-8"),
        (5, "the row has the keys `mesages`: `messages` is missing; did you mean `messages` instead of `mesages`?"),
        (6, "`messages` is a string: expected a list"),
        (7, "`messages`: message 2: unknown role `asistant`: did you mean `assistant`?"),
        (8, "`messages`: message 2: the assistant's text is empty"),
        (9, "`messages` has no message of the assistant: there is nothing to learn"),
        (10, "the row is text, the file is chat messages: `messages` is missing"),
        (11, "`messages`: message 1: `content` has a part of type `image_url`: only text can be trained on"),
        (12, "`messages`: message 1: no `content`; did you mean it by `contents`?"),
        (13, "`messages`: message 2: `weight` is -0.5: expected a number of 0 or more"),
        (14, "expected a JSON object, got a list"),
        (16, "the line is cut off: the file looks incomplete"),
    ];
    let kinds = &prepared.report.bad_row_kinds;
    let counted = [BadRowKind::Unreadable, BadRowKind::Format, BadRowKind::Value, BadRowKind::NothingToLearn]
        .map(|kind| kinds.get(&kind).copied().unwrap_or_default());
    assert_eq!((counted, kinds.len()), ([4, 2, 6, 1], 4), "{kinds:?}");
    let expected: Vec<(usize, String)> = expected.iter().map(|(line, reason)| (*line, (*reason).to_owned())).collect();
    assert_eq!(reasons(&prepared), expected);
}

#[test]
fn only_the_first_hundred_bad_rows_are_listed() {
    let prepared = good("{}\n".repeat(300) + &lines(&[chat("a", "b")]));
    assert_eq!((prepared.report.bad_rows.len(), prepared.report.bad_row_count), (100, 300));
    assert_eq!(prepared.report.used, 1);
}

#[test]
fn json_is_read_in_every_shape() {
    let rows = vec![chat("a", "b"), chat("c", "d")];
    let expected = ["b<|im_end|>", "d<|im_end|>"];
    let gzip = |text: &str| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap()
    };
    let plain = lines(&rows);
    let array = format!("{:#}", Json::from(rows.clone()));
    let inside = format!("{:#}", json!({"version": "1", "tags": ["x"], "meta": {"n": [1]}, "data": rows}));
    let inside_line = json!({"version": "1", "data": rows}).to_string();
    for (name, content) in [
        ("rows.jsonl", plain.clone().into_bytes()),
        ("rows.json", plain.clone().into_bytes()),
        ("rows.jsonl", format!("\u{feff}{plain}").into_bytes()),
        ("rows.jsonl", plain.replace('\n', "\r\n\r\n").into_bytes()),
        ("rows.jsonl", plain.trim_end().as_bytes().to_vec()),
        ("rows.jsonl.gz", gzip(&plain)),
        ("misnamed.jsonl", gzip(&plain)),
        ("two-members.jsonl.gz", [gzip(&lines(&rows[..1])), gzip(&lines(&rows[1..]))].concat()),
        ("rows.json", array.clone().into_bytes()),
        ("rows.jsonl", array.clone().into_bytes()),
        ("rows.json.gz", gzip(&array)),
        ("rows.json", inside.into_bytes()),
        ("rows.json", inside_line.into_bytes()),
    ] {
        let prepared = run_named(name, &content, &DataOptions::default()).unwrap();
        assert_eq!(answers(&prepared), expected, "{name}: {}", String::from_utf8_lossy(&content));
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&content);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(prepared.report.sha256, hex, "{name}");
    }
    // One row alone, spread over lines, whose own list is no list of rows.
    let alone = format!("{:#}", chat("a", "b"));
    assert_eq!(answers(&run_named("row.json", alone, &DataOptions::default()).unwrap()), ["b<|im_end|>"]);
}

#[test]
fn elements_of_an_array_keep_their_lines() {
    let content =
        format!("[\n{},\n\n{{\"messages\":\n 7}},\n{{\"messages\": tru}},\n{}", chat("a", "b"), chat("c", "d"));
    let prepared = run_named("rows.json", content, &DataOptions::default()).unwrap();
    assert_eq!(
        reasons(&prepared),
        [
            (4, "`messages` is a number: expected a list".to_owned()),
            (6, "not JSON: expected ident at column 17".into()),
            (7, "the file ends inside the list: it looks incomplete".into()),
        ]
    );
    // The last row is whole.
    assert_eq!(prepared.report.used, 2);
}

#[test]
fn files_that_are_no_datasets_are_refused_with_a_remedy() {
    for (content, expected) in [
        (&b""[..], "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"PAR1....", "this is a Parquet file"),
        (b"\xff\xfe{\0", "this is text in UTF-16"),
        (b"a,b\n1,2\n", "this is a CSV table"),
        (b"[]", "the file has no rows"),
        (
            b"{\"prompt\": \"a\"}\n",
            "no row can be used; the first bad one is line 1: no known format has the keys `prompt`; there is a `prompt` but no answer to learn",
        ),
        (b"\x1f\x8b\x08\x00\x00\x00", "the compressed file ends too early"),
    ] {
        let error = run(content, &DataOptions::default()).unwrap_err();
        let DataError::File { problem, remedy, .. } = &error else { panic!("{error}") };
        assert_eq!(problem, expected);
        assert!(remedy.ends_with('.'), "{remedy}");
    }
    let missing = prepare(std::path::Path::new("no/such.jsonl"), None, &chatml(), &DataOptions::default());
    assert!(matches!(missing, Err(DataError::Read { .. })));
}

#[test]
fn long_rows_are_dropped_cut_or_refused_as_told() {
    let long = "tide ".repeat(300);
    let content = lines(&[chat("a", "b"), chat("a", &long), chat(&long, "b")]);
    let short = |too_long| DataOptions { sequence_length: 200, too_long, ..DataOptions::default() };

    let dropped = run(&content, &short(TooLong::Drop)).unwrap().report;
    assert_eq!((dropped.used, dropped.dropped_too_long, dropped.truncated), (1, 2, 0));
    assert!(dropped.longest > 300);

    let cut = run(&content, &short(TooLong::Truncate)).unwrap();
    let report = &cut.report;
    assert_eq!((report.used, report.truncated, report.dropped_cut_away), (2, 1, 1));
    assert_eq!(report.without_end_of_turn, 1);
    assert!(report.warnings.iter().any(|warning| warning.contains("end-of-turn")), "{:?}", report.warnings);
    let cut = &cut.train.list[1].documents[0];
    assert_eq!((cut.tokens.len(), cut.trained.len()), (200, 200));
    assert!(cut.trained.contains(&true));

    let refused = run(&content, &short(TooLong::Refuse)).unwrap_err();
    assert!(matches!(refused, DataError::TooLong { line: 2, limit: 200, .. }), "{refused}");
}

/// peers.md 7: a pair's sides are cut alike, and a pair that a cut makes
/// equal teaches nothing.
#[test]
fn pairs_are_cut_alike() {
    let rows = [
        json!({"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 7], "rejected_ids": [4, 8, 9]}),
        json!({"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 7], "rejected_ids": [4, 5, 9]}),
        json!({"prompt_ids": [1, 2, 3, 4, 5], "chosen_ids": [4], "rejected_ids": [5]}),
    ];
    let options = DataOptions { sequence_length: 5, too_long: TooLong::Truncate, ..DataOptions::default() };
    let prepared = run(lines(&rows), &options).unwrap();
    assert_eq!(prepared.train.list, [Example::pair(&[1, 2, 3], &[4, 5], &[4, 8], 1)]);
    assert_eq!((prepared.report.truncated, prepared.report.dropped_cut_away), (1, 2));
}

/// A document that only estimates a divergence is run as others are: it may
/// not be longer than the sequence length either.
#[test]
fn a_mismatched_completion_counts_in_a_rows_length() {
    let rows = [
        json!({"prompt_ids": [1, 2], "completion_ids": [3], "label": true, "KL_completion_ids": [4, 5]}),
        json!({"prompt_ids": [1, 2], "completion_ids": [3], "label": true, "KL_completion_ids": [4, 5, 6, 7]}),
    ];
    let run = |too_long| run(lines(&rows), &DataOptions { sequence_length: 4, too_long, ..DataOptions::default() });
    let dropped = run(TooLong::Drop).unwrap();
    assert_eq!((dropped.report.dropped_too_long, dropped.report.longest), (1, 6));
    let cut = run(TooLong::Truncate).unwrap();
    assert_eq!(cut.train.list[1], Example::labelled(&[1, 2], &[3], true, Some(&[4, 5]), 2));
    assert!(matches!(run(TooLong::Refuse), Err(DataError::TooLong { line: 2, tokens: 6, limit: 4, .. })));
    assert_eq!(cut.train.longest_document(), 4);
}

/// peers.md 3, and asks 12 and 13: nothing to train on is an error that names
/// what really happened.
#[test]
fn a_dataset_with_nothing_to_learn_is_refused_with_the_cause() {
    let long = "tide ".repeat(100);
    let problem = |content: String, options: DataOptions| {
        let error = run(content, &options).unwrap_err();
        let DataError::File { problem, remedy, .. } = error else { panic!("{error}") };
        (problem, remedy)
    };
    let limit = |too_long| DataOptions { sequence_length: 60, too_long, ..DataOptions::default() };
    let rows = lines(&[chat(&long, "b"), chat(&long, "c")]);

    let (text, remedy) = problem(rows.clone(), limit(TooLong::Drop));
    assert_eq!(text, "all 2 rows are longer than the sequence length of 60 tokens");
    assert!(remedy.starts_with("The shortest has "), "{remedy}");

    let (text, remedy) = problem(rows, limit(TooLong::Truncate));
    assert_eq!(text, "cut at the sequence length of 60 tokens, none of 2 rows keeps a trained token");
    assert!(remedy.starts_with("The earliest answer begins at token "), "{remedy}");

    let off =
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]});
    let (text, _) = problem(lines(&[off.clone(), off, json!({"messages": 1})]), DataOptions::default());
    assert_eq!(
        text,
        "none of 2 rows has a message to train on: `weight` or `train` turns each off (and 1 row otherwise unusable)"
    );

    let (text, _) = problem(lines(&[chat("a", "")]), DataOptions::default());
    assert_eq!(
        text,
        "no row can be used; the first bad one is line 1: `messages`: message 2: the assistant's text is empty"
    );
}

#[test]
fn columns_that_are_asked_for_and_the_reward_reach_every_document() {
    let pair = |other: Json| {
        let mut row = json!({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]});
        row.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        row
    };
    let rows = [
        pair(json!({"margin": 0.5, "judge": "2", "other": 9, "reward": 1.5})),
        pair(json!({"margin": 0.5})),
        pair(json!({"margin": "large", "judge": 1})),
        pair(json!({"margin": -3, "judge": true, "reward": "good"})),
    ];
    let columns = |names: &[&str]| DataOptions {
        columns: names.iter().map(|name| (*name).to_owned()).collect(),
        drop_duplicates: true,
        ..DataOptions::default()
    };
    let prepared = run(lines(&rows), &columns(&["margin", "judge"])).unwrap();
    assert_eq!(
        reasons(&prepared),
        [
            (2, "`judge` is missing: the loss asks for this column".to_owned()),
            (3, "`margin` is \"large\": expected a number".into()),
        ]
    );
    let [first, last] = prepared.train.list.as_slice() else { panic!("{prepared:?}") };
    for document in &first.documents {
        assert_eq!((document.columns.as_slice(), document.reward), (&[0.5, 2.0][..], Some(1.5)));
    }
    for document in &last.documents {
        assert_eq!((document.columns.as_slice(), document.reward), (&[-3.0, 1.0][..], None));
    }
    // Without columns the rows are the same, and none is bad.
    let bare = run(lines(&rows), &columns(&[])).unwrap();
    assert_eq!((bare.report.used, bare.report.duplicates, bare.report.bad_row_count), (1, 3, 0));
    assert!(bare.train.list[0].documents[0].columns.is_empty());
}

#[test]
fn a_column_that_no_row_has_is_an_error_with_the_nearest_name() {
    let rows = [json!({"text": "abc", "margin": 1}), json!({"text": "abd", "margn": 1})];
    for (asked, expected) in [("margins", "Did you mean `margin`?"), ("judge", "Give each row a number in `judge`.")] {
        let options = DataOptions { columns: vec![asked.to_owned()], ..DataOptions::default() };
        let error = run(lines(&rows), &options).unwrap_err();
        let DataError::File { problem, remedy, .. } = error else { panic!("{error}") };
        assert_eq!(problem, format!("no row has the column `{asked}`, which the loss asks for"));
        assert_eq!(remedy, expected);
    }
}

#[test]
fn a_file_of_two_formats_keeps_the_one_most_rows_have() {
    let mut rows = vec![json!({"text": "odd one"})];
    rows.extend((0..5).map(|row| chat("a", &row.to_string())));
    let prepared = good(lines(&rows));
    assert_eq!(prepared.report.format, "chat messages");
    assert_eq!(
        reasons(&prepared),
        [(1, "the row is text, the file is chat messages: `messages` is missing".to_owned())]
    );
}

#[test]
fn duplicates_are_counted_and_dropped_only_if_told() {
    let rows = [chat("a", "b"), chat("c", "d"), chat("a", "b"), chat("a", "b")];
    let kept = good(lines(&rows)).report;
    assert_eq!((kept.duplicates, kept.used, kept.duplicates_dropped), (2, 4, false));
    let options = DataOptions { drop_duplicates: true, ..DataOptions::default() };
    let dropped = run(lines(&rows), &options).unwrap().report;
    assert_eq!((dropped.duplicates, dropped.used, dropped.duplicates_dropped), (2, 2, true));
}

#[test]
fn validation_rows_are_set_aside_by_seed_and_never_trained() {
    let rows: Vec<Json> = (0..40).map(|row| chat("a", &(row % 30).to_string())).collect();
    let options = DataOptions { validation_fraction: 0.25, seed: 5, ..DataOptions::default() };
    let prepared = run(lines(&rows), &options).unwrap();
    let (train, validation) = (&prepared.train.list, &prepared.validation.list);
    assert_eq!(train.len() + validation.len(), 40);
    assert!((9..=10).contains(&validation.len()));
    assert!(validation.iter().all(|row| train.iter().all(|other| other.documents != row.documents)));
    assert_eq!(prepared.report.validation_rows, validation.len());
    assert_eq!(prepared, run(lines(&rows), &options).unwrap());
    let other = run(lines(&rows), &DataOptions { seed: 6, ..options }).unwrap();
    assert_ne!(other.validation, prepared.validation);
}

#[test]
fn a_validation_file_is_read_whole_and_compared() {
    let folder = Folder::new();
    let data = folder.write("train.jsonl", lines(&[chat("a", "b"), chat("c", "d")]));
    let held = folder.write("held.jsonl", lines(&[chat("a", "b"), chat("e", "f"), json!({"x": 1})]));
    let options = DataOptions { max_rows: Some(1), validation_fraction: 0.5, ..DataOptions::default() };
    let prepared = prepare(&data, Some(&held), &chatml(), &options).unwrap();
    assert_eq!((prepared.train.len(), prepared.validation.len()), (1, 2));
    assert_eq!(prepared.report.validation_bad_rows[0].line, 3);
    let overlap = |warning: &&String| warning.starts_with("1 of 2 validation rows are training rows too");
    assert_eq!(prepared.report.warnings.iter().filter(overlap).count(), 1);
    let counts = prepared.report.validation_counts.unwrap();
    assert_eq!(counts.to_string(), "3 rows: 2 used, 1 left out (1 bad)");
    let pairs = folder.write("pairs.jsonl", lines(&[json!({"prompt": "a", "chosen": "b", "rejected": "c"})]));
    assert!(matches!(prepare(&data, Some(&pairs), &chatml(), &options), Err(DataError::File { .. })));
}

#[test]
fn the_first_good_rows_are_taken() {
    let mut rows = vec![json!({"messages": 1})];
    rows.extend((0..3000).map(|row| chat("a", &row.to_string())));
    let options = DataOptions { max_rows: Some(1500), ..DataOptions::default() };
    let prepared = run(lines(&rows), &options).unwrap();
    assert_eq!((prepared.report.rows, prepared.report.used), (1501, 1500));
    assert!(prepared.train.list.iter().map(|row| row.line).eq(2..=1501));
}

/// peers.md 12: the receipt shows what is trained, so a mask that misses it
/// cannot hide behind a normal-looking curve.
#[test]
fn samples_show_three_rows_with_their_targets_marked() {
    let rows: Vec<Json> = (0..9).map(|row| chat(&format!("é {row}?"), &format!("漢 {row}."))).collect();
    let report = good(lines(&rows)).report;
    let places: Vec<usize> = report.samples.iter().map(|sample| sample.line).collect();
    assert_eq!(places, [1, 5, 9]);
    let pieces = &report.samples[1].pieces;
    let spoken: Vec<&str> = pieces.iter().filter(|(_, trained)| *trained).map(|(text, _)| text.as_str()).collect();
    assert_eq!(spoken, ["漢 4.<|im_end|>"]);
    let all: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(
        all,
        chatml().render(&[crate::Message::user("é 4?"), crate::Message::assistant("漢 4.")], false).unwrap()
    );
    let counted: usize = report.trained_tokens;
    let train = good(lines(&rows)).train.list;
    let masks = train.iter().flat_map(|row| &row.documents).flat_map(|document| &document.trained);
    assert_eq!(counted, masks.filter(|trained| **trained).count());
    let parsed: DatasetReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(parsed, report);
}

#[test]
fn preference_samples_show_both_sides() {
    let report = good(lines(&[json!({"prompt": "a", "chosen": "b", "rejected": "c"})])).report;
    let spoken: Vec<&str> =
        report.samples[0].pieces.iter().filter(|(_, trained)| *trained).map(|(text, _)| text.as_str()).collect();
    assert_eq!(spoken, ["b<|im_end|>"]);
    let all: String = report.samples[0].pieces.iter().map(|(text, _)| text.as_str()).collect();
    assert!(all.ends_with("b<|im_end|>\n(rejected:) c<|im_end|>"), "{all}");
}

#[test]
fn preferences_that_teach_nothing_are_bad_rows() {
    let side = |turns: &[(&str, &str)]| -> Json {
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
    };
    let rows = [
        json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
        json!({"prompt": "a", "chosen": "b", "rejected": "b"}),
        json!({"prompt": "a", "chosen": "b", "rejected": " "}),
        json!({"prompt": "", "chosen": "b", "rejected": "c"}),
        json!({"prompt": "a", "chosen": side(&[("user", "x"), ("assistant", "b")]), "rejected": side(&[("user", "y"), ("assistant", "b")])}),
        json!({"prompt": "a", "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: d"}),
    ];
    let prepared = good(lines(&rows));
    assert_eq!(
        reasons(&prepared),
        [
            (2, "`chosen` and `rejected` are the same".to_owned()),
            (3, "`rejected` is empty".into()),
            (4, "`prompt` is empty".into()),
            (5, "`chosen` and `rejected` do not begin with the same prompt".into()),
            (6, "`chosen` goes on with another message of the user behind the answer that differs".into()),
        ]
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for options in [
        DataOptions { sequence_length: 1, ..DataOptions::default() },
        DataOptions { validation_fraction: 1.0, ..DataOptions::default() },
        DataOptions { validation_fraction: f64::NAN, ..DataOptions::default() },
    ] {
        assert!(matches!(run("{}", &options), Err(DataError::Option { .. })));
    }
    let all = DataOptions { train_on: TrainOn::All, ..DataOptions::default() };
    let prepared = run(lines(&[chat("a", "b")]), &all).unwrap();
    assert_eq!(prepared.report.trained_tokens, prepared.report.tokens - 1);
}

#[test]
fn sharegpt_instruction_and_calls_in_the_shapes_they_come_in() {
    let tools = json!([{"type": "function", "function": {"name": "tide", "parameters": {}}}]);
    let folder = Folder::new();
    let tokenizer = tokenizer("bytes", Some("qwen2_5"));
    let render = |row: Json| {
        let path = folder.write("rows.jsonl", lines(&[row]));
        let examples = prepare(&path, None, &tokenizer, &DataOptions::default()).unwrap().train;
        tokenizer.decode(&examples.list[0].documents[0].tokens, false).unwrap()
    };
    let conversation = render(json!({
        "system": "S",
        "tools": tools.to_string(),
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": null, "tool_calls": [{"function": {"name": "tide", "arguments": "{\"port\": \"Brest\"}"}}]},
            {"from": "observation", "value": "3.2"},
            {"from": "gpt", "value": [{"type": "text", "text": "b"}]},
        ],
    }));
    assert!(conversation.starts_with("<|im_start|>system\nS\n\n# Tools"), "{conversation}");
    assert!(conversation.contains("{\"name\": \"tide\", \"arguments\": {\"port\": \"Brest\"}}"), "{conversation}");
    assert!(conversation.contains("<tool_response>\n3.2\n</tool_response>"), "{conversation}");
    assert!(conversation.ends_with("<|im_start|>assistant\nb<|im_end|>\n"), "{conversation}");
    let instruction = render(json!({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "ignored"}));
    assert!(instruction.contains("user\nAdd.\n\n1, 2<|im_end|>"), "{instruction}");
    assert!(!instruction.contains("ignored"), "{instruction}");
}

mod whatever_the_file {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Vec<u8> {
        lines(&[
            chat("a", "b"),
            json!({"messages": [{"role": "system", "content": "é"}, {"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}),
            json!({"prompt": "a", "completion": "b"}),
            chat("a\n\n", "\n 🙂"),
            chat("a", "b"),
        ])
        .into_bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// A damaged file is an error or a report whose rows add up; never a panic.
        #[test]
        fn rows_add_up(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
            drop_duplicates: bool,
            truncate: bool,
            sequence_length in 2usize..60,
        ) {
            let mut content = base();
            for (place, byte, kind) in edits {
                let at = place.index(content.len());
                match kind {
                    0 => content[at] = byte,
                    1 => content.insert(at, b"{}[]\",:\n\\"[usize::from(byte) % 9]),
                    _ => { content.remove(at); }
                }
            }
            if let Some(cut) = cut {
                content.truncate(cut.index(content.len()));
            }
            let options = DataOptions {
                sequence_length,
                drop_duplicates,
                too_long: if truncate { TooLong::Truncate } else { TooLong::Drop },
                validation_fraction: 0.3,
                ..DataOptions::default()
            };
            match run(&content, &options) {
                Ok(prepared) => {
                    let report = &prepared.report;
                    let counts = report.row_counts();
                    prop_assert_eq!(counts.rows, counts.used + counts.left_out());
                    prop_assert_eq!(counts.duplicates, if drop_duplicates { report.duplicates } else { 0 });
                    prop_assert_eq!(report.used, prepared.train.len() + prepared.validation.len());
                    prop_assert!(!prepared.train.is_empty());
                    for side in [&prepared.train, &prepared.validation] {
                        for row in side.list.iter().flat_map(|example| &example.documents) {
                            prop_assert!(row.tokens.len() <= sequence_length);
                            prop_assert_eq!(row.tokens.len(), row.trained.len());
                            prop_assert!(!row.trained[0] && row.trained.contains(&true));
                        }
                    }
                }
                Err(DataError::File { problem, .. }) => prop_assert!(!problem.is_empty()),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
