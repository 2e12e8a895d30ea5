//! Identify (section 5.15).

use crate::identity::uuid;
use crate::spec::commands::{ALL_NAMESPACES, Submission};
use crate::spec::identify::{
    CQES_16, DLFEAT_ZEROS_AND_DEAC, FRMW_ONE_READ_ONLY, IDENTIFY_LEN, LPA_COMMAND_EFFECTS,
    LPA_EXTENDED, NID, NIDL_UUID, NIDT_UUID, OAES_NAMESPACE_ATTRIBUTE, ONCS_COMPARE, ONCS_DSM,
    ONCS_WRITE_ZEROES, SQES_64, VWC_PRESENT_FLUSH_ALL, cns, controller as at, namespace as ns_at,
};
use crate::spec::pci::{SUBSYSTEM_VENDOR_ID, VENDOR_ID};
use crate::spec::registers::VS;
use crate::spec::status::Status;
use crate::state::{ControllerState, ERROR_ENTRIES, EVENT_REQUESTS, Namespace};

/// MDTS: transfers of up to 2^8 pages.
pub(crate) const MDTS: u8 = 8;
/// The same in bytes: 1 MiB.
pub(crate) const MAX_TRANSFER: u64 = 4096 << MDTS;
/// FR: the firmware is this release.
pub(crate) const FIRMWARE: [u8; 8] = *b"1.0     ";

const MODEL: [u8; 40] = *b"vferry NVMe controller                  ";
/// In kelvins; nothing here becomes warm.
pub(crate) const WARNING_TEMPERATURE: u16 = 343;
const CRITICAL_TEMPERATURE: u16 = 358;

/// AERL and ELPE: one less than there are.
const LAST_EVENT_REQUEST: u8 = 3;
const LAST_ERROR_ENTRY: u8 = 3;
const _: () = assert!(
    LAST_EVENT_REQUEST as usize + 1 == EVENT_REQUESTS
        && LAST_ERROR_ENTRY as usize + 1 == ERROR_ENTRIES,
    "what is announced is what there is"
);

type Page = [u8; IDENTIFY_LEN];

impl ControllerState {
    pub(crate) fn identify(&self, entry: &Submission) -> Result<Page, Status> {
        let mut page = [0; IDENTIFY_LEN];
        match entry.cdw(10).to_le_bytes()[0] {
            cns::NAMESPACE => {
                // All of them at once has a meaning only with namespace management.
                if let Some(namespace) = self.namespace_slot(entry.nsid())? {
                    identify_namespace(namespace, &mut page);
                }
            }
            cns::CONTROLLER => self.identify_controller(&mut page),
            cns::ACTIVE_NAMESPACES => {
                if entry.nsid() >= ALL_NAMESPACES - 1 {
                    return Err(Status::INVALID_NAMESPACE);
                }
                let active = (1..=self.namespace_count()).filter(|nsid| *nsid > entry.nsid());
                for (slot, nsid) in page.as_chunks_mut::<4>().0.iter_mut().zip(active) {
                    *slot = nsid.to_le_bytes();
                }
            }
            cns::DESCRIPTORS => {
                let namespace = self.namespace(entry.nsid())?;
                page[..2].copy_from_slice(&[NIDT_UUID, NIDL_UUID]);
                page[NID..NID + 16].copy_from_slice(&namespace.uuid);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(page)
    }

    /// The namespace of a command that names one.
    pub(crate) fn namespace(&self, nsid: u32) -> Result<&Namespace, Status> {
        self.namespace_slot(nsid)?.ok_or(Status::INVALID_NAMESPACE)
    }

    /// Namespaces, which are numbered from 1 on without gaps.
    pub(crate) fn namespace_count(&self) -> u32 {
        let count = self.namespaces.iter().flatten().count();
        u32::try_from(count).expect("there are at most 16")
    }

    fn namespace_slot(&self, nsid: u32) -> Result<Option<&Namespace>, Status> {
        if !(1..=self.namespace_count()).contains(&nsid) {
            return Err(Status::INVALID_NAMESPACE);
        }
        let slot = self.namespaces.get(nsid as usize - 1);
        Ok(slot.and_then(Option::as_ref))
    }

    fn identify_controller(&self, page: &mut Page) {
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(at::VID, &VENDOR_ID.to_le_bytes());
        put(at::SSVID, &SUBSYSTEM_VENDOR_ID.to_le_bytes());
        put(at::SN, &self.identity.serial);
        put(at::MN, &MODEL);
        put(at::FR, &FIRMWARE);
        put(at::RAB, &[0]);
        put(at::MDTS, &[MDTS]);
        put(at::VER, &VS.to_le_bytes());
        put(at::OAES, &OAES_NAMESPACE_ATTRIBUTE.to_le_bytes());
        put(at::CNTRLTYPE, &[1]);
        put(at::ACL, &[3]);
        put(at::AERL, &[LAST_EVENT_REQUEST]);
        put(at::FRMW, &[FRMW_ONE_READ_ONLY]);
        put(at::LPA, &[LPA_COMMAND_EFFECTS | LPA_EXTENDED]);
        put(at::ELPE, &[LAST_ERROR_ENTRY]);
        put(at::WCTEMP, &WARNING_TEMPERATURE.to_le_bytes());
        put(at::CCTEMP, &CRITICAL_TEMPERATURE.to_le_bytes());
        put(at::SQES, &[SQES_64]);
        put(at::CQES, &[CQES_16]);
        put(at::NN, &self.namespace_count().to_le_bytes());
        let commands = ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES;
        put(at::ONCS, &commands.to_le_bytes());
        put(at::VWC, &[VWC_PRESENT_FLUSH_ALL]);
        put(at::SUBNQN, self.subsystem_name().as_bytes());
        put(at::PSD0_MP, &2500_u16.to_le_bytes());
    }

    /// The `NVMe` qualified name, of the UUID format (7.9).
    fn subsystem_name(&self) -> String {
        let id = u128::from_be_bytes(uuid(&self.identity.serial, 0));
        format!(
            "nqn.2014-08.org.nvmexpress:uuid:{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            id >> 96,
            id >> 80 & 0xffff,
            id >> 64 & 0xffff,
            id >> 48 & 0xffff,
            id & 0xffff_ffff_ffff
        )
    }
}

fn identify_namespace(namespace: &Namespace, page: &mut Page) {
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let blocks = namespace.blocks.to_le_bytes();
    put(ns_at::NSZE, &blocks);
    put(ns_at::NCAP, &blocks);
    put(ns_at::NUSE, &blocks);
    put(ns_at::DLFEAT, &[DLFEAT_ZEROS_AND_DEAC]);
    let format = u32::from(namespace.block_shift) << ns_at::LBADS_SHIFT;
    put(ns_at::LBAF0, &format.to_le_bytes());
}
