//! That a host of the lab has what passing a device through takes, and that all of it works.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use lab::{Host, HostOptions, Initrd, Lab, StandsStill, progress_on_stderr};
use qemu::args::QemuArgs;

const BOOT: Duration = Duration::from_mins(3);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 1];

/// A guest of the host's own QEMU, with the host's own `vfio-pci`, reaches the host's physical function
/// by its virtual one, and what is beyond.
#[test]
fn a_guest_of_a_host_is_reached_by_a_real_virtual_function() {
    let lab = Lab::ensure(&progress_on_stderr).unwrap();
    let lab = lab.for_hosts(&progress_on_stderr).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let wire = folder.path().join("wire");
    let listener = UnixListener::bind(&wire).unwrap();
    let options = HostOptions {
        wire: Some(&wire),
        ..HostOptions::default()
    };
    let host = Host::start(&lab, folder.path(), "host", options, BOOT).unwrap();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let functions = host.functions(&[&mac]).unwrap();
    let [function] = &functions[..] else {
        panic!("{functions:?}");
    };
    let group = "/sys/bus/pci/devices/ADDRESS/iommu_group/devices";
    let group = group.replace("ADDRESS", &function.address);
    let alone = host.shell(&format!("ls {group} | wc -l")).unwrap();
    assert_eq!(alone.trim(), "1", "it has an IOMMU group of its own");
    let device = format!("vfio-pci,host={}", function.address);
    let args = QemuArgs::new().machine("q35", 256 << 20).unwrap();
    let args = args.args(["-device", &device]).shell_line();
    let initrd = Initrd::new().module("igbvf");
    let mut guest = host.guest(&lab, &initrd, &args, BOOT).unwrap();
    host.shell("ip addr add 10.9.0.1/24 dev eth0").unwrap();
    let up = "ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && cat /sys/class/net/eth0/address";
    let of_guest = host.guest_shell(&mut guest, up).unwrap();
    assert_eq!(of_guest.trim(), mac);
    let ping = "for try in $(seq 20); do ping -c 1 -W 1 10.9.0.1 && exit; done; exit 1";
    host.guest_shell(&mut guest, ping).unwrap();
    // It asked everybody who that is, on the wire as well.
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let question = [[0xff; 6], MAC].concat();
    let mut heard = Vec::new();
    while !heard.windows(12).any(|bytes| bytes == question) {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the host has left the wire");
        heard.extend_from_slice(&bytes[..count]);
    }
}

#[test]
fn a_host_that_does_not_come_up_tells_where_its_processors_are() {
    let lab = Lab::ensure(&progress_on_stderr).unwrap();
    let lab = lab.for_hosts(&progress_on_stderr).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let soon = Duration::from_millis(100);
    let host = Host::start(&lab, folder.path(), "host", HostOptions::default(), soon);
    let error = host.unwrap_err();
    let still = error.downcast_ref::<StandsStill>();
    assert_eq!(still.unwrap().processors.len(), 2, "{error:#}");
}
