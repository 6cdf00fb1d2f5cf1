use super::*;
use finetuned_engine::recipe::Recipe;

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
    assert_eq!(store.jobs().unwrap().len(), 2);
}

#[test]
fn an_illegal_transition_changes_nothing() {
    let (_dir, mut store) = store();
    let id = store.claim(&new_job("k")).unwrap().0.id;
    let error = store.transition(id, State::Succeeded, "").unwrap_err().to_string();
    assert_eq!(error, "job 1 is queued; it cannot become succeeded");
    assert_eq!(store.job(id).unwrap().unwrap().state, State::Queued);
    assert!(store.transition(99, State::Preparing, "").is_err());
}

#[test]
fn failing_keeps_the_reason_and_retrying_clears_it() {
    let (_dir, mut store) = store();
    let id = store.claim(&new_job("k")).unwrap().0.id;
    store.transition(id, State::Preparing, "").unwrap();
    let failed = store.transition(id, State::Failed, "line 3: no end").unwrap();
    assert_eq!(failed.error.as_deref(), Some("line 3: no end"));
    assert_eq!(failed.ended_ms, Some(1_000));
    let queued = store.transition(id, State::Queued, "retry").unwrap();
    assert_eq!((queued.error, queued.ended_ms, queued.attempts), (None, None, 1));
    let kinds: Vec<_> = store.events(Some(id), 0, 100).unwrap().iter().map(|e| e.body["to"].clone()).collect();
    assert_eq!(kinds, ["queued", "preparing", "failed", "queued"]);
}

#[test]
fn a_restart_requeues_only_what_a_worker_had() {
    let (_dir, mut store) = store();
    for key in ["a", "b", "c", "d"] {
        store.claim(&new_job(key)).unwrap();
    }
    store.transition(1, State::Preparing, "").unwrap();
    store.transition(2, State::Preparing, "").unwrap();
    store.transition(2, State::Running, "").unwrap();
    store.transition(3, State::Paused, "").unwrap();
    let ids: Vec<i64> = store.requeue_active("restart").unwrap().iter().map(|job| job.id).collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!(store.job(3).unwrap().unwrap().state, State::Paused);
    assert_eq!(store.next_queued().unwrap().unwrap().id, 1);
}

#[test]
fn what_was_stored_survives_a_reopening() {
    let (dir, mut store) = store();
    store.decide(&file("a.jsonl"), &Decision::Train(Box::new(new_job("k")))).unwrap();
    let progress = Progress { step: 7, total_steps: 9, ..Progress::default() };
    store.record(1, &progress, &[("step".into(), serde_json::json!({"step": 7}))]).unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("t.db")).unwrap();
    assert_eq!(store.job(1).unwrap().unwrap().progress, progress);
    assert_eq!(store.file(Path::new("/inbox"), Path::new("a.jsonl")).unwrap().unwrap().job, Some(1));
    assert_eq!(store.events(Some(1), 0, 10).unwrap().len(), 2);
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
    assert!(format!("{error:#}").contains("version 99"), "{error:#}");
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
    schema::create_version(&path, 1);
    {
        let connection = rusqlite::Connection::open(&path).unwrap();
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
