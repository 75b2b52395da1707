//! The claim that the hypervisor carries for this guest and this start alone. It is read when it is needed and never
//! written anywhere.

use std::ffi::OsStr;

use contract::enrolment::{CLAIM_PREFIX, CLAIM_VARIABLE};
use contract::secret::Secret;

use crate::files::Root;
use crate::layout;

/// The guest's own claim; `None` when its hypervisor carries none.
///
/// A container's first process has it in its environment, and systemd passes it on to this service alone
/// (`PassEnvironment=`): to read `/proc/1/environ` it would need more capabilities than it has. A virtual machine has it
/// as its serial number. A container sees its host's there, which does not look like a claim.
pub(crate) fn own(root: &Root) -> Option<Secret> {
    choose(std::env::var_os(CLAIM_VARIABLE).as_deref(), root.read_kernel_file(layout::SERIAL_NUMBER).as_deref())
}

fn choose(variable: Option<&OsStr>, serial: Option<&str>) -> Option<Secret> {
    let found = [variable.and_then(OsStr::to_str), serial];
    found.into_iter().flatten().find(|text| text.starts_with(CLAIM_PREFIX)).map(Secret::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_found_where_the_hypervisor_puts_it_and_looks_like_one() {
        let found = |variable: Option<&str>, serial| {
            choose(variable.map(OsStr::new), serial).map(|claim| claim.expose().to_owned())
        };
        let ours = Some("ctrlable-claim-a_b".to_owned());
        assert_eq!(found(Some("ctrlable-claim-a_b"), Some("PF2ABC")), ours);
        assert_eq!(found(Some("none"), Some("ctrlable-claim-a_b")), ours);
        for (variable, serial) in [(None, None), (Some("none"), Some("PF2ABC")), (Some(""), Some("x ctrlable-claim-a"))]
        {
            assert_eq!(found(variable, serial), None);
        }
    }
}
