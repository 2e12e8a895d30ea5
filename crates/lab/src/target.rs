//! Where the lab is kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Cargo's target folder: the one that the running program was built in, whichever way cargo was
/// told about it, else the workspace's default one.
///
/// # Errors
///
/// Only if the system cannot tell what program is running.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find the running program's own file")?;
    // Cargo marks the folder by the Cache Directory Tagging Specification.
    let built_in = program
        .ancestors()
        .skip(1)
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    Ok(built_in.map_or_else(|| workspace().join("target"), Path::to_owned))
}

pub(crate) fn workspace() -> &'static Path {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.ancestors()
        .nth(2)
        .expect("this crate is two folders below the workspace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_finds_the_folder_it_was_built_in() {
        let target = target_dir().unwrap();
        assert!(std::env::current_exe().unwrap().starts_with(&target));
        assert!(target.join("CACHEDIR.TAG").is_file());
        assert!(workspace().join("Cargo.lock").is_file());
    }
}
