//! The daemon's name for the one program: starts the `finetune` beside it as
//! `finetuned`.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// What sysexits.h calls a configuration error.
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(path) => path.with_file_name("finetune"),
        Err(error) => {
            eprintln!("finetuned: cannot tell where this program is: {error}");
            return ExitCode::from(CONFIGURATION);
        }
    };
    // Returns only if the program could not be started.
    let error = Command::new(&program).arg0("finetuned").args(std::env::args_os().skip(1)).exec();
    eprintln!("finetuned: cannot start {}, which belongs beside it: {error}", program.display());
    ExitCode::from(CONFIGURATION)
}
