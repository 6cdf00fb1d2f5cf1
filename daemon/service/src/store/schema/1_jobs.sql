CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- sha256 of the data, and of the effective recipe: one job a key.
    key TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    -- What is trained from: the snapshot, or the source where it is too large.
    data TEXT NOT NULL,
    validation TEXT,
    data_sha256 TEXT NOT NULL,
    -- The effective recipe, and the request's other choices, as JSON.
    recipe TEXT NOT NULL,
    adapter TEXT,
    out TEXT NOT NULL,
    -- Milliseconds since 1970.
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- JSON of Progress, DatasetReport, Summary.
    progress TEXT NOT NULL DEFAULT '{}',
    report TEXT,
    summary TEXT,
    error TEXT,
    -- Throw away what an earlier attempt left.
    fresh INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs(state, id);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs(id),
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events(job, id);

-- What the inbox has read. A row is a decision: trained as a job, the same
-- as a job, or refused.
CREATE TABLE files (
    inbox TEXT NOT NULL,
    path TEXT NOT NULL,
    -- What the file looked like when it was decided on.
    stamp TEXT NOT NULL,
    -- What its sidecar and standing recipe looked like.
    companions TEXT NOT NULL,
    sha256 TEXT,
    job INTEGER REFERENCES jobs(id),
    refused TEXT,
    receipt TEXT NOT NULL,
    decided_ms INTEGER NOT NULL,
    PRIMARY KEY (inbox, path)
) STRICT;
CREATE INDEX files_by_job ON files(job);
