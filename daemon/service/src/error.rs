//! The service's error: a kind, a message, a remedy. The kind goes with it to the
//! worker's line, the database, the receipt, the HTTP status and the exit code;
//! nothing reads the words.

use std::fmt::{self, Display};
use std::process::ExitCode;

use finetuned_engine::{EngineError, ErrorKind, RecipeError};
use finetuned_plugin_api::PluginError;

use crate::config::ConfigError;
use crate::exit;

/// What a function of the service returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What a kind of error means outside the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// Status of an HTTP answer.
    pub http: u16,
    /// Exit code of a command.
    pub exit: u8,
}

/// The one table of kinds, HTTP statuses and exit codes; API.md is written from it.
pub const fn meaning(kind: ErrorKind) -> Meaning {
    let (http, exit) = match kind {
        ErrorKind::BadInput => (400, exit::FAILED),
        ErrorKind::NotFound => (404, exit::FAILED),
        ErrorKind::Conflict => (409, exit::FAILED),
        ErrorKind::OutOfMemory => (507, exit::FAILED),
        ErrorKind::Device => (503, exit::UNAVAILABLE),
        ErrorKind::Plugin => (422, exit::FAILED),
        ErrorKind::NotFinite => (422, exit::FAILED),
        ErrorKind::Storage => (500, exit::FAILED),
        ErrorKind::Cancelled => (503, exit::TEMPORARY),
        ErrorKind::Internal => (500, exit::FAILED),
    };
    Meaning { http, exit }
}

/// Why the service refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    remedy: Option<String>,
    exit: Option<u8>,
}

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), remedy: None, exit: None }
    }

    /// The request, a file or a recipe cannot be used as it is.
    pub fn bad_input(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadInput, message)
    }

    /// What was named does not exist.
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::NotFound, message)
    }

    /// The request contradicts the present state.
    pub fn conflict(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Conflict, message)
    }

    /// A plugin failed, or may not be used.
    pub fn plugin(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Plugin, message)
    }

    /// A file or the database could not be read or written.
    pub fn storage(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Storage, message)
    }

    /// A fault of this program.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }

    /// What the user can do, after the message and a semicolon.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Error {
        self.remedy = Some(remedy.into());
        self
    }

    /// Ends the process with `code` instead of the kind's own code.
    #[must_use]
    pub fn exit(mut self, code: u8) -> Error {
        self.exit = Some(code);
        self
    }

    /// The same words as another kind: who opens a user's file knows better than the
    /// operating system's error whose fault it is.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    /// Puts `words` before the message.
    #[must_use]
    pub fn within(mut self, words: impl Display) -> Error {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without the remedy.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the user can do, if it is said apart from the message.
    pub fn remedy_words(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// Exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        self.exit.unwrap_or(meaning(self.kind).exit)
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Prints the error that ended `program`, and gives its exit code.
pub fn report(program: &str, error: impl Into<Error>) -> ExitCode {
    let error = error.into();
    eprintln!("{program}: {error}");
    ExitCode::from(error.exit_code())
}

/// Words before an error. The kind stays.
pub trait Context<T> {
    /// # Errors
    /// The same error with `words` before it.
    fn context(self, words: impl Display) -> Result<T>;

    /// # Errors
    /// The same error with words before it, which are made only then.
    fn with_context<W: Display>(self, words: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, words: impl Display) -> Result<T> {
        self.map_err(|error| error.into().within(words))
    }

    fn with_context<W: Display>(self, words: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|error| error.into().within(words()))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::storage(error.to_string())
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::storage(format!("the database: {error}"))
    }
}

impl From<rusqlite_migration::Error> for Error {
    fn from(error: rusqlite_migration::Error) -> Error {
        Error::storage(format!("the database: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Error {
        Error::internal(error.to_string())
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Error {
        Error::internal(error.to_string())
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Error {
        Error::new(error.kind(), error.to_string())
    }
}

impl From<RecipeError> for Error {
    fn from(error: RecipeError) -> Error {
        Error::bad_input(error.to_string())
    }
}

impl From<PluginError> for Error {
    fn from(error: PluginError) -> Error {
        Error::plugin(error.to_string())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Error {
        Error::bad_input(error.to_string()).exit(exit::CONFIG)
    }
}

/// The commands carry errors as `anyhow` does: the first cause of a known type
/// gives the kind.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        let known = error.chain().find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<Error>() {
                return Some((error.kind, error.exit));
            }
            if let Some(error) = cause.downcast_ref::<EngineError>() {
                return Some((error.kind(), None));
            }
            if cause.is::<ConfigError>() {
                return Some((ErrorKind::BadInput, Some(exit::CONFIG)));
            }
            if cause.is::<RecipeError>() {
                return Some((ErrorKind::BadInput, None));
            }
            cause.is::<std::io::Error>().then_some((ErrorKind::Storage, None))
        });
        let (kind, exit) = known.unwrap_or((ErrorKind::Internal, None));
        Error { exit, ..Error::new(kind, format!("{error:#}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::IntoEnumIterator;

    #[test]
    fn every_kind_is_one_word_in_json_database_and_receipts() {
        for kind in ErrorKind::iter() {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn words_before_an_error_leave_its_kind_and_exit_code() {
        let error: Result<()> = Err(Error::conflict("job 1 is paused").remedy("resume it").exit(75));
        let error = error.context("in this test").unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Conflict, 75));
        assert_eq!(error.to_string(), "in this test: job 1 is paused; resume it");
    }

    #[test]
    fn a_command_that_wraps_an_error_does_not_lose_its_kind() {
        let error = Error::from(anyhow::Error::from(Error::not_found("there is no job 9")).context("retry"));
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "retry: there is no job 9"));
        let config = Error::from(anyhow::Error::from(ConfigError(vec!["f:1: no".into()])));
        assert_eq!((config.kind(), config.exit_code()), (ErrorKind::BadInput, exit::CONFIG));
        assert_eq!(Error::from(anyhow::anyhow!("odd")).kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_database_that_fails_is_the_services_fault() {
        let error = Error::from(rusqlite::Error::QueryReturnedNoRows);
        assert_eq!(meaning(error.kind()).http, 500);
    }
}
