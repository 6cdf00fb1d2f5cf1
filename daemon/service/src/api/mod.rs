//! The control interface: JSON over HTTP on a Unix socket, so that
//! `curl --unix-socket` is a client too. Each endpoint is declared here once, for the
//! server, the client, and `API.md`, which a test compares.

mod document;
mod messages;

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::store::{EventRow, JobQuery};

pub use document::document;
pub use messages::{
    DaemonStatus, ErrorBody, ErrorWords, Health, JobView, Reloaded, Retry, Status, Submission, Submitted, SummaryView,
    View,
};

/// How an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Looks, and changes nothing.
    Get,
    /// Changes something.
    Post,
}

impl Method {
    /// As HTTP spells it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
        }
    }
}

/// What the documentation says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// How the path is asked.
    pub method: Method,
    /// `{id}` stands for a job's number.
    pub path: &'static str,
    /// What is asked with `?`, if anything is.
    pub query: &'static str,
    /// The JSON that is sent, if any is.
    pub body: &'static str,
    /// What comes back.
    pub answer: &'static str,
}

/// One thing to ask: its facts, and the types of query, body and answer.
pub struct Endpoint<Query, Body, Answer> {
    /// What the documentation says of it.
    pub facts: Facts,
    types: PhantomData<fn(Query, Body) -> Answer>,
}

impl<Query, Body, Answer> Endpoint<Query, Body, Answer> {
    const fn new(facts: Facts) -> Self {
        Endpoint { facts, types: PhantomData }
    }

    /// The path with a job's number in it.
    pub fn path_of(&self, id: i64) -> String {
        self.facts.path.replace("{id}", &id.to_string())
    }
}

/// How much of the daemon's status is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusQuery {
    /// At most so many jobs.
    pub limit: Option<usize>,
}

/// Which events are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsQuery {
    /// Those after the event with this id.
    pub after: i64,
    /// The answer goes on as things happen, one JSON object per line.
    pub follow: bool,
}

const PAGE: &str = "`limit`, `state`, `before` (a job's number)";
const EVENTS_QUERY: &str = "`after` (an event's id), `follow=true`";
const EVENTS_ANSWER: &str = "events after `after`, at most 1000, oldest first; followed, one per line as they come";

/// Whether the daemon is there.
pub const HEALTH: Endpoint<(), (), Health> = Endpoint::new(Facts {
    method: Method::Get,
    path: "/health",
    query: "",
    body: "",
    answer: "`{\"status\": \"ok\" or \"stopping\", \"pid\"}`",
});
/// What the daemon does.
pub const STATUS: Endpoint<StatusQuery, (), Status> = Endpoint::new(Facts {
    method: Method::Get,
    path: "/status",
    query: "`limit`",
    body: "",
    answer: "the daemon, its inboxes, the number of jobs in each state, and the jobs to see first: with a worker, waiting, paused, then the newest (20 unless `limit` says otherwise)",
});
/// Jobs, newest first.
pub const JOBS: Endpoint<JobQuery, (), Vec<SummaryView>> = Endpoint::new(Facts {
    method: Method::Get,
    path: "/jobs",
    query: PAGE,
    body: "",
    answer: "jobs in short, newest first, at most 1000",
});
/// A dataset to train.
pub const SUBMIT: Endpoint<(), Submission, Submitted> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/jobs",
    query: "",
    body: "`data` (an absolute path), and if wanted `validation`, `adapter`, `name`, `recipe`",
    answer: "the job, and `is_new`: whether there was none of the same data and recipe",
});
/// One job.
pub const JOB: Endpoint<(), (), JobView> = Endpoint::new(Facts {
    method: Method::Get,
    path: "/jobs/{id}",
    query: "",
    body: "",
    answer: "the job in full, with its recipe, its dataset's report and its summary",
});
/// What happened to one job.
pub const JOB_EVENTS: Endpoint<EventsQuery, (), Vec<EventRow>> = Endpoint::new(Facts {
    method: Method::Get,
    path: "/jobs/{id}/events",
    query: EVENTS_QUERY,
    body: "",
    answer: EVENTS_ANSWER,
});
/// What happened.
pub const EVENTS: Endpoint<EventsQuery, (), Vec<EventRow>> =
    Endpoint::new(Facts { method: Method::Get, path: "/events", query: EVENTS_QUERY, body: "", answer: EVENTS_ANSWER });
/// Stops a job at a checkpoint.
pub const PAUSE: Endpoint<(), (), JobView> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/jobs/{id}/pause",
    query: "",
    body: "",
    answer: "the job; one with a worker stops at a checkpoint when its step ends",
});
/// Lets a paused job go on.
pub const RESUME: Endpoint<(), (), JobView> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/jobs/{id}/resume",
    query: "",
    body: "",
    answer: "the job, which waits for a worker again",
});
/// Ends a job for good.
pub const CANCEL: Endpoint<(), (), JobView> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/jobs/{id}/cancel",
    query: "",
    body: "",
    answer: "the job; one with a worker ends without a checkpoint",
});
/// Starts a job again.
pub const RETRY: Endpoint<(), Retry, JobView> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/jobs/{id}/retry",
    query: "",
    body: "if wanted `fresh` (throw away the checkpoints), `accept_plugin_change`",
    answer: "the job, or the job that a changed recipe makes",
});
/// Reads the configuration again.
pub const RELOAD: Endpoint<(), (), Reloaded> = Endpoint::new(Facts {
    method: Method::Post,
    path: "/reload",
    query: "",
    body: "",
    answer: "the configuration's file and warnings; after an error nothing is changed",
});

/// Every endpoint, in the order of `API.md`.
pub const ENDPOINTS: [Facts; 12] = [
    HEALTH.facts,
    STATUS.facts,
    JOBS.facts,
    SUBMIT.facts,
    JOB.facts,
    JOB_EVENTS.facts,
    EVENTS.facts,
    PAUSE.facts,
    RESUME.facts,
    CANCEL.facts,
    RETRY.facts,
    RELOAD.facts,
];
