//! Admin commands (section 5). Each is done in one step.

mod features;
mod identify;
mod logs;
mod queues;

pub(crate) use identify::MAX_TRANSFER;

use device::GuestMemory;

use crate::commands::Step;
use crate::controller::Controller;
use crate::spec::commands::{Submission, admin, high, low};
use crate::spec::status::Status;

impl Controller {
    pub(crate) fn admin_command(
        &mut self,
        entry: &Submission,
        memory: &dyn GuestMemory,
    ) -> Result<Step, Status> {
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
            admin::SET_FEATURES => self.set_features(entry)?,
            admin::GET_FEATURES => self.state.feature(entry)?,
            admin::CREATE_CQ => self.state.create_completion(entry)?,
            admin::CREATE_SQ => self.state.create_submission(entry)?,
            admin::DELETE_CQ => self.state.delete_completion(entry)?,
            admin::DELETE_SQ => self.delete_submission(entry, memory)?,
            admin::ABORT => self.abort(entry, memory),
            admin::ASYNC_EVENT_REQUEST => return self.hold_request(entry),
            _ => return Err(Status::INVALID_OPCODE),
        };
        Ok(Step::Done(result))
    }

    /// Set Features (5.21). What a write cache holds does not outlast it.
    fn set_features(&mut self, entry: &Submission) -> Result<u32, Status> {
        let cached = self.state.features.write_cache;
        let result = self.state.set_feature(entry)?;
        if cached && !self.state.features.write_cache {
            self.make_all_durable()?;
        }
        Ok(result)
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

    /// Abort (5.1): the result is 0 if the command was aborted, and 1 if it was not found.
    fn abort(&mut self, entry: &Submission, memory: &dyn GuestMemory) -> u32 {
        let (sq, cid) = (low(entry.cdw(10)), high(entry.cdw(10)));
        let mut slots = self.state.commands.iter_mut();
        let found = slots
            .find(|slot| slot.is_some_and(|c| c.sq == sq && c.entry.cid() == cid))
            .and_then(Option::take);
        if let Some(command) = found {
            self.complete(&command, Status::ABORT_REQUESTED, 0, memory);
            return 0;
        }
        // An Abort command has one completion of room for itself, and may need one more here.
        let room = self
            .state
            .completion_queue(0)
            .is_some_and(|queue| queue.room() > 1);
        let mut requests = self.state.events.requests.iter_mut();
        let found = requests.find(|request| sq == 0 && room && **request == Some(cid));
        if let Some(request) = found {
            *request = None;
            let (status, raised) = (Status::ABORT_REQUESTED, &mut self.raised);
            self.state.post(memory, 0, cid, status, 0, raised);
            return 0;
        }
        1
    }
}
