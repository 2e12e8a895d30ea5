//! Whether the process that serves the VM can be gone on with by another.

use std::time::Duration;

use keeper::Rate;

use super::Check;
use crate::config::file::File;
use crate::models;

/// A worker takes some tens of milliseconds to start.
const MOST_PER_MINUTE: u64 = 1000;

impl Check<'_> {
    pub(super) fn keeper(&mut self, file: &File) -> Option<Rate> {
        let section = file.keeper.as_ref()?;
        for device in &file.device {
            let device = device.get_ref();
            let model = device.model.get_ref();
            if models::kind(model).is_some() && !models::can_be_kept(model) {
                let what = format!(
                    "no other process can go on with a device of model `{model}`, and this VM has a [keeper]"
                );
                self.wrong::<(), _>(
                    &device.model,
                    what,
                    "a VM without [keeper], or without this device",
                );
            }
        }
        if let Some(iommu) = &file.qemu.iommu {
            let what = "what a virtual IOMMU maps is not kept, and this VM has a [keeper]";
            self.wrong::<(), _>(iommu, what, "a VM without [keeper], or without `iommu`");
        }
        let default = Rate::default();
        let Some(deaths) = &section.get_ref().deaths_per_minute else {
            return Some(default);
        };
        match usize::try_from(*deaths.get_ref()) {
            Ok(count) if (1..=MOST_PER_MINUTE).contains(deaths.get_ref()) => Some(Rate {
                deaths: count,
                within: Duration::from_mins(1),
            }),
            _ => {
                let what = format!("{} deaths per minute", deaths.get_ref());
                self.wrong(deaths, what, format!("1 to {MOST_PER_MINUTE}"))
            }
        }
    }
}
