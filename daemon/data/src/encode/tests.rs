use serde_json::{Value as Json, json};

use super::*;
use crate::example::Role;
use crate::testing::{golden, source, talk, tokenizer, with_template};

const TEMPLATES: &[(&str, &str)] = &[
    ("smollm2", "<|im_end|>"),
    ("qwen2_5", "<|im_end|>"),
    ("qwen3", "<|im_end|>"),
    ("qwen3_training", "<|im_end|>"),
    ("llama3", "<|eot_id|>"),
    ("llama3_1", "<|eot_id|>"),
    ("llama3_2", "<|eot_id|>"),
    ("gemma", "<end_of_turn>"),
    ("gemma3", "<end_of_turn>"),
    ("mistral", "</s>"),
    ("phi3", "<|end|>"),
];

fn chat(messages: &[Message]) -> Content {
    Content::Chat { messages: messages.to_vec(), extras: Extras::default() }
}

fn row(tokenizer: &ChatTokenizer, content: Content) -> EncodedRow {
    encode(tokenizer, content, TrainOn::Assistant).unwrap().unwrap()
}

/// The only document of a row.
fn document(tokenizer: &ChatTokenizer, content: Content) -> Document {
    let [document] = row(tokenizer, content).documents.try_into().unwrap();
    document
}

/// The text of each run of targets.
fn trained(tokenizer: &ChatTokenizer, document: &Document) -> Vec<String> {
    let mut runs = Vec::new();
    let mut run = Vec::new();
    for (index, &id) in document.tokens.iter().enumerate() {
        if document.trained[index] {
            run.push(id);
        }
        if !run.is_empty() && document.trained.get(index + 1) != Some(&true) {
            runs.push(tokenizer.decode(&run, false).unwrap());
            run.clear();
        }
    }
    runs
}

#[test]
fn each_answer_is_trained_with_its_end_of_turn_and_nothing_else() {
    let messages = talk(&[
        ("system", "Be brief."),
        ("user", "Is the tide in?"),
        ("assistant", "It is in."),
        ("user", "end"),
        ("assistant", "end"),
        ("user", "And the height?"),
        ("assistant", "3.2 m, the harbour master says."),
    ]);
    for (name, end) in TEMPLATES {
        for kind in ["bytes", "pieces"] {
            let tokenizer = tokenizer(kind, Some(name));
            let row = row(&tokenizer, chat(&messages));
            let runs: Vec<String> = trained(&tokenizer, &row.documents[0])
                .iter()
                .map(|run| {
                    // Pieces put a blank behind a special token.
                    let run = run.replace("> \n", ">\n").replace("<think>\n\n</think>\n\n", "");
                    run.trim_start().to_owned()
                })
                .collect();
            let expected: Vec<String> = ["It is in.", "end", "3.2 m, the harbour master says."]
                .iter()
                .map(|answer| format!("{answer}{end}"))
                .collect();
            assert_eq!(runs, expected, "{name}, {kind}");
            assert_eq!((row.turns, row.ended), (3, 3), "{name}, {kind}");
            assert!(tokenizer.stop_tokens().contains(&tokenizer.token_id(end).unwrap()), "{name}");
        }
    }
}

/// Training must continue exactly what generation is given.
#[test]
fn the_tokens_before_an_answer_are_those_generation_starts_from() {
    let answers = ["It is.", "\nIt is.", "\n\n\nIt is.", "  It is.", "é", "<think>\nYes.\n</think>\n\nIt is."];
    let questions = ["Is it?", "Is it?\n", "Is it? \n\n", "<|im_end|>"];
    for (name, _) in TEMPLATES {
        for kind in ["bytes", "pieces"] {
            let tokenizer = tokenizer(kind, Some(name));
            for answer in answers {
                for question in questions {
                    let messages =
                        talk(&[("user", "a"), ("assistant", "b"), ("user", question), ("assistant", answer)]);
                    let document = document(&tokenizer, chat(&messages));
                    let prompt = tokenizer.encode_chat_prompt(&messages[..3]).unwrap();
                    let context = format!("{name}, {kind}, {question:?}, {answer:?}");
                    assert_eq!(&document.tokens[..prompt.len()], &prompt, "{context}");
                    assert!(document.trained[prompt.len()], "{context}");
                    assert!(!document.trained[prompt.len() - 1], "{context}");
                }
            }
        }
    }
}

#[test]
fn a_default_system_text_is_kept_and_not_trained() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let document = document(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])));
    let text = tokenizer.decode(&document.tokens, false).unwrap();
    assert!(text.starts_with("<|im_start|>system\nYou are a helpful AI assistant"), "{text}");
    assert_eq!(trained(&tokenizer, &document), ["b<|im_end|>"]);
}

/// peers.md 10: Qwen3 strips the thoughts of earlier turns, and puts an empty
/// thought into the last one; the model has to write what stands there.
#[test]
fn qwen3_thoughts_are_trained_where_they_are_rendered() {
    let tokenizer = tokenizer("bytes", Some("qwen3"));
    let messages = talk(&[
        ("user", "2 + 2?"),
        ("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
        ("user", "Sure?"),
        ("assistant", "<think>\nCount again.\n</think>\n\nYes, 4."),
    ]);
    let with_thoughts = document(&tokenizer, chat(&messages));
    assert_eq!(
        trained(&tokenizer, &with_thoughts),
        ["4<|im_end|>", "<think>\nCount again.\n</think>\n\nYes, 4.<|im_end|>"]
    );
    let without = document(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])));
    assert_eq!(trained(&tokenizer, &without), ["<think>\n\n</think>\n\nb<|im_end|>"]);
}

/// Thoughts before a tool's result are kept while the turn lasts and stripped
/// once another question follows: no prefix of the text is a rendering then.
#[test]
fn turns_are_found_where_no_prefix_is_a_rendering() {
    let tokenizer = tokenizer("bytes", Some("qwen3"));
    let messages = talk(&[
        ("user", "Tide?"),
        ("assistant", "<think>\nAsk.\n</think>\n\nOne moment."),
        ("tool", "3.2 m"),
        ("assistant", "<think>\nGood.\n</think>\n\n3.2 m."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ]);
    let row = row(&tokenizer, chat(&messages));
    assert_eq!(
        trained(&tokenizer, &row.documents[0]),
        ["One moment.<|im_end|>", "3.2 m.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]
    );
    assert_eq!((row.turns, row.ended), (3, 3));
}

/// Mistral's template moves the system text to the last question.
#[test]
fn a_system_text_that_moves_does_not_lose_the_turns() {
    let moving = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] \
        {% if loop.index0 >= messages | length - 2 %}{{ messages[0].content }} {% endif %}\
        {{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}\
        {% endif %}{% endfor %}";
    let tokenizer = with_template(moving);
    let messages = talk(&[("system", "Brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let document = document(&tokenizer, chat(&messages));
    let text = tokenizer.decode(&document.tokens, false).unwrap();
    assert_eq!(text, "<s>[INST] a [/INST] b</s>[INST] Brief. c [/INST] d</s>");
    assert_eq!(trained(&tokenizer, &document), ["b</s>", " d</s>"]);
}

/// peers.md 9: pad is EOS in every tokenizer of these tests; the mask goes by
/// position, so the end of turn is a target all the same.
#[test]
fn end_of_turn_is_trained_though_it_is_the_padding_too() {
    for (name, _) in TEMPLATES {
        let tokenizer = tokenizer("bytes", Some(name));
        let document = document(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])));
        let ends = document
            .tokens
            .iter()
            .zip(&document.trained)
            .filter(|(id, trained)| **trained && tokenizer.stop_tokens().contains(id))
            .count();
        assert_eq!(ends, 1, "{name}");
    }
}

/// peers.md 10 and 12: answers that look like the template's own words.
#[test]
fn answers_that_repeat_the_template_do_not_mislead() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    for answer in ["im_end", "assistant", "<|im_end|>", "user\n<|im_start|>assistant\n", "|>", "end|>"] {
        let messages = talk(&[("user", answer), ("assistant", answer), ("user", answer), ("assistant", answer)]);
        let row = row(&tokenizer, chat(&messages));
        let expected = format!("{answer}<|im_end|>");
        assert_eq!(trained(&tokenizer, &row.documents[0]), [expected.clone(), expected], "{answer}");
        assert_eq!(row.facts.contains(&Fact::SpecialInAnswer), answer.contains("<|"), "{answer}");
    }
}

#[test]
fn untrained_messages_are_context_only() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let mut messages = talk(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    messages[1].weight = 0.0;
    assert_eq!(trained(&tokenizer, &document(&tokenizer, chat(&messages))), ["d<|im_end|>"]);
    messages[3].weight = 0.0;
    assert_eq!(encode(&tokenizer, chat(&messages), TrainOn::Assistant), Ok(None));
}

#[test]
fn a_messages_weight_is_that_of_its_tokens() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let mut messages = talk(&[("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(document(&tokenizer, chat(&messages)).weights, None);
    messages[1].weight = 0.5;
    let document = document(&tokenizer, chat(&messages));
    let weights: Vec<f32> =
        (0..document.len()).filter(|&index| document.is_trained(index)).map(|index| document.weight(index)).collect();
    // "bb", "d", and their end-of-turn tokens.
    assert_eq!(weights, [0.5, 0.5, 0.5, 1.0, 1.0]);
}

#[test]
fn messages_behind_the_last_answer_are_left_out() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let long = talk(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    let short = &long[..2];
    assert_eq!(document(&tokenizer, chat(&long)), document(&tokenizer, chat(short)));
}

#[test]
fn all_tokens_can_be_trained() {
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let row = encode(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])), TrainOn::All);
    let document = &row.unwrap().unwrap().documents[0];
    assert!(!document.trained[0]);
    assert!(document.trained[1..].iter().all(|&trained| trained));
}

/// An answer of blanks is nothing but its end token in a template that trims.
#[test]
fn a_turn_of_its_end_token_alone_is_refused() {
    let tokenizer = tokenizer("bytes", Some("gemma3"));
    let error = encode(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", " ")])), TrainOn::Assistant).unwrap_err();
    assert_eq!(error, RowError::EmptyTurn(2));
}

/// peers.md 11: calls and empty texts.
#[test]
fn a_tool_call_is_trained_through_its_end_of_turn() {
    let arguments = json!([{"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}]);
    let mut call = Message::assistant("");
    call.extra.insert("tool_calls".into(), arguments);
    let messages = vec![Message::user("Tide?"), call, Message::new("tool", "3.2 m"), Message::assistant("3.2 m.")];
    for name in ["qwen2_5", "qwen3"] {
        let tokenizer = tokenizer("bytes", Some(name));
        let document = document(&tokenizer, chat(&messages));
        let runs = trained(&tokenizer, &document);
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert!(runs[0].contains("\"arguments\": {\"port\": \"Brest\"}"), "{runs:?}");
        assert!(runs[0].ends_with("</tool_call><|im_end|>"), "{runs:?}");
        assert!(runs[1].ends_with("3.2 m.<|im_end|>"), "{runs:?}");
    }
}

/// peers.md 8: BOS once, whoever writes it.
#[test]
fn bos_is_never_doubled_and_never_lost() {
    let count =
        |tokenizer: &ChatTokenizer, tokens: &[u32]| tokens.iter().filter(|&&id| Some(id) == tokenizer.bos()).count();
    let messages = talk(&[("user", "a"), ("assistant", "b")]);
    for kind in ["bytes", "pieces"] {
        for name in ["llama3", "gemma", "mistral"] {
            let tokenizer = tokenizer(kind, Some(name));
            let document = document(&tokenizer, chat(&messages));
            assert_eq!(count(&tokenizer, &document.tokens), 1, "{kind}, {name}");
            assert_eq!(document.tokens.first().copied(), tokenizer.bos(), "{kind}, {name}");
            let prompt = tokenizer.encode_chat_prompt(&messages[..1]).unwrap();
            assert_eq!(count(&tokenizer, &prompt), 1, "{kind}, {name}");
        }
    }
    // A template that writes BOS before a first message that begins with it.
    let tokenizer = with_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}");
    let messages = talk(&[("user", "<s>a"), ("assistant", "b")]);
    let document = document(&tokenizer, chat(&messages));
    assert_eq!(count(&tokenizer, &document.tokens), 1);
    assert_eq!(trained(&tokenizer, &document), ["b"]);
}

#[test]
fn a_text_has_bos_where_wanted_and_eos_and_is_trained_whole() {
    for (kind, text) in [("bytes", "Is it?"), ("pieces", "Is it?"), ("pieces", "<s>Is it?</s>")] {
        let tokenizer = tokenizer(kind, None);
        let document = document(&tokenizer, Content::Text(text.into()));
        let bos: Vec<u32> = if kind == "pieces" { tokenizer.bos().into_iter().collect() } else { vec![] };
        assert!(document.tokens.starts_with(&bos));
        assert_eq!(document.tokens.last().copied(), tokenizer.eos());
        let plain = tokenizer.decode(&document.tokens, true).unwrap();
        assert_eq!(plain, "Is it?");
        assert!(!document.trained[0] && document.trained[1..].iter().all(|&trained| trained));
        assert_eq!(document.tokens.iter().filter(|&&id| Some(id) == tokenizer.eos()).count(), 1);
    }
}

#[test]
fn without_a_template_the_plain_layout_is_used() {
    let tokenizer = tokenizer("bytes", None);
    let document = document(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])));
    assert_eq!(tokenizer.decode(&document.tokens, false).unwrap(), "### User:\na\n\n### Assistant:\nb</s>\n\n");
    assert_eq!(trained(&tokenizer, &document), ["b</s>"]);
}

#[test]
fn a_completion_without_a_template_follows_its_prompt() {
    for kind in ["bytes", "pieces"] {
        let tokenizer = tokenizer(kind, None);
        for (prompt, completion) in [("The tide", " is in."), ("The ", "tide"), ("a\n", "\nb")] {
            let content = Content::Completion { prompt: prompt.into(), completion: completion.into() };
            let document = document(&tokenizer, content);
            let text = tokenizer.decode(&document.tokens, true).unwrap();
            assert_eq!(text, format!("{prompt}{completion}"), "{kind}");
            let before = tokenizer.encode_text_prompt(prompt).unwrap();
            assert_eq!(document.tokens[..before.len()], before, "{kind}");
            let first = document.trained.iter().position(|&trained| trained);
            assert_eq!(first, Some(before.len()), "{kind}");
            assert_eq!(document.tokens.last().copied(), tokenizer.eos());
        }
    }
    // With a template the same row is a question and an answer.
    let tokenizer = tokenizer("bytes", Some("smollm2"));
    let content = Content::Completion { prompt: "a".into(), completion: "b".into() };
    assert_eq!(document(&tokenizer, content), document(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")]))));
}

#[test]
fn generation_tags_are_used_where_nothing_else_finds_the_turn() {
    // The text stands twice and the number of messages stands first.
    let body = |open: &str, close: &str| {
        format!(
            "{{{{ messages | length }}}}{{% for m in messages %}}\n{{{{ m.role }}}}:\
             {{% if m.role == 'assistant' %}}{open}{{{{ m.content + '|' + m.content + eos_token }}}}{close}\
             {{% else %}}{{{{ m.content }}}}{{% endif %}}{{% endfor %}}"
        )
    };
    let messages = talk(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let tagged = with_template(&body("{% generation %}", "{% endgeneration %}"));
    let found = document(&tagged, chat(&messages));
    assert_eq!(trained(&tagged, &found), ["b|b</s>", "d|d</s>"]);
    let bare = with_template(&body("", ""));
    let error = encode(&bare, chat(&messages), TrainOn::Assistant).unwrap_err();
    assert_eq!(error.to_string(), "the chat template does not show where message 2 (assistant) is rendered");
}

#[test]
fn a_turn_without_an_end_is_counted() {
    let tokenizer = with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");
    let row = row(&tokenizer, chat(&talk(&[("user", "a"), ("assistant", "b")])));
    assert_eq!((row.turns, row.ended), (1, 0));
}

#[test]
fn a_template_that_leaves_the_answer_out_is_reported() {
    let tokenizer = with_template("{{ messages[0].content }}");
    let messages = talk(&[("user", "a"), ("assistant", "b")]);
    assert!(encode(&tokenizer, chat(&messages), TrainOn::Assistant).is_err());
}

#[test]
fn a_refused_system_text_moves_to_the_question() {
    let tokenizer = tokenizer("bytes", Some("gemma"));
    assert!(tokenizer.folds_system());
    let messages = talk(&[("system", "Brief."), ("user", "a"), ("assistant", "b")]);
    let document = document(&tokenizer, chat(&messages));
    assert_eq!(
        tokenizer.decode(&document.tokens, false).unwrap(),
        "<bos><start_of_turn>user\nBrief.\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    );
    let prompt = tokenizer.render(&messages[..2], true).unwrap();
    assert!(prompt.contains("Brief.\n\na"), "{prompt}");
}

#[test]
fn a_pair_shares_its_prompt_and_ends_both_completions() {
    for kind in ["bytes", "pieces"] {
        for (name, end) in TEMPLATES {
            let tokenizer = tokenizer(kind, Some(name));
            let content = Content::Pair {
                prompt: Prompt::Text("Is it?".into()),
                chosen: talk(&[("assistant", "\nYes.")]),
                rejected: talk(&[("assistant", "No.")]),
                extras: Extras::default(),
            };
            let row = row(&tokenizer, content);
            let [chosen, rejected] = &row.documents[..] else { panic!("{row:?}") };
            assert_eq!((row.turns, row.ended), (2, 2), "{name}");
            let expected = tokenizer.encode_chat_prompt(&[Message::user("Is it?")]).unwrap();
            for (document, text) in [(chosen, "Yes."), (rejected, "No.")] {
                assert_eq!(document.prompt(), expected, "{kind}, {name}");
                let got = tokenizer.decode(document.answer(), false).unwrap();
                assert!(got.ends_with(&format!("{text}{end}")), "{kind}, {name}: {got:?}");
            }
        }
    }
}

#[test]
fn pairs_and_labels_without_a_template_follow_their_prompt() {
    let tokenizer = tokenizer("pieces", None);
    let content = Content::Pair {
        prompt: Prompt::Text("The tide".into()),
        chosen: talk(&[("assistant", " is in")]),
        rejected: talk(&[("assistant", " is")]),
        extras: Extras::default(),
    };
    let pair = row(&tokenizer, content);
    let [chosen, rejected] = &pair.documents[..] else { panic!("{pair:?}") };
    assert_eq!((pair.turns, pair.ended), (2, 2));
    assert_eq!((chosen.role, rejected.role), (Role::Chosen, Role::Rejected));
    assert_eq!(chosen.prompt(), tokenizer.encode_text_prompt("The tide").unwrap());
    assert_eq!(rejected.prompt(), chosen.prompt());
    assert_eq!(tokenizer.decode(&chosen.tokens, true).unwrap(), "The tide is in");
    assert_eq!(tokenizer.decode(&rejected.tokens, true).unwrap(), "The tide is");
    let content = Content::Labelled {
        prompt: Prompt::Text("The tide".into()),
        completion: talk(&[("assistant", " is in")]),
        label: true,
        extras: Extras::default(),
    };
    let labelled = row(&tokenizer, content);
    assert_eq!((labelled.turns, labelled.ended), (1, 1));
    let [document] = &labelled.documents[..] else { panic!("{labelled:?}") };
    assert_eq!(document.label, Some(true));
    assert_eq!(document.tokens.last().copied(), tokenizer.eos());
}

/// `qwen3_training` is Qwen3's template with the answers marked by TRL: the
/// turns found from renderings are the blocks that transformers reports.
#[test]
fn turns_agree_with_the_marks_of_a_marked_template() {
    let text = std::fs::read_to_string(golden().join("rendered.json")).unwrap();
    let document: Json = serde_json::from_str(&text).unwrap();
    let tokenizer = ChatTokenizer::new(&source("bytes", Some("qwen3_training"))).unwrap();
    let mut compared = 0;
    for case in document["cases"].as_array().unwrap() {
        let Some(spans) = case["spans"].as_array().filter(|_| case["prompt"] == json!(false)) else {
            continue;
        };
        let conversation = &document["conversations"][case["conversation"].as_str().unwrap()];
        let row = json!({"messages": conversation["messages"], "tools": conversation["tools"]});
        let Ok(content) =
            crate::format::Format::of(row.as_object().unwrap()).unwrap().read(row.as_object().unwrap(), &[])
        else {
            continue;
        };
        let found = self::document(&tokenizer, content);
        let expected: Vec<&str> = spans.iter().map(|span| span.as_str().unwrap().trim_end_matches('\n')).collect();
        assert_eq!(trained(&tokenizer, &found), expected, "{}", case["conversation"]);
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}
