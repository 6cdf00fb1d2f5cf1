//! Prints what a model's files say: `inspect MODEL [FOLDER]`.
//!
//! With a folder, also writes the model there as a full fine-tune would leave
//! it, to look at or to load with transformers.

use finetuned_formats::{ElementType, FormatError, ModelFiles, TensorSpec, Values, write_model_folder};
use std::path::Path;

fn main() -> Result<(), FormatError> {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        eprintln!("usage: inspect MODEL [FOLDER]");
        std::process::exit(2);
    };
    let files = ModelFiles::open(Path::new(&model))?;
    println!("{:#?}", files.config);
    println!("stop at {:?}", files.tokenizer.eos_ids);
    let mut specs = Vec::new();
    for name in files.tensors.names() {
        if let Some(info) = files.tensors.info(&name) {
            println!("{name} {:?} {:?}", info.shape, info.stored);
            specs.push(TensorSpec::new(&name, &info.shape, ElementType::F32));
        }
    }
    if let Some(folder) = arguments.next() {
        write_model_folder(
            Path::new(&folder),
            &files.config.raw,
            &files.tokenizer.extra_files,
            &specs,
            |spec, sink| sink.write(Values::F32(&files.tensors.read_f32(&spec.name)?)),
        )?;
    }
    Ok(())
}
