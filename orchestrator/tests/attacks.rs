//! The attacks of the family `fleet`: each is refused with its own label, and its twin, which differs in nothing but the
//! flaw, is accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod attack;
mod signed_commit;
mod source_remote;

use std::panic::{AssertUnwindSafe, catch_unwind};

use attack::{Attack, World, attacks};

/// Every case of the tree is played, so that one that is forgotten here cannot be forgotten there.
#[test]
fn attacks_are_refused_and_their_twins_accepted() {
    let attacks = attacks("fleet");
    assert!(attacks.len() >= 18, "only {} attacks were found", attacks.len());
    let mut wrong = Vec::new();
    for (name, attack) in &attacks {
        match catch_unwind(AssertUnwindSafe(|| refused(attack))) {
            Ok(None) => wrong.push(format!("{name}: the attack was accepted")),
            Ok(Some(reason)) if reason != attack.reason => {
                wrong.push(format!("{name}: refused as {reason} instead of {}", attack.reason));
            }
            Ok(Some(reason)) => println!("{name}: {} [{reason}] {:?}", attack.what, attack.attacker),
            Err(_) => wrong.push(format!("{name}: the attack could not be played")),
        }
        if catch_unwind(AssertUnwindSafe(|| accepted(attack))).is_err() {
            wrong.push(format!("{name}: its twin is not accepted: {}", attack.twin));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The label that the attack is refused with. What was in force before still is.
fn refused(attack: &Attack) -> Option<String> {
    assert_eq!(attack.family, "fleet");
    let mut world = World::new(attack);
    attack.story.iter().chain(&attack.flaw).for_each(|step| world.play(step));
    let error = world.publish().err()?;
    assert!(!error.remedy().is_empty() && !error.to_string().is_empty());
    Some(error.reason().to_owned())
}

fn accepted(attack: &Attack) {
    let mut world = World::new(attack);
    attack.story.iter().chain(&attack.honest).for_each(|step| world.play(step));
    if let Err(error) = world.publish() {
        panic!("{}: {error}", error.reason());
    }
}
