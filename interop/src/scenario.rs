//! A scenario's cast: the members by role, and the checks that follow every step.

use anyhow::Context as _;

use crate::{
    stack::{Change, Stack, State},
    wire::Person,
};

/// Stops the run unless the condition holds.
macro_rules! hold {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err($crate::scenario::Stop::Failed(anyhow::anyhow!($($why)*)));
        }
    };
}
pub(crate) use hold;

/// Why a run did not pass.
#[derive(Debug)]
pub enum Stop {
    /// A stack's member does not do what its role asks for.
    Unsupported(String),
    /// Something is wrong.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Members by role, and the group that they act in.
pub struct Cast<'a> {
    members: Vec<&'a mut Box<dyn Stack>>,
    group: Vec<u8>,
    /// Everything that was said, in the order of the log.
    said: Vec<(u64, String)>,
    texts: u32,
}

impl<'a> Cast<'a> {
    /// The first member creates the group.
    ///
    /// # Errors
    /// It cannot.
    pub async fn new(mut members: Vec<&'a mut Box<dyn Stack>>) -> Result<Self, Stop> {
        let creator = members.first_mut().context("nobody plays")?;
        let group = creator.create().await.context("create")?;
        Ok(Self {
            members,
            group,
            said: Vec::new(),
            texts: 0,
        })
    }

    /// Who plays a role.
    ///
    /// # Errors
    /// Nobody.
    pub fn person(&self, role: usize) -> Result<Person, Stop> {
        Ok(self.members.get(role).context("no such role")?.person())
    }

    /// The member that plays a role, and the group.
    ///
    /// # Errors
    /// Nobody.
    pub fn act(&mut self, role: usize) -> Result<(&mut dyn Stack, Vec<u8>), Stop> {
        let group = self.group.clone();
        let member = self.members.get_mut(role).context("no such role")?;
        Ok((member.as_mut(), group))
    }

    /// A role adds others in one Commit.
    ///
    /// # Errors
    /// It cannot.
    pub async fn add(&mut self, by: usize, whom: &[usize]) -> Result<(), Stop> {
        let add = whom
            .iter()
            .map(|role| self.person(*role))
            .collect::<Result<Vec<_>, _>>()?;
        let (member, group) = self.act(by)?;
        let change = Change {
            add,
            remove: Vec::new(),
        };
        member.commit(&group, &change).await.context("add")?;
        Ok(())
    }

    /// A role removes another.
    ///
    /// # Errors
    /// It cannot.
    pub async fn remove(&mut self, by: usize, whom: usize) -> Result<(), Stop> {
        self.remove_all(by, &[whom]).await
    }

    /// A role removes others in one Commit.
    ///
    /// # Errors
    /// It cannot.
    pub async fn remove_all(&mut self, by: usize, whom: &[usize]) -> Result<(), Stop> {
        let remove = whom
            .iter()
            .map(|role| self.person(*role))
            .collect::<Result<Vec<_>, _>>()?;
        let (member, group) = self.act(by)?;
        let change = Change {
            add: Vec::new(),
            remove,
        };
        member.commit(&group, &change).await.context("remove")?;
        Ok(())
    }

    /// A role renews its keys.
    ///
    /// # Errors
    /// It cannot.
    pub async fn update(&mut self, by: usize) -> Result<(), Stop> {
        let (member, group) = self.act(by)?;
        member
            .commit(&group, &Change::default())
            .await
            .context("update")?;
        Ok(())
    }

    /// A role says something that nobody said before.
    ///
    /// # Errors
    /// It cannot.
    pub async fn say(&mut self, by: usize) -> Result<(), Stop> {
        self.texts += 1;
        let text = format!("text {} by role {by}", self.texts);
        let (member, group) = self.act(by)?;
        let seq = member.send(&group, &text).await.context("send")?;
        self.said.push((seq, text));
        Ok(())
    }

    /// A role says something twice over: the log has it once.
    ///
    /// # Errors
    /// It has it twice.
    pub async fn say_twice(&mut self, by: usize) -> Result<(), Stop> {
        self.texts += 1;
        let text = format!("text {} by role {by}, twice", self.texts);
        let (member, group) = self.act(by)?;
        let [first, second] = member.send_twice(&group, &text).await.context("send")?;
        hold!(
            first == second,
            "the same message stands at {first} and at {second}"
        );
        self.said.push((first, text));
        Ok(())
    }

    /// A role says three things, and the last one arrives first.
    ///
    /// # Errors
    /// It cannot.
    pub async fn say_backwards(&mut self, by: usize) -> Result<(), Stop> {
        let number = self.texts;
        self.texts += 3;
        let texts: Vec<String> = (number + 1..=number + 3)
            .map(|number| format!("text {number} by role {by}"))
            .collect();
        let (member, group) = self.act(by)?;
        let library = member.library();
        let seqs = member
            .send_backwards(&group, &texts)
            .await
            .context("send")?;
        let seqs = seqs.ok_or_else(|| Stop::Unsupported(library.to_owned()))?;
        hold!(seqs.is_sorted_by(|a, b| a > b), "the seqs are {seqs:?}");
        self.said.extend(seqs.into_iter().zip(texts));
        Ok(())
    }

    /// These roles read to the end, and agree: on epoch, authenticator, exporter and members, who are exactly these.
    ///
    /// # Errors
    /// They do not.
    pub async fn agree(&mut self, roles: &[usize]) -> Result<(), Stop> {
        let mut states: Vec<(&'static str, State)> = Vec::new();
        let mut expected = Vec::new();
        for role in roles {
            expected.push(self.person(*role)?);
            let (member, group) = self.act(*role)?;
            let library = member.library();
            let context = || format!("role {role} ({library}) reads");
            member.sync(&group).await.with_context(context)?;
            states.push((library, member.state(&group)?));
        }
        expected.sort();
        let (_, first) = states.first().context("nobody to agree")?;
        for (library, state) in &states {
            hold!(
                state == first,
                "{library} disagrees: {state:?} is not {first:?}"
            );
        }
        hold!(
            first.members == expected,
            "the members are {:?}, not {expected:?}",
            first.members
        );
        Ok(())
    }

    /// These roles have read everything that was said since `from`, in one order.
    ///
    /// # Errors
    /// They have not.
    pub fn heard(&mut self, roles: &[usize], from: usize) -> Result<(), Stop> {
        self.said.sort();
        let expected: Vec<String> = self.said[from..].iter().map(|(_, t)| t.clone()).collect();
        for role in roles {
            let (member, group) = self.act(*role)?;
            let library = member.library();
            let texts = member.texts(&group)?;
            hold!(
                texts.ends_with(&expected),
                "role {role} ({library}) has read {texts:?}, not {expected:?}"
            );
        }
        Ok(())
    }
}
