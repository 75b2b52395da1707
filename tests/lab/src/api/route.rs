//! Which handler a method and path belong to.

use std::collections::BTreeMap;

use super::{Endpoint, access, backup, cluster, ha, lxc, nodes, pools, qemu, tasks};

/// Values of a path's placeholders.
pub(crate) type Placeholders = BTreeMap<String, String>;

const ALL: &[&[Endpoint]] = &[
    access::ENDPOINTS,
    backup::ENDPOINTS,
    cluster::ENDPOINTS,
    ha::ENDPOINTS,
    lxc::ENDPOINTS,
    nodes::ENDPOINTS,
    pools::ENDPOINTS,
    qemu::ENDPOINTS,
    tasks::ENDPOINTS,
];

/// Finds the endpoint of a decoded path below `/api2/json`.
pub(crate) fn find(method: &str, path: &str) -> Option<(&'static Endpoint, Placeholders)> {
    ALL.iter()
        .flat_map(|group| group.iter())
        .filter(|endpoint| endpoint.method == method)
        .find_map(|endpoint| Some((endpoint, fit(endpoint.path, path)?)))
}

fn fit(pattern: &str, path: &str) -> Option<Placeholders> {
    let mut found = Placeholders::new();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    for wanted in pattern.split('/').filter(|part| !part.is_empty()) {
        let part = parts.next()?;
        match wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            // A volume id has slashes of its own.
            Some("volume") => {
                let rest: Vec<&str> = std::iter::once(part).chain(parts.by_ref()).collect();
                found.insert("volume".to_owned(), rest.join("/"));
            }
            Some(name) => drop(found.insert(name.to_owned(), part.to_owned())),
            None if wanted == part => {}
            None => return None,
        }
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_volumes_keep_their_slashes() {
        let (endpoint, found) = find("DELETE", "/nodes/n/storage/local/content/local:backup/a.tar").unzip();
        assert!(endpoint.is_some());
        assert_eq!(found.and_then(|mut found| found.remove("volume")).as_deref(), Some("local:backup/a.tar"));
        assert!(find("POST", "/nodes/n/lxc/100/config").is_none());
    }
}
