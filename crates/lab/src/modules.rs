//! The kernel's modules, with what they depend on, in the order in which they load.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Lab;

/// A module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) image: Vec<u8>,
    pub(crate) parameters: String,
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The kernel's own of this name.
    Named(String),
    /// The one in this file, with these parameters.
    File(PathBuf, String),
}

/// `wanted` and all they need, each after what it needs.
pub(crate) fn load_order(lab: &Lab, wanted: &[Wanted]) -> Result<Vec<Module>> {
    let mut ordered = Vec::new();
    if !wanted.is_empty() {
        let mut files = BTreeMap::new();
        index(&lab.modules().join("kernel"), &mut files)?;
        for module in wanted {
            match module {
                Wanted::Named(name) => add(lab, &files, name, &mut ordered)?,
                Wanted::File(path, parameters) => {
                    add_file(lab, &files, path, parameters, &mut ordered)?;
                }
            }
        }
    }
    Ok(ordered)
}

/// The kernel holds `-` and `_` in a module's name for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let context = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) = path
            .file_name()
            .and_then(|name| name.to_str()?.split_once('.'))
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

fn add(
    lab: &Lab,
    files: &BTreeMap<String, PathBuf>,
    name: &str,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    let name = canonical(name);
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(&name).with_context(|| {
        format!(
            "kernel {} has no module {name}; it may be built in",
            lab.kernel_version()
        )
    })?;
    let image = unpacked(lab, path)?;
    add_image(lab, files, name, image, "", ordered)
}

/// What it needs is the kernel's own, or named before it.
fn add_file(
    lab: &Lab,
    files: &BTreeMap<String, PathBuf>,
    path: &Path,
    parameters: &str,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    let name = path.file_stem().and_then(|name| name.to_str());
    let name = canonical(name.with_context(|| format!("{} has no name", path.display()))?);
    ensure!(
        ordered.iter().all(|module| module.name != name),
        "module {name} is loaded twice"
    );
    let image = unpacked(lab, path)?;
    add_image(lab, files, name, image, parameters, ordered)
}

fn add_image(
    lab: &Lab,
    files: &BTreeMap<String, PathBuf>,
    name: String,
    image: Vec<u8>,
    parameters: &str,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    for needed in depends(&image) {
        add(lab, files, &needed, ordered)
            .with_context(|| format!("module {name} needs {needed}"))?;
    }
    ordered.push(Module {
        name,
        image,
        parameters: parameters.to_owned(),
    });
    Ok(())
}

fn unpacked(lab: &Lab, path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_some_and(|end| end == "ko") {
        return Ok(packed);
    }
    // busybox, because a minimal system has no xz.
    let mut child = Command::new(lab.busybox())
        .args(["unxz", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the lab's busybox")?;
    let mut input = child
        .stdin
        .take()
        .expect("standard input was asked to be a pipe");
    let output = std::thread::scope(|scope| {
        // A write that fails shows in the status below.
        scope.spawn(move || input.write_all(&packed));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// The `depends` line of the module's `.modinfo` section, which holds texts that end in zero.
fn depends(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = image[at + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_modinfo() {
        assert_eq!(
            depends(b"ELF\0license=GPL\0depends=garp,mrp\0name=8021q\0"),
            ["garp", "mrp"]
        );
        assert!(depends(b"ELF\0depends=\0name=llc\0").is_empty());
        assert!(depends(b"ELF").is_empty());
    }
}
