//! `cargo xtask lab`

use anyhow::Result;
use lab::{Accelerator, Emulator, Kernel, Lab, progress_on_stderr};

pub(crate) fn run(rebuild: bool, modules: bool) -> Result<()> {
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
    if modules {
        for kernel in Kernel::ALL {
            print_module(&lab, kernel, rebuild)?;
        }
    }
    Ok(())
}

fn print_module(lab: &Lab, kernel: Kernel, rebuild: bool) -> Result<()> {
    let lab = if rebuild {
        lab.clone()
            .with_latest_kernel(kernel, &progress_on_stderr)?
    } else {
        lab.clone().with_kernel(kernel, &progress_on_stderr)?
    };
    let module = lab.guest_module(&progress_on_stderr)?;
    println!(
        "module       for {}: {}",
        lab.kernel_version(),
        module.path().display()
    );
    Ok(())
}
