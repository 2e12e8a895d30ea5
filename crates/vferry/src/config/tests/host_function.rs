//! Functions of the host, and what may be wished of them.

use sriov::{Mac, PortWish, Which, Wish};

use super::{GOOD, parse};
use crate::config::{ConfigError, DirtyLog, Settings};

const VIRTUAL: &str = "physical = \"0000:01:00.0\"\nvirtual = 1\n";

/// A function of the host in place of the NIC; its keys begin in line 24.
fn with(keys: &str) -> String {
    let (rest, _) = GOOD.split_once("mac =").unwrap();
    format!("{rest}{keys}").replace("ixgbevf", "passthrough")
}

fn wish(keys: &str) -> Wish {
    let device = parse(&with(keys)).unwrap().devices.remove(0);
    assert_eq!(device.dirty_log, DirtyLog::Best);
    match device.settings {
        Settings::Host(wish) => wish,
        other => panic!("{other:?}"),
    }
}

#[test]
fn by_its_address_alone_it_is_left_as_it_is() {
    let plain = wish("function = \"0000:01:10.0\"\n");
    assert_eq!(
        plain.which,
        Which::Function("0000:01:10.0".parse().unwrap())
    );
    assert!(plain.is_empty());
}

#[test]
fn all_that_can_be_wished_is_taken_as_it_is_meant() {
    let all = wish(&format!(
        "{VIRTUAL}create = 4\nbind = true\nmac = \"02:00:00:00:00:01\"\nvlan = 100\ntrust = true\n\
         spoof-check = false\n"
    ));
    let physical = "0000:01:00.0".parse().unwrap();
    assert_eq!(
        all.which,
        Which::Virtual {
            physical,
            number: 1
        }
    );
    assert_eq!((all.create, all.bind), (Some(4), true));
    assert_eq!(
        all.port,
        PortWish {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            vlan: Some(100),
            spoof_check: Some(false),
            trust: Some(true),
        }
    );
}

#[test]
fn every_mistake_is_refused_with_line_and_remedy() {
    let function = "function = \"0000:01:10.0\"\n";
    for (keys, line, what, instead) in [
        (String::new(), 19, "no `function`", "`physical`"),
        (
            "function = \"01:10.0\"\n".into(),
            24,
            "`01:10.0` is no PCI function",
            "0000:01:10.0",
        ),
        (
            "physical = \"0000:01:00.0\"\n".into(),
            24,
            "is not said",
            "`virtual = 0`",
        ),
        (
            "virtual = 0\n".into(),
            24,
            "of which physical function",
            "`physical =",
        ),
        (
            format!("{function}{VIRTUAL}"),
            25,
            "`function` says",
            "without the other",
        ),
        (
            format!("{function}virtual = 1\n"),
            25,
            "`function` says",
            "`physical`",
        ),
        (
            format!("{function}create = 1\nbind = true\n"),
            25,
            "may not be there yet",
            "`virtual = 0`",
        ),
        (
            format!("{VIRTUAL}create = 2\n"),
            26,
            "belong to nobody",
            "`bind = true`",
        ),
        (
            format!("{VIRTUAL}create = 1\nbind = true\n"),
            26,
            "none has number 1",
            "2 or more",
        ),
        (
            format!("{VIRTUAL}vlan = 4095\n"),
            26,
            "no VLAN 4095",
            "1 to 4094",
        ),
        (
            format!("{VIRTUAL}mac = \"03:00:00:00:00:01\"\n"),
            26,
            "not the address of one station",
            "even",
        ),
        (
            format!("{VIRTUAL}trust = \"yes\"\n"),
            26,
            "invalid type",
            "a boolean",
        ),
        (
            format!("{VIRTUAL}uplink = \"tap:a\"\n"),
            26,
            "`uplink` is for NICs",
            "without",
        ),
        (
            format!("{VIRTUAL}queues = 1\n"),
            26,
            "`queues` is for",
            "without",
        ),
    ] {
        let Err(ConfigError::Wrong { problems, .. }) = parse(&with(&keys)) else {
            panic!("taken: {keys}")
        };
        let first = &problems[0];
        assert_eq!(first.line, line, "{keys}: {first}");
        assert!(first.what.contains(what), "{keys}: {first}");
        assert!(first.instead.contains(instead), "{keys}: {first}");
    }
}

#[test]
fn no_other_device_has_its_keys() {
    for key in [
        "function = \"0000:01:10.0\"",
        "physical = \"0000:01:00.0\"",
        "virtual = 0",
        "create = 1",
        "bind = true",
        "vlan = 1",
        "trust = true",
        "spoof-check = true",
    ] {
        let error = parse(&format!("{GOOD}{key}\n")).unwrap_err().to_string();
        assert!(
            error.contains("web.toml:26: ") && error.contains("is for functions of the host"),
            "{error}"
        );
    }
}

#[test]
fn two_devices_do_not_share_a_function() {
    let one = with(VIRTUAL);
    let (_, device) = one.split_once("[[device]]").unwrap();
    let other = device.replace("net0", "net1").replace("00:05.0", "00:07.0");
    let error = parse(&format!("{one}\n[[device]]{other}")).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("is the function of line 25"), "{error}");
}
