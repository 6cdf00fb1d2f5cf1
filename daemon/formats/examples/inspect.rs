//! Prints what a model's files say: `inspect MODEL [FOLDER]`.
//!
//! With a folder, writes the config and tokenizer files there as a full
//! fine-tune would, to look at or to load with transformers.

use finetuned_formats::{FormatError, ModelFiles, durable};
use std::path::Path;

fn main() -> Result<(), FormatError> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: inspect MODEL [FOLDER]");
        std::process::exit(2);
    };
    let files = ModelFiles::open(Path::new(&model))?;
    println!("{:#?}", files.config);
    for name in files.tensors.names() {
        if let Some(info) = files.tensors.info(&name) {
            let data = files.tensors.read_f32(&name)?;
            let sum: f64 = data.iter().map(|x| f64::from(*x)).sum();
            let squares: f64 = data.iter().map(|x| f64::from(*x).powi(2)).sum();
            println!("{name} {:?} {:?} sum {sum:.6} norm {:.6}", info.shape, info.stored, squares.sqrt());
        }
    }
    println!("stop at {:?}", files.tokenizer.eos_ids);
    if let Some(folder) = arguments.next() {
        let folder = Path::new(&folder);
        let config = format!("{:#}\n", files.config.raw);
        durable::write_file(&folder.join("config.json"), config.as_bytes())?;
        for (name, bytes) in &files.tokenizer.extra_files {
            durable::write_file(&folder.join(name), bytes)?;
        }
    }
    Ok(())
}
