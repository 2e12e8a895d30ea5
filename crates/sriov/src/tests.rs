//! Taking and giving back, on a card of the tests' own.

use crate::testing::{Card, OF_HOST, PHYSICAL, VFIO, address, function};
use crate::{Mac, Port, PortWish, Setting, SriovError, Vlan, Which, Wish};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn nth(number: u16) -> Which {
    Which::Virtual {
        physical: address(PHYSICAL),
        number,
    }
}

/// Everything that can be wished.
fn wish(number: u16, create: Option<u16>) -> Wish {
    Wish {
        which: nth(number),
        create,
        bind: true,
        port: PortWish {
            mac: Some(MAC),
            vlan: Some(100),
            spoof_check: Some(false),
            trust: Some(true),
        },
    }
}

/// By another process, which knows the record only.
fn give_back(card: &Card, vm: &str) -> (Vec<String>, Vec<String>) {
    let given = card.host().give_back(&card.record(vm), None).unwrap();
    (given.theirs, given.failed)
}

#[test]
fn the_host_is_as_wished_and_then_as_before() {
    for create in [None, Some(2)] {
        let card = Card::new();
        if create.is_none() {
            card.write(&format!("{PHYSICAL}/sriov_numvfs"), "2");
        }
        let before = card.state();
        let (host, mut ledger) = (card.host(), card.ledger("vm"));
        host.take(&[wish(1, create)], &mut ledger).unwrap();
        let expected = Port {
            mac: MAC,
            vlan: Vlan::new(100),
            spoof_check: Some(false),
            trust: Some(true),
        };
        assert_eq!(host.address(&nth(1)).unwrap(), function(1));
        assert_eq!(host.port(&function(1)).unwrap(), Some(expected));
        assert!(card.state()[2].contains(VFIO), "{:?}", card.state());
        // The other one is as it was.
        assert!(card.state()[1].contains(OF_HOST), "{:?}", card.state());
        assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
        assert_eq!(card.state(), before);
        assert!(!card.record("vm").exists());
        assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
        assert_eq!(card.state(), before);
    }
}

/// Whatever the last write was that came through before an end, and however far giving back has come
/// when it ends itself.
#[test]
fn an_end_at_any_moment_can_be_given_back() {
    let steps = [
        "sriov_numvfs 2",
        "driver_override vfio-pci",
        "unbind 0000:01:10.1",
        "drivers_probe",
    ];
    for refused in steps {
        let card = Card::new();
        let before = card.state();
        let mut ledger = card.ledger("vm");
        *card.refused.lock().unwrap() = Some(refused);
        let taken = card.host().take(&[wish(1, Some(2))], &mut ledger);
        assert!(taken.is_err(), "{refused}");
        *card.refused.lock().unwrap() = None;
        assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
        assert_eq!(card.state(), before, "{refused}");
    }
    for refused in [
        "driver_override",
        "unbind 0000:01:10.1",
        "bind 0000",
        "sriov_numvfs 0",
    ] {
        let card = Card::new();
        let before = card.state();
        let mut ledger = card.ledger("vm");
        card.host().take(&[wish(1, Some(2))], &mut ledger).unwrap();
        *card.refused.lock().unwrap() = Some(refused);
        let (_, failed) = give_back(&card, "vm");
        assert!(!failed.is_empty() || card.state() == before, "{refused}");
        *card.refused.lock().unwrap() = None;
        assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
        assert_eq!(card.state(), before, "{refused}");
    }
}

#[test]
fn only_what_was_changed_is_given_back() {
    let card = Card::new();
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "1");
    card.write("0000:01:10.0/driver_override", VFIO);
    card.write("0000:01:10.0/driver/unbind", "0000:01:10.0");
    card.write("../drivers_probe", "0000:01:10.0");
    card.set(0, Setting::Mac(MAC));
    let before = card.state();
    let mut ledger = card.ledger("vm");
    let wish = Wish {
        port: PortWish {
            mac: Some(MAC),
            ..PortWish::default()
        },
        ..wish(0, Some(2))
    };
    card.host().take(&[wish], &mut ledger).unwrap();
    assert_eq!(ledger.changes(), []);
    assert_eq!(card.state(), before);
    assert_eq!(*card.log.lock().unwrap(), [""; 0]);
}

#[test]
fn what_somebody_else_has_changed_is_told_and_theirs() {
    let card = Card::new();
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "2");
    let mut ledger = card.ledger("vm");
    card.host().take(&[wish(0, None)], &mut ledger).unwrap();
    card.set(0, Setting::Vlan(Vlan::new(7)));
    card.write("0000:01:10.0/driver_override", "pci-stub");
    let (theirs, failed) = give_back(&card, "vm");
    assert_eq!(failed, [""; 0]);
    assert!(theirs[0].contains("has set vlan 7 since"), "{theirs:?}");
    assert!(theirs[1].contains("to pci-stub since"), "{theirs:?}");
    let port = card.host().port(&function(0)).unwrap().unwrap();
    assert_eq!((port.vlan, port.mac), (Vlan::new(7), Mac([0; 6])));
    assert!(card.state()[1].contains("pci-stub"), "{:?}", card.state());
}

#[test]
fn a_trusted_guests_own_address_is_not_somebody_elses() {
    for trusted in [true, false] {
        let card = Card::new();
        card.write(&format!("{PHYSICAL}/sriov_numvfs"), "1");
        let before = card.state();
        let mut ledger = card.ledger("vm");
        let mut wish = wish(0, None);
        wish.port.trust = Some(trusted);
        card.host().take(&[wish], &mut ledger).unwrap();
        card.set(0, Setting::Mac(Mac([2, 0, 0, 0, 0, 9])));
        let (theirs, _) = give_back(&card, "vm");
        assert_eq!(card.state() == before, trusted);
        assert_eq!(theirs.is_empty(), trusted, "{theirs:?}");
    }
}

#[test]
fn the_last_vm_removes_what_the_first_has_made() {
    let card = Card::new();
    let before = card.state();
    let (host, mut first, mut last) = (card.host(), card.ledger("first"), card.ledger("last"));
    host.take(&[wish(0, Some(2))], &mut first).unwrap();
    host.take(&[wish(1, Some(2))], &mut last).unwrap();
    let (theirs, failed) = give_back(&card, "first");
    assert_eq!(failed, [""; 0]);
    assert!(
        theirs[0].contains("0000:01:10.1 is for vfio-pci"),
        "{theirs:?}"
    );
    assert_eq!(card.state().len(), 3);
    assert_eq!(give_back(&card, "last"), (vec![], vec![]));
    assert_eq!(card.state(), before);
}

#[test]
fn who_comes_late_leaves_the_next_owners_alone() {
    let card = Card::new();
    let host = card.host();
    let mut gone = card.ledger("vm");
    host.take(&[wish(0, Some(2))], &mut gone).unwrap();
    assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
    let mut next = card.ledger("vm");
    host.take(&[wish(0, Some(2))], &mut next).unwrap();
    let before = card.state();
    let late = |owner: &str| host.give_back(&card.record("vm"), Some(owner)).unwrap();
    assert_eq!(late(gone.owner()).changes, 0);
    assert_eq!(card.state(), before);
    assert_eq!(late(next.owner()).changes, next.changes().len());
    assert_eq!(card.state(), ["count 0"]);
}

#[test]
fn functions_that_others_have_made_stay() {
    let card = Card::new();
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "2");
    let mut ledger = card.ledger("vm");
    card.host().take(&[wish(0, Some(2))], &mut ledger).unwrap();
    assert_eq!(give_back(&card, "vm"), (vec![], vec![]));
    assert_eq!(card.state().len(), 3);
}

#[test]
fn each_refusal_says_what_to_do() {
    let refused = |card: &Card, wishes: &[Wish], expected: &str| {
        let before = card.state();
        let mut ledger = card.ledger("vm");
        let error = card.host().take(wishes, &mut ledger).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(give_back(card, "vm").1, [""; 0]);
        assert_eq!(card.state(), before);
    };
    let card = Card::new();
    refused(&card, &[wish(1, None)], "write `create = 2` or more");
    refused(
        &card,
        &[wish(1, Some(8))],
        "can have 7 virtual functions, not 8",
    );
    let mut absent = wish(1, None);
    absent.which = Which::Function(address("0000:09:00.0"));
    refused(&card, &[absent], "`lspci -D`");
    let twice = Wish {
        which: Which::Function(function(0)),
        ..wish(0, None)
    };
    refused(&card, &[wish(0, Some(1)), twice], "two devices");
    let mut itself = wish(0, None);
    itself.which = Which::Function(address(PHYSICAL));
    itself.bind = false;
    refused(&card, &[itself], "Leave those keys out");
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "2");
    refused(&card, &[wish(2, Some(4))], "Linux does not change a number");
    *card.refused.lock().unwrap() = Some("unbind");
    let mut ledger = card.ledger("vm");
    let error = card.host().take(&[wish(0, None)], &mut ledger).unwrap_err();
    assert!(matches!(error, SriovError::Sysfs { .. }), "{error}");
}

#[test]
fn a_setting_that_the_driver_does_not_take_is_refused() {
    let card = Card::new();
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "1");
    card.forget_spoof_check(0);
    let mut ledger = card.ledger("vm");
    let mut wish = wish(0, None);
    wish.port.spoof_check = Some(true);
    let error = card.host().take(&[wish], &mut ledger).unwrap_err();
    assert!(matches!(error, SriovError::NotTaken { .. }), "{error}");
}

#[test]
fn a_card_that_is_switched_off_or_not_plugged_in_is_told() {
    let card = Card::new();
    card.write(&format!("{PHYSICAL}/sriov_numvfs"), "1");
    let fault = || card.host().fault(&function(0)).unwrap();
    assert_eq!(fault(), None);
    card.write(&format!("{PHYSICAL}/net/eth0/operstate"), "down\n");
    assert!(fault().unwrap().contains("cable"));
    card.write(&format!("{PHYSICAL}/net/eth0/flags"), "0x1002\n");
    assert!(fault().unwrap().contains("`ip link set eth0 up`"));
    // Who is no virtual function has no card to be switched off.
    assert_eq!(card.host().fault(&address(PHYSICAL)).unwrap(), None);
}
