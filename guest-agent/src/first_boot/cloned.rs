//! A copy of an enrolled guest: it wakes with somebody else's certificate, machine-id and host keys, lets go of all of
//! them before anything shows them, and begins its own life.

use crate::enrol::identity;
use crate::error::Result;
use crate::files::Root;
use crate::first_boot::journal::Journal;
use crate::first_boot::machine_id;
use crate::state::{Enrolment, Phase, State};
use crate::{layout, log};

/// Lets go of the original, if this is a copy. Interrupted, it goes on at the next start, whatever that looks like. What
/// follows is a first boot, which makes the host keys.
///
/// Wired files stay until the copy has an assignment of its own: they are the appliance's, and without its certificate
/// the copy gets none of the original's any more.
pub(crate) fn let_go(root: &Root, state: &mut State) -> Result<()> {
    if state.phase != Phase::Cloned {
        let Some(enrolment) = &state.enrolment else { return Ok(()) };
        let Some(why) = difference(root, enrolment)? else { return Ok(()) };
        log::info(format_args!("this is a copy of {}: {why}. It begins anew", enrolment.instance));
        state.become_phase(Phase::Cloned, root)?;
    }
    machine_id::ensure_fresh(root, state.enrolment.as_ref().map(|enrolment| &enrolment.machine_id))?;
    for path in [layout::CLIENT, layout::CA, layout::KEY] {
        root.remove(path)?;
    }
    Journal::clear(root)?;
    state.begin_anew(root)
}

/// What tells this guest from the one that enrolled; `None` when it is that one.
pub(crate) fn difference(root: &Root, enrolment: &Enrolment) -> Result<Option<String>> {
    let macs = identity::macs(root)?;
    // Without any interface the guest can neither talk nor be told from another.
    if !macs.is_empty() && !macs.contains(&enrolment.mac) {
        return Ok(Some(format!("its interface {} is gone", enrolment.mac)));
    }
    let (enrolled, uuid) = (enrolment.uuid.as_ref(), identity::uuid(root));
    if enrolled.is_some() && uuid.is_some() && enrolled != uuid.as_ref() {
        return Ok(Some("the machine has another UUID".to_owned()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use contract::ids::Generation;

    use super::*;

    const ID: &str = "11112222333344445555666677778888";

    fn enrolled() -> (tempfile::TempDir, Root, State) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (path, text) in [
            ("/sys/class/net/eth0/type", "1"),
            ("/sys/class/net/eth0/ifindex", "2"),
            ("/sys/class/net/eth0/address", "bc:24:11:00:00:01"),
            (layout::MACHINE_UUID, "D4B32AF4-45A7-4F8B-BD4E-19AD68B0E33A"),
            (layout::MACHINE_ID, ID),
            (layout::KEY, "key"),
            (layout::CLIENT, "certificate"),
            (layout::CA, "ca"),
        ] {
            root.write_own(path, format!("{text}\n").as_bytes(), 0o600).unwrap();
        }
        let mut state = State::sealed();
        state.phase = Phase::Reporting;
        state.generation = Generation(4);
        state.enrolment = Some(Enrolment {
            site: "acme-hq".parse().unwrap(),
            instance: "attic".parse().unwrap(),
            mac: "BC:24:11:00:00:01".parse().unwrap(),
            uuid: identity::uuid(&root),
            machine_id: machine_id::digest(ID).unwrap(),
        });
        state.save(&root).unwrap();
        (dir, root, state)
    }

    #[test]
    fn the_guest_that_enrolled_is_left_alone() {
        let (_dir, root, mut state) = enrolled();
        let before = state.clone();
        let_go(&root, &mut state).unwrap();
        assert_eq!(state, before);
        assert!(root.stat(layout::KEY).unwrap().is_some());
        // A container shows its node's UUID, and may be moved to another node.
        root.write_own(layout::CONTAINER, b"lxc\n", 0o644).unwrap();
        root.write_own(layout::MACHINE_UUID, b"00000000-45a7-4f8b-bd4e-19ad68b0e33a\n", 0o600).unwrap();
        let_go(&root, &mut state).unwrap();
        assert_eq!(state, before);
    }

    #[test]
    fn another_interface_or_machine_is_a_copy_and_keeps_nothing_of_the_original() {
        let changes = [
            ("/sys/class/net/eth0/address", "bc:24:11:00:00:02\n"),
            (layout::MACHINE_UUID, "00000000-45a7-4f8b-bd4e-19ad68b0e33a\n"),
        ];
        for (path, text) in changes {
            let (_dir, root, mut state) = enrolled();
            root.write_own(path, text.as_bytes(), 0o600).unwrap();
            let_go(&root, &mut state).unwrap();
            assert_eq!(state, State { phase: Phase::FirstBoot, ..State::sealed() });
            assert_eq!(State::load(&root).unwrap(), Some(state));
            assert_ne!(machine_id::read(&root).unwrap().unwrap(), ID);
            for path in [layout::KEY, layout::CLIENT, layout::CA] {
                assert!(root.stat(path).unwrap().is_none(), "{path}");
            }
        }
    }

    #[test]
    fn a_copy_that_was_interrupted_goes_on_although_the_interface_looks_right_again() {
        let (_dir, root, mut state) = enrolled();
        state.become_phase(Phase::Cloned, &root).unwrap();
        let_go(&root, &mut state).unwrap();
        assert_eq!(state.phase, Phase::FirstBoot);
        assert_ne!(machine_id::read(&root).unwrap().unwrap(), ID);
    }
}
