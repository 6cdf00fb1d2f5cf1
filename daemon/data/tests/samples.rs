//! The sample datasets that ship with the project are what their README says.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use finetuned_data::{ChatTokenizer, DataOptions, Document, Prepared, prepare};
use finetuned_formats::TokenizerSource;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sample(name: &str) -> PathBuf {
    root().join("../../config/samples").join(name)
}

fn tokenizer() -> ChatTokenizer {
    let golden = root().join("tests/golden");
    ChatTokenizer::new(&TokenizerSource {
        json: std::fs::read_to_string(golden.join("bytes.json")).unwrap(),
        chat_template: Some(std::fs::read_to_string(golden.join("templates/smollm2.jinja")).unwrap()),
        bos_token: Some("<|im_start|>".into()),
        eos_token: Some("<|im_end|>".into()),
        pad_token: None,
        unk_token: None,
        add_bos: false,
        add_eos: false,
        eos_ids: Vec::new(),
        extra_files: Vec::new(),
    })
    .unwrap()
}

fn prepared(name: &str) -> Prepared {
    prepare(&sample(name), None, &tokenizer(), &DataOptions::default()).unwrap()
}

/// The cards, as the trained text without its end-of-turn token.
fn cards(prepared: &Prepared) -> Vec<String> {
    let tokenizer = tokenizer();
    let card = |document: &Document| {
        let trained = document.tokens.iter().zip(&document.trained).filter(|(_, trained)| **trained);
        let ids: Vec<u32> = trained.map(|(id, _)| *id).collect();
        tokenizer.decode(&ids, true).unwrap()
    };
    prepared.train.list.iter().map(|example| card(&example.documents[0])).collect()
}

#[test]
fn the_samples_are_clean() {
    for (name, rows) in [("repair-desk.jsonl", 300), ("repair-desk-unseen.jsonl", 30)] {
        let prepared = prepared(name);
        let report = &prepared.report;
        assert_eq!((report.rows, report.used, report.bad_row_count), (rows, rows, 0), "{name}");
        assert_eq!((report.duplicates, report.without_end_of_turn), (0, 0), "{name}");
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        for card in cards(&prepared) {
            let keys: Vec<&str> = card.lines().map(|line| line.split(": ").next().unwrap()).collect();
            assert_eq!(keys, ["Item", "Fault", "Urgent", "Next"], "{card}");
        }
    }
}

#[test]
fn unseen_items_are_unseen() {
    let items = |name: &str| -> HashSet<String> {
        cards(&prepared(name)).iter().filter_map(|card| Some(card.lines().next()?.to_owned())).collect()
    };
    let (seen, unseen) = (items("repair-desk.jsonl"), items("repair-desk-unseen.jsonl"));
    assert_eq!((seen.len(), unseen.len()), (24, 6));
    assert!(seen.is_disjoint(&unseen));
}
