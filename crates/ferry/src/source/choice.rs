//! By which strategy the VM goes over.

use super::Source;
use crate::{Guest, Strategy};

impl Source<'_> {
    /// By the guest's leave or its kernel's, where somebody has to start a device whose state nobody
    /// can read.
    pub(super) fn choose(&self, asked: Option<Strategy>, left: &[String]) -> Strategy {
        let unreadable = !left.is_empty();
        let helps = || self.vm.guest().is_some_and(Guest::stops_devices);
        match asked {
            Some(strategy) => strategy,
            None if unreadable && helps() => Strategy::Cooperative,
            None if unreadable => Strategy::Recovery,
            None => Strategy::default(),
        }
    }

    /// The names of the devices whose state nobody can read.
    pub(super) fn without_state(&self) -> Vec<String> {
        let without = self.vm.without_state().into_iter();
        let without = without.filter_map(|index| self.vm.endpoints().0.get(index));
        without.map(|device| device.name().to_owned()).collect()
    }
}

/// Why a strategy that carries all devices' state does not.
pub(super) fn unreadable(strategy: Strategy, left: &[String]) -> Option<String> {
    let name = left.first().filter(|_| strategy == Strategy::Transparent)?;
    Some(format!(
        "nobody can read the state of device `{name}`, or give it to the destination's, so its \
         driver has to start a fresh one: use --strategy recovery, or cooperative where the guest \
         has vferry's module"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_left_is_no_reason_against_those_who_start_devices_anew() {
        let left = ["net0".to_owned()];
        let why = |strategy, left: &[String]| unreadable(strategy, left);
        assert!(why(Strategy::Transparent, &left).unwrap().contains("net0"));
        assert_eq!(why(Strategy::Transparent, &[]), None);
        assert_eq!(why(Strategy::Recovery, &left), None);
        assert_eq!(why(Strategy::Cooperative, &left), None);
    }
}
