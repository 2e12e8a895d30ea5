//! Who knows what each device writes, and whose state nobody knows.

use endpoint::Endpoint;

use super::Vm;
use crate::report::Marks;

impl Vm {
    /// Real devices' writes are logged from here on, before the first page is copied. One of whose
    /// they are not has [no log](Vm::without_log) in this migration.
    pub(crate) fn open_logs(&self) {
        for endpoint in &self.0.endpoints.0 {
            if let Err(error) = endpoint.open_log() {
                tracing::warn!(device = endpoint.name(), %error, "what it writes is not logged");
            }
        }
    }

    /// They need not be any more.
    pub(super) fn close_logs(&self) {
        let endpoints = self.0.endpoints.0.iter();
        endpoints.for_each(Endpoint::close_log);
    }

    /// The devices of whose writes only the guest can know: index and name. None in the control run
    /// in which nobody needs to know. What one can write is known where a virtual IOMMU lets it reach
    /// little.
    pub(crate) fn without_log(&self) -> Vec<(usize, String)> {
        if self.0.controls.no_log {
            return Vec::new();
        }
        let all = self.0.endpoints.0.iter().enumerate();
        all.filter(|(_, endpoint)| !endpoint.keeps_log() && !self.is_confined(endpoint))
            .map(|(index, endpoint)| (index, endpoint.name().to_owned()))
            .collect()
    }

    /// Whether a virtual IOMMU lets it reach so little that all of that counts as written.
    pub(crate) fn is_confined(&self, device: &Endpoint) -> bool {
        self.0.iommu && !device.bus().can_write_most()
    }

    /// A device whose writes nobody lets the host know, if there is one.
    pub(crate) fn unknown_writer(&self) -> Option<(usize, String)> {
        let state = self.lock();
        let devices = &self.0.endpoints.0;
        let known = |index: usize| {
            let help = state.help.as_ref().zip(devices.get(index));
            help.is_some_and(|(help, device)| help.knows(index, device))
        };
        self.without_log()
            .into_iter()
            .find(|(index, _)| !known(*index))
    }

    /// Pages marked so far in the migration under way or the last one.
    pub fn marks(&self) -> Marks {
        self.lock().marks.clone()
    }

    /// Pages newly marked on the guest's word in the migration under way or the last one.
    pub(crate) fn marks_by_guest(&self) -> u64 {
        self.lock().marks_by_guest
    }

    /// Pages newly marked in it because devices that keep no log could write them.
    pub(crate) fn marks_by_iommu(&self) -> Marks {
        self.lock().marks_by_iommu.clone()
    }

    /// The devices whose state nobody can read, by index.
    pub(crate) fn without_state(&self) -> Vec<usize> {
        let devices = self.0.endpoints.0.iter().enumerate();
        let without = devices.filter(|(_, device)| !device.has_state());
        without.map(|(index, _)| index).collect()
    }
}
