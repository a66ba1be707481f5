//! One script with one assignment of servers to actors. After every step each actor that moved is asked for its epoch authenticator, an exported secret and
//! its ratchet tree, and all members of an epoch must give the same, with exactly the members that the script says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::timeout;
use tonic::{Code, Response, Status, transport::Channel};

use super::{
    check::{self, Effect, Fault},
    peers::Peer,
    script::Script,
};
use crate::mls_client::proto::{mls_client_client::MlsClientClient, *};

/// Why a script did not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// A server says that it cannot.
    Unsupported(String),
    /// Something is wrong.
    Failed(String),
    /// A server broke, or did not answer in time: it needs a fresh start.
    Broken {
        /// Its place among the peers.
        peer: usize,
        /// What was seen.
        why: String,
    },
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// A step's outcome.
pub type Done<T = ()> = Result<T, Stop>;

/// An epoch as the script has it: who is in it, and which Commit began it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// Sorted.
    pub(super) members: Vec<String>,
    /// Counts epochs of the run, whatever group they belong to.
    pub(super) lineage: usize,
}

/// What a Commit made.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) commit: Vec<u8>,
    pub(super) welcome: Vec<u8>,
    pub(super) tree: Vec<u8>,
    pub(super) view: View,
}

/// What a step left for later ones.
#[derive(Debug, Default)]
pub(super) struct Produced {
    pub(super) key_package: Option<Vec<u8>>,
    pub(super) owner: String,
    pub(super) proposal: Option<(Vec<u8>, Effect)>,
    pub(super) made: Option<Made>,
    pub(super) psk: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) text: Option<ProtectRequest>,
    pub(super) ciphertext: Vec<u8>,
}

/// An actor.
#[derive(Debug, Default)]
pub(super) struct Seat {
    pub(super) peer: usize,
    pub(super) state: Option<u32>,
    pub(super) transaction: Option<u32>,
    pub(super) signer: Option<u32>,
    /// Who this actor is in a group with.
    pub(super) view: Option<View>,
    /// The epoch of a Commit that waits.
    pub(super) pending: Option<View>,
}

/// Authenticator, exported secret.
type Secrets = (Option<Vec<u8>>, Option<Vec<u8>>);

/// One run.
pub struct Session<'a> {
    peers: &'a [Peer],
    wait: Duration,
    pub(super) suite: u16,
    pub(super) encrypt: bool,
    pub(super) seats: BTreeMap<String, Seat>,
    pub(super) produced: Vec<Produced>,
    pub(super) group_id: Vec<u8>,
    pub(super) external_signers: Vec<String>,
    pub(super) random: fastrand::Rng,
    pub(super) touched: BTreeSet<String>,
    lineages: usize,
    agreed: HashMap<usize, Secrets>,
    /// What could not be looked at, because a server does not tell.
    pub unchecked: BTreeSet<String>,
}

/// Calls a method of an actor's server.
macro_rules! rpc {
    ($session:expr, $actor:expr, $method:ident, $request:expr) => {{
        let (peer, mut client) = $session.client($actor)?;
        let request = $request;
        let answer = tokio::time::timeout($session.wait(), client.$method(request)).await;
        $session.answer($actor, peer, stringify!($method), answer)?
    }};
}
pub(super) use rpc;

const EXPORT_LABEL: &str = "chancery interop";

impl<'a> Session<'a> {
    /// `assignment` has the place of a peer for each actor.
    pub fn new(
        peers: &'a [Peer],
        actors: &[String],
        assignment: &[usize],
        suite: u16,
        encrypt: bool,
        seed: u64,
        wait: Duration,
    ) -> Self {
        let seat = |(actor, peer): (&String, &usize)| {
            let seat = Seat {
                peer: *peer,
                ..Seat::default()
            };
            (actor.clone(), seat)
        };
        let mut random = fastrand::Rng::with_seed(seed);
        let group_id = std::iter::repeat_with(|| random.u8(..)).take(16).collect();
        Self {
            peers,
            wait,
            suite,
            encrypt,
            seats: actors.iter().zip(assignment).map(seat).collect(),
            produced: Vec::new(),
            group_id,
            external_signers: Vec::new(),
            random,
            touched: BTreeSet::new(),
            lineages: 0,
            agreed: HashMap::new(),
            unchecked: BTreeSet::new(),
        }
    }

    /// Plays the script to its end, and frees what it made.
    ///
    /// # Errors
    /// The first step that is not as it should be, and its index.
    pub async fn play(&mut self, script: &Script) -> Result<(), (usize, Stop)> {
        for (index, step) in script.steps.iter().enumerate() {
            self.produced.push(Produced::default());
            self.step(step).await.map_err(|stop| (index, stop))?;
            self.verify().await.map_err(|stop| (index, stop))?;
        }
        let end = script.steps.len();
        self.free().await.map_err(|stop| (end, stop))
    }

    async fn free(&mut self) -> Done {
        let seats = self.seats.iter();
        let states: Vec<_> = seats
            .filter_map(|(a, s)| Some((a.clone(), s.state?)))
            .collect();
        for (actor, state_id) in states {
            rpc!(self, &actor, free, FreeRequest { state_id });
        }
        Ok(())
    }

    /// Suites that every server of the run has.
    pub(super) fn common_suites(&self) -> Done<Vec<u16>> {
        let peers: Vec<_> = self.seats.values().map(|seat| seat.peer).collect();
        let has = |peer: &usize, suite: u16| {
            self.peers
                .get(*peer)
                .is_some_and(|p| p.suites.contains(&suite))
        };
        let first = peers.first().and_then(|peer| self.peers.get(*peer));
        let mut suites = first.map(|p| p.suites.clone()).unwrap_or_default();
        suites.retain(|suite| peers.iter().all(|peer| has(peer, *suite)));
        suites.sort_unstable();
        Ok(suites)
    }

    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    pub(super) fn client(&self, actor: &str) -> Done<(usize, MlsClientClient<Channel>)> {
        let peer = self.seat(actor)?.peer;
        let found = self.peers.get(peer);
        let found = found.ok_or_else(|| Stop::Failed(format!("{actor} has no server")))?;
        Ok((peer, found.client.clone()))
    }

    pub(super) fn answer<T>(
        &self,
        actor: &str,
        peer: usize,
        method: &str,
        answer: Result<Result<Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Done<T> {
        let server = self.peers.get(peer).map_or("?", |p| p.name.as_str());
        let who = format!("{actor} ({server}), {method}");
        let Ok(answer) = answer else {
            let why = format!("{who}: no answer in {} s", self.wait.as_secs());
            return Err(Stop::Broken { peer, why });
        };
        answer.map(Response::into_inner).map_err(|status| {
            let why = format!("{who}: {:?}: {}", status.code(), status.message());
            let transport = std::error::Error::source(&status).is_some();
            match status.code() {
                Code::Unimplemented => Stop::Unsupported(why),
                Code::Unavailable => Stop::Broken { peer, why },
                Code::Unknown | Code::Cancelled | Code::Internal if transport => {
                    Stop::Broken { peer, why }
                }
                _ => Stop::Failed(why),
            }
        })
    }

    pub(super) fn seat(&self, actor: &str) -> Done<&Seat> {
        self.seats
            .get(actor)
            .ok_or_else(|| Stop::Failed(format!("the script has no actor {actor:?}")))
    }

    pub(super) fn seat_mut(&mut self, actor: &str) -> Done<&mut Seat> {
        self.seats
            .get_mut(actor)
            .ok_or_else(|| Stop::Failed(format!("the script has no actor {actor:?}")))
    }

    pub(super) fn state(&self, actor: &str) -> Done<u32> {
        let state = self.seat(actor)?.state;
        state.ok_or_else(|| Stop::Failed(format!("{actor} is in no group")))
    }

    pub(super) fn view(&self, actor: &str) -> Done<View> {
        let view = self.seat(actor)?.view.clone();
        view.ok_or_else(|| Stop::Failed(format!("{actor} is in no group")))
    }

    /// The actor is in that epoch now.
    pub(super) fn enter(&mut self, actor: &str, state: u32, view: View) -> Done {
        let still = view.members.iter().any(|member| member == actor);
        let seat = self.seat_mut(actor)?;
        seat.state = Some(state);
        seat.view = still.then_some(view);
        self.touched.insert(actor.to_owned());
        Ok(())
    }

    pub(super) fn earlier<T>(
        &self,
        index: usize,
        what: &str,
        get: impl FnOnce(&Produced) -> Option<T>,
    ) -> Done<T> {
        self.produced
            .get(index)
            .and_then(get)
            .ok_or_else(|| Stop::Failed(format!("step {index} left no {what}")))
    }

    pub(super) fn now(&mut self) -> Done<&mut Produced> {
        self.produced
            .last_mut()
            .ok_or_else(|| Stop::Failed("no step".into()))
    }

    /// The epoch after these proposals.
    pub(super) fn after(&mut self, view: &View, effects: &[Effect]) -> View {
        let mut members = view.members.clone();
        for effect in effects {
            match effect {
                Effect::Add(name) => members.push(name.clone()),
                Effect::Remove(name) => {
                    if let Some(place) = members.iter().position(|member| member == name) {
                        members.remove(place);
                    }
                }
                _ => {}
            }
        }
        self.epoch_of(members)
    }

    /// A new epoch of these members.
    pub(super) fn epoch_of(&mut self, mut members: Vec<String>) -> View {
        members.sort();
        self.lineages += 1;
        View {
            members,
            lineage: self.lineages,
        }
    }

    /// An answer that may be missing: a server that tells nothing is named, and not believed either.
    fn told(&mut self, peer: &str, what: &str, answer: Done<Vec<u8>>) -> Done<Option<Vec<u8>>> {
        match answer {
            Ok(bytes) if !bytes.is_empty() => Ok(Some(bytes)),
            Ok(_) | Err(Stop::Unsupported(_)) => {
                self.unchecked.insert(format!("{peer}: {what}"));
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    async fn secrets(&mut self, actor: &str, peer: &str) -> Done<Secrets> {
        let state_id = self.state(actor)?;
        let authenticator = async {
            Ok(rpc!(self, actor, state_auth, StateAuthRequest { state_id }).state_auth_secret)
        }
        .await;
        let exported = async {
            let request = ExportRequest {
                state_id,
                label: EXPORT_LABEL.into(),
                context: b"context".to_vec(),
                key_length: 32,
            };
            Ok(rpc!(self, actor, export, request).exported_secret)
        }
        .await;
        Ok((
            self.told(peer, "StateAuth", authenticator)?,
            self.told(peer, "Export", exported)?,
        ))
    }

    /// Everybody that moved agrees with its epoch.
    async fn verify(&mut self) -> Done {
        for actor in std::mem::take(&mut self.touched) {
            let seat = self.seat(&actor)?;
            let Some(view) = seat.view.clone() else {
                continue;
            };
            let peer = self.peers.get(seat.peer).map(|p| p.name.clone());
            let peer = peer.unwrap_or_default();
            let secrets = self.secrets(&actor, &peer).await?;
            let agreed = self.agreed.entry(view.lineage).or_default();
            for (what, known, found) in [
                ("epoch authenticator", &mut agreed.0, secrets.0),
                ("exported secret", &mut agreed.1, secrets.1),
            ] {
                match (&*known, found) {
                    (None, found) => *known = found,
                    (Some(known), Some(found)) if *known != found => {
                        return Err(Stop::Failed(format!(
                            "{actor} ({peer}) has another {what} than the others of its epoch"
                        )));
                    }
                    _ => {}
                }
            }
            self.verify_members(&actor, &peer, &view).await?;
        }
        Ok(())
    }

    async fn verify_members(&mut self, actor: &str, peer: &str, view: &View) -> Done {
        let request = GroupInfoRequest {
            state_id: self.state(actor)?,
            external_tree: true,
        };
        let info = async { Ok(rpc!(self, actor, group_info, request)) }.await;
        let tree = info.and_then(|info: GroupInfoResponse| {
            check::wire(
                "the GroupInfo",
                &info.group_info,
                mls_rs::WireFormat::GroupInfo,
            )?;
            Ok(info.ratchet_tree)
        });
        let Some(tree) = self.told(peer, "GroupInfo with a tree", tree)? else {
            return Ok(());
        };
        let found = check::members(&tree)?;
        if found == view.members {
            return Ok(());
        }
        Err(Stop::Failed(format!(
            "{actor} ({peer}) has the members {found:?}, not {:?}",
            view.members
        )))
    }
}

/// Ends a session that stopped early: its handles are given back as far as the server answers.
pub async fn abandon(session: &mut Session<'_>) {
    let wait = session.wait;
    // The run is lost already; what cannot be freed stays with its server.
    let _freed = timeout(wait, session.free()).await;
}
