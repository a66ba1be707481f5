//! What PostgreSQL's own default settings cost: the append rows and an import of people, by a private PostgreSQL of the
//! same run.

use std::time::Instant;

use auth_service::operator;
use chancery_proto::auth::v1::{ImportUsersRequest, User};
use service_kit::{listen::ListenAddr, local_postgres::Profile};

use super::{
    Options,
    ground::{DOMAIN, Ground, Groups},
    load::{self, Load, rank},
    table::{Row, Table, Target},
};
use crate::programs::Programs;

/// A stock PostgreSQL does at least so much of what a private one does.
const LEAST: f64 = 0.9;
/// Both take turns: a machine is not equally fast all the time.
const TURNS: u32 = 3;
/// People of one import.
const PEOPLE: usize = 1_000;
const GROUPS: Groups = Groups {
    name: "some",
    count: 1_000,
};

/// What one PostgreSQL reached, each second.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    crowd: f64,
    alone: f64,
    imported: f64,
}

/// Measures both.
///
/// # Errors
/// Something does not start, or is refused.
pub async fn run(
    programs: &Programs,
    options: &Options,
    tell: impl FnMut(&Row),
) -> anyhow::Result<Vec<Row>> {
    let mut table = Table::new(options.slack, tell);
    let mut grounds = Vec::new();
    for profile in [Profile::Durable, Profile::Stock] {
        let ground = Ground::start_on(programs, profile).await?;
        ground.populate(GROUPS, &ground.people).await?;
        let auth = ground.add_auth_service().await?;
        grounds.push((ground, auth, Reached::default()));
    }
    for turn in 0..TURNS {
        for (ground, (_running, admin), reached) in &mut grounds {
            let admin = ListenAddr::Unix(admin.clone());
            let part = measure(ground, &admin, turn, options).await?;
            reached.crowd += part.crowd / f64::from(TURNS);
            reached.alone += part.alone / f64::from(TURNS);
            reached.imported += part.imported / f64::from(TURNS);
        }
    }
    if let [(_, _, private), (_, _, stock)] = grounds.as_slice() {
        for (name, stock, private) in [
            ("appends/s, 1,000 groups", stock.crowd, private.crowd),
            ("SendMessage/s alone, by p50", stock.alone, private.alone),
            ("people/s, 1,000 imported", stock.imported, private.imported),
        ] {
            let name = format!("stock PostgreSQL: {name}, by a private one");
            table.aim(&name, stock, "1/s", private, Target::AtLeast(LEAST));
        }
    }
    Ok(table.rows)
}

async fn measure(
    ground: &Ground,
    admin: &ListenAddr,
    turn: u32,
    options: &Options,
) -> anyhow::Result<Reached> {
    let measured = options.measured / TURNS;
    ground.fresh().await?;
    let load = Load {
        groups: GROUPS,
        nodes: 1,
        streams: 8,
        window: 128,
        measured,
    };
    let crowd = load::appends(ground, &load).await?;
    ground.fresh().await?;
    let calls = usize::try_from(measured.as_millis() / 4)?;
    let times = load::one_by_one(ground, GROUPS, calls).await?;
    let mut admin = operator::connect(admin).await?;
    let users = (0..PEOPLE).map(|n| User {
        handle: format!("person-{turn}-{n}@{DOMAIN}"),
        display_name: format!("Person {n}"),
        organisation: "Bench".into(),
        ..User::default()
    });
    let users = users.collect();
    let began = Instant::now();
    admin.import_users(ImportUsersRequest { users }).await?;
    Ok(Reached {
        crowd,
        alone: 1e6 / rank(&times, 50),
        imported: PEOPLE as f64 / began.elapsed().as_secs_f64(),
    })
}
