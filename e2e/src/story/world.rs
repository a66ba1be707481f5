//! What the acts share.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use anyhow::Context as _;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    device::Device,
    journals::Acknowledged,
    programs::{Programs, number, text},
    server::Server,
    summary::Summary,
};

/// The two ministries. Groups are ordered by the first one's Delivery Service.
pub const DOMAINS: [&str; 2] = ["interior.example", "finance.example"];
/// Commands that run at once.
const AT_ONCE: usize = 4;

/// The server, the devices, and what was counted so far.
pub struct World {
    /// Where the binaries are.
    pub programs: Programs,
    /// The server side.
    pub server: Server,
    /// The folder of the profiles.
    pub profiles: PathBuf,
    /// Everybody who enrolled.
    pub devices: Vec<Device>,
    /// Names of devices that are no longer in the group.
    pub removed: Vec<String>,
    /// `<domain>/<hex>`.
    pub group: String,
    /// In every message.
    pub canary: String,
    /// Somebody's name in the directory: the server knows it in the clear.
    pub control: String,
    /// What the server acknowledged.
    pub acknowledged: Vec<Acknowledged>,
    /// What was counted.
    pub summary: Summary,
    /// When the story began.
    pub began: Instant,
}

impl World {
    /// Starts the server side in a folder.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let began = Instant::now();
        let programs = Programs::find()?;
        let profiles = folder.join("devices");
        std::fs::create_dir_all(&profiles)?;
        let server = Server::start(&programs, &folder.join("server"), &DOMAINS)?;
        let world = Self {
            programs,
            server,
            profiles,
            devices: Vec::new(),
            removed: Vec::new(),
            group: String::new(),
            canary: format!("canary-{}", Uuid::new_v4()),
            control: format!("Control-{}", Uuid::new_v4()),
            acknowledged: Vec::new(),
            summary: Summary::default(),
            began,
        };
        world.act("Two ministries share one server side");
        world.say(&format!(
            "PostgreSQL and three services run; groups are ordered by {} at {}",
            world.server.node.delivery_domain, world.server.node.delivery_url
        ));
        Ok(world)
    }

    /// The title of an act.
    pub fn act(&self, title: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.say(&format!("\n== {title} ({seconds:.1} s)"));
    }

    /// A line for people who watch. Nobody may be watching.
    pub fn say(&self, line: &str) {
        let _gone = writeln!(std::io::stdout(), "{line}");
    }

    /// A device by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn device(&self, name: &str) -> anyhow::Result<Device> {
        let found = self.devices.iter().find(|d| d.name == name);
        found.cloned().with_context(|| format!("no device {name}"))
    }

    /// Devices that are in the group now.
    pub fn members(&self) -> Vec<Device> {
        let removed = |device: &Device| self.removed.contains(&device.name);
        let members = self.devices.iter().filter(|device| !removed(device));
        members.cloned().collect()
    }

    /// A text that no other message has, with the canary in it.
    pub fn text(&self, what: &str) -> String {
        format!("{what} [{} {}]", self.canary, Uuid::new_v4())
    }

    /// Notes an acknowledged message; its seq.
    ///
    /// # Errors
    /// Not such an answer.
    pub fn acknowledge(&mut self, sent: &Value, text_sent: &str) -> anyhow::Result<u64> {
        let seq = number(sent, "seq")?;
        self.summary.outcome_unknown_then_resolved += number(sent, "unknown_outcomes")?;
        self.acknowledged.push(Acknowledged {
            seq,
            message_id: text(sent, "message_id")?.to_owned(),
            text: text_sent.to_owned(),
        });
        Ok(seq)
    }

    /// A device sends one message.
    ///
    /// # Errors
    /// It is not acknowledged.
    pub fn send(&mut self, device: &Device, what: &str) -> anyhow::Result<Value> {
        let said = self.text(what);
        let sent = device.run(&["send", "--group", &self.group, &said])?;
        self.acknowledge(&sent, &said)?;
        Ok(sent)
    }
}

/// Runs something for each item, some at once; the results in order.
///
/// # Errors
/// The first failure.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let next = Mutex::new(0);
    let take = || {
        let mut next = next.lock().unwrap_or_else(|e| e.into_inner());
        let index = *next;
        *next += 1;
        items.get(index).map(|item| (index, item))
    };
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((index, item)) = take() {
                    let result = work(item);
                    let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                    done.push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
