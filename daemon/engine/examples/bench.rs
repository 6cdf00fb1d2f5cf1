fn main() {
    let options = finetuned_engine::bench::BenchOptions { steps: 3, ..Default::default() };
    match finetuned_engine::bench::bench(&options) {
        Ok(report) => println!("{report}"),
        Err(error) => println!("{error}"),
    }
}
