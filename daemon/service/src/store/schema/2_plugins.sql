-- The builds of the plugins that the job trains with, as JSON.
ALTER TABLE jobs ADD COLUMN plugins TEXT NOT NULL DEFAULT '[]';
-- Go on although a plugin is another build than the one it began with.
ALTER TABLE jobs ADD COLUMN accept_plugin_change INTEGER NOT NULL DEFAULT 0;

-- Workers that ended inside a plugin's call.
CREATE TABLE plugin_crashes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES jobs(id),
    at_ms INTEGER NOT NULL,
    -- Plugin, version, step and cause.
    what TEXT NOT NULL
) STRICT;
CREATE INDEX plugin_crashes_by_hash ON plugin_crashes(sha256);
