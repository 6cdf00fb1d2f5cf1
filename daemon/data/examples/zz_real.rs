use finetuned_data::*;
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let t = Instant::now();
    let files = finetuned_formats::ModelFiles::open(args[1].as_ref()).unwrap();
    let tok = ChatTokenizer::new(&files.tokenizer).unwrap();
    println!("tokenizer {:?} stop {:?} bos {:?} loaded in {:?}", tok, tok.stop_tokens(), tok.bos(), t.elapsed());
    for f in &args[2..] {
        let t = Instant::now();
        let o = DataOptions {
            sequence_length: std::env::var("LEN").ok().and_then(|s| s.parse().ok()).unwrap_or(2048),
            validation_fraction: 0.1,
            ..Default::default()
        };
        match prepare(f.as_ref(), None, &tok, &o) {
            Err(e) => println!("{f}: ERROR {e} [{:?}]", t.elapsed()),
            Ok(p) => {
                let r = &p.report;
                let el = t.elapsed();
                println!(
                    "{f}: {} | rows {} used {} bad {} dup {} toolong {} noeot {} tokens {} trained {} longest {} val {} | {:?} = {:.1} ms/1000 rows",
                    r.format,
                    r.rows,
                    r.used,
                    r.bad_row_count,
                    r.duplicates,
                    r.dropped_too_long,
                    r.without_end_of_turn,
                    r.tokens,
                    r.trained_tokens,
                    r.longest,
                    r.validation_rows,
                    el,
                    el.as_secs_f64() * 1e6 / r.rows as f64
                );
                for b in r.bad_rows.iter().take(3) {
                    println!("   bad line {}: {}", b.line, b.reason);
                }
                for w in &r.warnings {
                    println!("   warning: {w}");
                }
                if std::env::var("SHOW").is_ok() {
                    for s in &r.samples {
                        println!("   {:?}", s.pieces);
                    }
                }
            }
        }
    }
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", s.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
