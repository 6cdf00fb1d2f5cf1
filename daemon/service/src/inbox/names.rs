//! What the names in an inbox mean. Pure.

use std::path::{Path, PathBuf};

use finetuned_data::dataset_ending;

/// Our own folders in an inbox.
pub const RECEIPTS: &str = "_receipts";
pub const DONE: &str = "_done";
pub const FAILED: &str = "_failed";

/// Files that copying programs, editors and file managers leave about, and our
/// own folders. They are passed over without a word.
pub fn is_ignored(name: &str) -> bool {
    // Dotfiles cover `.syncthing.*`, `.stfolder` and rsync's `.name.AbCdEf`.
    let unfinished = [".part", ".filepart", ".crdownload", ".tmp", ".swp", "~"];
    let known = ["@eaDir", "Thumbs.db", "desktop.ini", RECEIPTS, DONE, FAILED];
    let lower = name.to_lowercase();
    name.starts_with('.')
        || name.starts_with("~$")
        || unfinished.iter().any(|end| lower.ends_with(end))
        || known.iter().any(|k| k.eq_ignore_ascii_case(name))
}

/// `support` of `support.jsonl`.
pub fn stem(name: &str) -> &str {
    dataset_ending(name).map_or(name, |(_, ending)| &name[..name.len() - ending.len()])
}

/// `support.toml` of `support.jsonl`.
pub fn sidecar(name: &str) -> String {
    format!("{}.toml", stem(name))
}

/// The receipt of a dataset, relative to the dataset's folder:
/// `_receipts/support.txt`. Where another dataset of the folder has the same
/// stem and goes first, the full name is kept: `_receipts/support.json.txt`.
pub fn receipt(name: &str, is_folder: bool, siblings: &[(String, bool)]) -> PathBuf {
    let rank = |name: &str, is_folder: bool| {
        if is_folder { usize::MAX } else { dataset_ending(name).map_or(0, |(rank, _)| rank) }
    };
    let own = if is_folder { name } else { stem(name) };
    let taken = siblings.iter().any(|(other, folder)| {
        let others = if *folder { other.as_str() } else { stem(other) };
        (other != name || *folder != is_folder) && others == own && rank(other, *folder) < rank(name, is_folder)
    });
    let file = match (taken, is_folder) {
        (false, _) => format!("{own}.txt"),
        (true, false) => format!("{name}.txt"),
        (true, true) => format!("{name}.folder.txt"),
    };
    Path::new(RECEIPTS).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_leave_about_is_ignored() {
        for name in [
            ".hidden",
            "a.jsonl~",
            "a.jsonl.part",
            "a.filepart",
            "a.crdownload",
            "a.TMP",
            ".a.jsonl.swp",
            "~$a.json",
            ".syncthing.a.jsonl.tmp",
            ".a.jsonl.Xb12Zz",
            "@eaDir",
            ".stfolder",
            "Thumbs.db",
            "thumbs.DB",
            "desktop.ini",
            "_receipts",
            "_done",
            "_failed",
        ] {
            assert!(is_ignored(name), "{name}");
        }
        for name in ["a.jsonl", "part.jsonl", "_mine.jsonl", "tmp"] {
            assert!(!is_ignored(name), "{name}");
        }
    }

    #[test]
    fn datasets_are_known_by_their_ending() {
        for name in ["a.jsonl", "A.JSONL", "b.json", "c.ndjson", "d.jsonl.gz"] {
            assert!(dataset_ending(name).is_some(), "{name}");
        }
        for name in ["a.toml", "a.txt", ".jsonl", "jsonl", "a.csv"] {
            assert!(dataset_ending(name).is_none(), "{name}");
        }
        assert_eq!(sidecar("support.v2.jsonl"), "support.v2.toml");
        assert_eq!(sidecar("d.jsonl.gz"), "d.toml");
    }

    #[test]
    fn receipts_never_collide() {
        let siblings = [
            ("a.jsonl".to_string(), false),
            ("a.json".to_string(), false),
            ("a".to_string(), true),
            ("b.json".to_string(), false),
        ];
        let names: Vec<_> = siblings.iter().map(|(name, folder)| receipt(name, *folder, &siblings)).collect();
        let expected = ["_receipts/a.txt", "_receipts/a.json.txt", "_receipts/a.folder.txt", "_receipts/b.txt"];
        assert_eq!(names, expected.map(PathBuf::from));
    }
}
