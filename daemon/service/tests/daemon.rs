//! The daemon and the command, as programs, on a tiny model.

mod common;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{House, read, rows};
use finetuned_engine::ErrorKind;
use finetuned_service::api::{self, ErrorBody};
use finetuned_service::store::{JobQuery, State};
use rustix::process::Signal;

const SHORT: &str = "[recipe.train]\nsteps = 6\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.2\n[recipe.lora]\nrank = 2\n";
/// Long enough to be interrupted.
const LONG: &str = "[recipe.train]\nsteps = 100000\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.0\n[recipe.lora]\nrank = 2\n[recipe.checkpoint]\nevery_steps = 20\n";

#[test]
fn a_dropped_dataset_becomes_an_adapter() {
    let mut house = House::new(SHORT);
    house.start();
    house.drop_file("support.jsonl", &rows("printers", 20));
    let view = house.wait_for(1, State::Succeeded);
    let job = view.job;
    assert_eq!(job.name, "support");
    for file in ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "report.html"] {
        assert!(job.out.join(file).exists(), "{file}");
    }
    let receipt = house.receipt("support", "DONE");
    for part in ["val loss", "messages", "20 (", "«", "report.html", job.out.to_str().unwrap()] {
        assert!(receipt.contains(part), "{part} in {receipt}");
    }
    assert!(house.path("inbox/support.jsonl").exists(), "the source stays");
    let report = String::from_utf8(read(&job.out.join("report.html"))).unwrap();
    assert!(report.contains("<mark>") && report.contains("<polyline"));
    assert!(house.events(1).iter().filter(|row| row.kind == "step").count() == 6);

    let status = house.finetune(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["jobs"][0]["state"], "succeeded");
    let logs = house.finetune(&["logs", "-f", "1"]);
    assert!(String::from_utf8_lossy(&logs.stdout).contains("succeeded"), "following an ended job ends");

    // The same again is the same job.
    house.drop_file("again.jsonl", &rows("printers", 20));
    assert!(house.receipt("again", "job 1").contains("not trained again"));
    assert_eq!(house.status().jobs.len(), 1);
}

#[test]
fn a_bad_dataset_fails_with_its_reason_and_the_next_goes_on() {
    let mut house = House::new(SHORT);
    house.start();
    // Nothing that a look at the rows could tell: no answer is to be trained on.
    house.drop_file(
        "a.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\",\"weight\":0}]}\n",
    );
    let failed = house.wait_for(1, State::Failed).job;
    let error = failed.error.unwrap();
    assert!(error.contains("a.jsonl"), "the user's own file is named: {error}");
    assert_eq!(failed.error_kind, Some(ErrorKind::BadInput));
    let shown = house.finetune(&["status", "1"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("error      bad-input: "));
    house.drop_file("b.jsonl", &rows("b", 20));
    house.wait_for(2, State::Succeeded);
    let receipt = house.receipt("a", "FAILED");
    assert!(receipt.contains("finetune retry 1") && receipt.contains("error (bad-input)"), "{receipt}");
    let listed =
        house.client().ask(&api::JOBS, &JobQuery { state: Some(State::Failed), ..JobQuery::default() }, &()).unwrap();
    assert_eq!(
        listed.iter().map(|view| (view.job.id, view.job.error_kind)).collect::<Vec<_>>(),
        [(1, Some(ErrorKind::BadInput))]
    );
    let status = |words: &[&str]| {
        let shown = house.finetune(&[&["status"], words].concat());
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let one = status(&["--limit", "1"]);
    assert!(one.contains("1 more (in all: 1 succeeded, 1 failed); finetune status --all shows them"), "{one}");
    let of_state = status(&["--state", "failed"]);
    assert!(of_state.contains("   1  a  ") && !of_state.contains("   2  b  "), "{of_state}");
    assert!(!of_state.contains("more"), "{of_state}");
    let all: serde_json::Value = serde_json::from_str(&status(&["--all", "--json"])).unwrap();
    let ids: Vec<_> = all["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [2, 1], "newest first");
}

#[test]
fn pause_resume_cancel_retry() {
    let mut house = House::new(LONG);
    house.start();
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for_step(1, 3);
    assert!(house.finetune(&["pause", "1"]).status.success());
    let paused = house.wait_for(1, State::Paused).job;
    assert!(paused.progress.checkpoint_step.is_some(), "a pause leaves a checkpoint");
    let again = house.finetune(&["pause", "1"]);
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("job 1 is paused"));
    assert!(house.finetune(&["resume", "1"]).status.success());
    let step = paused.progress.step;
    house.wait_for_step(1, step + 1);
    let started: Vec<usize> = house
        .events(1)
        .iter()
        .filter(|row| row.kind == "started")
        .map(|row| row.body["resumed_from"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!(started, [0, step], "it goes on where it was");
    assert!(house.finetune(&["cancel", "1"]).status.success());
    house.wait_for(1, State::Cancelled);
    assert!(house.finetune(&["retry", "1"]).status.success());
    // The step is still that of the attempt before until the new one runs.
    house.wait_for(1, State::Running);
    assert_eq!(house.job(1).unwrap().job.attempts, 3);
    let missing = house.finetune(&["cancel", "9"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no job 9"));
}

#[test]
fn sigterm_checkpoints_and_the_next_start_goes_on() {
    let mut house = House::new(LONG);
    house.start();
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for_step(1, 3);
    house.signal(Signal::TERM);
    assert_eq!(house.end(), Some(0));
    house.start();
    house.wait("the second start", || (house.job(1)?.job.attempts == 2).then_some(()));
    let resumed = house.wait("the job to go on", || {
        house
            .events(1)
            .iter()
            .rfind(|row| row.kind == "started")
            .and_then(|row| row.body["resumed_from"].as_u64())
            .filter(|&step| step > 0)
    });
    let stopped = house
        .events(1)
        .iter()
        .rfind(|row| row.kind == "checkpoint" && row.body["step"].as_u64() == Some(resumed))
        .is_some();
    assert!(stopped, "it goes on from the checkpoint of its stop");
}

#[test]
fn a_worker_that_dies_fails_its_job_and_nothing_else() {
    let mut house = House::new(LONG);
    house.start();
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for_step(1, 25);
    let pid: i32 = std::fs::read_to_string(house.path("jobs/1/worker.lock")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let failed = house.wait_for(1, State::Failed).job;
    assert!(failed.error.unwrap().contains("signal 9"));
    assert!(house.receipt("a", "FAILED").contains("The checkpoint of step"));
    assert!(
        house
            .finetune(&[
                "submit",
                house.path("inbox/a.jsonl").to_str().unwrap(),
                "--set",
                "train.steps=4",
                "--set",
                "train.seed=7"
            ])
            .status
            .success()
    );
    house.wait_for(2, State::Succeeded);
}

#[test]
fn one_daemon_a_folder_and_the_second_names_the_first() {
    let mut house = House::new(SHORT);
    house.start();
    let second = house.command(env!("CARGO_BIN_EXE_finetuned")).output().unwrap();
    assert_eq!(second.status.code(), Some(73));
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(words.contains(&format!("process {}", house.daemon.as_ref().unwrap().id())), "{words}");
    assert!(house.client().ask(&api::HEALTH, &(), &()).is_ok(), "the first is not disturbed");
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_reload_keeps_the_old() {
    let mut house = House::new(SHORT);
    let good = std::fs::read_to_string(house.config()).unwrap();
    house.start();
    house.configure(&format!("{good}\n[inbx]\n"));
    let reload = house.finetune(&["reload"]);
    // The client reads the same file and stumbles first.
    assert_eq!(reload.status.code(), Some(78));
    house.signal(Signal::HUP);
    house.wait("the refusal in the log", || house.log().contains("the configuration stays as it was").then_some(()));
    assert!(house.log().contains("did you mean `inbox`?") || house.log().contains("unknown key `inbx`"));
    house.configure(&good.replace("steps = 6", "steps = 4"));
    assert!(house.finetune(&["reload"]).status.success());
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for(1, State::Succeeded);
    assert_eq!(house.job(1).unwrap().job.progress.total_steps, 4, "the new recipe counts");
}

#[test]
fn exit_codes_tell_causes_apart() {
    let house = House::new(SHORT);
    assert_eq!(house.finetune(&["status"]).status.code(), Some(69), "no daemon");
    assert_eq!(house.finetune(&["statsu"]).status.code(), Some(64), "wrong usage");
    assert_eq!(house.finetune(&["config", "check"]).status.code(), Some(0));
    house.configure("state_dirr = 1\n");
    let check = house.finetune(&["config", "check"]);
    assert_eq!(check.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&check.stderr)
            .contains("finetuned.toml:1: unknown key `state_dirr`; did you mean `state_dir`?")
    );
    assert_eq!(house.command(env!("CARGO_BIN_EXE_finetuned")).output().unwrap().status.code(), Some(78));
}

#[test]
fn the_service_manager_is_told() {
    let mut house = House::new(SHORT);
    let path = house.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = house.command(env!("CARGO_BIN_EXE_finetuned"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    house.start_with(&mut command);
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for(1, State::Succeeded);
    house.signal(Signal::TERM);
    assert_eq!(house.end(), Some(0));
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while !received.contains(&"STOPPING=1".to_string()) {
        let read = socket.recv(&mut buffer).unwrap();
        received.push(String::from_utf8_lossy(&buffer[..read]).trim_end().to_string());
    }
    let place = |word: &str| {
        received
            .iter()
            .position(|message| message.starts_with(word))
            .unwrap_or_else(|| panic!("{word} in {received:?}"))
    };
    assert!(place("READY=1") < place("STOPPING=1"));
    assert!(place("WATCHDOG=1") < place("STOPPING=1"));
    assert!(place("STATUS=") < place("STOPPING=1"));
}

/// What `curl` would see of an answer: its status and its body.
fn curl(house: &House, method: &str, path: &str, body: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(house.path("finetuned.sock")).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: finetuned\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_string())
}

#[test]
fn every_endpoint_answers_and_every_error_has_its_status_and_kind() {
    let mut house = House::new(LONG);
    house.start();
    for facts in api::ENDPOINTS {
        let path = facts.path.replace("{id}", "9");
        let (status, body) = curl(&house, facts.method.name(), &path, if facts.body.is_empty() { "" } else { "{}" });
        assert!(![404, 405].contains(&status) || facts.path.contains("{id}"), "{path}: {status} {body}");
        if facts.path.contains("{id}") {
            // The path is there; the job is not.
            assert!(body.contains("there is no job 9"), "{path}: {status} {body}");
        }
    }
    let failed = |method: &str, path: &str, body: &str| {
        let (status, body) = curl(&house, method, path, body);
        let error = serde_json::from_str::<ErrorBody>(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}")).error;
        (status, error.code)
    };
    assert_eq!(failed("GET", "/jobs/9", ""), (404, ErrorKind::NotFound));
    assert_eq!(failed("GET", "/nowhere", ""), (404, ErrorKind::NotFound));
    assert_eq!(failed("POST", "/health", ""), (405, ErrorKind::BadInput));
    assert_eq!(failed("GET", "/jobs/nine", ""), (400, ErrorKind::BadInput));
    assert_eq!(failed("GET", "/jobs?state=done", ""), (400, ErrorKind::BadInput));
    assert_eq!(failed("GET", "/status?limt=3", ""), (400, ErrorKind::BadInput));
    assert_eq!(failed("POST", "/jobs", "{\"data\":\"/nonexistent.jsonl\"}"), (400, ErrorKind::BadInput));
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for_step(1, 1);
    assert_eq!(failed("POST", "/jobs/1/resume", ""), (409, ErrorKind::Conflict));
    assert_eq!(failed("POST", "/jobs/1/retry", ""), (409, ErrorKind::Conflict));
}
