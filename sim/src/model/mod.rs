//! Small worlds, explored completely: devices and nodes between which requests and answers are lost, doubled, delayed and overtaken, and nodes that
//! crash between any two steps. The server's decisions are those of `delivery_service::ordering::group`, the devices' those of `client_cli::core::pending`.
//!
//! | module | what |
//! |---|---|
//! | this one | the world, its steps, its promises |
//! | [`server`] | the database of a group, and what is read from it for a decision |
//! | [`device`] | a device's own state, without cryptography |

pub mod device;
pub mod server;

use stateright::{Checker as _, Model, Property};

use device::{Device, Standing};
use server::{Answer, Change, Request, Server};

/// A promise of the service or of the client broken on purpose: a checker that never fails proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// The service does not look an id up.
    ForgetsIds,
    /// The service takes a Commit of any epoch for one of the current epoch.
    TakesAnyEpoch,
    /// The service lets a removed device read on.
    ReadsOn,
    /// The service gives an entry the number of the last one.
    GivesNumbersTwice,
    /// The service does not bar messages while a revoked device is in.
    NoBarrier,
    /// A client drops its Commit when no answer comes, instead of asking again.
    GivesUp,
    /// A client merges its Commit when the answer comes, whatever came before it in the log.
    MergesEarly,
}

/// How large a world is. A budget that is used up ends what it pays for, so that the world is finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Devices, each of another user; all are members at the beginning.
    pub devices: u8,
    /// Commits that each device begins, with those that it builds again after a lost race.
    pub commits: u8,
    /// Messages that each speaker sends.
    pub messages: u8,
    /// How many of the devices send messages.
    pub speakers: u8,
    /// Requests and answers that come twice, in all.
    pub doubles: u8,
    /// Requests and answers that are lost, in all.
    pub losses: u8,
    /// Requests that are sent again before an answer came, in all.
    pub retries: u8,
    /// Crashes of a node.
    pub crashes: u8,
    /// A device may be removed by a Commit.
    pub removals: bool,
    /// A device may lose its state and come back by an external Commit.
    pub resyncs: bool,
    /// The Authentication Service may revoke a device.
    pub revocations: bool,
    /// What is broken in it.
    pub broken: Option<Broken>,
}

/// Nodes of the service, on one database.
const NODES: usize = 2;

/// A world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The database.
    pub server: Server,
    /// In the order of their numbers.
    pub devices: Vec<Device>,
    /// On their way to the service, in no order.
    pub requests: Vec<Request>,
    /// Committed, and not yet given to the network, by node.
    pub done: [Vec<Answer>; NODES],
    /// On their way back, in no order.
    pub answers: Vec<Answer>,
    left: Left,
}

/// What is left of the budgets of the whole world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Left {
    doubles: u8,
    losses: u8,
    retries: u8,
    crashes: u8,
}

/// What may happen next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// A device makes a Commit and sends it.
    Commit(u8, Change),
    /// A device says something.
    Say(u8),
    /// A device sends again what has no answer yet: its Commit, or its message.
    RetryCommit(u8),
    /// See [`Step::RetryCommit`].
    RetryMessage(u8),
    /// A device reads the next entry.
    Read(u8),
    /// A device loses its state of the group.
    Forget(u8),
    /// A node takes a request, decides, and commits.
    Process(usize, usize),
    /// The same, and the request stays under way: it comes once more.
    ProcessDouble(usize, usize),
    /// A request is lost.
    LoseRequest(usize),
    /// A node gives its oldest answer to the network.
    Reply(usize),
    /// An answer arrives.
    Arrive(usize),
    /// The same, and comes once more.
    ArriveDouble(usize),
    /// An answer is lost.
    LoseAnswer(usize),
    /// A node crashes: what it has not answered is never answered.
    Crash(usize),
    /// The status feed records a revocation.
    Revoke(u8),
    /// The sweep marks a revoked device.
    Mark(u8),
}

impl World {
    /// The beginning: everybody is in the group.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            server: Server::new(bounds.devices, bounds.broken),
            devices: (0..bounds.devices)
                .map(|n| {
                    let messages = if n < bounds.speakers {
                        bounds.messages
                    } else {
                        0
                    };
                    Device::new(n, bounds.commits, messages, bounds.broken)
                })
                .collect(),
            requests: Vec::new(),
            done: Default::default(),
            answers: Vec::new(),
            left: Left {
                doubles: bounds.doubles,
                losses: bounds.losses,
                retries: bounds.retries,
                crashes: bounds.crashes,
            },
        }
    }

    /// Carries a step out. The networks are kept sorted: their order means nothing, and worlds that differ in it only are one.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Commit(n, change) => {
                let request = self.devices[usize::from(*n)].commit(change, &self.server);
                self.requests.extend(request);
            }
            Step::Say(n) => {
                let request = self.devices[usize::from(*n)].say();
                self.requests.extend(request);
            }
            Step::RetryCommit(n) => {
                self.left.retries -= 1;
                let request = self.devices[usize::from(*n)].pending_request();
                self.requests.extend(request);
            }
            Step::RetryMessage(n) => {
                self.left.retries -= 1;
                let request = self.devices[usize::from(*n)].unsent_request();
                self.requests.extend(request);
            }
            Step::Read(n) => self.devices[usize::from(*n)].read(&self.server),
            Step::Forget(n) => self.devices[usize::from(*n)].forget(),
            Step::Process(node, index) => {
                let request = self.requests.remove(*index);
                self.process(*node, &request);
            }
            Step::ProcessDouble(node, index) => {
                self.left.doubles -= 1;
                let request = self.requests[*index].clone();
                self.process(*node, &request);
            }
            Step::LoseRequest(index) => {
                self.left.losses -= 1;
                let request = self.requests.remove(*index);
                self.devices[usize::from(request.by)].unanswered(request.id);
            }
            Step::Reply(node) => {
                let answer = self.done[*node].remove(0);
                self.answers.push(answer);
            }
            Step::Arrive(index) => {
                let answer = self.answers.remove(*index);
                self.arrive(&answer);
            }
            Step::ArriveDouble(index) => {
                self.left.doubles -= 1;
                let answer = self.answers[*index].clone();
                self.arrive(&answer);
            }
            Step::LoseAnswer(index) => {
                self.left.losses -= 1;
                let answer = self.answers.remove(*index);
                self.devices[usize::from(answer.to)].unanswered(answer.id);
            }
            Step::Crash(node) => {
                self.left.crashes -= 1;
                self.done[*node].clear();
            }
            Step::Revoke(n) => self.server.revoke(*n),
            Step::Mark(n) => self.server.mark(*n),
        }
        self.requests.sort();
        self.answers.sort();
        // The nodes are alike.
        self.done.sort();
    }

    /// Between COMMIT and the answer a node may crash; where none does any more, that moment is none.
    fn process(&mut self, node: usize, request: &Request) {
        let answer = self.server.process(request);
        if self.left.crashes > 0 {
            self.done[node].push(answer);
        } else {
            self.answers.push(answer);
        }
    }

    fn arrive(&mut self, answer: &Answer) {
        let device = &mut self.devices[usize::from(answer.to)];
        device.answered(answer, &self.server);
    }

    fn steps(&self, bounds: &Bounds, steps: &mut Vec<Step>) {
        for device in &self.devices {
            self.device_steps(bounds, device, steps);
        }
        for (index, request) in self.requests.iter().enumerate() {
            if index > 0 && self.requests[index - 1] == *request {
                continue;
            }
            // The nodes are alike; which of them has answers waiting makes the difference.
            for node in 0..NODES {
                if node > 0 && self.done[node] == self.done[node - 1] {
                    continue;
                }
                steps.push(Step::Process(node, index));
                if self.left.doubles > 0 {
                    steps.push(Step::ProcessDouble(node, index));
                }
            }
            if self.left.losses > 0 {
                steps.push(Step::LoseRequest(index));
            }
        }
        for (index, answer) in self.answers.iter().enumerate() {
            if index > 0 && self.answers[index - 1] == *answer {
                continue;
            }
            steps.push(Step::Arrive(index));
            if self.left.doubles > 0 {
                steps.push(Step::ArriveDouble(index));
            }
            if self.left.losses > 0 {
                steps.push(Step::LoseAnswer(index));
            }
        }
        for (node, done) in self.done.iter().enumerate() {
            if !done.is_empty() {
                steps.push(Step::Reply(node));
                if self.left.crashes > 0 {
                    steps.push(Step::Crash(node));
                }
            }
        }
    }

    fn device_steps(&self, bounds: &Bounds, device: &Device, steps: &mut Vec<Step>) {
        let n = device.number;
        if device.may_commit() {
            match device.standing {
                Standing::Member => {
                    steps.push(Step::Commit(n, Change::Update));
                    if bounds.removals && n == 0 {
                        let last = bounds.devices - 1;
                        if last != n && self.server.is_member(last) {
                            steps.push(Step::Commit(n, Change::Remove(last)));
                        }
                    }
                }
                Standing::Lost => steps.push(Step::Commit(n, Change::Resync)),
                Standing::Out => {}
            }
        }
        if device.may_say() {
            steps.push(Step::Say(n));
        }
        if self.left.retries > 0 {
            if device.pending_request().is_some() {
                steps.push(Step::RetryCommit(n));
            }
            if device.unsent_request().is_some() {
                steps.push(Step::RetryMessage(n));
            }
        }
        if self.server.next_for(n, device.head_seq).is_some() {
            steps.push(Step::Read(n));
        }
        if bounds.resyncs && n == 1 && device.may_forget() {
            steps.push(Step::Forget(n));
        }
        if bounds.revocations && n == bounds.devices - 1 {
            if self.server.may_revoke(n) {
                steps.push(Step::Revoke(n));
            }
            if self.server.may_mark(n) {
                steps.push(Step::Mark(n));
            }
        }
    }

    /// What is wrong with this world, if anything is.
    pub fn fault(&self) -> Option<String> {
        self.server
            .fault()
            .or_else(|| self.devices.iter().find_map(|d| d.fault(&self.server)))
            .or_else(|| self.unheard())
    }

    /// An answer that contradicts the log.
    fn unheard(&self) -> Option<String> {
        let waiting = self.done.iter().flatten().chain(&self.answers);
        let mut waiting = waiting.filter_map(|answer| Some((answer, answer.seq?)));
        waiting.find_map(|(answer, seq)| {
            (self.server.place_of(answer.id) != Some(seq))
                .then(|| format!("answered with a place that it has not: {answer:?}"))
        })
    }

    /// From here, with a network that loses nothing more: does every device that is still in come to agreement, and what it had under way to an end?
    pub fn heals(&self) -> Result<(), String> {
        let mut world = self.clone();
        world.requests.clear();
        world.answers.clear();
        world.done = Default::default();
        for _ in 0..200 {
            let before = world.clone();
            for n in 0..world.devices.len() {
                world.devices[n].read_up(&world.server);
                world.settle_one(n);
            }
            let revoked: Vec<u8> = world.server.unmarked().collect();
            for n in revoked {
                world.server.mark(n);
            }
            if world == before {
                return world.agreed();
            }
        }
        Err("it never comes to rest".into())
    }

    fn settle_one(&mut self, n: usize) {
        let device = &mut self.devices[n];
        device.refill();
        if device.standing == Standing::Lost && device.may_commit() {
            device.commit(&Change::Resync, &self.server);
        }
        if let Some(pending) = self.server.unremoved().next()
            && device.standing == Standing::Member
            && usize::from(pending) != n
            && device.may_commit()
        {
            device.commit(&Change::Update, &self.server);
        }
        for request in [device.pending_request(), device.unsent_request()] {
            let Some(request) = request else { continue };
            let answer = self.server.process(&request);
            self.devices[n].answered(&answer, &self.server);
        }
    }

    fn agreed(&self) -> Result<(), String> {
        for device in &self.devices {
            if !self.server.is_member(device.number) || self.server.is_revoked(device.number) {
                continue;
            }
            if device.standing != Standing::Member
                || device.epoch_seq != self.server.head.epoch_seq
                || device.head_seq != self.server.head.seq
            {
                return Err(format!(
                    "{} is not where the group is: {device:?}",
                    device.number
                ));
            }
            if device.pending_request().is_some() || device.unsent_request().is_some() {
                return Err(format!("{} has something left: {device:?}", device.number));
            }
        }
        Ok(())
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(*self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(self, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(&step);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SOUND, |_, world: &World| world.fault().is_none()),
            Property::always(HEALS, |_, world: &World| world.heals().is_ok()),
            Property::sometimes("a race is lost", |_, world: &World| {
                world.devices.iter().any(|device| device.races > 0)
            }),
            Property::sometimes(
                "a repeat gets the first answer",
                |bounds: &Self, world: &World| {
                    bounds.retries + bounds.doubles == 0
                        || world.answers.iter().any(|answer| answer.replayed)
                },
            ),
            Property::sometimes("everybody reads everything", |_, world: &World| {
                let head = world.server.head.seq;
                head > 0 && world.devices.iter().all(|device| device.head_seq == head)
            }),
        ]
    }
}

/// One standing Commit for each epoch, no hole, the chain fits, one place for each id, nobody reads outside its membership, what a member reads it can
/// open, and what was acknowledged is in the log.
pub const SOUND: &str =
    "the log is sound, every reader's copy fits it, and nothing is said past a bar";
/// No state from which an honest device cannot get back to agreement.
pub const HEALS: &str = "every honest device gets back to agreement";

/// What was found in one world.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Explored {
    /// Which world.
    pub world: String,
    /// Different states.
    pub states: usize,
    /// States that were come to, with those that were known already.
    pub visited: usize,
    /// Steps of the longest of the shortest ways.
    pub depth: usize,
    /// Seconds.
    pub seconds: f64,
    /// Broken promises, each with the way to it; and what never happened.
    pub faults: Vec<String>,
}

/// Explores a world completely.
pub fn explore(world: &str, bounds: Bounds) -> Explored {
    let began = std::time::Instant::now();
    let checker = bounds
        .checker()
        .threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
        .spawn_bfs()
        .join();
    let mut faults = Vec::new();
    for property in bounds.properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (stateright::Expectation::Always, Some(path)) => {
                let last = path.last_state();
                let why = last.fault().or_else(|| last.heals().err());
                let steps = path.into_actions();
                faults.push(format!("{}: {why:?} after {steps:?}", property.name));
            }
            (stateright::Expectation::Sometimes, None) => {
                faults.push(format!("it never happens that {}", property.name));
            }
            _ => {}
        }
    }
    Explored {
        world: world.to_owned(),
        states: checker.unique_state_count(),
        visited: checker.state_count(),
        depth: checker.max_depth(),
        seconds: began.elapsed().as_secs_f64(),
        faults,
    }
}

/// The smallest world of all: two devices.
pub const TWO: Bounds = Bounds {
    devices: 2,
    commits: 2,
    messages: 1,
    speakers: 1,
    doubles: 1,
    losses: 1,
    retries: 1,
    crashes: 1,
    removals: false,
    resyncs: false,
    revocations: false,
    broken: None,
};

/// The worlds that are explored, by name; with `large`, as far as a machine of two cores comes in minutes.
pub fn worlds(large: bool) -> Vec<(&'static str, Bounds)> {
    let three = Bounds {
        devices: 3,
        commits: 1,
        messages: 1,
        doubles: 0,
        losses: 0,
        retries: 0,
        crashes: 0,
        ..TWO
    };
    let mut worlds = vec![
        (
            "two devices race, with losses, doubles, retries and a crash",
            Bounds { commits: 1, ..TWO },
        ),
        (
            "two devices, one loses its state and comes back from outside",
            Bounds {
                commits: 1,
                crashes: 0,
                resyncs: true,
                ..TWO
            },
        ),
        (
            "three devices, one is removed",
            Bounds {
                removals: true,
                retries: 1,
                messages: 0,
                ..three
            },
        ),
        (
            "two devices, one is revoked",
            Bounds {
                commits: 1,
                doubles: 0,
                crashes: 0,
                revocations: true,
                ..TWO
            },
        ),
    ];
    if large {
        worlds.extend([
            ("two devices with two Commits each", TWO),
            (
                "three devices, one is removed, one comes back, a retry and a loss",
                Bounds {
                    losses: 1,
                    retries: 1,
                    removals: true,
                    resyncs: true,
                    messages: 0,
                    ..three
                },
            ),
            (
                "three devices, one is revoked, a crash and a retry",
                Bounds {
                    crashes: 1,
                    retries: 1,
                    revocations: true,
                    messages: 0,
                    ..three
                },
            ),
        ]);
    }
    worlds
}
