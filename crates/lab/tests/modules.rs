//! Modules that the lab builds, and kernels that it boots, each with a real QEMU.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::{Initrd, Kernel, Lab, Vm, progress_on_stderr};

const BOOT: Duration = Duration::from_mins(2);
const COMMAND: Duration = Duration::from_secs(30);

const KBUILD: &str = "obj-m := NAME.o\n";

const LENDER: &str = r#"
#include <linux/module.h>
#include "lender.h"
static char *word = "nothing";
module_param(word, charp, 0444);
MODULE_PARM_DESC(word, "what is lent");
const char *lend(void) { return word; }
EXPORT_SYMBOL_GPL(lend);
MODULE_DESCRIPTION("lends a word");
MODULE_LICENSE("GPL");
"#;

const BORROWER: &str = r#"
#include <linux/module.h>
#include <lender.h>
static int __init borrow(void) { pr_info("borrowed %s\n", lend()); return 0; }
module_init(borrow);
static void __exit give_back(void) { }
module_exit(give_back);
MODULE_DESCRIPTION("borrows a word");
MODULE_LICENSE("GPL");
"#;

fn lab(kernel: Kernel) -> Lab {
    let lab = Lab::ensure(&progress_on_stderr).unwrap();
    lab.with_kernel(kernel, &progress_on_stderr).unwrap()
}

fn sources(folder: &Path, name: &str, code: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("Kbuild"), KBUILD.replace("NAME", name)).unwrap();
    fs::write(folder.join(format!("{name}.c")), code).unwrap();
}

#[test]
fn each_kernel_boots_and_loads_what_was_built_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (lender, borrower) = (folder.path().join("lender"), folder.path().join("borrower"));
    sources(&lender, "lender", LENDER);
    fs::write(lender.join("lender.h"), "const char *lend(void);\n").unwrap();
    sources(&borrower, "borrower", BORROWER);
    for kernel in Kernel::ALL {
        let lab = lab(kernel);
        let lends = lab.build_module(&lender, &[], &progress_on_stderr).unwrap();
        let borrows = lab
            .build_module(&borrower, &[&lends], &progress_on_stderr)
            .unwrap();
        let initrd = Initrd::new()
            .module_file(lends.path(), "word=umbrella")
            .module("8021q")
            .module_file(borrows.path(), "");
        let vm = Vm::builder(&lab, folder.path(), kernel.name())
            .initrd(initrd)
            .spawn()
            .unwrap();
        vm.wait_ready(BOOT).unwrap();
        let shell = |command: &str| vm.shell(command, COMMAND).unwrap().success().unwrap();
        let version = shell("uname -r");
        assert_eq!(version.trim(), lab.kernel_version());
        assert!(
            version.starts_with(&format!("{}.", kernel.name())),
            "{version}"
        );
        // The latest first.
        assert_eq!(
            shell("cut -d' ' -f1 /proc/modules | grep -x -e borrower -e 8021q -e lender"),
            "borrower\n8021q\nlender\n"
        );
        let log = shell("dmesg");
        assert!(log.contains("borrowed umbrella"), "{log}");
        vm.quit(COMMAND).unwrap();
    }
}

#[test]
fn vferry_builds_for_each_kernel_without_a_warning() {
    for kernel in Kernel::ALL {
        let module = lab(kernel).guest_module(&progress_on_stderr).unwrap();
        assert_eq!(module.path().file_name().unwrap(), "vferry.ko");
    }
}

#[test]
fn a_module_is_built_once_until_its_sources_change() {
    let (lab, folder) = (lab(Kernel::default()), tempfile::tempdir().unwrap());
    sources(folder.path(), "lender", LENDER);
    fs::write(folder.path().join("lender.h"), "const char *lend(void);\n").unwrap();
    let build = || {
        let module = lab
            .build_module(folder.path(), &[], &progress_on_stderr)
            .unwrap();
        let built = fs::metadata(module.path()).unwrap().modified().unwrap();
        (module, built)
    };
    let first = build();
    assert_eq!(build(), first);
    let changed = LENDER.replace("a word", "two words");
    sources(folder.path(), "lender", &changed);
    assert_ne!(build(), first);
}

#[test]
fn what_does_not_build_without_a_warning_does_not_build() {
    let (lab, folder) = (lab(Kernel::default()), tempfile::tempdir().unwrap());
    let error = |code: &str| {
        sources(folder.path(), "lender", code);
        let built = lab.build_module(folder.path(), &[], &progress_on_stderr);
        format!("{:#}", built.unwrap_err())
    };
    fs::write(folder.path().join("lender.h"), "const char *lend(void);\n").unwrap();
    let of_compiler = error(&LENDER.replace("void) {", "void) { int unused = 0;"));
    assert!(of_compiler.contains("set but not used") || of_compiler.contains("unused variable"));
    let of_linker = error(
        &LENDER
            .replace("return word", "return lend_more()")
            .replace("static char", "const char *lend_more(void);\nstatic char"),
    );
    assert!(of_linker.contains("lend_more"), "{of_linker}");
    let of_nobody = error(&LENDER.replace("MODULE_DESCRIPTION(\"lends a word\");", ""));
    assert!(of_nobody.contains("MODULE_DESCRIPTION"), "{of_nobody}");
    assert!(
        lab.build_module(Path::new("/proc/self/fdinfo"), &[], &progress_on_stderr)
            .is_err()
    );
}

#[test]
fn a_lab_without_headers_says_how_to_have_them() {
    let lab = Lab::ensure(&progress_on_stderr).unwrap();
    let error = lab.guest_module(&progress_on_stderr).unwrap_err();
    assert!(format!("{error:#}").contains("with_kernel"), "{error:#}");
}
