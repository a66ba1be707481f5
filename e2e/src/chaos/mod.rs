//! The running system under fire: real processes, a bad network, faults drawn from a seed; then a checker that reads what was written down.
//!
//! | module | what |
//! |---|---|
//! | this one | a run from its beginning to its end |
//! | [`servers`] | PostgreSQL, an Authentication Service, two nodes of the Delivery Service, started again whenever they end |
//! | [`mod@line`] | the lines between processes, and their weather |
//! | [`people`] | the workload: every command of a device is a process |
//! | [`witness`] | raw subscriptions |
//! | [`faults`] | what is done to them |
//! | [`history`] | what everybody asked, was answered and saw |
//! | [`end`] | after the faults: catching up, one more try, writing down what there is to compare |
//! | [`check`] | the checker, which knows nothing of all that but the files |
//! | `story` | the history by operations, for the checker |
//! | [`double`] | servers broken on purpose, which the checker must catch |

pub mod check;
pub mod double;
pub mod end;
pub mod faults;
pub mod history;
pub mod line;
pub mod people;
pub mod servers;
mod story;
pub mod witness;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use fastrand::Rng;
use rustix::process::Signal;
use service_kit::local_postgres::Profile;
use tokio::signal::unix::{SignalKind, signal};

use crate::{device::Device, programs::Programs, story::world::each};
use check::Verdict;
use double::{Broken, Double};
use faults::{Done, Kind};
use history::Recorder;
use people::{Crowd, Ground, Person};
use servers::Servers;

/// How large, how long, how broken.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many faults.
    pub faults: u64,
    /// Decides which.
    pub seed: u64,
    /// Devices that stay in their groups.
    pub members: usize,
    /// Devices that come and go.
    pub guests: usize,
    /// Groups.
    pub groups: usize,
    /// Members of each.
    pub group_size: usize,
    /// Which faults, and how often.
    pub mix: &'static [(Kind, u32)],
    /// A server that is broken on purpose.
    pub broken: Option<Broken>,
    /// How long the groups have at the end to find together; a broken server may never let them.
    pub patience: Duration,
}

impl Options {
    /// The whole: 24 devices in 5 groups.
    pub fn whole(faults: u64, seed: u64) -> Self {
        Self {
            faults,
            seed,
            members: 20,
            guests: 4,
            groups: 5,
            group_size: 8,
            mix: faults::ALL,
            broken: None,
            patience: Duration::from_secs(120),
        }
    }

    /// A smaller world with a broken server, under the faults that bring its fault to light.
    pub fn broken(broken: Broken, faults: u64, seed: u64) -> Self {
        Self {
            faults,
            seed,
            members: 6,
            guests: 1,
            groups: 1,
            group_size: 6,
            mix: broken.mix(),
            broken: Some(broken),
            patience: Duration::from_secs(3),
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// Faults done.
    pub done: Done,
    /// What the checker says.
    pub verdict: Verdict,
    /// Substitutions of a broken server that were never made.
    pub unused: Vec<&'static str>,
    /// Whether PostgreSQL had a disk of its own to fill.
    pub small_disk: bool,
}

/// Plays a run in a folder, which holds everything that was written down afterwards.
///
/// # Errors
/// Something does not start, or a command cannot be run at all. What the checker finds is no error.
pub fn play(folder: &Path, options: &Options) -> anyhow::Result<Run> {
    let double = options.broken.map(Double::new);
    let programs = Programs::find()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let stage = Stage {
        servers: runtime.block_on(Servers::start(
            &programs,
            folder,
            Profile::Durable,
            double.as_ref(),
        ))?,
        recorder: Arc::new(Recorder::new(folder)?),
        programs,
        runtime,
        folder,
        options,
        double,
        interrupted: Arc::default(),
    };
    stage.end_on_signals();
    let done = std::thread::scope(|scope| {
        let supervising = scope.spawn(|| stage.servers.supervise(&stage.recorder));
        let done = stage.perform();
        stage.servers.stop();
        let supervised = supervising.join();
        supervised.map_err(|_| anyhow::anyhow!("the supervisor panicked"))??;
        done
    })?;
    stage.recorder.flush()?;
    Ok(Run {
        done,
        verdict: check::check(folder)?,
        unused: stage
            .double
            .map(|double| double.unused())
            .unwrap_or_default(),
        small_disk: stage.servers.postgres.has_disk(),
    })
}

/// What a run needs from its beginning to its end.
struct Stage<'a> {
    programs: Programs,
    folder: &'a Path,
    options: &'a Options,
    servers: Servers,
    recorder: Arc<Recorder>,
    runtime: tokio::runtime::Runtime,
    double: Option<Arc<Double>>,
    interrupted: Arc<AtomicBool>,
}

impl Stage<'_> {
    /// Whoever loses patience leaves no PostgreSQL and no disk behind.
    fn end_on_signals(&self) {
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            let interrupted = self.interrupted.clone();
            self.runtime.spawn(async move {
                if let Ok(mut signals) = signal(kind) {
                    signals.recv().await;
                    interrupted.store(true, Ordering::Relaxed);
                }
            });
        }
    }

    /// Everything between the servers' start and their end.
    fn perform(&self) -> anyhow::Result<Done> {
        self.servers.wait()?;
        let crowd = Arc::new(self.gather()?);
        if let Some(double) = &self.double {
            double.arm();
        }
        let watch = |ground| {
            let url = self.servers.node.delivery_url.clone();
            let watching = witness::watch(crowd.clone(), ground, url);
            self.runtime.spawn(watching)
        };
        let witnesses: Vec<_> = (0..crowd.grounds.len()).map(watch).collect();
        let done = self.under_fire(&crowd)?;
        for witness in witnesses {
            self.runtime.block_on(witness)??;
        }
        end::settle(&crowd, self.options.patience)?;
        end::write_states(&crowd, self.folder)?;
        end::write_log(&self.servers, self.folder)?;
        Ok(done)
    }

    /// Everybody enrols; the groups are made.
    fn gather(&self) -> anyhow::Result<Crowd> {
        let options = self.options;
        let profiles = self.folder.join("devices");
        std::fs::create_dir_all(&profiles)?;
        let names: Vec<String> = (0..options.members + options.guests)
            .map(|n| format!("device-{n}"))
            .collect();
        let devices = each(&names, |name| {
            Device::enroll(&self.programs, &self.servers.node, &profiles, 0, name, name)
        })?;
        let places: Vec<usize> = (0..options.groups).collect();
        let grounds = each(&places, |place| {
            let step = options.members / options.groups;
            let members = (0..options.group_size).map(|k| (place * step + k) % options.members);
            let members: Vec<usize> = members.collect();
            let (creator, others) = members.split_first().context("an empty group")?;
            let (_, name) = devices[*creator].create_group(others.iter().map(|i| &devices[*i]))?;
            Ok(Ground {
                name,
                members,
                guest: options.members + place % options.guests,
            })
        })?;
        Ok(Crowd {
            people: devices.into_iter().map(Person::new).collect(),
            grounds,
            recorder: self.recorder.clone(),
            folder: profiles,
            over: AtomicBool::new(false),
        })
    }

    /// Everybody lives their life while the faults come.
    fn under_fire(&self, crowd: &Crowd) -> anyhow::Result<Done> {
        let mut rng = Rng::with_seed(self.options.seed);
        std::thread::scope(|scope| {
            let mut lives = Vec::new();
            for index in 0..crowd.people.len() {
                let rng = rng.fork();
                lives.push(scope.spawn(move || crowd.live(index, rng)));
                lives.push(scope.spawn(move || crowd.listen(index)));
            }
            let (faults, mix) = (self.options.faults, self.options.mix);
            let interrupted = &self.interrupted;
            let done = faults::storm(&self.servers, crowd, faults, mix, &mut rng, interrupted);
            faults::fair_weather(&self.servers, crowd);
            crowd.over.store(true, Ordering::Relaxed);
            for person in &crowd.people {
                person.ear.signal(Signal::KILL);
            }
            for life in lives {
                life.join()
                    .map_err(|_| anyhow::anyhow!("a life panicked"))??;
            }
            done
        })
    }
}
