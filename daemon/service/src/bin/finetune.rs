#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    finetuned_service::cli::main()
}
