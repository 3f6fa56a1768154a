//! Operations on FRONTENDS, FRONTEND_IDS and the regions of SLOTS.

use proxy_common::port_filter::{bit, index};
use proxy_common::{Frontend, FrontendKey, Side, Word};

use super::{Obstacle, Run};
use crate::family::IpFamily;
use crate::ids::Region;
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::actual::ActualFrontend;
use crate::pipeline::diff::Publication;

impl<A: IpFamily, M: Maps + FamilyMaps<A>> Run<'_, A, M> {
    /// Publishes, or sees to it that a frontend which could not be taken over is not forgotten:
    /// whoever still holds it is compared again too, for the next round may want it gone. Where
    /// there is no room it is taken down at once: it leads to its holder's backends, and these
    /// could never be freed.
    pub(super) fn publish_or_vacate(&mut self, op: &Publication<A>) -> Result<(), Obstacle> {
        let result = match self.outcome.obstacles.get(&op.name) {
            Some(obstacle) => Err(obstacle.clone()),
            None => self.publish(op),
        };
        let Err(obstacle) = &result else {
            return result;
        };
        let known = self.actual.frontends.get(&op.key);
        let Some(holder) = known.map(|known| known.owner.clone()) else {
            return result;
        };
        let is_gone = matches!(obstacle, Obstacle::Full(_))
            && holder != op.name
            && self.remove_frontend(&op.key).is_ok();
        if holder != op.name && !is_gone {
            self.outcome
                .obstacles
                .entry(holder)
                .or_insert(Obstacle::Waits);
        }
        result
    }

    fn publish(&mut self, op: &Publication<A>) -> Result<(), Obstacle> {
        let content = op
            .content(self.actual.port_mut(&op.name))
            .ok_or(Obstacle::Waits)?;
        self.unless_filtered_out(op)?;
        let region = self.write_region(&content)?;
        let result = match self.actual.frontends.get(&op.key) {
            Some(known) => {
                let (id, generation) = (known.id, known.generation.wrapping_add(1).max(1));
                self.store_word(id, region, generation)
                    .map(|()| (id, generation))
            }
            None => self.make_frontend(&op.key, region).map(|id| (id, 1)),
        };
        let (id, generation) = match result {
            Ok(written) => written,
            Err(obstacle) => {
                self.shared.regions.release_unused(region);
                return Err(obstacle);
            }
        };
        self.actual.reference(&content);
        let written = ActualFrontend {
            id,
            generation,
            region: Some(region),
            content,
            is_reachable: false,
            owner: op.name.clone(),
        };
        self.replace_frontend(&op.key, written);
        self.reach(&op.key)
    }

    /// Every bit of PORT_FILTER that the frontend and its backends need is written.
    fn unless_filtered_out(&self, op: &Publication<A>) -> Result<(), Obstacle> {
        let protocol = op.name.protocol;
        let is_set = |side: Side, port: u16| {
            let word = index(protocol, side, port)
                .and_then(|index| self.shared.port_filter.get(index as usize));
            word.is_some_and(|word| word & bit(port) != 0)
        };
        let mut backends = op.cluster.iter().chain(op.local.iter());
        let is_complete = is_set(Side::Destination, op.key.port.get())
            && self.shared.is_address_known(&op.key.addr)
            && backends.all(|endpoint| {
                is_set(Side::Source, endpoint.port) && self.shared.is_address_known(&endpoint.addr)
            });
        match is_complete {
            true => Ok(()),
            false => Err(Obstacle::Failed("writing PORT_FILTER".into())),
        }
    }

    fn write_region(&mut self, content: &[u64]) -> Result<Region, Obstacle> {
        let full = Obstacle::full("SLOTS", self.shared.slots);
        let len = u32::try_from(content.len()).map_err(|_| full.clone())?;
        let region = self.shared.regions.allocate(len).ok_or(full)?;
        let result = self.maps.write_slots(region.start, content);
        if let Err(obstacle) = self.note(result) {
            self.shared.regions.release_unused(region);
            return Err(obstacle);
        }
        Ok(region)
    }

    fn make_frontend(&mut self, key: &FrontendKey<A>, region: Region) -> Result<u32, Obstacle> {
        let id = self.actual.frontend_ids.allocate();
        let id = id.ok_or(Obstacle::full("FRONTENDS", self.actual.capacity.frontends))?;
        FamilyMaps::<A>::forget_frontend_counts(self.maps, id);
        let element = Frontend {
            word: 0,
            key: *key,
            pad: Default::default(),
        };
        let result = FamilyMaps::<A>::write_frontend(self.maps, id, &element);
        let result = self
            .note(result)
            .and_then(|()| self.store_word(id, region, 1));
        if result.is_err() {
            self.actual.frontend_ids.release_unused(id);
        }
        result.map(|()| id)
    }

    fn store_word(&mut self, id: u32, region: Region, generation: u32) -> Result<(), Obstacle> {
        let word = Word {
            region: region.start,
            generation,
        }
        .pack();
        let result = FamilyMaps::<A>::publish(self.maps, id, word);
        self.note(result)
    }

    /// ActualState after a publication: the old region rests, the owner may have changed.
    fn replace_frontend(&mut self, key: &FrontendKey<A>, mut written: ActualFrontend) {
        self.actual
            .port_mut(&written.owner)
            .frontends
            .insert(*key, ());
        let owner = written.owner.clone();
        if let Some(old) = self.actual.frontends.get(key) {
            written.is_reachable = old.is_reachable;
        }
        let Some(old) = self.actual.frontends.insert(*key, written) else {
            return;
        };
        self.actual.dereference(&old.content);
        if let Some(region) = old.region {
            self.shared.regions.release(region, self.now);
        }
        if old.owner != owner
            && let Some(port) = self.actual.ports.get_mut(&old.owner)
        {
            port.frontends.remove(key);
        }
    }

    /// Puts a published frontend into FRONTEND_IDS.
    pub(super) fn reach(&mut self, key: &FrontendKey<A>) -> Result<(), Obstacle> {
        let Some(known) = self.actual.frontends.get(key) else {
            return Ok(());
        };
        if known.is_reachable {
            return Ok(());
        }
        let result = FamilyMaps::<A>::insert_frontend_id(self.maps, key, known.id);
        self.note(result)?;
        if let Some(known) = self.actual.frontends.get_mut(key) {
            known.is_reachable = true;
        }
        Ok(())
    }

    /// Takes a frontend out of FRONTEND_IDS, then unpublishes it.
    pub(super) fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), Obstacle> {
        let Some(known) = self.actual.frontends.get(key) else {
            return Ok(());
        };
        let id = known.id;
        if known.is_reachable {
            let result = FamilyMaps::<A>::remove_frontend_id(self.maps, key);
            self.note(result)?;
            if let Some(known) = self.actual.frontends.get_mut(key) {
                known.is_reachable = false;
            }
        }
        let result = FamilyMaps::<A>::publish(self.maps, id, 0);
        self.note(result)?;
        let Some(old) = self.actual.frontends.remove(key) else {
            return Ok(());
        };
        self.actual.dereference(&old.content);
        if let Some(region) = old.region {
            self.shared.regions.release(region, self.now);
        }
        self.actual.frontend_ids.release(id, self.now);
        if let Some(port) = self.actual.ports.get_mut(&old.owner) {
            port.frontends.remove(key);
        }
        Ok(())
    }
}
