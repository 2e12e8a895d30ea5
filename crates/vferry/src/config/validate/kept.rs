//! Whether the process that serves the VM can be gone on with by another.

use std::time::Duration;

use keeper::Rate;

use super::Check;
use crate::config::Replaced;
use crate::config::file::{File, KeeperSection};
use crate::models;

/// A worker takes some tens of milliseconds to start.
const MOST_PER_MINUTE: u64 = 1000;
/// Of a process that is only not given a processor, under load, nothing is to be heard for some hundreds of
/// milliseconds; and QEMU waits 5 s for an answer of its successor.
const HUNG_AFTER_MS: std::ops::RangeInclusive<u64> = 1000..=4000;
const HUNG_AFTER: Duration = Duration::from_secs(3);

impl Check<'_> {
    pub(super) fn keeper(&mut self, file: &File) -> Option<Replaced> {
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
        let section = section.get_ref();
        let (rate, hung_after) = (self.rate(section), self.hung_after(section));
        Some(Replaced {
            rate: rate?,
            hung_after: hung_after?,
        })
    }

    fn rate(&mut self, section: &KeeperSection) -> Option<Rate> {
        let Some(deaths) = &section.deaths_per_minute else {
            return Some(Rate::default());
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

    /// `Some(None)`: never.
    #[expect(clippy::option_option, reason = "the outer one is that of all checks")]
    fn hung_after(&mut self, section: &KeeperSection) -> Option<Option<Duration>> {
        let Some(millis) = &section.hung_after_ms else {
            return Some(Some(HUNG_AFTER));
        };
        match *millis.get_ref() {
            0 => Some(None),
            after if HUNG_AFTER_MS.contains(&after) => Some(Some(Duration::from_millis(after))),
            after => {
                let (least, most) = HUNG_AFTER_MS.into_inner();
                let instead = format!("{least} to {most}, as QEMU waits 5 s; or 0: never");
                self.wrong(millis, format!("hung after {after} ms"), instead)
            }
        }
    }
}
