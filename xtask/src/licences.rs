//! The licences and origins of all dependencies, against `deny.toml`, with nothing but cargo.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use crate::workspace::{cargo, output_of, root};

#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licences,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// Absent for the workspace's own crates.
    source: Option<String>,
}

pub(crate) fn run() -> Result<()> {
    let policy = fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let policy: Policy = toml::from_str(&policy).context("deny.toml is not as expected")?;
    let allowed = allowed(&policy.licenses.allow)?;
    let metadata = output_of(cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Metadata =
        serde_json::from_str(&metadata).context("cargo metadata has changed")?;

    let findings: Vec<String> = metadata
        .packages
        .iter()
        .filter_map(|package| Some((package, finding(package, &allowed)?)))
        .map(|(package, finding)| format!("{} {}: {finding}", package.name, package.version))
        .collect();
    ensure!(
        findings.is_empty(),
        "{}\nchoose another crate, or allow the licence in deny.toml if ours permits it",
        findings.join("\n")
    );
    eprintln!(
        "xtask: the licences of {} packages are allowed",
        metadata.packages.len()
    );
    Ok(())
}

fn allowed(names: &[String]) -> Result<Vec<Licensee>> {
    let parse = |name: &String| {
        Licensee::parse(name).with_context(|| format!("deny.toml: `{name}` is no SPDX licence"))
    };
    names.iter().map(parse).collect()
}

fn finding(package: &Package, allowed: &[Licensee]) -> Option<String> {
    let source = package.source.as_ref()?;
    if !source.starts_with("registry+") {
        return Some(format!("comes from {source}, not from a registry"));
    }
    let Some(licence) = &package.license else {
        return Some("names no licence".to_owned());
    };
    // Older packages separate alternatives by a slash.
    match Expression::parse_mode(licence, ParseMode::LAX) {
        Err(error) => Some(format!(
            "`{licence}` is no SPDX expression: {}",
            error.reason
        )),
        Ok(expression) => {
            let permitted = expression
                .evaluate(|required| allowed.iter().any(|licensee| licensee.satisfies(required)));
            (!permitted).then(|| format!("licence `{licence}` is not allowed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding_for(source: Option<&str>, license: Option<&str>) -> Option<String> {
        let allowed = allowed(&["MIT".to_owned(), "Apache-2.0".to_owned()]).unwrap();
        let package = Package {
            name: "p".to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        finding(&package, &allowed)
    }

    #[test]
    fn one_allowed_alternative_is_enough_and_every_part_is_needed() {
        let registry = Some("registry+index");
        for fine in [
            "MIT",
            "GPL-2.0-only OR MIT",
            "MIT/Apache-2.0",
            "MIT AND Apache-2.0",
        ] {
            assert_eq!(finding_for(registry, Some(fine)), None, "{fine}");
        }
        for wrong in [
            "GPL-2.0-only",
            "MIT AND GPL-2.0-only",
            "Apache-2.0 WITH LLVM-exception",
            "x",
        ] {
            assert!(finding_for(registry, Some(wrong)).is_some(), "{wrong}");
        }
        assert!(finding_for(registry, None).is_some());
    }

    #[test]
    fn our_own_crates_pass_and_git_ones_do_not() {
        assert_eq!(finding_for(None, None), None);
        assert!(finding_for(Some("git+https://example.org/p"), Some("MIT")).is_some());
    }
}
