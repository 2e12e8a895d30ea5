use qemu::Version;
use qemu::machine::MemoryBackend;

use super::*;

pub(crate) fn facts() -> Facts {
    let memory = MemoryBackend {
        id: Some("ram".into()),
        size: 512 << 20,
        share: true,
    };
    Facts {
        vferry: "0.1.0".into(),
        vm: "web".into(),
        machine: Machine {
            version: Version {
                major: 11,
                minor: 1,
                micro: 3,
                package: String::new(),
            },
            machine_type: "pc-q35-11.1".into(),
            cpus: vec!["max-x86_64-cpu".into(); 2],
            base_memory: 512 << 20,
            plugged_memory: 0,
            memory_backends: vec![memory],
            main_memory: Some("ram".into()),
            kvm: false,
        },
        devices: vec![DeviceFacts {
            name: "net0".into(),
            model: "ixgbevf".into(),
            identity: None,
            place: Place::MainBus("00:05.0".parse().unwrap()),
            port: None,
            without_state: false,
        }],
        sidecar: "00:06.0".parse().unwrap(),
        iommu: None,
    }
}

#[test]
fn a_state_that_only_the_source_has_is_not_taken() {
    let mut there = facts();
    assert_eq!(states_not_taken(&facts(), &there), [""; 0]);
    there.devices[0].without_state = true;
    assert_eq!(states_not_taken(&facts(), &there), ["net0"]);
    // What has none there either is left to its driver in any case.
    assert_eq!(states_not_taken(&there, &facts()), [""; 0]);
    assert_eq!(states_not_taken(&there, &there), [""; 0]);
}

#[test]
fn two_sides_that_fit_are_not_refused() {
    assert_eq!(compare(&facts(), &facts()), [""; 0]);
    assert_eq!(
        source(&facts(), &RunState::Running, &Found::Nothing),
        [""; 0]
    );
    assert_eq!(
        source(&facts(), &RunState::Suspended, &Found::Nothing),
        [""; 0]
    );
    assert_eq!(
        destination(&facts(), &RunState::InMigrate, &Found::Nothing),
        [""; 0]
    );
}

#[test]
fn every_difference_is_named_with_both_values() {
    type Spoil = fn(&mut Facts);
    let cases: [(Spoil, &str); 8] = [
        (
            |f| f.machine.machine_type = "pc-q35-11.0".into(),
            "pc-q35-11.0",
        ),
        (|f| f.machine.cpus.truncate(1), "vCPUs"),
        (
            |f| f.machine.base_memory = 256 << 20,
            "512 MiB at the source, 256 MiB",
        ),
        (|f| f.machine.kvm = true, "KVM"),
        (
            |f| f.devices[0].name = "lan".into(),
            "lan (ixgbevf at 00:05.0)",
        ),
        (|f| f.sidecar = "00:07.0".parse().unwrap(), "00:07.0"),
        (|f| f.machine.version.major = 10, "older"),
        (
            |f| f.iommu = Some(Iommu::Virtio),
            "none at the source, virtio-iommu",
        ),
    ];
    for (spoil, expected) in cases {
        let mut other = facts();
        spoil(&mut other);
        let reasons = compare(&facts(), &other);
        assert!(
            reasons.len() == 1 && reasons[0].contains(expected),
            "{reasons:?}"
        );
    }
}

fn passthrough(id: &str, mac: &str, follows: &[&str]) -> Facts {
    let mut facts = facts();
    facts.devices[0].model = "passthrough".into();
    facts.devices[0].identity = Some(id.into());
    facts.devices[0].port = Some(PortFacts {
        settings: BTreeMap::from([("mac".into(), mac.into()), ("trust".into(), "false".into())]),
        follows: follows.iter().copied().map(String::from).collect(),
    });
    facts
}

#[test]
fn a_function_of_another_model_is_refused() {
    let source = passthrough("8086:10ca", "02:00:00:00:00:01", &[]);
    assert_eq!(compare(&source, &source), [""; 0]);
    let other = passthrough("8086:1520", "02:00:00:00:00:01", &[]);
    let reasons = compare(&source, &other);
    assert!(
        reasons.len() == 1 && reasons[0].contains("8086:10ca") && reasons[0].contains("8086:1520"),
        "{reasons:?}"
    );
}

#[test]
fn a_host_that_treats_a_function_otherwise_and_does_not_follow_is_refused() {
    let source = passthrough("8086:10ca", "02:00:00:00:00:01", &[]);
    let other = passthrough("8086:10ca", "02:00:00:00:00:02", &[]);
    let reasons = compare(&source, &other);
    assert!(
        reasons.len() == 1
            && reasons[0].contains("02:00:00:00:00:01 at the source")
            && reasons[0].contains("02:00:00:00:00:02 at the destination"),
        "{reasons:?}"
    );
    let follows = passthrough("8086:10ca", "02:00:00:00:00:02", &["mac"]);
    assert_eq!(compare(&source, &follows), [""; 0]);
    // It is the destination that follows, not the source.
    assert_eq!(compare(&follows, &source).len(), 1);
    let mut unknown = source.clone();
    unknown.devices[0].port = None;
    assert!(compare(&source, &unknown)[0].contains("at the source only"));
    assert!(compare(&unknown, &source)[0].contains("at the destination only"));
    // What the other side does not say is not taken for the same.
    let mut silent = source.clone();
    silent.devices[0].port = Some(PortFacts::default());
    assert_eq!(compare(&source, &silent).len(), 2);
}

#[test]
fn the_other_sides_words_cannot_steer_the_terminal() {
    let mut other = facts();
    other.machine.machine_type = "\x1b[2Jpc".into();
    let reasons = compare(&facts(), &other);
    assert!(
        reasons[0].contains(" [2Jpc at the destination"),
        "{reasons:?}"
    );
}

#[test]
fn a_side_that_cannot_be_migrated_says_what_to_do() {
    let old = |f: &mut Facts| f.machine.version.minor = 0;
    let private = |f: &mut Facts| f.machine.memory_backends[0].share = false;
    for (spoil, expected) in [(old as fn(&mut Facts), "too old"), (private, "qemu-args")] {
        let mut facts = facts();
        spoil(&mut facts);
        assert!(source(&facts, &RunState::Running, &Found::Nothing)[0].contains(expected));
    }
    assert!(source(&facts(), &RunState::Paused, &Found::Nothing)[0].contains("cont"));
    assert!(source(&facts(), &RunState::PostMigrate, &Found::Nothing)[0].contains("migrated away"));
    assert!(
        destination(&facts(), &RunState::Running, &Found::Nothing)[0].contains("-incoming defer")
    );
}

#[test]
fn a_virtual_iommu_must_be_the_configurations_and_one_that_works() {
    let look = |configured, found: Found| {
        let facts = Facts {
            iommu: configured,
            ..facts()
        };
        source(&facts, &RunState::Running, &found).pop()
    };
    let intel = || Found::Iommu(Iommu::Intel);
    assert_eq!(look(Some(Iommu::Intel), intel()), None);
    let cases = [
        (look(None, intel()), "iommu = \"intel-iommu\""),
        (look(Some(Iommu::Virtio), intel()), "QEMU has intel-iommu"),
        (look(Some(Iommu::Virtio), Found::Nothing), "QEMU has none"),
        (
            look(Some(Iommu::Intel), Found::Unusable("of lead".into())),
            "cannot be served: of lead",
        ),
    ];
    for (reason, expected) in cases {
        assert!(
            reason.as_ref().is_some_and(|r| r.contains(expected)),
            "{reason:?}"
        );
    }
}
