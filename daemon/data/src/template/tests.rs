use std::path::Path;

use serde_json::{Map, Value as Json};

use super::*;
use crate::testing::golden;

/// A message as the golden file has it: content may be missing.
fn message(json: &Json) -> Message {
    let map: &Map<String, Json> = json.as_object().unwrap();
    let mut message = Message::new(map["role"].as_str().unwrap(), map["content"].as_str().unwrap());
    for (key, value) in map {
        if key != "role" && key != "content" {
            message.extra.insert(key.clone(), value.clone());
        }
    }
    message
}

/// Renders every case of `rendered.json` in a folder and returns what differs
/// from transformers.
fn differences(folder: &Path) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(folder.join("rendered.json")).unwrap();
    let document: Json = serde_json::from_str(&text).unwrap();
    let cases = document["cases"].as_array().unwrap();
    let mut differences = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(format!("templates/{name}.jinja"))).unwrap();
        let token = |key: &str| case["tokens"][key].as_str().map(str::to_owned);
        let tokens = SpecialTokens { bos: token("bos_token"), eos: token("eos_token"), ..SpecialTokens::default() };
        let conversation = &document["conversations"][case["conversation"].as_str().unwrap()];
        let messages: Vec<Value> =
            conversation["messages"].as_array().unwrap().iter().map(|json| message_value(&message(json))).collect();
        let tools = Some(conversation["tools"].clone()).filter(|tools| !tools.is_null());
        let extras = Extras { tools, ..Extras::default() };
        let got = ChatTemplate::new(&source, tokens, DEFAULT_NOW)
            .and_then(|template| template.render(&messages, &extras, case["prompt"].as_bool().unwrap()))
            .map_err(|error| error.to_string());
        let same = match (&got, case["expected"].as_str()) {
            (Ok(got), Some(expected)) => got == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            differences.push(format!(
                "{name}, {}, prompt {}:\n  got      {got:?}\n  expected {}",
                case["conversation"], case["prompt"], case["expected"]
            ));
        }
    }
    (cases.len(), differences)
}

#[test]
fn every_template_renders_as_transformers_renders_it() {
    let (cases, differences) = differences(&golden());
    assert!(cases > 200, "{cases}");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens::default(), DEFAULT_NOW).unwrap()
}

fn render(source: &str, messages: &[Message]) -> Result<String> {
    let values: Vec<Value> = messages.iter().map(message_value).collect();
    template(source).render(&values, &Extras::default(), false)
}

#[test]
fn jinja_as_transformers_sets_it_up() {
    let m = [Message::user(" <a> & 'b' "), Message::assistant("x=1.5")];
    for (source, expected) in [
        ("{{ messages[0].content.strip() }}", "<a> & 'b'"),
        (
            "{{ messages | tojson }}",
            r#"[{"role": "user", "content": " <a> & 'b' "}, {"role": "assistant", "content": "x=1.5"}]"#,
        ),
        (
            "{{ {'a': [1, 1.0, none, true]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    1.0,\n    null,\n    true\n  ]\n}",
        ),
        (
            "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
            r#"{"a":"\u00e9","b":1}"#,
        ),
        ("{{ none }} {{ true }} {{ [1, 'a', none] }} {{ {'k': 2.0} }}", "None True [1, 'a', None] {'k': 2.0}"),
        ("{{ 'a' ~ true ~ 1 }}", "aTrue1"),
        ("{{ tools is iterable }} {{ [] is iterable }} {{ 'a' is iterable }}", "False True True"),
        ("a\r\n{{ 'b' }}\rc", "a\nb\nc"),
        (
            "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
            "013",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("  {% if true %}\n x\n  {% endif %}\ny", " x\ny"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ tools is none }} {{ bos_token is defined }}", "True False"),
        ("{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}", "role=assistant;content=x=1.5;"),
        ("{{ 'a.b.c'.rsplit('.', 1)[0] }} {{ 'pre-x'.removeprefix('pre-') }} {{ 'a=b'.partition('=')[2] }}", "a.b x b"),
        ("{{ messages[::-1][0].content }}", "x=1.5"),
        ("{{ 'x y'.split() | join('|') }} {{ '  x'.lstrip() }} {{ 'ab'.startswith('a') }}", "x|y x True"),
    ] {
        assert_eq!(render(source, &m).unwrap(), expected, "{source}");
    }
}

#[test]
fn a_template_that_refuses_is_quoted() {
    let error = render("{{ raise_exception('Roles must alternate') }}", &[]).unwrap_err();
    assert_eq!(error.to_string(), "the chat template refuses this conversation: Roles must alternate");
    let error = render("a\n{{ messages[0].content.nope() }}", &[Message::user("x")]).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    let error = render(endless, &[]).unwrap_err().to_string();
    assert_eq!(error, "the chat template did not come to an end");
}

#[test]
fn what_is_no_jinja_is_refused_with_its_line() {
    let error = ChatTemplate::new("a\n{% for %}", SpecialTokens::default(), DEFAULT_NOW).unwrap_err().to_string();
    assert!(error.starts_with("chat template: line 2"), "{error}");
}

#[test]
fn generation_tags_keep_their_white_space_and_give_spans() {
    let source = "{% for m in messages %}\n{{ m.role }}:\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration %}\n;\n{% endfor %}";
    let template = template(source);
    assert!(template.is_tagged());
    let values: Vec<Value> = [Message::user("é"), Message::assistant("b")].iter().map(message_value).collect();
    let text = template.render(&values, &Extras::default(), false).unwrap();
    assert_eq!(text, "user:é;\nassistant:b;\n");
    let spans = template.generation_spans(&values, &Extras::default()).unwrap();
    let spoken: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
    assert_eq!(spoken, ["é", "b"]);
}

#[test]
fn the_plain_layout_is_as_documented() {
    let tokens =
        SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), add_bos: true, ..SpecialTokens::default() };
    let template = ChatTemplate::new(PLAIN_TEMPLATE, tokens, DEFAULT_NOW).unwrap();
    let values: Vec<Value> =
        [Message::system("s"), Message::user(" u\n"), Message::assistant("a")].iter().map(message_value).collect();
    assert_eq!(
        template.render(&values, &Extras::default(), false).unwrap(),
        "<s>### System:\ns\n\n### User:\n u\n\n\n### Assistant:\na</s>\n\n"
    );
    assert_eq!(
        template.render(&values[..2], &Extras::default(), true).unwrap(),
        "<s>### System:\ns\n\n### User:\n u\n\n\n### Assistant:\n"
    );
}
