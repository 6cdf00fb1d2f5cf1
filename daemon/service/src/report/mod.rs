//! The HTML report of a run: one file that needs nothing else, with curves, the
//! dataset's facts, and rows with their trained tokens marked.

mod chart;

use std::fmt::Write;
use std::path::Path;

use finetuned_data::DatasetReport;
use finetuned_engine::metrics::{LOSS, METRICS};
use finetuned_engine::recipe::Recipe;
use finetuned_engine::{Plan, StepMetrics, Summary};

use crate::error::Result;
use crate::filesystem::replace_file;
use crate::{results, words};

use chart::{Chart, Series};

/// Its name beside the adapter.
pub const FILE: &str = "report.html";

/// What the report is made of.
#[derive(Debug, Clone)]
pub struct Page {
    /// The dataset's name.
    pub title: String,
    /// The base model, as the recipe names it.
    pub base: String,
    /// All choices of the run.
    pub recipe: Recipe,
    /// How the run ended.
    pub summary: Summary,
    /// What was found in the dataset, if this process read it.
    pub dataset: Option<DatasetReport>,
    /// What was planned, if this process planned.
    pub plan: Option<Plan>,
    /// Every step, in order.
    pub metrics: Vec<StepMetrics>,
    /// Answers before and after.
    pub samples: Vec<Sample>,
}

/// The same prompt before and after.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What was asked.
    pub prompt: String,
    /// The base model's answer.
    pub before: String,
    /// The trained model's answer.
    pub after: String,
}

/// The steps in `out/metrics.jsonl`; a line that cannot be read (cut off by a
/// power cut) is passed over, a step that was repeated counts once.
pub fn read_metrics(out: &Path) -> Vec<StepMetrics> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let steps = text.lines().filter_map(|line| serde_json::from_str::<StepMetrics>(line).ok());
    let by_step: std::collections::BTreeMap<usize, StepMetrics> =
        steps.map(|metrics| (metrics.step, metrics)).collect();
    by_step.into_values().collect()
}

/// Writes the report into `out`.
///
/// # Errors
/// The folder cannot be written.
pub fn write(out: &Path, page: &Page) -> Result<()> {
    replace_file(&out.join(FILE), render(page).as_bytes())
}

/// The page.
pub fn render(page: &Page) -> String {
    let mut html = String::with_capacity(64 << 10);
    let title = escape(&page.title);
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>finetuned: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    headline(&mut html, page);
    curves(&mut html, &page.metrics, &page.summary);
    samples(&mut html, &page.samples);
    if let Some(dataset) = &page.dataset {
        dataset_part(&mut html, dataset);
    }
    run_part(&mut html, page);
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

fn headline(html: &mut String, page: &Page) {
    let summary = &page.summary;
    let _ = writeln!(
        html,
        "<p class=\"quiet\">{} on {}, {} steps in {}</p>",
        page.recipe.method.name(),
        escape(&page.base),
        summary.steps,
        words::seconds(summary.tally.seconds)
    );
    html.push_str("<div class=\"tiles\">\n");
    if let (Some(before), Some(after)) = (summary.tally.validation_before, summary.validation_after) {
        tile(
            html,
            &format!("{before:.3} → {after:.3}"),
            &format!("validation loss ({:.0}% lower)", 100.0 * (before - after) / before),
        );
    }
    for result in results::learnt(summary) {
        tile(html, &result.short, &format!("{}: {}", result.label, result.help));
    }
    if let Some(last) = summary.tally.last_loss {
        tile(html, &format!("{last:.3}"), "training loss at the last step");
    }
    tile(html, &words::count(summary.tally.trained_tokens), "trained tokens");
    if summary.tally.seconds > 0.0 {
        tile(html, &format!("{:.0}", summary.tally.tokens as f64 / summary.tally.seconds), "tokens a second");
    }
    tile(html, &words::bytes(summary.peak_bytes), "memory at the peak");
    html.push_str("</div>\n");
}

fn tile(html: &mut String, value: &str, name: &str) {
    let _ = writeln!(html, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(value), escape(name));
}

fn curves(html: &mut String, metrics: &[StepMetrics], summary: &Summary) {
    let steps: Vec<(f64, serde_json::Map<String, serde_json::Value>)> =
        metrics.iter().map(|metrics| (metrics.step as f64, metrics.numbers())).collect();
    let points = |name: &str| -> Vec<(f64, f64)> {
        steps.iter().filter_map(|(step, numbers)| Some((*step, numbers.get(name)?.as_f64()?))).collect()
    };
    html.push_str("<section class=\"charts\">\n");
    for metric in METRICS {
        let Some(shown) = metric.chart else { continue };
        // Step 0 holds only the validation before any update.
        let training: Vec<_> = points(metric.name).into_iter().filter(|(step, _)| *step > 0.0).collect();
        let mut validation = points(&metric.validation_name());
        let before = match **metric == LOSS {
            true => summary.tally.validation_before,
            false => summary.change(metric).map(|change| change.before),
        };
        if let Some(before) = before
            && validation.first().is_none_or(|first| first.0 > 0.0)
        {
            validation.insert(0, (0.0, before));
        }
        let series = vec![
            Series { name: "training", class: "a", points: training, marked: false },
            Series { name: "validation", class: "b", points: validation, marked: true },
        ];
        html.push_str(&Chart { title: shown.title, series, digits: shown.digits }.svg());
    }
    html.push_str("</section>\n");
}

fn samples(html: &mut String, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    html.push_str("<h2>Before and after</h2>\n");
    for sample in samples {
        let _ = writeln!(
            html,
            "<div class=\"sample\"><p class=\"prompt\">{}</p><div class=\"pair\"><div><h3>before</h3><pre>{}</pre></div><div><h3>after</h3><pre>{}</pre></div></div></div>",
            escape(&sample.prompt),
            escape(&sample.before),
            escape(&sample.after)
        );
    }
}

fn dataset_part(html: &mut String, report: &DatasetReport) {
    html.push_str("<h2>Dataset</h2>\n<table>\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(&value));
    };
    row("format", report.format.clone());
    for (name, words) in results::dataset_counts(report) {
        row(name, words);
    }
    row("bad rows", report.bad_row_count.to_string());
    row("sha256", report.sha256.clone());
    for warning in &report.warnings {
        row("note", warning.clone());
    }
    html.push_str("</table>\n");
    if !report.bad_rows.is_empty() {
        html.push_str("<details><summary>Bad rows</summary><table>\n");
        for bad in &report.bad_rows {
            let _ = writeln!(html, "<tr><th>line {}</th><td>{}</td></tr>", bad.line, escape(&bad.reason));
        }
        html.push_str("</table></details>\n");
    }
    if !report.samples.is_empty() {
        html.push_str("<h3>Rows as the model sees them; <mark>trained</mark></h3>\n");
    }
    for sample in &report.samples {
        let _ = write!(html, "<p class=\"quiet\">line {}</p><pre>", sample.line);
        for (piece, trained) in &sample.pieces {
            let text = escape(piece);
            let _ = if *trained { write!(html, "<mark>{text}</mark>") } else { write!(html, "{text}") };
        }
        html.push_str("</pre>\n");
    }
}

fn run_part(html: &mut String, page: &Page) {
    html.push_str("<h2>Run</h2>\n<table>\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    };
    row("output", &page.summary.output);
    row("kept step", &page.summary.kept_step.to_string());
    row("logits, files against trained weights", &format!("{:.2e}", page.summary.reload_difference));
    if let Some(plan) = &page.plan {
        row("device", &plan.device);
        row(
            "trained parameters",
            &format!("{} of {}", words::count(plan.trainable_parameters), words::count(plan.parameters)),
        );
        for part in &plan.parts {
            row(&format!("planned {}", part.name), &words::bytes(part.bytes));
        }
    }
    html.push_str("</table>\n<details><summary>Recipe</summary><pre>");
    html.push_str(&escape(&toml::to_string(&page.recipe).unwrap_or_default()));
    html.push_str("</pre></details>\n");
}

/// Text as text, whatever it holds.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are no HTML.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;
    use finetuned_data::{BadRow, RenderedSample};
    use finetuned_engine::Tally;

    fn page() -> Page {
        let metrics = (0..=20)
            .map(|step| StepMetrics {
                step,
                loss: 3.0 / (step as f64 + 1.0),
                grad_norm: 1.0,
                learning_rate: 1e-4,
                tokens: 10,
                trained_tokens: 5,
                seconds: 0.1,
                tokens_per_second: 100.0,
                validation_loss: (step % 10 == 0).then_some(2.0),
                extra: serde_json::Map::new(),
            })
            .collect();
        Page {
            title: "a<script>alert(1)</script>.jsonl".into(),
            base: "b & c".into(),
            recipe: Recipe::default(),
            summary: Summary {
                steps: 20,
                tally: Tally {
                    tokens: 200,
                    trained_tokens: 100,
                    seconds: 2.0,
                    first_loss: Some(1.5),
                    last_loss: Some(0.1),
                    validation_before: Some(3.0),
                    stopped_early: false,
                },
                validation_after: Some(2.0),
                kept_step: 20,
                peak_bytes: 1 << 30,
                output: "/out".into(),
                reload_difference: 0.0,
                extra: serde_json::Map::new(),
            },
            dataset: Some(DatasetReport {
                format: "chat".into(),
                bad_rows: vec![BadRow { line: 2, reason: "no <answer>".into() }],
                bad_row_count: 1,
                samples: vec![RenderedSample {
                    line: 1,
                    pieces: vec![("<|im_start|>user\nx\u{1b}".into(), false), ("y & z".into(), true)],
                }],
                ..DatasetReport::default()
            }),
            plan: None,
            metrics,
            samples: vec![Sample { prompt: "\"p\"".into(), before: "<b>".into(), after: "</pre>".into() }],
        }
    }

    #[test]
    fn everything_is_escaped_and_nothing_is_fetched() {
        let html = render(&page());
        assert!(!html.contains("<script"));
        assert!(html.contains("a&lt;script&gt;"));
        assert!(html.contains("<mark>y &amp; z</mark>"));
        assert!(html.contains("&lt;|im_start|&gt;user\nx\u{fffd}"));
        assert!(html.contains("<pre>&lt;/pre&gt;</pre>"));
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn every_tag_is_closed() {
        let html = render(&page());
        let mut open: Vec<&str> = Vec::new();
        let mut rest = html.as_str();
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').unwrap();
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
            if tag.starts_with('!') || tag.ends_with('/') || name == "meta" {
                continue;
            }
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "before {}", &rest[..rest.len().min(80)]);
            } else {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn repeated_and_cut_off_lines_of_the_metrics_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let line = |step: usize, loss: f64| {
            format!(
                "{{\"step\":{step},\"loss\":{loss},\"grad_norm\":1,\"learning_rate\":1,\"tokens\":1,\"trained_tokens\":1,\"seconds\":1,\"tokens_per_second\":1}}"
            )
        };
        let text = format!("{}\n{}\n{}\n{{\"step\":3,\"lo", line(1, 3.0), line(2, 2.0), line(1, 1.0));
        std::fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        let steps: Vec<(usize, f64)> = read_metrics(dir.path()).iter().map(|m| (m.step, m.loss)).collect();
        assert_eq!(steps, [(1, 1.0), (2, 2.0)]);
    }

    #[test]
    fn a_run_of_no_steps_still_has_a_report() {
        let page = Page { metrics: Vec::new(), dataset: None, samples: Vec::new(), ..page() };
        assert!(render(&page).contains("</html>"));
    }
}
