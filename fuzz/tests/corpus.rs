//! Every file of the corpus goes through its target, so that what was found once stays fixed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

/// A seed is read by people, and kept for ever.
const MAX_LEN: usize = 4 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder can be read").path())
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_file_goes_through_its_target() {
    for (name, target) in TARGETS {
        for file in entries(&corpus().join(name)) {
            // Shown if the target panics.
            println!("{}", file.display());
            target(&fs::read(&file).expect("a file can be read"));
        }
    }
}

#[test]
fn every_target_has_a_corpus_of_small_files_and_every_corpus_a_target() {
    let folders: BTreeSet<PathBuf> = entries(&corpus()).into_iter().collect();
    let expected = TARGETS.iter().map(|(name, _)| corpus().join(name));
    assert_eq!(folders, expected.collect());
    for folder in folders {
        let files = entries(&folder);
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for file in files {
            let len = fs::read(&file).expect("a file can be read").len();
            assert!(len <= MAX_LEN, "{}: {len} bytes", file.display());
        }
    }
}
