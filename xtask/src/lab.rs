//! `cargo xtask lab`

use anyhow::Result;
use lab::{Accelerator, Emulator, Lab, progress_on_stderr};

pub(crate) fn run(rebuild: bool) -> Result<()> {
    let lab = if rebuild {
        Lab::rebuild(&progress_on_stderr)?
    } else {
        Lab::ensure(&progress_on_stderr)?
    };
    let whose = match lab.emulator() {
        Emulator::Host(_) => "the host's",
        Emulator::Lab(_) => "the lab's own",
    };
    let how = match Accelerator::detect() {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG (the processor shows no vmx or svm, or /dev/kvm does not open)",
    };
    println!("QEMU         {} ({whose})", lab.emulator().version()?);
    println!("accelerator  {how}");
    println!("kernel       {}", lab.kernel_version());
    println!("folder       {}", lab::target_dir()?.join("lab").display());
    Ok(())
}
