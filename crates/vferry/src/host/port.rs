//! The settings of a virtual function, as the other host is told.
//!
//! A destination follows the source where its configuration leaves a setting out, but no further than
//! its own administrator has let guests go: no other host makes a guest trusted, lets it send in others'
//! names, or takes it out of its VLAN.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow};
use ferry::check::PortFacts;
use sriov::{Port, PortWish, Vlan};

use crate::config::LAST_VLAN;

const MAC: &str = "mac";
const VLAN: &str = "vlan";
const SPOOF_CHECK: &str = "spoof-check";
const TRUST: &str = "trust";

/// `port` as it is, and what of it follows the source; what `configured` has does not.
pub(super) fn facts(port: &Port, configured: &PortWish) -> PortFacts {
    let Port {
        mac,
        vlan,
        spoof_check,
        trust,
    } = port;
    let (spoof_check, trust) = (spoof_check.unwrap_or_default(), trust.unwrap_or_default());
    // A switch is followed to where it is stricter only, and a VLAN of the administrator's is kept.
    let settings = [
        (MAC, mac.to_string(), configured.mac.is_none()),
        (VLAN, tag(*vlan), configured.vlan.is_none() && vlan.id == 0),
        (
            SPOOF_CHECK,
            spoof_check.to_string(),
            configured.spoof_check.is_none() && !spoof_check,
        ),
        (
            TRUST,
            trust.to_string(),
            configured.trust.is_none() && trust,
        ),
    ];
    let follows = settings.iter().filter(|(.., follows)| *follows);
    PortFacts {
        follows: follows
            .map(|(name, ..)| (*name).to_owned())
            .collect::<BTreeSet<_>>(),
        settings: settings
            .into_iter()
            .map(|(name, value, _)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// What is to be set so that `ours` is as `theirs`, in the other host's words.
///
/// # Errors
/// When they are none.
pub(super) fn wish(ours: &PortFacts, theirs: &PortFacts) -> anyhow::Result<PortWish> {
    let mut wish = PortWish::default();
    for name in &ours.follows {
        let Some(value) = theirs.settings.get(name) else {
            continue;
        };
        if ours.settings.get(name) == Some(value) {
            continue;
        }
        let switch = || value.parse().with_context(|| format!("its {name}"));
        match name.as_str() {
            MAC => wish.mac = Some(value.parse().map_err(|error: String| anyhow!(error))?),
            VLAN => wish.vlan = Some(plain(value).context("its VLAN is no plain one")?),
            SPOOF_CHECK => wish.spoof_check = Some(switch()?),
            TRUST => wish.trust = Some(switch()?),
            _ => {}
        }
    }
    Ok(wish)
}

fn plain(vlan: &str) -> Option<u16> {
    vlan.parse().ok().filter(|id| *id <= LAST_VLAN)
}

/// Most have no priority and a customer's tag.
fn tag(vlan: Vlan) -> String {
    if vlan == Vlan::new(vlan.id) {
        vlan.id.to_string()
    } else {
        format!(
            "{} (priority {}, tag {:#x})",
            vlan.id, vlan.qos, vlan.protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use sriov::Mac;

    use super::*;

    const PORT: Port = Port {
        mac: Mac([0; 6]),
        vlan: Vlan {
            id: 0,
            qos: 0,
            protocol: 0x8100,
        },
        spoof_check: Some(true),
        trust: Some(false),
    };

    fn source() -> Port {
        Port {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            vlan: Vlan::new(100),
            spoof_check: Some(false),
            trust: Some(true),
        }
    }

    #[test]
    fn what_is_left_out_follows_the_source() {
        let theirs = facts(&source(), &PortWish::default());
        let followed = wish(&facts(&PORT, &PortWish::default()), &theirs).unwrap();
        assert_eq!(followed.mac, Some(source().mac));
        assert_eq!(followed.vlan, Some(100));
        let configured = PortWish {
            mac: Some(Mac([2, 0, 0, 0, 0, 2])),
            vlan: Some(7),
            ..PortWish::default()
        };
        let kept = wish(&facts(&PORT, &configured), &theirs).unwrap();
        assert!(kept.is_empty(), "{kept:?}");
        // As it is already.
        assert!(wish(&theirs, &theirs).unwrap().is_empty());
    }

    #[test]
    fn no_other_host_widens_what_a_guest_may() {
        let theirs = facts(&source(), &PortWish::default());
        let followed = wish(&facts(&PORT, &PortWish::default()), &theirs).unwrap();
        assert_eq!((followed.trust, followed.spoof_check), (None, None));
        let stricter = facts(&PORT, &PortWish::default());
        let ours = facts(&source(), &PortWish::default());
        let followed = wish(&ours, &stricter).unwrap();
        assert_eq!(
            (followed.trust, followed.spoof_check, followed.vlan),
            (Some(false), Some(true), None)
        );
    }

    #[test]
    fn another_hosts_words_are_no_settings_before_they_are_understood() {
        let ours = facts(&PORT, &PortWish::default());
        for (name, value) in [
            (MAC, "x"),
            (VLAN, "100 (priority 3, tag 0x88a8)"),
            (VLAN, "4095"),
        ] {
            let mut theirs = facts(&source(), &PortWish::default());
            theirs.settings.insert(name.into(), value.into());
            assert!(wish(&ours, &theirs).is_err(), "{value}");
        }
    }
}
