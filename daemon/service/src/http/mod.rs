//! The control interface of the daemon and the client of it: JSON over HTTP on a
//! Unix socket, so that `curl --unix-socket` is a client too.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /health` | `{"status": "ok" or "stopping", "pid"}` |
//! | `GET /status` | [`messages::Status`]: daemon, inboxes, jobs |
//! | `GET /jobs`, `GET /jobs/7` | [`messages::JobView`], one or all |
//! | `GET /events`, `GET /jobs/7/events` | events after `?after=ID`, at most 1000; with `&follow=true` one a line, as they come |
//! | `POST /jobs` | [`messages::Submission`] to [`messages::Submitted`] |
//! | `POST /jobs/7/pause`, `resume`, `cancel` | the job; a running one stops at its step's end |
//! | `POST /jobs/7/retry` | [`messages::Retry`] to the job, or to the job that a changed recipe makes |
//! | `POST /reload` | [`messages::Reloaded`], or 400 and nothing is changed |
//!
//! Every error is a [`messages::ErrorBody`]: 404 for what is not there, 400 for
//! what cannot be done, with the reason.

pub mod client;
pub mod messages;
pub mod server;
