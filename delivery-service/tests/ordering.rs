//! `Group::decide` against a naive model: the same commands, the same answers. `ordering_service.rs` asks the running service the same.

mod naive;

use delivery_service::ordering::group::*;
use naive::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn decide_says_what_the_contract_says(ops in ops()) {
        let mut model = Model::new();
        for (number, op) in ops.iter().enumerate() {
            if let Op::Revoke { device } = op {
                model.revoke(*device);
                continue;
            }
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
            let Some((by, command)) = model.command(op, hash) else { continue };
            let hash = hash_of(&command);
            let before = model.head.clone();
            let now = i64::try_from(number).expect("few steps") % 7;
            let decided = model.group(by, hash).decide(&command, now);
            match (model.expect(by, &command), decided) {
                (Err("replay"), Ok(Decision::Replay(prior))) => {
                    prop_assert!(model.log.iter().any(|p| p.hash == hash && p.seq == prior.seq));
                }
                (Ok(()), Ok(Decision::Append(append))) => {
                    prop_assert_eq!(append.seq, before.seq + 1, "dense");
                    prop_assert!(append.accepted_at >= before.last_at, "time never runs back");
                    let commits = matches!(command, Command::Commit(_));
                    prop_assert_eq!(append.head.epoch, before.epoch + u64::from(commits), "one epoch for each Commit");
                    prop_assert!(append.head.settled_seq >= before.settled_seq, "settled stays settled");
                    prop_assert_eq!(append.head.committer.is_none(), append.head.settled_seq == append.head.epoch_seq);
                    let head = Head { last_at: append.accepted_at, ..append.head };
                    model.apply(by, &command, append.seq, head);
                }
                (Err(expected), Err(rejection)) => prop_assert_eq!(name(&rejection), expected),
                (expected, decided) => prop_assert!(false, "{:?}: expected {:?}, decided {:?}", command, expected, decided),
            }
        }
    }
}
