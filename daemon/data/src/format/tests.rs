use serde_json::json;

use super::*;

#[test]
fn help_names_every_format_by_its_keys() {
    let help = help();
    assert!(help.starts_with("Rows need `text`; or `input` and `output`; or `question` and `answer`; or "), "{help}");
    assert!(help.contains("; or `prompt`, `completion` and `label`; or "), "{help}");
    for format in FORMATS {
        assert!(help.contains(&written(format.keys)), "{}: {help}", format.name);
    }
}

#[test]
fn a_row_is_in_the_first_format_whose_keys_it_has() {
    let format = |row: Value| Format::of(row.as_object().unwrap()).map(|format| format.name);
    // A row with the usual keys of a format is in it: none hides another.
    for expected in FORMATS {
        let answers = json!(["better", "worse"]);
        let value = |name: &str| {
            if expected.name.contains("`output`") && name == "output" { answers.clone() } else { json!("") }
        };
        let row: Row = expected.keys.iter().map(|names| (names[0].to_owned(), value(names[0]))).collect();
        assert_eq!(Format::of(&row), Some(*expected), "{row:?}");
    }
    assert_eq!(format(json!({"prompt": 1, "completion": 1})), Some("prompt/completion"));
    assert_eq!(format(json!({"prompt": 1, "completion": 1, "label": 1})), Some("labelled completions"));
    assert_eq!(format(json!({"question": 1, "answer": 1, "text": 1})), Some("question/answer"));
    assert_eq!(format(json!({"prompt": 1})), None);
}
