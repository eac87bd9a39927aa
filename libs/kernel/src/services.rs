//! Services in the kernel: maps and base chains through the `nft` program, elements and the chains that services go to
//! straight over netlink.
//!
//! What the table has is remembered, so a change costs what it changes. It is read back at the start, and when the
//! kernel's generation of tables shows that somebody else made a transaction *and* rules, maps or the numbers of their
//! elements are no longer ours. Each transaction names the generation that it was meant for; the kernel refuses it if
//! another came first (`docs/decisions/0015-elements-over-netlink.md`).

mod chain;
mod element;
mod look;
mod message;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::{io, mem};

use culvert_model::{Frontend, IpFamily};
use culvert_netstate::nft::render_delete;
use culvert_services::{Backend, Change, Element, Placed, Services, Table, Target, changed};

use self::element::Stranger;
use self::look::{FamilyMap, Shape};
use self::message::Writer;
use self::socket::{ERESTART, Nfnetlink};
use crate::{KernelError, nft};

/// Transactions that somebody else came in between before we give up.
const ATTEMPTS: u32 = 16;
/// Elements of one transaction. More are put by several, whole services at a time, so that the table is not locked for
/// long and no request takes more memory than some megabytes.
const TRANSACTION: usize = 50_000;

/// The services of one user in the kernel.
///
/// It stays in the network namespace of the thread that opened it; as `nft` works in that of the thread that calls, all
/// calls have to come from threads of the same namespace. Requests over netlink block the thread: a millisecond for a
/// usual change, some hundred for a hundred thousand elements.
pub struct ServiceTable {
    table: Table,
    socket: Nfnetlink,
    /// What the table has; `None`: it has to be read.
    held: Option<Held>,
    /// Where backends were when the table was last as we left it: they return there after a foreign change.
    before: BTreeMap<Frontend, Placed>,
    /// What was asked for when all of it could be put.
    wanted: Option<Services>,
}

/// What a table has at a generation.
struct Held {
    generation: u32,
    shape: Shape,
    chains: BTreeSet<(IpFamily, Target)>,
    placed: BTreeMap<Frontend, Placed>,
    counts: BTreeMap<FamilyMap, usize>,
    strangers: Vec<Stranger>,
}

/// What became of services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceReport {
    /// Services that changed.
    pub services: usize,
    /// Elements that were added or removed.
    pub elements: usize,
    /// Backends that serve a frontend no more, with what an earlier process left: their flows can be forgotten
    /// ([`crate::forget_flows_to`]).
    pub gone: Vec<(Frontend, Backend)>,
    /// Frontends that had no backend before: flows that began then can be forgotten ([`crate::forget_flows_past`]).
    pub begun: Vec<Frontend>,
}

impl ServiceTable {
    /// Makes the table, or takes over the one that is there with all its elements. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// [`KernelError::Services`] if the kernel has no nftables or the process may not change them,
    /// [`KernelError::NftMissing`] and [`KernelError::Nft`] if the structure cannot be put.
    pub async fn open(table: Table) -> Result<Self, KernelError> {
        let socket = Nfnetlink::open().map_err(KernelError::Socket)?;
        let mut services = Self { table, socket, held: None, before: BTreeMap::new(), wanted: None };
        let held = services.restore().await?;
        services.held = Some(held);
        Ok(services)
    }

    /// Brings the table to `services`, and repairs it if somebody else changed it.
    ///
    /// Every service changes in one transaction; all do, unless there are tens of thousands of elements to change.
    /// After an error some services may have changed; the next call does the rest.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], and [`KernelError::ServicesBusy`].
    pub async fn converge(&mut self, services: &Services) -> Result<ServiceReport, KernelError> {
        let mut report = ServiceReport::default();
        for _ in 0..ATTEMPTS {
            let held = match self.held.take() {
                Some(held) => self.verify(held)?,
                None => None,
            };
            let held = match held {
                Some(held) => held,
                None => self.restore().await?,
            };
            let wanted = self.plan(&held, services);
            let Some(mut held) = self.make_chains(held, &wanted)? else { continue };
            match self.put(&mut held, wanted, &mut report) {
                Ok(()) => {
                    self.held = Some(held);
                    self.before.clear();
                    self.remember(services);
                    return Ok(report);
                }
                Err(error) if error.raw_os_error() == Some(ERESTART) => self.held = Some(held),
                Err(error) => {
                    self.forget(held);
                    return Err(self.error("changed", error));
                }
            }
        }
        Err(KernelError::ServicesBusy { table: self.table.name.clone() })
    }

    /// Removes the table `name`, if it is there, with all that clients have been learned to be held to.
    ///
    /// # Errors
    ///
    /// [`KernelError::Nft`] with nft's own words.
    pub async fn remove(name: &str) -> Result<(), KernelError> {
        nft::run(&["-f", "-"], &render_delete(name)).await.map(drop)
    }

    /// Returns what the table has at the present generation, `None` if that is no longer what we know.
    fn verify(&mut self, mut held: Held) -> Result<Option<Held>, KernelError> {
        match self.is_held(&mut held) {
            Ok(true) => Ok(Some(held)),
            Ok(false) => {
                tracing::warn!(table = self.table.name, "somebody else changed the table of services; it is repaired");
                self.forget(held);
                Ok(None)
            }
            Err(error) => {
                self.forget(held);
                Err(self.error("read", error))
            }
        }
    }

    fn is_held(&mut self, held: &mut Held) -> io::Result<bool> {
        // Asked for first: what changes during the look makes it another one, and our transaction refused.
        let generation = self.socket.generation()?;
        if generation == held.generation {
            return Ok(true);
        }
        let table = self.table.name.as_str();
        let shape = look::shape(&mut self.socket, table)?;
        let known = shape.filter(|shape| shape.same_structure(&held.shape) && shape.have(&held.counts));
        let Some(shape) = known else { return Ok(false) };
        held.generation = generation;
        Ok(shape.has_counts() || has_samples(&mut self.socket, table, held)?)
    }

    /// Puts the structure, whatever is there, and reads all elements.
    async fn restore(&mut self) -> Result<Held, KernelError> {
        let name = self.table.name.clone();
        let script = self.table.script();
        if let Err(error) = nft::run(&["-f", "-"], &script).await {
            // Maps or base chains of another kind can only be made anew.
            tracing::warn!(table = name, %error, "the table of services is made anew");
            nft::run(&["-f", "-"], &(render_delete(&name) + &script)).await?;
        }
        let rules = script.lines().filter(|line| line.starts_with("add rule ")).count();
        if let Some(held) = self.read_settled(rules)? {
            return Ok(held);
        }
        // Rules in a chain that is none of ours are there to stay.
        tracing::warn!(table = name, "the table of services has what is not ours; it is made anew");
        nft::run(&["-f", "-"], &(render_delete(&name) + &script)).await?;
        self.read_settled(rules)?.ok_or(KernelError::ServicesBusy { table: name })
    }

    /// Reads the table until it is the same for a moment; `None` if it never is.
    fn read_settled(&mut self, rules: usize) -> Result<Option<Held>, KernelError> {
        for _ in 0..ATTEMPTS {
            match self.read(rules) {
                Ok(Some(held)) => return Ok(Some(held)),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(ERESTART) => {}
                Err(error) => return Err(self.error("read", error)),
            }
        }
        Ok(None)
    }

    /// Fills all chains that are there, which another version may have made, and reads all elements; `None` if there
    /// are not as many as there were a moment later, or not `rules` beside those of the chains.
    fn read(&mut self, rules: usize) -> io::Result<Option<Held>> {
        let name = self.table.name.as_str();
        let mut generation = self.socket.generation()?;
        let chains: BTreeSet<_> = look::chains(&mut self.socket, name)?.into_iter().collect();
        let (transaction, filled) = filling(name, generation, &chains);
        if !chains.is_empty() {
            self.socket.transact(transaction)?;
            generation = after(generation);
        }
        let look::Elements { placed, counts, strangers } = look::elements(&mut self.socket, name)?;
        let shape = look::shape(&mut self.socket, name)?;
        let whole = shape.filter(|shape| shape.rules == rules + filled && shape.have(&counts));
        Ok(whole.map(|shape| Held { generation, shape, chains, placed, counts, strangers }))
    }

    /// Returns what services shall be, as far as they shall be something else.
    fn plan(&self, held: &Held, services: &Services) -> Vec<(Frontend, Placed)> {
        let towards = |frontend: Frontend, service| {
            let before = self.before.get(&frontend).or_else(|| held.placed.get(&frontend));
            let nothing = Placed::default();
            let service: Option<_> = service;
            (
                frontend,
                service.map_or_else(Placed::default, |service| before.unwrap_or(&nothing).towards(&frontend, service)),
            )
        };
        if let Some(wanted) = &self.wanted {
            return changed(wanted, services)
                .into_iter()
                .map(|(frontend, service)| towards(frontend, service))
                .collect();
        }
        let stale = held.placed.keys().filter(|frontend| !services.contains_key(frontend));
        let stale = stale.map(|frontend| (*frontend, Placed::default()));
        stale.chain(services.iter().map(|(frontend, service)| towards(*frontend, Some(service)))).collect()
    }

    /// Makes the chains that services are to go to; `None` if somebody else came in between.
    fn make_chains(&mut self, mut held: Held, wanted: &[(Frontend, Placed)]) -> Result<Option<Held>, KernelError> {
        let missing: BTreeSet<(IpFamily, Target)> = wanted
            .iter()
            .filter_map(|(frontend, placed)| Some((IpFamily::of(frontend.address), placed.target()?)))
            .filter(|chain| !held.chains.contains(chain))
            .flat_map(|(family, target)| target.neighbours().into_iter().map(move |target| (family, target)))
            .filter(|chain| !held.chains.contains(chain))
            .collect();
        if missing.is_empty() {
            return Ok(Some(held));
        }
        let name = self.table.name.as_str();
        let (transaction, filled) = filling(name, held.generation, &missing);
        let made = self.socket.transact(transaction);
        let shape = match made.and_then(|()| look::shape(&mut self.socket, name)) {
            Ok(shape) => shape,
            Err(error) if error.raw_os_error() == Some(ERESTART) => {
                self.held = Some(held);
                return Ok(None);
            }
            Err(error) => {
                self.forget(held);
                return Err(self.error("changed", error));
            }
        };
        let expected = held.shape.rules + filled;
        let Some(shape) = shape.filter(|shape| shape.rules == expected && shape.have(&held.counts)) else {
            self.forget(held);
            return Ok(None);
        };
        held.chains.extend(missing);
        held.generation = after(held.generation);
        held.shape = shape;
        Ok(Some(held))
    }

    /// Puts the elements, whole services at a time.
    fn put(&mut self, held: &mut Held, wanted: Vec<(Frontend, Placed)>, report: &mut ServiceReport) -> io::Result<()> {
        let mut services = Vec::new();
        let mut changes = Vec::new();
        for (frontend, after) in wanted {
            let nothing = Placed::default();
            let before = held.placed.get(&frontend).unwrap_or(&nothing);
            let length = changes.len();
            changes.extend(before.changes(frontend, &after));
            if changes.len() > length {
                services.push((frontend, after));
            }
            if changes.len() >= TRANSACTION {
                self.transact(held, mem::take(&mut services), &mem::take(&mut changes), report)?;
            }
        }
        self.transact(held, services, &changes, report)
    }

    /// Makes one transaction, and takes note of it.
    fn transact(
        &mut self,
        held: &mut Held,
        services: Vec<(Frontend, Placed)>,
        changes: &[Change],
        report: &mut ServiceReport,
    ) -> io::Result<()> {
        if changes.is_empty() && held.strangers.is_empty() {
            return Ok(());
        }
        let mut counts = held.counts.clone();
        self.socket.transact(self.transaction(held, changes, &mut counts))?;
        held.generation = after(held.generation);
        held.counts = counts;
        held.strangers.clear();
        report.services += services.len();
        report.elements += changes.len();
        for (frontend, after) in services {
            let before = held.placed.remove(&frontend).unwrap_or_default();
            let gone =
                before.backends().difference(&after.backends()).map(|backend| (frontend, *backend)).collect::<Vec<_>>();
            report.gone.extend(gone);
            if before.target().is_none() && after.target().is_some() {
                report.begun.push(frontend);
            }
            if !after.is_empty() {
                held.placed.insert(frontend, after);
            }
        }
        Ok(())
    }

    /// Writes a transaction, and counts what the maps have after it.
    fn transaction(&self, held: &Held, changes: &[Change], counts: &mut BTreeMap<FamilyMap, usize>) -> Writer {
        let table = self.table.name.as_str();
        let mut removed: BTreeMap<FamilyMap, Vec<Element>> = BTreeMap::new();
        let mut added = removed.clone();
        for change in changes {
            let (to, element) = match change {
                Change::Remove(element) => (&mut removed, element),
                Change::Add(element) => (&mut added, element),
            };
            let map = (element.map(), IpFamily::of(element.frontend().address));
            to.entry(map).or_default().push(*element);
        }
        let mut writer = Writer::default();
        writer.begin(held.generation);
        for map in look::maps() {
            let strangers: Vec<&Stranger> =
                held.strangers.iter().filter(|stranger| (stranger.map, stranger.family) == map).collect();
            element::remove_strangers(&mut writer, table, map, &strangers);
            let removed = removed.remove(&map).unwrap_or_default();
            element::remove(&mut writer, table, map, &removed);
            let count = counts.entry(map).or_default();
            *count -= removed.len() + strangers.len();
        }
        for (map, elements) in added {
            element::add(&mut writer, table, map, &elements);
            *counts.entry(map).or_default() += elements.len();
        }
        writer.commit();
        writer
    }

    /// Takes note that what we know of the kernel may be wrong; where backends were stays known.
    fn forget(&mut self, held: Held) {
        for (frontend, placed) in held.placed {
            self.before.entry(frontend).or_insert(placed);
        }
        self.wanted = None;
    }

    fn remember(&mut self, services: &Services) {
        let Some(wanted) = &mut self.wanted else {
            self.wanted = Some(services.clone());
            return;
        };
        // A clone of everything would cost more than the change.
        let changed: Vec<_> = changed(wanted, services).into_iter().map(|(at, now)| (at, now.cloned())).collect();
        for (frontend, service) in changed {
            match service {
                Some(service) => drop(wanted.insert(frontend, service)),
                None => drop(wanted.remove(&frontend)),
            }
        }
    }

    fn error(&self, what: &'static str, source: io::Error) -> KernelError {
        KernelError::Services { table: self.table.name.clone(), what, source }
    }
}

/// Writes a transaction that makes chains, or fills them anew, and returns it with how many rules they have.
fn filling(table: &str, generation: u32, chains: &BTreeSet<(IpFamily, Target)>) -> (Writer, usize) {
    let mut writer = Writer::default();
    writer.begin(generation);
    let rules = chains.iter().map(|(family, target)| chain::put(&mut writer, table, *family, *target)).sum();
    writer.commit();
    (writer, rules)
}

/// Returns the generation after one transaction; the kernel leaves zero out.
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// Tells whether one element of every map that has any is there. A kernel that does not count needs it: a flushed map
/// is noticed, a single element that was taken away is not.
fn has_samples(socket: &mut Nfnetlink, table: &str, held: &Held) -> io::Result<bool> {
    let nothing = Placed::default();
    for (map, _) in held.counts.iter().filter(|(_, count)| **count > 0) {
        let of_map = |change| match change {
            Change::Add(element) => (element.map() == map.0).then_some(element),
            Change::Remove(_) => None,
        };
        let of_family = held.placed.iter().filter(|(frontend, _)| IpFamily::of(frontend.address) == map.1);
        let sample = of_family
            .flat_map(|(frontend, placed)| nothing.changes(*frontend, placed).collect::<Vec<_>>())
            .find_map(of_map);
        if let Some(sample) = sample
            && !look::has(socket, table, &sample)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use culvert_model::Protocol;
    use culvert_services::Service;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn at(port: u16) -> Frontend {
        Frontend { address: [242, 0, 0, 1].into(), protocol: Protocol::Tcp, port }
    }

    fn service(affinity: Option<u32>) -> Service {
        let backends = BTreeMap::from([(Backend { address: [10, 1, 0, 1].into(), port: 80 }, 1)]);
        Service { backends, affinity }
    }

    fn table(name: &str) -> Table {
        Table { name: name.to_owned(), prerouting: String::new(), output: None }
    }

    /// Runs a test in a network namespace of its own.
    fn isolated(test: impl Future<Output = ()> + Send + 'static) {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root makes network namespaces: run the tests as root");
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
        };
        thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_rule_in_a_foreign_chain_of_the_table_is_removed() {
        isolated(async {
            let name = "culvert_test";
            let mut kernel = ServiceTable::open(table(name)).await.unwrap();
            let services = [(at(80), service(None))].into();
            kernel.converge(&services).await.unwrap();
            let foreign = format!("add chain inet {name} foreign\nadd rule inet {name} foreign accept\n");
            nft::run(&["-f", "-"], &foreign).await.unwrap();
            assert_eq!(kernel.converge(&services).await.unwrap().services, 1, "put anew");
            nft::run(&["-f", "-"], &foreign).await.unwrap();
            let mut next = ServiceTable::open(table(name)).await.unwrap();
            next.converge(&services).await.unwrap();
            assert!(next.converge(&services).await.unwrap().elements == 0);
        });
    }

    /// What this kernel counts for us has to be found out by samples on an older one.
    #[test]
    fn a_flushed_map_is_noticed_without_counts() {
        isolated(async {
            let name = "culvert_test";
            let mut kernel = ServiceTable::open(table(name)).await.unwrap();
            let services = [(at(80), service(None)), (at(81), service(Some(60)))].into();
            kernel.converge(&services).await.unwrap();
            for map in ["services4", "slots4", "ids4", "by_id4"] {
                let held = kernel.held.as_ref().unwrap();
                assert!(has_samples(&mut kernel.socket, name, held).unwrap());
                nft::run(&["flush", "map", "inet", name, map], "").await.unwrap();
                assert!(!has_samples(&mut kernel.socket, name, held).unwrap(), "{map}");
                assert!(kernel.converge(&services).await.unwrap().elements > 0);
            }
        });
    }
}
