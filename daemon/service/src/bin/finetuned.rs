#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    finetuned_service::cli::daemon_main()
}
