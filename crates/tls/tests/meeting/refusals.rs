//! Who is not taken, and what both operators read.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use authority::{Authority, Subject, Validity};
use tls::{CredentialsError, Peers, PeersError};

use super::{Host, hosts, meet, peers, quarrel};

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn hosts_that_name_each_other_meet() {
    let (a, b) = hosts();
    let (connected, accepted) = meet(&a, &b);
    assert_eq!(connected.unwrap().peer().to_string(), "b.example");
    assert_eq!(accepted.unwrap().peer().to_string(), "a.example");
}

#[test]
fn a_host_is_known_by_any_of_its_names_and_an_address_is_one() {
    let authority = Authority::new().unwrap();
    let a = Subject::new(&["a.example", "192.0.2.1"]);
    let a = Host::new(&authority, &a, &["c.example", "b.example"]);
    let b = Subject::new(&["b.example", "c.example"]);
    let b = Host::new(&authority, &b, &["z.example", "192.0.2.1"]);
    let (connected, accepted) = meet(&a, &b);
    assert_eq!(connected.unwrap().peer().to_string(), "c.example");
    assert_eq!(accepted.unwrap().peer().to_string(), "192.0.2.1");
}

#[test]
fn a_host_of_another_name_is_not_taken_by_either_side() {
    let (a, b) = hosts();
    let b = Host {
        peers: peers(&["z.example"]),
        ..b
    };
    let [connected, accepted] = quarrel(&a, &b);
    assert_says(&accepted, &["a.example", "z.example", "`peers`"]);
    assert_says(&connected, &["client-cert.pem", "`peers`"]);

    let (a, b) = hosts();
    let a = Host {
        peers: peers(&["y.example", "z.example"]),
        ..a
    };
    let [connected, accepted] = quarrel(&a, &b);
    assert_says(&connected, &["b.example", "y.example, z.example"]);
    assert_says(&accepted, &["server-cert.pem", "`peers`"]);
}

#[test]
fn a_common_name_is_no_name() {
    let authority = Authority::new().unwrap();
    let subject = Subject {
        common_name: "a.example",
        ..Subject::new(&["other.example"])
    };
    let a = Host::new(&authority, &subject, &["b.example"]);
    let b = Host::new(&authority, &Subject::new(&["b.example"]), &["a.example"]);
    let [_, accepted] = quarrel(&a, &b);
    assert_says(&accepted, &["is for", "other.example"]);
}

#[test]
fn certificates_out_of_their_time_are_told_to_both_sides() {
    for (validity, why) in [
        (Validity::Past, "has expired"),
        (Validity::Future, "is not valid yet"),
    ] {
        let authority = Authority::new().unwrap();
        let old = Subject {
            validity,
            ..Subject::new(&["a.example"])
        };
        let a = Host::new(&authority, &old, &["b.example"]);
        let b = Host::new(&authority, &Subject::new(&["b.example"]), &["a.example"]);
        let [connected, accepted] = quarrel(&a, &b);
        assert_says(&accepted, &["certificate", why]);
        assert_says(
            &connected,
            &["client-cert.pem", "expired, or is not valid yet"],
        );
        let [connected, accepted] = quarrel(&b, &a);
        assert_says(&connected, &["certificate", why]);
        assert_says(
            &accepted,
            &["server-cert.pem", "expired, or is not valid yet"],
        );
    }
}

#[test]
fn another_authoritys_certificates_are_not_taken() {
    for name in ["an authority for tests", "another authority"] {
        let (_, b) = hosts();
        let others = Authority::named(name).unwrap();
        let other = Host::new(&others, &Subject::new(&["a.example"]), &["b.example"]);
        let [connected, accepted] = quarrel(&other, &b);
        assert_says(&connected, &["not signed by the authority", "ca-cert.pem"]);
        assert_says(&accepted, &["server-cert.pem", "ca-cert.pem"]);
        // It knows this side's authority, and has nothing of it.
        let ca = "ca-cert.pem";
        fs::copy(b.folder.join(ca), other.folder.join(ca)).unwrap();
        let said = quarrel(&other, &b);
        assert_says(&said[0], &["client-cert.pem", "ca-cert.pem"]);
        assert_says(&said[1], &["not signed by the authority", "ca-cert.pem"]);
    }
}

#[test]
fn revoked_certificates_are_not_taken() {
    let authority = Authority::new().unwrap();
    let revoked = Subject {
        serial: 7,
        ..Subject::new(&["a.example"])
    };
    let a = Host::new(&authority, &revoked, &["b.example"]);
    let b = Host::new(&authority, &Subject::new(&["b.example"]), &["a.example"]);
    authority.revoke(&b.folder, 8).unwrap();
    let (connected, accepted) = meet(&a, &b);
    assert!(connected.is_ok() && accepted.is_ok(), "{accepted:?}");
    authority.revoke(&b.folder, 7).unwrap();
    let [connected, accepted] = quarrel(&a, &b);
    assert_says(&accepted, &["revoked", "ca-crl.pem"]);
    assert_says(&connected, &["client-cert.pem", "ca-crl.pem"]);
}

#[test]
fn a_certificate_serves_its_own_side_only() {
    let (a, b) = hosts();
    for file in ["cert", "key"] {
        let from = a.folder.join(format!("server-{file}.pem"));
        fs::copy(from, a.folder.join(format!("client-{file}.pem"))).unwrap();
    }
    let [connected, accepted] = quarrel(&a, &b);
    assert_says(&accepted, &["its side of a connection"]);
    assert_says(&connected, &["client-cert.pem", "extended key usage"]);
}

#[test]
fn each_file_that_is_missing_is_named() {
    for file in [
        "ca-cert.pem",
        "server-cert.pem",
        "server-key.pem",
        "client-cert.pem",
        "client-key.pem",
    ] {
        let (a, _) = hosts();
        tls::check(&a.folder, &a.peers).unwrap();
        fs::remove_file(a.folder.join(file)).unwrap();
        let error = tls::check(&a.folder, &a.peers).unwrap_err();
        assert!(matches!(error, CredentialsError::Missing { .. }));
        assert_says(&error.to_string(), &[file, "is missing"]);
        fs::write(a.folder.join(file), "-----BEGIN NONSENSE-----\n").unwrap();
        fs::set_permissions(a.folder.join(file), Permissions::from_mode(0o600)).unwrap();
        let error = tls::check(&a.folder, &a.peers).unwrap_err();
        assert_says(&error.to_string(), &[file, "in PEM form"]);
        fs::write(a.folder.join(file), vec![b' '; (1 << 20) + 1]).unwrap();
        let error = tls::check(&a.folder, &a.peers).unwrap_err();
        assert_says(&error.to_string(), &[file, "is longer"]);
    }
}

#[test]
fn a_key_that_others_can_get_at_is_refused() {
    for role in ["server", "client"] {
        let (a, _) = hosts();
        let key = a.folder.join(format!("{role}-key.pem"));
        for (mode, taken) in [
            (0o600, true),
            (0o400, true),
            (0o640, true),
            (0o604, false),
            (0o644, false),
            (0o660, false),
            (0o602, false),
        ] {
            fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
            let checked = tls::check(&a.folder, &a.peers);
            assert_eq!(checked.is_ok(), taken, "{mode:o}: {checked:?}");
            if let Err(error) = checked {
                let file = format!("{role}-key.pem");
                assert_says(&error.to_string(), &[&file, &format!("{mode:o}"), "chmod"]);
            }
        }
    }
}

#[test]
fn another_certificates_key_is_found_out() {
    let (a, b) = hosts();
    fs::copy(
        b.folder.join("client-key.pem"),
        a.folder.join("client-key.pem"),
    )
    .unwrap();
    let error = tls::check(&a.folder, &a.peers).unwrap_err().to_string();
    assert_says(
        &error,
        &["client-key.pem is not the key of", "client-cert.pem"],
    );
}

#[test]
fn an_empty_revocation_list_is_not_taken_for_none() {
    let (a, _) = hosts();
    fs::write(a.folder.join("ca-crl.pem"), "").unwrap();
    let error = tls::check(&a.folder, &a.peers).unwrap_err().to_string();
    assert_says(&error, &["ca-crl.pem holds no revocation list"]);
}

#[test]
fn peers_are_names_and_not_patterns() {
    assert_eq!(Peers::new(Vec::new()), Err(PeersError::Empty));
    for name in ["a.example", "192.0.2.1", "2001:db8::1", "localhost"] {
        let parsed: tls::PeerName = name.parse().unwrap();
        assert_eq!(parsed.to_string(), name);
    }
    for none in ["", "*", "*.example", "a b", "a.example:7800", "CN=a"] {
        assert!(none.parse::<tls::PeerName>().is_err(), "{none}");
    }
}
