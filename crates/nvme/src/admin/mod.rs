//! Admin commands (section 5). All are done in one step but those that wait for I/O: to delete a
//! submission queue, and to disable the write cache.

mod features;
pub(crate) mod identify;
mod logs;
mod queues;

pub(crate) use identify::MAX_TRANSFER;

use device::GuestMemory;

use crate::budget::Budget;
use crate::commands::Step;
use crate::controller::Controller;
use crate::flights::Owner;
use crate::spec::commands::{Submission, admin, high, low};
use crate::spec::features::VOLATILE_WRITE_CACHE;
use crate::spec::status::Status;
use crate::state::Command;

impl Controller {
    pub(crate) fn admin_command(
        &mut self,
        slot: usize,
        command: &Command,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        let entry = &command.entry;
        let result = match entry.opcode() {
            admin::IDENTIFY => {
                let page = self.state.identify(entry)?;
                self.send(entry, &page, memory)?;
                0
            }
            admin::GET_LOG_PAGE => {
                let page = self.state.log_page(entry)?;
                self.send(entry, &page, memory)?;
                self.state.log_page_read(entry);
                0
            }
            admin::SET_FEATURES => return self.set_features(slot, command, budget),
            admin::GET_FEATURES => self.state.feature(entry)?,
            admin::CREATE_CQ => self.state.create_completion(entry)?,
            admin::CREATE_SQ => self.state.create_submission(entry)?,
            admin::DELETE_CQ => self.state.delete_completion(entry)?,
            admin::DELETE_SQ => return self.state.delete_submission(entry),
            admin::ABORT => self.abort(entry),
            admin::ASYNC_EVENT_REQUEST => return self.hold_request(entry),
            _ => return Err(Status::INVALID_OPCODE),
        };
        Ok(Step::Done(result))
    }

    /// Set Features (5.21). What a write cache holds does not outlast it.
    fn set_features(
        &mut self,
        slot: usize,
        command: &Command,
        budget: &mut Budget,
    ) -> Result<Step, Status> {
        // Each step sets it again, to the same.
        let result = self.state.set_feature(&command.entry)?;
        let feature = command.entry.cdw(10).to_le_bytes()[0];
        if feature == VOLATILE_WRITE_CACHE && !self.state.features.write_cache {
            return self.make_all_durable(slot, command, budget);
        }
        Ok(Step::Done(result))
    }

    /// Writes a command's data to guest memory.
    fn send(
        &mut self,
        entry: &Submission,
        data: &[u8],
        memory: &dyn GuestMemory,
    ) -> Result<(), Status> {
        self.pieces.resolve(memory, entry, data.len())?;
        self.pieces.each(0, data.len(), |address, range| {
            memory.write(address, &data[range])
        })?;
        Ok(())
    }

    /// Asynchronous Event Request (5.2): waits in the state until there is an event.
    fn hold_request(&mut self, entry: &Submission) -> Result<Step, Status> {
        let mut requests = self.state.events.requests.iter_mut();
        let free = requests.find(|request| request.is_none());
        *free.ok_or(Status::EVENT_LIMIT_EXCEEDED)? = Some(entry.cid());
        Ok(Step::Held)
    }

    /// Abort (5.1): the result is 0 if the command was aborted, and 1 if it was not found or
    /// cannot be: what the disk does is not to be stopped.
    fn abort(&mut self, entry: &Submission) -> u32 {
        let (sq, cid) = (low(entry.cdw(10)), high(entry.cdw(10)));
        let named = |command: &Command| {
            let itself = command.sq == 0 && command.entry == *entry;
            command.sq == sq && command.entry.cid() == cid && !itself
        };
        let mut slots = self.state.commands.iter();
        if let Some(slot) = slots.position(|slot| slot.as_ref().is_some_and(named)) {
            if self.flights.has(Owner::Command(slot)) {
                return 1;
            }
            if let Some(command) = self.state.commands[slot].take() {
                self.complete(&command, Status::ABORT_REQUESTED, 0);
            }
            return 0;
        }
        // Room for this command's own completion is kept; here is a second.
        let room = self.state.has_room(0);
        let mut requests = self.state.events.requests.iter_mut();
        let found = requests.find(|request| sq == 0 && room && **request == Some(cid));
        if let Some(request) = found {
            *request = None;
            let (status, raised) = (Status::ABORT_REQUESTED, &mut self.raised);
            let writes = &mut self.ahead.writes;
            self.state.post(0, cid, status, 0, writes, raised);
            return 0;
        }
        1
    }
}
