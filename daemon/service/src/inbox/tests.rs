use super::*;
use crate::config::InboxConfig;
use crate::plugins::Finder;
use crate::store::{Change, Job, Store};
use finetuned_engine::ErrorKind;

const ROWS: &str = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";

struct House {
    dir: tempfile::TempDir,
    inbox: Inbox,
    store: StoreHandle,
    receipts: Receipts,
    seconds: u64,
}

impl House {
    fn new() -> House {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        House::open(dir, 0)
    }

    fn open(dir: tempfile::TempDir, seconds: u64) -> House {
        let store = StoreHandle::start(Store::open(&dir.path().join("t.db")).unwrap()).unwrap();
        let receipts = Receipts::start(store.clone()).unwrap();
        let claims = Claims {
            inbox: InboxConfig {
                paths: vec![dir.path().join("in")],
                scan_every: Duration::from_secs(30),
                settle: Duration::from_secs(5),
                settle_network: Duration::from_secs(5),
                incomplete_after: Duration::from_secs(600),
                after: After::Leave,
                snapshot_limit: Some(1 << 30),
            },
            recipe: toml::Table::new(),
            datasets: dir.path().join("datasets"),
            outputs: dir.path().join("adapters"),
            plugins: Finder {
                folders: Vec::new(),
                copies: dir.path().join("copies"),
                describer: crate::plugins::Describer { timeout: Duration::from_secs(5), memory_bytes: None },
            },
        };
        House { inbox: Inbox::new(claims, store.clone(), receipts.clone()), store, receipts, dir, seconds }
    }

    /// kill -9 and a start: nothing but the disk remains.
    fn restart(self) -> House {
        let House { dir, inbox, store, receipts, seconds } = self;
        drop((inbox, store, receipts));
        House::open(dir, seconds)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("in").join(name)
    }

    fn put(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), content).unwrap();
    }

    fn scan_after(&mut self, seconds: u64) -> Scan {
        self.seconds += seconds;
        self.inbox.scan(Duration::from_secs(self.seconds))
    }

    /// One scan to see, one to decide.
    fn settle(&mut self) -> Vec<i64> {
        let mut new = self.scan_after(1).new_jobs;
        new.extend(self.scan_after(6).new_jobs);
        new
    }

    fn receipt(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("_receipts/{name}.txt"))).unwrap()
    }

    fn jobs(&self) -> usize {
        self.store.read_now(|store| store.counts()).unwrap().values().sum::<u64>() as usize
    }

    fn job(&self, id: i64) -> Job {
        self.store.read_now(move |store| store.existing(id)).unwrap()
    }

    fn fail(&self, id: i64, why: &'static str) {
        let change = Change::by_error(State::Failed, ErrorKind::BadInput, why);
        self.store.write_now(move |store| store.transition(id, &change)).unwrap();
    }
}

#[test]
fn a_file_is_claimed_when_it_has_settled_and_only_once() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    let first = house.scan_after(1);
    assert!(first.new_jobs.is_empty());
    assert!(first.statuses[0].waiting[0].why.contains("being written"));
    assert!(first.again_in.unwrap() <= Duration::from_millis(5100));
    house.put("a.jsonl", &format!("{ROWS}{ROWS}"));
    assert!(house.scan_after(4).new_jobs.is_empty());
    assert!(house.scan_after(4).new_jobs.is_empty(), "the change starts the wait anew");
    assert_eq!(house.scan_after(2).new_jobs, [1]);
    assert!(house.scan_after(60).new_jobs.is_empty());
    assert!(house.receipt("a").contains("QUEUED: job 1"));
    let job = house.job(1);
    assert_eq!(std::fs::read_to_string(&job.data).unwrap(), format!("{ROWS}{ROWS}"));
    assert!(house.path("a.jsonl").exists(), "the source stays");
}

#[test]
fn nothing_is_trained_twice_across_restarts_touches_and_copies() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    assert_eq!(house.settle(), [1]);
    let mut house = house.restart();
    assert!(house.settle().is_empty());
    house.put("a.jsonl", ROWS);
    assert!(house.settle().is_empty(), "touched");
    house.put("b.jsonl", ROWS);
    assert!(house.settle().is_empty(), "the same under another name");
    assert!(house.receipt("b").contains("the same data and recipe as job 1"));
    std::fs::remove_file(house.path("a.jsonl")).unwrap();
    assert!(house.settle().is_empty());
    house.put("a.jsonl", ROWS);
    assert!(house.settle().is_empty(), "removed and dropped again");
    house.put("a.jsonl", &ROWS.replace("one", "three"));
    assert_eq!(house.settle(), [2], "new content under the old name");
    house.put("c.jsonl", ROWS);
    house.put("c.toml", "[train]\nseed = 7\n");
    assert_eq!(house.settle(), [3], "the same content with another recipe");
}

#[test]
fn a_cut_off_file_waits_and_is_refused_in_the_end() {
    let mut house = House::new();
    house.put("a.jsonl", "{\"text\":\"one\"}\n{\"text\":");
    assert!(house.settle().is_empty());
    let scan = house.scan_after(60);
    assert!(scan.statuses[0].waiting[0].why.contains("last line is cut off"));
    let scan = house.scan_after(600);
    assert!(scan.new_jobs.is_empty() && scan.statuses[0].waiting.is_empty());
    assert!(house.receipt("a").contains("REFUSED: its last line is cut off"));
    house.put("a.jsonl", ROWS);
    assert_eq!(house.settle(), [1], "a later change revives it");
}

#[test]
fn rows_that_cannot_be_trained_on_are_refused_at_the_drop() {
    let mut house = House::new();
    house.put("a.jsonl", "{\"promt\":\"one\"}\n");
    house.put("b.jsonl", ROWS);
    house.put("b.toml", "loss = \"dpo\"\n");
    assert!(house.settle().is_empty());
    let receipt = house.receipt("a");
    assert!(receipt.contains("REFUSED: none of the first rows can be used; line 1: no known format"), "{receipt}");
    assert!(!receipt.contains("datasets/"), "{receipt}");
    let receipt = house.receipt("b");
    assert!(
        receipt.contains("REFUSED: the dataset holds rows to imitate, the loss learns from preference"),
        "{receipt}"
    );
    house.put("b.toml", "");
    assert_eq!(house.settle(), [1], "the recipe was mended");
}

#[test]
fn a_mistake_in_the_recipe_is_told_and_mended() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    house.put("a.toml", "[train]\nepocs = 1\n");
    assert!(house.settle().is_empty());
    assert!(house.receipt("a").contains("REFUSED: a.toml:2: "));
    let mut house = house.restart();
    assert!(house.settle().is_empty());
    house.put("a.toml", "[train]\nepochs = 1\n");
    assert_eq!(house.settle(), [1]);
}

#[test]
fn a_recipe_after_the_claim_counts_through_retry() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    assert_eq!(house.settle(), [1]);
    house.put("a.toml", "[train]\nseed = 9\n");
    assert!(house.settle().is_empty());
    let claims = house.inbox.claims.clone();
    assert_eq!(claims.reclaim(&house.store, 1).unwrap(), Some(2));
    assert_eq!(house.job(2).recipe.train.seed, 9);
    assert_eq!(claims.reclaim(&house.store, 2).unwrap(), None, "nothing changed since");
}

#[test]
fn a_missing_inbox_is_unavailable_and_comes_back() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    assert_eq!(house.settle(), [1]);
    let away = house.dir.path().join("away");
    std::fs::rename(house.path(""), &away).unwrap();
    let scan = house.scan_after(1);
    assert!(!scan.statuses[0].available);
    std::fs::rename(&away, house.path("")).unwrap();
    assert!(house.settle().is_empty());
    assert_eq!(house.jobs(), 1);
}

#[test]
fn a_folder_without_dataset_toml_waits_and_says_so() {
    let mut house = House::new();
    house.put("set/train.jsonl", ROWS);
    house.put("set/validation.jsonl", ROWS);
    assert!(house.settle().is_empty());
    assert!(house.receipt("set").contains("dataset.toml"));
    house.put("set/dataset.toml", "");
    assert_eq!(house.settle(), [1]);
    let job = house.job(1);
    assert_eq!(job.name, "set");
    assert!(job.validation.is_some());
    assert!(house.receipt("set").contains("QUEUED"));
}

#[test]
fn a_standing_recipe_covers_what_is_dropped_in_its_folder() {
    let mut house = House::new();
    house.put("team/recipe.toml", "[train]\nseed = 3\n");
    assert!(house.settle().is_empty());
    house.put("team/a.jsonl", ROWS);
    assert_eq!(house.settle(), [1]);
    assert_eq!(house.job(1).recipe.train.seed, 3);
    assert!(house.path("team/_receipts/a.txt").exists());
}

#[test]
fn ended_sources_are_moved_where_asked() {
    let mut house = House::new();
    house.inbox.claims.inbox.after = After::Move;
    house.put("a.jsonl", ROWS);
    house.put("a.toml", "");
    assert_eq!(house.settle(), [1]);
    house.scan_after(60);
    assert!(house.path("a.jsonl").exists());
    house.fail(1, "x");
    house.scan_after(60);
    assert!(house.path("_failed/a.jsonl").exists() && house.path("_failed/a.toml").exists());
    assert!(!house.path("a.jsonl").exists());
}

#[test]
fn a_file_replaced_between_look_and_copy_is_looked_at_again() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    house.scan_after(1);
    // The claim of what was seen would be made now; the file has changed.
    house.put("a.jsonl", &ROWS.repeat(2));
    assert!(house.scan_after(6).new_jobs.is_empty());
    assert_eq!(house.scan_after(6).new_jobs, [1]);
    assert_eq!(house.jobs(), 1);
}

#[test]
fn a_receipt_that_a_kill_left_behind_is_mended_at_the_next_start() {
    let mut house = House::new();
    house.put("a.jsonl", ROWS);
    house.put("b.jsonl", ROWS);
    assert_eq!(house.settle(), [1]);
    house.fail(1, "the cause");
    std::fs::remove_file(house.path("_receipts/b.txt")).unwrap();
    assert!(house.receipt("a").contains("QUEUED"));
    house.receipts.refresh_every();
    house.receipts.flush();
    assert!(house.receipt("a").contains("FAILED") && house.receipt("a").contains("error (bad-input)\n  the cause"));
    assert!(house.receipt("b").contains("not trained again"));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(house.path("_receipts/a.txt")).unwrap());
    let before = inode();
    house.receipts.refresh_every();
    house.receipts.flush();
    assert_eq!(inode(), before, "what is right is not written again");
}
