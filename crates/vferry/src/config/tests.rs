mod host_function;
mod protection;

use proptest::prelude::*;

use super::*;
use crate::models;
use ferry::sleep::Ask;

const GOOD: &str = r#"[vm]
name = "web"
memory = "512M"

[qemu]
qmp = "/tmp/qmp.sock"

[control]
socket = "/tmp/control.sock"

[sidecar]
socket = "/tmp/sidecar.sock"
address = "00:06.0"

[migration]
link = "tcp:127.0.0.1:7800"
incoming = "unix:/tmp/incoming.sock"

[[device]]
name = "net0"
model = "ixgbevf"
socket = "/tmp/net0.sock"
address = "00:05.0"
mac = "02:00:00:00:00:01"
uplink = "tap:vf0"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("web.toml"), text)
}

#[test]
fn a_sound_file_is_taken_as_it_is_meant() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.memory, (512 << 20).into());
    assert_eq!(config.origin.memory_line, 3);
    assert_eq!(config.link.to_string(), "tcp:127.0.0.1:7800");
    let Settings::Nic(nic) = &config.devices[0].settings else {
        panic!("a NIC is none")
    };
    assert_eq!((nic.mac, nic.queues), ([2, 0, 0, 0, 0, 1], 2));
}

#[test]
fn a_virtual_iommu_has_a_known_name_and_a_slot_of_its_own() {
    let with = |text: &str, qmp: &str| {
        let section = format!("qmp = \"{qmp}\"\niommu = \"{text}\"");
        parse(&GOOD.replace("qmp = \"/tmp/qmp.sock\"", &section))
    };
    assert_eq!(parse(GOOD).unwrap().iommu, None);
    let config = with("virtio-iommu", "/tmp/qmp.sock").unwrap();
    assert_eq!(config.iommu, Some(Iommu::Virtio));
    assert_eq!(config.free_slot(), "00:1e.0".parse().ok());
    let taken = GOOD
        .replace("00:05.0", "00:1e.0")
        .replace("00:06.0", "00:1d.1");
    assert_eq!(parse(&taken).unwrap().free_slot(), "00:1c.0".parse().ok());
    let unknown = with("amd-iommu", "/tmp/qmp.sock").unwrap_err().to_string();
    assert!(
        unknown.contains("\"virtio-iommu\" or \"intel-iommu\""),
        "{unknown}"
    );
    let long = format!("/tmp/{}", "x".repeat(100));
    assert!(parse(&GOOD.replace("/tmp/qmp.sock", &long)).is_ok());
    let too_long = with("intel-iommu", &long).unwrap_err().to_string();
    assert!(too_long.contains("a shorter path"), "{too_long}");
}

#[test]
fn a_device_is_on_the_main_bus_or_behind_a_root_port() {
    let place = |key: &str| {
        let text = GOOD.replace("mac =", &format!("{key}\nmac ="));
        parse(&text).unwrap().devices[0].place
    };
    let there = "00:05.0".parse().unwrap();
    assert_eq!(place(""), Place::MainBus(there));
    assert_eq!(place("root-port = false"), Place::MainBus(there));
    assert_eq!(place("root-port = true"), Place::RootPort(there));
    let taken = GOOD.replace("mac =", "root-port = true\nmac =")
        + r#"
[[device]]
name = "net0-port"
model = "ixgbevf"
socket = "/tmp/net1.sock"
address = "00:07.0"
mac = "02:00:00:00:00:02"
uplink = "tap:vf1"
"#;
    let error = parse(&taken).unwrap_err().to_string();
    assert!(error.contains("`net0-port` is"), "{error}");
}

/// A disk in place of the NIC.
fn with_disk(keys: &str) -> String {
    let (rest, _) = GOOD.split_once("mac =").unwrap();
    format!("{rest}{keys}").replace("ixgbevf", "nvme")
}

#[test]
fn a_disk_has_a_file_and_what_else_it_has_follows() {
    let disk = |keys: &str| match parse(&with_disk(keys)).unwrap().devices.remove(0).settings {
        Settings::Disk(disk) => disk,
        Settings::Nic(_) | Settings::Host(_) | Settings::None => panic!("a disk is none"),
    };
    let plain = disk("file = \"/srv/disk.img\"\n");
    assert_eq!(plain.file, Path::new("/srv/disk.img"));
    assert_eq!((plain.serial.as_str(), plain.queues), ("net0", 4));
    assert_eq!(plain.lease, None);
    let all = disk("file = \"/srv/disk.img\"\nserial = \"s1\"\nqueues = 16\n");
    assert_eq!((all.serial.as_str(), all.queues), ("s1", 16));
    let block = disk("file = \"/dev/sdb\"\nlease = \"/srv/sdb.lease\"\n");
    assert_eq!(block.lease.as_deref(), Some(Path::new("/srv/sdb.lease")));
}

#[test]
fn a_disk_is_refused_what_it_cannot_have() {
    let file = "file = \"/srv/disk.img\"\n";
    for (keys, line, what, instead) in [
        (String::new(), 19, "no `file`", "file ="),
        (
            "file = \"disk.img\"\n".into(),
            24,
            "not an absolute path",
            "`/`",
        ),
        (
            format!("{file}queues = 17\n"),
            25,
            "17 queue pairs",
            "1 to 16",
        ),
        (
            format!("{file}queues = 0\n"),
            25,
            "0 queue pairs",
            "1 to 16",
        ),
        (
            format!("{file}serial = \"\"\n"),
            25,
            "no serial number",
            "1 to 20",
        ),
        (
            format!("{file}serial = \"123456789012345678901\"\n"),
            25,
            "no serial number",
            "1 to 20",
        ),
        (
            format!("{file}uplink = \"tap:a\"\n"),
            25,
            "`uplink` is for NICs",
            "without",
        ),
        (
            format!("{file}mac = \"02:00:00:00:00:01\"\n"),
            25,
            "`mac` is for NICs",
            "without",
        ),
    ] {
        let Err(ConfigError::Wrong { problems, .. }) = parse(&with_disk(&keys)) else {
            panic!("taken: {keys}")
        };
        let first = &problems[0];
        assert_eq!(first.line, line, "{keys}: {first}");
        assert!(first.what.contains(what), "{keys}: {first}");
        assert!(first.instead.contains(instead), "{keys}: {first}");
    }
    let nic = format!("{GOOD}file = \"/srv/disk.img\"\n");
    let error = parse(&nic).unwrap_err().to_string();
    assert!(
        error.contains("web.toml:26: `file` is for disks"),
        "{error}"
    );
}

#[test]
fn a_device_for_tests_has_no_settings() {
    let (rest, _) = GOOD.split_once("mac =").unwrap();
    let good = rest.replace("ixgbevf", "stream");
    let config = parse(&good).unwrap();
    assert!(matches!(config.devices[0].settings, Settings::None));
    models::build(&config.devices[0], None).unwrap();
    for (key, whose) in [
        ("mac = \"02:00:00:00:00:01\"", "NICs"),
        ("uplink = \"tap:vf0\"", "NICs"),
        ("file = \"/srv/disk.img\"", "disks"),
        ("serial = \"s1\"", "disks"),
        ("queues = 2", "NICs and disks"),
    ] {
        let error = parse(&format!("{good}{key}\n")).unwrap_err().to_string();
        assert!(error.contains(&format!("is for {whose}")), "{error}");
        assert!(error.contains("web.toml:24"), "{error}");
    }
}

/// Whether its hardware logs anything is seen only once it is opened.
#[test]
fn of_a_function_of_the_host_the_best_log_is_used() {
    let log = |keys: &str| {
        let (rest, _) = GOOD.split_once("mac =").unwrap();
        let text = format!("{rest}function = \"0000:01:10.0\"\n{keys}");
        let config = parse(&text.replace("ixgbevf", "passthrough")).unwrap();
        config.devices[0].dirty_log
    };
    assert_eq!(log(""), DirtyLog::Best);
    assert_eq!(log("dirty-log = \"device\"\n"), DirtyLog::Device);
    assert_eq!(log("dirty-log = \"guest\"\n"), DirtyLog::Guest);
}

#[test]
fn two_disks_do_not_share_a_file() {
    let one = with_disk("file = \"/srv/disk.img\"\n");
    let (_, disk) = one.split_once("[[device]]").unwrap();
    let other = disk.replace("net0", "net1").replace("00:05.0", "00:07.0");
    let error = parse(&format!("{one}\n[[device]]{other}"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/srv/disk.img is in line 24 already"),
        "{error}"
    );
}

#[test]
fn the_control_device_is_there_if_it_is_asked_for() {
    assert!(parse(GOOD).unwrap().guest.is_none());
    let section = |rest: &str| format!("{GOOD}\n[guest]\nsocket = \"/tmp/guest.sock\"\n{rest}");
    let config = parse(&section("address = \"00:07.0\"")).unwrap();
    let guest = config.guest.unwrap();
    assert_eq!(guest.socket, Path::new("/tmp/guest.sock"));
    assert_eq!(guest.address.device(), 7);

    let why = |text: &str| parse(text).unwrap_err().to_string();
    let taken = why(&section("address = \"00:05.0\""));
    assert!(taken.contains("is the address of line"), "{taken}");
    let unknown = why(&section("address = \"00:07.0\"\nsleep = true"));
    assert!(unknown.contains("unknown field `sleep`"), "{unknown}");
    let named = why(&GOOD.replace("\"net0\"", "\"guest-control\""));
    assert!(named.contains("the control device's name"), "{named}");
}

#[test]
fn a_guest_is_put_to_sleep_by_the_key_unless_it_has_an_agent() {
    assert_eq!(parse(GOOD).unwrap().bedtime, Bedtime::default());
    let bedtime = |section: &str| parse(&format!("{GOOD}\n[sleep]\n{section}"));
    assert_eq!(
        bedtime("agent = \"/tmp/qga.sock\"\ndeadline-ms = 9000")
            .unwrap()
            .bedtime,
        Bedtime {
            ask: Ask::Agent("/tmp/qga.sock".into()),
            deadline: Duration::from_secs(9),
        }
    );
    let why = |section: &str| bedtime(section).unwrap_err().to_string();
    assert!(why("deadline-ms = 0").contains("1 to 60000"));
    assert!(why("agent = \"/tmp/sidecar.sock\"").contains("socket of line"));
}

#[test]
fn a_colon_is_refused_where_qemu_takes_it_for_an_end() {
    let colon = GOOD.replace("/tmp/sidecar.sock", "/tmp/vm:1.sock");
    assert!(parse(&colon).is_ok());
    let why = parse(&colon.replace("mac =", "root-port = true\nmac =")).unwrap_err();
    assert!(why.to_string().contains("a path with a colon"), "{why}");
}

#[test]
fn the_sidecar_may_sit_where_the_guest_does_not_look() {
    let hidden = parse(&GOOD.replace("00:06.0", "00:06.1")).unwrap();
    assert_eq!(hidden.sidecar_address.function(), 1);
    let why = |from: &str, to: &str| parse(&GOOD.replace(from, to)).unwrap_err().to_string();
    assert!(why("00:05.0", "00:05.1").contains("not a free slot"));
    // What hides it is that nothing else is in its slot.
    assert!(why("00:06.0", "00:05.1").contains("address of line"));
}

/// What is written instead of a good line, and what the message must say.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_mistake_is_refused_with_file_line_and_remedy() {
    let cases = [
        (
            "name = \"web\"",
            "nmae = \"web\"",
            2,
            "unknown field `nmae`",
            "`name`",
        ),
        ("name = \"web\"\n", "", 1, "missing field `name`", "name"),
        (
            "memory = \"512M\"",
            "memory = 512",
            3,
            "invalid type",
            "a string",
        ),
        (
            "memory = \"512M\"",
            "memory = \"half\"",
            3,
            "`half` is not a number",
            "512M",
        ),
        (
            "memory = \"512M\"",
            "memory = \"513K\"",
            3,
            "multiple of 2 MiB",
            "512M",
        ),
        (
            "memory = \"512M\"",
            "memory = \"512M\"\nhugepages = \"1G\"",
            4,
            "536870912 bytes of memory are not a whole number of pages of 1073741824 bytes",
            "\"2M\" or \"1G\"",
        ),
        (
            "memory = \"512M\"",
            "memory = \"512M\"\nhugepages = \"4K\"",
            4,
            "pages of 4096 bytes",
            "\"2M\" or \"1G\"",
        ),
        (
            "memory = \"512M\"",
            "memory = \"99999999T\"",
            3,
            "not a number of bytes",
            "512M",
        ),
        (
            "/tmp/qmp.sock",
            "/nonesuch/qmp.sock",
            6,
            "does not exist: /nonesuch",
            "mkdir -p /nonesuch",
        ),
        (
            "/tmp/qmp.sock",
            "qmp.sock",
            6,
            "not an absolute path",
            "begins with `/`",
        ),
        (
            "/tmp/net0.sock",
            "/tmp/sidecar.sock",
            22,
            "socket of line 12 already",
            "of its own",
        ),
        (
            "unix:/tmp/incoming.sock",
            "unix:/tmp/qmp.sock",
            17,
            "line 6 already",
            "of its own",
        ),
        (
            "\"00:05.0\"",
            "\"00:06.0\"",
            23,
            "address of line 13 already",
            "of its own",
        ),
        (
            "\"00:05.0\"",
            "\"5\"",
            23,
            "`5` is not a PCI address",
            "00:05.0",
        ),
        (
            "\"00:05.0\"",
            "\"00:1f.0\"",
            23,
            "not a free slot",
            "00:1e.0",
        ),
        (
            "\"ixgbevf\"",
            "\"e1000\"",
            21,
            "no device model `e1000`",
            "ixgbevf",
        ),
        (
            "02:00:00:00:00:01",
            "03:00:00:00:00:01",
            24,
            "not the address of one station",
            "even",
        ),
        (
            "02:00:00:00:00:01",
            "02:00",
            24,
            "`02:00` is not a MAC",
            "six bytes",
        ),
        ("mac = \"02:00:00:00:00:01\"\n", "", 19, "no `mac`", "mac ="),
        ("tap:vf0", "vf0", 25, "`vf0` is no uplink", "wire:/PATH"),
        (
            "tcp:127.0.0.1:7800",
            "localhost",
            16,
            "no place to listen",
            "tcp:",
        ),
        ("[[device]]", "[device]", 19, "invalid type", "a sequence"),
        ("[vm]", "[vm", 1, "", ""),
    ];
    for (good, bad, line, what, instead) in cases {
        assert!(GOOD.contains(good), "{good}");
        let text = GOOD.replacen(good, bad, 1);
        let Err(error @ ConfigError::Wrong { .. }) = parse(&text) else {
            panic!("taken: {bad}")
        };
        let ConfigError::Wrong { problems, .. } = &error else {
            unreachable!()
        };
        let first = &problems[0];
        assert_eq!(first.line, line, "{bad}: {error}");
        assert!(first.what.contains(what), "{bad}: {error}");
        assert!(first.instead.contains(instead), "{bad}: {error}");
        assert!(error.to_string().starts_with(&format!("web.toml:{line}: ")));
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = GOOD.replace("512M", "half").replace("tap:vf0", "vf0");
    let Err(ConfigError::Wrong { problems, .. }) = parse(&text) else {
        panic!("taken")
    };
    assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [3, 25]);
}

#[test]
fn a_file_without_devices_is_refused() {
    let text = &GOOD[..GOOD.find("[[device]]").unwrap()];
    assert!(parse(text).unwrap_err().to_string().contains("no device"));
}

#[test]
fn the_example_of_the_readme_is_sound() {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme
        .split_once("```toml\n")
        .expect("the README has an example");
    let (example, _) = rest.split_once("```").expect("which ends");
    let config = parse(&example.replace("/run/vferry/", "/tmp/")).unwrap();
    assert_eq!(
        (config.name.as_str(), config.max_bandwidth),
        ("web1", 1 << 30)
    );
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(at in 0..GOOD.len(), with in "\\PC{0,8}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..=at, &with);
        let _ = parse(&text);
    }
}

#[test]
fn what_no_other_process_can_go_on_with_is_refused_beside_a_keeper() {
    let kept = |text: &str| parse(&format!("{text}\n[keeper]\ndeaths-per-minute = 20\n"));
    assert_eq!(parse(GOOD).unwrap().keeper, None);
    assert_eq!(kept(GOOD).unwrap().keeper.unwrap().rate.deaths, 20);
    let refused = |text: &str, line: usize| {
        let error = kept(text).unwrap_err().to_string();
        assert!(error.contains("[keeper]"), "{error}");
        assert!(error.contains(&format!("web.toml:{line}:")), "{error}");
    };
    refused(&GOOD.replace("ixgbevf", "stream"), 21);
    assert!(kept(&with_disk("file = \"/srv/disk.img\"\n")).is_ok());
    let port = "address = \"00:05.0\"\nroot-port = true";
    assert!(kept(&GOOD.replace("address = \"00:05.0\"", port)).is_ok());
    let iommu = "[qemu]\niommu = \"virtio-iommu\"";
    refused(&GOOD.replace("[qemu]", iommu), 6);
    let guest = "[guest]\nsocket = \"/tmp/guest.sock\"\naddress = \"00:07.0\"\n\n[migration]";
    assert!(kept(&GOOD.replace("[migration]", guest)).is_ok());
    let often = format!("{GOOD}\n[keeper]\ndeaths-per-minute = 0\n");
    assert!(parse(&often).is_err());
}

#[test]
fn a_process_that_hangs_is_replaced_while_qemu_still_waits_or_never() {
    let hung_after = |millis: &str| {
        let config = parse(&format!("{GOOD}\n[keeper]\n{millis}\n"));
        config.map(|config| config.keeper.unwrap().hung_after)
    };
    assert_eq!(hung_after("").unwrap(), Some(Duration::from_secs(3)));
    let two = hung_after("hung-after-ms = 2000").unwrap();
    assert_eq!(two, Some(Duration::from_secs(2)));
    assert_eq!(hung_after("hung-after-ms = 0").unwrap(), None);
    for wrong in ["hung-after-ms = 100", "hung-after-ms = 5000"] {
        let error = hung_after(wrong).unwrap_err().to_string();
        assert!(error.contains("QEMU waits 5 s"), "{error}");
    }
}
