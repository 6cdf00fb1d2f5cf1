use std::path::PathBuf;

use finetuned_engine::{ErrorKind, Event, Recipe};

use super::*;
use crate::plugins::Crashed;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with_clock(&dir.path().join("t.db"), || 1_000).unwrap();
    (dir, store)
}

fn new_job(key: &str) -> NewJob {
    NewJob {
        key: key.into(),
        name: "support data".into(),
        data: "/d/data.jsonl".into(),
        validation: None,
        data_sha256: "00".into(),
        recipe: Recipe::default(),
        adapter: None,
        plugins: Vec::new(),
        outputs: "/out".into(),
    }
}

fn to(state: State) -> Change {
    Change::to(state, "")
}

fn file(path: &str) -> FileRow {
    FileRow {
        inbox: "/inbox".into(),
        path: path.into(),
        stamp: "s1".into(),
        companions: String::new(),
        sha256: Some("00".into()),
        job: None,
        refused: None,
        receipt: "_receipts/a.txt".into(),
    }
}

#[test]
fn one_key_is_one_job() {
    let (_dir, mut store) = store();
    let (first, is_new) = store.claim(&new_job("k")).unwrap();
    assert!(is_new);
    assert_eq!(first.out, PathBuf::from("/out/support-data-1"));
    let (again, is_new) = store.claim(&new_job("k")).unwrap();
    assert!(!is_new);
    assert_eq!(first, again);
    assert!(store.claim(&new_job("other")).unwrap().1);
    assert_eq!(store.counts().unwrap(), Counts::from([(State::Queued, 2)]));
}

#[test]
fn an_illegal_transition_changes_nothing() {
    let (_dir, mut store) = store();
    let id = store.claim(&new_job("k")).unwrap().0.id;
    let error = store.transition(id, &to(State::Succeeded)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), "job 1 is queued; it cannot become succeeded");
    assert_eq!(store.job(id).unwrap().unwrap().state, State::Queued);
    let missing = store.transition(99, &to(State::Preparing)).unwrap_err();
    assert_eq!((missing.kind(), missing.to_string().as_str()), (ErrorKind::NotFound, "there is no job 99"));
}

#[test]
fn failing_keeps_the_reason_and_its_kind_and_retrying_clears_both() {
    let (_dir, mut store) = store();
    let id = store.claim(&new_job("k")).unwrap().0.id;
    store.transition(id, &to(State::Preparing)).unwrap();
    let failed = store.transition(id, &Change::by_error(State::Failed, ErrorKind::BadInput, "line 3: no end")).unwrap();
    assert_eq!(failed.error.as_deref(), Some("line 3: no end"));
    assert_eq!((failed.error_kind, failed.ended_ms), (Some(ErrorKind::BadInput), Some(1_000)));
    let again = Again { fresh: true, accept_plugin_change: false, plugins: Vec::new() };
    let queued = store.requeue(id, &again).unwrap();
    assert_eq!((queued.error, queued.error_kind, queued.ended_ms, queued.attempts), (None, None, None, 1));
    assert!(queued.fresh);
    let kinds: Vec<_> = store.events(Some(id), 0, 100).unwrap().iter().map(|e| e.body["to"].clone()).collect();
    assert_eq!(kinds, ["queued", "preparing", "failed", "queued"]);
}

#[test]
fn a_restart_requeues_only_what_a_worker_had() {
    let (_dir, mut store) = store();
    for key in ["a", "b", "c", "d"] {
        store.claim(&new_job(key)).unwrap();
    }
    store.transition(1, &to(State::Preparing)).unwrap();
    store.transition(2, &to(State::Preparing)).unwrap();
    store.begin(2).unwrap();
    store.transition(3, &to(State::Paused)).unwrap();
    let ids: Vec<i64> = store.requeue_active("restart").unwrap().iter().map(|job| job.id).collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!(store.job(3).unwrap().unwrap().state, State::Paused);
    assert_eq!(store.counts().unwrap(), Counts::from([(State::Queued, 3), (State::Paused, 1)]));
    let next = store.start_next().unwrap().unwrap();
    assert_eq!((next.id, next.state, next.attempts), (1, State::Preparing, 2));
}

#[test]
fn what_was_stored_survives_a_reopening() {
    let (dir, mut store) = store();
    store.decide(&file("a.jsonl"), &Decision::Train(Box::new(new_job("k")))).unwrap();
    let progress = Progress { step: 7, total_steps: 9, ..Progress::default() };
    store.record(1, &progress, &[Event::Checkpoint { step: 7 }]).unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("t.db")).unwrap();
    assert_eq!(store.job(1).unwrap().unwrap().progress, progress);
    assert_eq!(store.file(Path::new("/inbox"), Path::new("a.jsonl")).unwrap().unwrap().job, Some(1));
    let events = store.events(Some(1), 0, 10).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!((events[1].kind.as_str(), &events[1].body), ("checkpoint", &serde_json::json!({ "step": 7 })));
    assert_eq!(store.events(None, events[0].id, 10).unwrap(), events[1..]);
}

#[test]
fn two_files_of_one_content_are_one_job() {
    let (_dir, mut store) = store();
    let train = Decision::Train(Box::new(new_job("k")));
    assert_eq!(store.decide(&file("a.jsonl"), &train).unwrap(), Some((1, true)));
    assert_eq!(store.decide(&file("b.jsonl"), &train).unwrap(), Some((1, false)));
    assert_eq!(store.files_of_job(1).unwrap().len(), 2);
    assert_eq!(store.decide(&file("a.jsonl"), &Decision::Refuse("bad".into())).unwrap(), None);
    assert_eq!(store.files_of_job(1).unwrap().len(), 1);
}

#[test]
fn a_database_of_a_later_version_is_not_touched() {
    let (dir, store) = store();
    store.connection.pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let error = Store::open(&dir.path().join("t.db")).err().unwrap();
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn crashes_are_counted_by_build_and_read_beside_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    assert!(crashes_in(&path).unwrap().is_empty(), "there is no database yet");
    let mut store = Store::open(&path).unwrap();
    let (job, _) = store.claim(&new_job("a")).unwrap();
    assert_eq!(store.add_plugin_crash("abc", job.id, "step 1").unwrap(), 1);
    assert_eq!(store.add_plugin_crash("def", job.id, "step 9").unwrap(), 1);
    assert_eq!(store.add_plugin_crash("abc", job.id, "step 2").unwrap(), 2);
    let crashes = crashes_in(&path).unwrap();
    assert_eq!(crashes["abc"], Crashed { count: 2, last: "step 2".into() });
    assert_eq!(crashes, store.plugin_crashes().unwrap());
}

#[test]
fn a_database_from_before_plugins_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(include_str!("schema/1_jobs.sql")).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let recipe = serde_json::to_string(&Recipe::default()).unwrap();
        connection
            .execute(
                "INSERT INTO jobs (key, name, state, data, data_sha256, recipe, out, created_ms)
                 VALUES ('k', 'n', 'queued', 'd', 's', ?, 'o', 0)",
                [recipe],
            )
            .unwrap();
    }
    assert!(crashes_in(&path).unwrap().is_empty());
    let job = Store::open(&path).unwrap().job(1).unwrap().unwrap();
    assert_eq!((job.plugins, job.accept_plugin_change), (Vec::new(), false));
}

#[test]
fn a_database_of_version_2_is_adopted_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(include_str!("schema/fixture_version_2.sql")).unwrap();
        let recipe = serde_json::to_string(&Recipe::default()).unwrap();
        for (key, state) in [("a", "succeeded"), ("b", "failed"), ("c", "queued"), ("d", "failed")] {
            connection
                .execute(
                    "INSERT INTO jobs (key, name, state, data, data_sha256, recipe, out, created_ms, error, fresh)
                     VALUES (?1, ?1, ?2, 'd', 's', ?3, 'o', 5, 'why', 1)",
                    [key, state, recipe.as_str()],
                )
                .unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO events (job, at_ms, kind, body) VALUES (1, 6, 'note', '{\"message\":\"m\"}');
                 INSERT INTO files (inbox, path, stamp, companions, job, receipt, decided_ms)
                     VALUES ('/i', 'a.jsonl', 's', '', 1, 'r', 7);
                 INSERT INTO plugin_crashes (sha256, job, at_ms, what) VALUES ('abc', 2, 8, 'step 1');",
            )
            .unwrap();
    }
    let mut store = Store::open(&path).unwrap();
    let job = store.job(2).unwrap().unwrap();
    assert_eq!((job.state, job.error.as_deref(), job.error_kind, job.fresh), (State::Failed, Some("why"), None, true));
    assert_eq!(store.counts().unwrap(), Counts::from([(State::Succeeded, 1), (State::Failed, 2), (State::Queued, 1)]));
    assert_eq!(store.events(Some(1), 0, 9).unwrap()[0].body["message"], "m");
    assert_eq!(store.files_of_job(1).unwrap().len(), 1);
    assert_eq!(store.plugin_crashes().unwrap()["abc"].count, 1);
    store.start_next().unwrap();
    assert_eq!(store.counts().unwrap()[&State::Preparing], 1, "the counts go on from what was there");
}
