//! Which stacks play which roles.

/// Every assignment of so many stacks to so many roles.
pub fn assignments(stacks: usize, roles: usize) -> Vec<Vec<usize>> {
    (0..roles).fold(vec![Vec::new()], |shorter, _| {
        let longer = |known: &Vec<usize>, stack: usize| [known.clone(), vec![stack]].concat();
        shorter
            .iter()
            .flat_map(|known| (0..stacks).map(move |stack| longer(known, stack)))
            .collect()
    })
}

/// At most `cap` assignments, and of how many: all of them if there are no more; otherwise each stack alone, and the rest drawn from `seed`, each once.
pub fn sample(stacks: usize, roles: usize, cap: usize, seed: u64) -> (Vec<Vec<usize>>, u128) {
    let total = u32::try_from(roles)
        .ok()
        .and_then(|roles| (stacks as u128).checked_pow(roles))
        .unwrap_or(u128::MAX);
    if total <= cap as u128 {
        return (assignments(stacks, roles), total);
    }
    let mut chosen: Vec<Vec<usize>> = (0..stacks).map(|stack| vec![stack; roles]).collect();
    chosen.truncate(cap);
    let mut random = fastrand::Rng::with_seed(seed);
    while chosen.len() < cap {
        let drawn: Vec<usize> = (0..roles).map(|_| random.usize(..stacks)).collect();
        if !chosen.contains(&drawn) {
            chosen.push(drawn);
        }
    }
    (chosen, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_assignment_is_there_once() {
        let mut all = assignments(3, 4);
        assert_eq!(all.len(), 81);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 81);
    }

    #[test]
    fn a_sample_has_each_stack_alone_and_nothing_twice() {
        assert_eq!(sample(3, 4, 81, 1).0, assignments(3, 4));
        let (chosen, total) = sample(3, 8, 20, 1);
        assert_eq!((chosen.len(), total), (20, 6561));
        assert!((0..3).all(|stack| chosen.contains(&vec![stack; 8])));
        let mut once = chosen.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), 20);
        assert_eq!(chosen, sample(3, 8, 20, 1).0);
        assert_ne!(chosen, sample(3, 8, 20, 2).0);
    }
}
