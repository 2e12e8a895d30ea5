//! How what goes to other hosts is protected.

use std::path::Path;

use tls::{PeerName, Peers};
use toml::Spanned;

use super::Check;
use crate::config::file::MigrationSection;
use crate::config::{Endpoint, Protection};

/// What is written in place of what would go over a network in the open.
const CURE: &str = "tls = \"/etc/vferry/tls\" and peers = [\"the-other-host.example\"] besides, or an \
                    address of this host alone, as tcp:127.0.0.1:7800 or unix:/PATH, at the end of a tunnel";

impl Check<'_> {
    pub(super) fn protection(&mut self, section: &MigrationSection) -> Option<Protection> {
        let plain = section.plain_tcp_without_protection.as_ref();
        let plain = plain.filter(|plain| *plain.get_ref());
        let peers = section.peers.as_ref().map(|peers| self.peers(peers));
        let Some(folder) = &section.tls else {
            if let Some(written) = &section.peers {
                let what = "`peers` are known by their certificates, and there is no `tls`";
                return self.wrong(written, what, "tls = \"/etc/vferry/tls\" besides");
            }
            return Some(match plain {
                Some(_) => Protection::None,
                None => Protection::Loopback,
            });
        };
        if let Some(plain) = plain {
            let what = "`tls` and `plain-tcp-without-protection` contradict each other";
            return self.wrong(plain, what, "one of them, and better `tls`");
        }
        if !Path::new(folder.get_ref()).is_absolute() {
            let what = format!("`{}` is not an absolute path", folder.get_ref());
            return self.wrong(folder, what, "a path that begins with `/`");
        }
        let Some(peers) = peers else {
            let what = "`tls` lets in hosts that are named, and none is";
            return self.wrong(
                folder,
                what,
                "peers = [\"the-other-host.example\"] besides, a name of its certificate",
            );
        };
        Some(Protection::Tls {
            folder: folder.get_ref().into(),
            peers: peers?,
        })
    }

    /// An authorisation of QEMU's, by the id it has there.
    pub(super) fn stream_authz(&mut self, section: &MigrationSection) -> Option<String> {
        let id = section.stream_authz.as_ref()?;
        if section.tls.is_none() {
            let what = "`stream-authz` looks at certificates, and there is no `tls`";
            return self.wrong(id, what, "tls = \"/etc/vferry/tls\" besides");
        }
        if id.get_ref().is_empty() {
            let what = "QEMU takes an empty `stream-authz` for none";
            return self.wrong(
                id,
                what,
                "the id of an `-object authz-...` of QEMU, or no such line",
            );
        }
        Some(id.get_ref().clone())
    }

    fn peers(&mut self, written: &Spanned<Vec<Spanned<String>>>) -> Option<Peers> {
        let mut names = Vec::new();
        for name in written.get_ref() {
            match name.get_ref().parse::<PeerName>() {
                Ok(name) => names.push(name),
                Err(error) => {
                    let instead = "a name as in the other host's certificate, without wildcards: \
                                   \"host-b.example\" or \"192.0.2.2\"";
                    return self.wrong(name, error.to_string(), instead);
                }
            }
        }
        match Peers::new(names) {
            Ok(peers) => Some(peers),
            Err(error) => self.wrong(written, error.to_string(), "[\"the-other-host.example\"]"),
        }
    }

    /// Neither the link nor QEMU's stream goes over a network in the open, unless it is said.
    pub(super) fn exposure(
        &mut self,
        section: &MigrationSection,
        protection: &Protection,
        [link, incoming]: [&Endpoint; 2],
    ) {
        if !protection.allows(link) {
            let what = format!(
                "the control link at {link} is neither encrypted nor authenticated: who reaches it \
                 can send VMs here"
            );
            self.wrong::<(), _>(&section.link, what, CURE);
        }
        // QEMU's stream goes as the link does: see `ferry`.
        let as_link = match (protection, link) {
            (Protection::Tls { .. }, Endpoint::Unix(_)) => &Protection::Loopback,
            (protection, _) => protection,
        };
        if !as_link.allows(incoming) {
            let what = format!(
                "QEMU's stream to {incoming} is neither encrypted nor authenticated: all memory of \
                 the VM goes over it"
            );
            let instead = match protection {
                Protection::Tls { .. } => "link = \"tcp:...\", as `tls` protects both or none",
                _ => CURE,
            };
            self.wrong::<(), _>(&section.incoming, what, instead);
        }
    }
}
