use super::*;
use crate::testing::{golden, source, tokenizer};

#[test]
fn ids_are_those_of_the_python_package() {
    let text = std::fs::read_to_string(golden().join("encodings.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = document["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap(), None);
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids("ids"), "{text:?}");
        // The package doubles a BOS that the text begins with; we do not.
        if !text.starts_with("<s>") {
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids("with_special"), "{text:?}");
        }
        let decoded = tokenizer.decode(&ids("ids"), false).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap());
        let plain = tokenizer.decode(&ids("ids"), true).unwrap();
        assert_eq!(plain, case["decoded_plain"].as_str().unwrap());
    }
}

#[test]
fn bos_and_eos_are_added_once_as_the_source_says() {
    let mut source = source("bytes", None);
    (source.add_bos, source.add_eos) = (true, true);
    let tokenizer = ChatTokenizer::new(&source).unwrap();
    let ids = tokenizer.encode("<s>a</s>", true).unwrap();
    assert_eq!(ids, tokenizer.encode("a", true).unwrap());
    assert_eq!((ids.first().copied(), ids.last().copied()), (tokenizer.bos(), tokenizer.eos()));
    assert_eq!(ids.len(), 3);
}

#[test]
fn a_stream_gives_the_text_that_all_ids_give() {
    for kind in ["bytes", "pieces"] {
        let tokenizer = tokenizer(kind, None);
        for text in ["The tide  is in.\n\n 3.2 m", "漢字 🙂👩‍👩‍👧 é", " a", "", "naïve\u{301}"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut stream = tokenizer.stream_decoder(true);
            let mut all = String::new();
            for &id in &ids {
                let piece = stream.push(id).unwrap_or_default();
                assert!(!piece.contains('\u{fffd}'), "{kind}, {text:?}: {piece:?}");
                all += &piece;
            }
            all += &stream.finish().unwrap_or_default();
            assert_eq!(all, tokenizer.decode(&ids, true).unwrap(), "{kind}");
        }
    }
}

#[test]
fn a_stream_that_breaks_off_inside_a_character_still_ends() {
    let tokenizer = tokenizer("bytes", None);
    let ids = tokenizer.encode("🙂", false).unwrap();
    assert!(ids.len() > 1);
    let mut stream = tokenizer.stream_decoder(true);
    assert_eq!(stream.push(ids[0]), None);
    assert!(stream.finish().is_some_and(|text| text.contains('\u{fffd}')));
}

#[test]
fn a_continuation_has_no_blank_before_it() {
    for kind in ["bytes", "pieces"] {
        let tokenizer = tokenizer(kind, None);
        for (before, after) in [("The t", "ide"), ("The", " tide"), ("a", "\n\nb"), ("é", "漢")] {
            let first = tokenizer.encode_bare(before).unwrap();
            let second = tokenizer.encode_continuation(after).unwrap();
            let ids = [first.ids, second.ids].concat();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), format!("{before}{after}"), "{kind}");
            let end = second.bytes.last().unwrap().end;
            assert_eq!(end, after.len(), "{kind}, {after:?}");
        }
    }
}

#[test]
fn byte_ranges_cover_the_text_in_order() {
    for kind in ["bytes", "pieces"] {
        let tokenizer = tokenizer(kind, None);
        let text = "  The tide\n\n is <|im_end|>\n 漢字 🙂.  ";
        let encoded = tokenizer.encode_bare(text).unwrap();
        let mut end = 0;
        for range in &encoded.bytes {
            assert!(range.start <= end && range.end >= range.start, "{kind}: {range:?} after {end}");
            end = end.max(range.end);
        }
        assert_eq!(end, text.len(), "{kind}");
    }
}

#[test]
fn stop_tokens_are_the_models_and_the_templates() {
    let mut source = source("bytes", Some("gemma"));
    source.eos_ids = vec![7, 7];
    let tokenizer = ChatTokenizer::new(&source).unwrap();
    let end = tokenizer.token_id("<end_of_turn>").unwrap();
    assert_eq!(tokenizer.stop_tokens(), [7, end]);
    assert_eq!(tokenizer.token_text(end), "<end_of_turn>");
    assert_eq!(tokenizer.token_text(99_999), "<99999>");
}

#[test]
fn damaged_documents_are_errors() {
    let mut broken = source("bytes", None);
    broken.json.truncate(100);
    assert!(matches!(ChatTokenizer::new(&broken), Err(DataError::Tokenizer(_))));
    let mut broken = source("bytes", None);
    broken.chat_template = Some("{% if %}".into());
    assert!(matches!(ChatTokenizer::new(&broken), Err(DataError::Template(_))));
}
