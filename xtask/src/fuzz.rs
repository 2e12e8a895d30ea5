//! `cargo xtask fuzz`
//!
//! libFuzzer on the stable toolchain: the compiler's own coverage pass and no sanitizer, which safe
//! Rust can do without. Only C++'s compiler is needed beside it, for libFuzzer itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::workspace::{cargo, root, run as run_command};

/// Where it is built for: named, so that build scripts and macros are built without the flags.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer's manual asks of clang for `-fsanitize=fuzzer-no-link`.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Inputs as long as the longest seed may be; what takes longer or more memory is a finding.
const LIMITS: [&str; 3] = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024"];

#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// The targets to run; all of them if none is named.
    targets: Vec<String>,
    /// How long each one is run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// What was not survived.
struct Finding {
    target: String,
    input: PathBuf,
    log: PathBuf,
}

pub(crate) fn run(fuzz: &Fuzz) -> Result<()> {
    let targets = chosen(&fuzz.targets)?;
    let folder = lab::target_dir()?.join("fuzz");
    let program = build(&folder)?;
    let time = Duration::from_secs(fuzz.seconds);
    let mut findings = Vec::new();
    for target in targets {
        findings.extend(fuzz_one(&program, &folder.join(&target), target, time)?);
    }
    for finding in &findings {
        explain(finding, &program);
    }
    ensure!(
        findings.is_empty(),
        "inputs that are not survived: {}",
        findings.len()
    );
    Ok(())
}

/// The targets that have a corpus, which the crate's test sees to.
fn chosen(wanted: &[String]) -> Result<Vec<String>> {
    let corpus = root().join("fuzz/corpus");
    let mut all = Vec::new();
    for entry in fs::read_dir(&corpus).context("cannot read fuzz/corpus")? {
        all.push(entry?.file_name().to_string_lossy().into_owned());
    }
    all.sort();
    if wanted.is_empty() {
        return Ok(all);
    }
    for name in wanted {
        ensure!(
            all.contains(name),
            "there is no target `{name}`; there are {}",
            all.join(", ")
        );
    }
    Ok(wanted.to_vec())
}

fn build(folder: &Path) -> Result<PathBuf> {
    let package = root().join("fuzz/libfuzzer");
    pin(&package.join("Cargo.lock"))?;
    let built = folder.join("build");
    let mut command = cargo(&["build", "--release", "--target", PLATFORM]);
    command
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&built)
        // Would be taken instead of the other.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS);
    run_command(command)?;
    Ok(built.join(PLATFORM).join("release/libfuzzer"))
}

/// The package outside of the workspace is to be built of the versions in the workspace, to which
/// cargo adds libFuzzer.
fn pin(lock: &Path) -> Result<()> {
    let workspace = root().join("Cargo.lock");
    let changed = |path: &Path| fs::metadata(path)?.modified();
    let newest = changed(&workspace).context("cannot read Cargo.lock")?;
    if changed(lock).is_ok_and(|copied| copied >= newest) {
        return Ok(());
    }
    // Not copied with its times: the copy is newer from now on.
    let versions = fs::read(&workspace).context("cannot read Cargo.lock")?;
    fs::write(lock, versions).with_context(|| format!("cannot write {}", lock.display()))
}

fn fuzz_one(
    program: &Path,
    folder: &Path,
    target: String,
    time: Duration,
) -> Result<Option<Finding>> {
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let log = folder.join("log");
    let output =
        fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    eprintln!("xtask: fuzz {target} for {} s", time.as_secs());
    let status = Command::new(program)
        .env("FUZZ_TARGET", &target)
        // The first is where new inputs go.
        .arg(&corpus)
        .arg(root().join("fuzz/corpus").join(&target))
        .arg(format!("-artifact_prefix={}/", folder.display()))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg("-print_final_stats=1")
        .args(LIMITS)
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    // What a target prints need not be text.
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        let inputs = after(&text, "stat::number_of_executed_units:").unwrap_or("?");
        eprintln!("xtask: fuzz {target}: {inputs} inputs, nothing found");
        return Ok(None);
    }
    let input = after(&text, "Test unit written to").map(PathBuf::from);
    let input = input.with_context(|| {
        let log = log.display();
        format!("fuzz {target}: failed without a finding ({status}), see {log}")
    })?;
    eprintln!("xtask: fuzz {target}: FOUND {}", input.display());
    Ok(Some(Finding { target, input, log }))
}

/// The rest of the last line that has `mark` in it.
fn after<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    let line = text.lines().rev().find(|line| line.contains(mark))?;
    line.split_once(mark).map(|(_, rest)| rest.trim())
}

fn explain(finding: &Finding, program: &Path) {
    let Finding { target, input, log } = finding;
    let (input, log, program) = (input.display(), log.display(), program.display());
    eprintln!(
        "\nxtask: `{target}` does not survive {input}\n  \
         what happened:  {log}\n  \
         once more:      FUZZ_TARGET={target} {program} {input}\n  \
         as a test:      cp {input} fuzz/corpus/{target}/ && cargo test -p fuzz\n  \
         Fix it, and keep the file in the corpus under a name that says what it is."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_that_have_a_corpus() {
        let all = chosen(&[]).unwrap();
        assert!(all.contains(&"vfio_user".to_owned()));
        assert_eq!(chosen(&all[..1]).unwrap(), all[..1]);
        let error = chosen(&["vfio-user".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no target `vfio-user`") && error.contains("vfio_user"));
    }

    #[test]
    fn the_finding_is_read_from_what_libfuzzer_says() {
        let said = "==7== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/a b/'; Test unit written to /a b/crash-12\nBase64: YQ==\n";
        assert_eq!(after(said, "Test unit written to"), Some("/a b/crash-12"));
        assert_eq!(after(said, "stat::number"), None);
    }
}
