//! A Delivery Service that does not mean well, or was restored: it withholds, repeats, forgets, and swaps. What it says is never a reason to leave
//! somebody out, to put somebody out, or to stop.

use anyhow::{Context as _, ensure};
use client_cli::core::{
    group::Founding,
    records::{self, GroupState},
};

use super::{
    actor::{Actor, Answer},
    fault::Class,
    grammar::Kind,
    world::{Daily, NEWCOMER, SECOND, VICTIM, World},
};

impl World {
    pub(super) async fn service_does(
        &mut self,
        actor: &Actor,
        kind: Kind,
    ) -> anyhow::Result<Answer> {
        match kind {
            Kind::ServiceReplaysLeave => self.repeats_a_leave_request().await?,
            Kind::ServiceForgets => self.forgets_a_group().await?,
            Kind::ServiceForgetsTree => self.forgets_a_tree().await?,
            Kind::ServiceWithholdsPackages => self.withholds_packages().await?,
            Kind::ServiceSwapsPackage => self.swaps_a_package(actor).await?,
            Kind::ServiceSellsAgain => self.sells_again().await,
            _ => self.withholds_a_welcome().await?,
        }
        Ok(Answer::Accepted(Vec::new()))
    }

    /// An honest member left, and was added again; its old request comes once more.
    async fn repeats_a_leave_request(&mut self) -> anyhow::Result<()> {
        ensure!(self.in_roster(VICTIM), "the victim is out");
        self.syncs(VICTIM, false).await;
        self.members[VICTIM].leave(&self.group).await?;
        self.syncs(0, false).await;
        self.must(0, Daily::Say).await;
        ensure!(!self.in_roster(VICTIM), "the victim is still in");
        self.must(0, Daily::Add(VICTIM)).await;
        self.syncs(VICTIM, false).await;
        let device = self.devices[VICTIM].who.device;
        let group = self.group.id.clone();
        ensure!(
            self.service.repeat_leave_request(&group, device),
            "no request"
        );
        self.syncs(0, false).await;
        self.must(0, Daily::Say).await;
        if !self.in_roster(VICTIM) {
            let text = format!("{VICTIM} is put out by what it asked for in an earlier membership");
            self.wrong(Class::Evicted, text);
        }
        Ok(())
    }

    /// A group that two honest devices are in is not there any more.
    async fn forgets_a_group(&mut self) -> anyhow::Result<()> {
        let founding = Founding::default();
        let other = self.members[0].create_group(founding, None).await?.group;
        let second = self.name(1);
        self.members[0].add(&other, &[second]).await?;
        self.syncs(1, false).await;
        self.service.forget(&other.id);
        for n in [0, 1] {
            // The first time it is noted for that group; afterwards it is known.
            self.syncs(n, false).await;
            self.syncs(n, true).await;
            if self.in_roster(n) {
                self.must(n, Daily::Say).await;
            }
        }
        Ok(())
    }

    /// A device is welcomed into a group whose tree cannot be had.
    async fn forgets_a_tree(&mut self) -> anyhow::Result<()> {
        let founding = Founding::default();
        let other = self.members[0].create_group(founding, None).await?.group;
        let newcomer = self.name(NEWCOMER);
        self.members[0].add(&other, &[newcomer]).await?;
        self.service.forget_trees(&other.id);
        for _ in 0..2 {
            self.syncs(NEWCOMER, false).await;
        }
        let waiting = self.service.welcomes(self.devices[NEWCOMER].who);
        if waiting
            .iter()
            .any(|welcome| welcome.group == Some(other.to_ref()))
        {
            let text = format!("{NEWCOMER} neither uses nor puts aside a Welcome without a tree");
            self.wrong(Class::Stuck, text);
        }
        self.service.forget(&other.id);
        Ok(())
    }

    /// A device that is to be added has no KeyPackage, and then it has.
    async fn withholds_packages(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.in_roster(0) && !self.in_roster(NEWCOMER),
            "nobody to add"
        );
        let (device, name) = (self.devices[NEWCOMER].who.device, self.name(NEWCOMER));
        self.syncs(0, false).await;
        self.service.withhold_packages(device, true);
        let left_out = self.members[0].add(&self.group, &[name]).await;
        self.service.withhold_packages(device, false);
        self.tell(format!("without a KeyPackage: {left_out:?}"));
        self.comes_in("was left out for want of a KeyPackage").await;
        Ok(())
    }

    /// Somebody honest goes on, and with it the newcomer comes in.
    async fn comes_in(&mut self, why: &str) {
        for _ in 0..3 {
            self.syncs(0, false).await;
            self.must(0, Daily::Say).await;
        }
        if self.in_roster(0) && !self.in_roster(NEWCOMER) {
            self.wrong(
                Class::LeftOut,
                format!("{NEWCOMER} {why}, and never comes in"),
            );
        }
    }

    /// One of two devices that are added together has a KeyPackage that breaks the rules.
    async fn swaps_a_package(&mut self, actor: &Actor) -> anyhow::Result<()> {
        let out = !self.in_roster(NEWCOMER) && !self.in_roster(SECOND);
        ensure!(self.in_roster(0) && out, "nobody to add");
        let bent = actor.bent_package(Kind::PackageLeaf).await?;
        let device = self.devices[SECOND].who.device;
        self.syncs(0, false).await;
        self.service.swap_package(device, Some(bent));
        let names = [self.name(SECOND), self.name(NEWCOMER)];
        let added = self.members[0].add(&self.group, &names).await;
        self.service.swap_package(device, None);
        self.tell(format!("with a bent KeyPackage beside it: {added:?}"));
        if !self.in_roster(NEWCOMER) {
            let text = format!("{NEWCOMER} was added beside a bent KeyPackage, and is not in");
            self.wrong(Class::LeftOut, text);
        }
        Ok(())
    }

    /// KeyPackages of the newcomer were given out, and the service was restored from before.
    async fn sells_again(&mut self) {
        let device = self.devices[NEWCOMER].who.device;
        self.syncs(NEWCOMER, false).await;
        let claimed = self.must(0, Daily::Add(NEWCOMER)).await;
        self.service.restore_packages();
        self.syncs(NEWCOMER, false).await;
        let resold = self.service.resold(device);
        if claimed && resold > 0 {
            let text = format!("{resold} KeyPackages of {NEWCOMER} are in stock a second time");
            self.wrong(Class::Resold, text);
        }
    }

    /// A device that lost its state is added again, and its Welcome comes when it has read the log.
    async fn withholds_a_welcome(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.in_roster(0) && self.in_roster(VICTIM),
            "the victim is out"
        );
        let device = self.devices[VICTIM].who.device;
        self.members[VICTIM].step(|step, _| {
            records::change(step, &self.group, |record| {
                record.state = GroupState::NeedsRejoin("its state is lost".into());
            })
        })?;
        self.service.withhold_welcomes(device, true);
        self.syncs(0, false).await;
        let names = [self.name(VICTIM)];
        self.members[0].remove(&self.group, &names).await?;
        self.members[0].add(&self.group, &names).await?;
        self.must(0, Daily::Say).await;
        self.syncs(VICTIM, false).await;
        self.service.withhold_welcomes(device, false);
        self.syncs(VICTIM, false).await;
        let record = self.members[VICTIM].record(&self.group);
        let state = record.context("no record")?.state;
        if state != GroupState::Active {
            let text = format!("{VICTIM} has its Welcome, and its state is {state:?}");
            self.wrong(Class::Stuck, text);
        }
        Ok(())
    }
}
