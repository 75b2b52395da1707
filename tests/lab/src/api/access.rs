//! `/access`: what an installer of the orchestrator needs, and what a caller may ask about itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Permission::{Any, Authenticated, UserSelf, World};
use super::{Answer, Call, Endpoint, endpoint};
use crate::auth::privileges;
use crate::http::envelope::Refusal;
use crate::node::Node;
use crate::schema::tables::{
    ACL_UPDATE, NOTHING, PERMISSIONS, ROLE_CREATE, ROLE_UPDATE, TICKET, TOKEN_CREATE, TOKEN_UPDATE, USER_CREATE,
};
use crate::state::{AclEntry, Token, User};

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/access/permissions", Authenticated, [PERMISSIONS] => permissions),
    endpoint!(GET "/access/roles", Authenticated, [NOTHING] => roles),
    endpoint!(POST "/access/roles", Any("/access", &["Sys.Modify"]), [ROLE_CREATE] => create_role),
    endpoint!(GET "/access/roles/{roleid}", Authenticated, [NOTHING] => role),
    endpoint!(PUT "/access/roles/{roleid}", Any("/access", &["Sys.Modify"]), [ROLE_UPDATE] => update_role),
    endpoint!(GET "/access/users", Authenticated, [NOTHING] => users),
    endpoint!(POST "/access/users", Any("/access/groups", &["User.Modify"]), [USER_CREATE] => create_user),
    endpoint!(GET "/access/users/{userid}/token", UserSelf, [NOTHING] => tokens),
    endpoint!(POST "/access/users/{userid}/token/{tokenid}", UserSelf, [TOKEN_CREATE] => create_token),
    endpoint!(PUT "/access/users/{userid}/token/{tokenid}", UserSelf, [TOKEN_UPDATE] => update_token),
    endpoint!(DELETE "/access/users/{userid}/token/{tokenid}", UserSelf, [NOTHING] => delete_token),
    endpoint!(GET "/access/acl", Authenticated, [NOTHING] => acl),
    endpoint!(PUT "/access/acl", Authenticated, [ACL_UPDATE] => update_acl),
    endpoint!(POST "/access/ticket", World, [TICKET] => ticket),
];

fn sent(call: &Call, name: &str) -> String {
    call.params.text(name).unwrap_or_default().to_owned()
}

async fn permissions(call: Call) -> Answer {
    let shown = call.node.access(&call.caller, |access, _| match call.params.text("path") {
        Some(path) => std::iter::once((path.to_owned(), access.privileges(path))).collect(),
        None => access.dump(),
    });
    let shown = shown.into_iter().map(|(path, found)| {
        let flags = found.into_iter().map(|(name, propagate)| (name, json!(u8::from(propagate))));
        (path, Value::Object(flags.collect()))
    });
    Ok(Value::Object(shown.collect()).into())
}

async fn roles(call: Call) -> Answer {
    let row = |name: &String, privs: &BTreeSet<String>, special: u8| json!({"roleid": name, "privs": privs.iter().cloned().collect::<Vec<_>>().join(","), "special": special});
    let built_in = privileges::built_in(call.node.major());
    let state = call.node.read();
    let own = state.cluster().roles.iter().map(|(name, privs)| row(name, privs, 0));
    Ok(Value::Array(built_in.iter().map(|(name, privs)| row(name, privs, 1)).chain(own).collect()).into())
}

async fn role(call: Call) -> Answer {
    let name = sent(&call, "roleid");
    let built_in = privileges::built_in(call.node.major()).remove(&name);
    let found = built_in.or_else(|| call.node.read().cluster().roles.get(&name).cloned());
    let Some(found) = found else {
        return Err(Refusal::die(format!("role '{name}' does not exist")));
    };
    Ok(Value::Object(found.into_iter().map(|name| (name, json!(1))).collect()).into())
}

/// Privileges of a parameter; the ones this release does not know are refused by name.
fn known_privileges(call: &Call) -> Result<BTreeSet<String>, Refusal> {
    let known = privileges::all(call.node.major());
    let wanted: BTreeSet<String> = call.params.items("privs").into_iter().collect();
    match wanted.iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(Refusal::parameter("privs", format!("invalid format - invalid privilege '{name}'\n"))),
        None => Ok(wanted),
    }
}

async fn create_role(call: Call) -> Answer {
    let name = sent(&call, "roleid");
    let wanted = known_privileges(&call)?;
    call.user_cfg("create role failed: ")?;
    if name.to_ascii_lowercase().starts_with("pve") {
        return Err(Refusal::parameter(
            "roleid",
            "cannot use role ID starting with the (case-insensitive) 'PVE' namespace",
        ));
    }
    let mut state = call.node.write();
    if state.cluster().roles.contains_key(&name) || privileges::built_in(call.node.major()).contains_key(&name) {
        return Err(Refusal::die(format!("create role failed: role '{name}' already exists")));
    }
    state.cluster_mut().roles.insert(name, wanted);
    Ok(Value::Null.into())
}

async fn update_role(call: Call) -> Answer {
    let name = sent(&call, "roleid");
    let wanted = known_privileges(&call)?;
    call.user_cfg("update role failed: ")?;
    if privileges::built_in(call.node.major()).contains_key(&name) {
        return Err(Refusal::die(format!("update role failed: auto-generated role '{name}' cannot be modified")));
    }
    let mut state = call.node.write();
    let Some(role) = state.cluster_mut().roles.get_mut(&name) else {
        return Err(Refusal::die(format!("update role failed: role '{name}' does not exist")));
    };
    if call.params.flag("append") != Some(true) {
        role.clear();
    }
    role.extend(wanted);
    Ok(Value::Null.into())
}

async fn users(call: Call) -> Answer {
    let all =
        call.node.access(&call.caller, |access, _| access.has_any("/access/groups", &["User.Modify", "Sys.Audit"]));
    let state = call.node.read();
    let rows =
        state.cluster().users.iter().filter(|(name, _)| all || **name == call.caller.user).map(|(name, user)| {
            let mut row = json!({
                "userid": name, "enable": u8::from(user.enable), "expire": user.expire,
                "realm-type": name.rsplit_once('@').map(|(_, realm)| realm),
            });
            if let Some(comment) = &user.comment {
                row["comment"] = json!(comment);
            }
            row
        });
    Ok(Value::Array(rows.collect()).into())
}

async fn create_user(call: Call) -> Answer {
    let name = sent(&call, "userid");
    call.user_cfg("create user failed: ")?;
    let realm = name.rsplit_once('@').map(|(_, realm)| realm).unwrap_or_default();
    if !matches!(realm, "pve" | "pam") {
        return Err(Refusal::die(format!("create user failed: domain '{realm}' does not exist")));
    }
    call.require(&format!("/access/realm/{realm}"), "Realm.AllocateUser")?;
    let mut state = call.node.write();
    if state.cluster().users.contains_key(&name) {
        return Err(Refusal::die(format!("create user failed: user '{name}' already exists")));
    }
    let user = User {
        comment: call.params.text("comment").map(str::to_owned),
        enable: call.params.flag("enable").unwrap_or(true),
        expire: call.params.whole("expire").unwrap_or(0).unsigned_abs(),
        ..User::default()
    };
    state.cluster_mut().users.insert(name, user);
    Ok(Value::Null.into())
}

/// A random UUID, as a token's secret is.
pub(crate) fn new_secret() -> String {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn with_user<T>(node: &Node, name: &str, change: impl FnOnce(&mut User) -> Result<T, Refusal>) -> Result<T, Refusal> {
    let mut state = node.write();
    match state.cluster_mut().users.get_mut(name) {
        Some(user) => change(user),
        None => Err(Refusal::die(format!("no such user ('{name}')"))),
    }
}

fn info(token: &Token) -> Value {
    let mut row = json!({"privsep": u8::from(token.privsep), "expire": token.expire});
    if let Some(comment) = &token.comment {
        row["comment"] = json!(comment);
    }
    row
}

async fn tokens(call: Call) -> Answer {
    let name = sent(&call, "userid");
    with_user(&call.node, &name, |user| {
        let rows = user.tokens.iter().map(|(id, token)| {
            let mut row = info(token);
            row["tokenid"] = json!(id);
            row
        });
        Ok(Value::Array(rows.collect()).into())
    })
}

async fn create_token(call: Call) -> Answer {
    let (name, id) = (sent(&call, "userid"), sent(&call, "tokenid"));
    call.user_cfg("generate token failed: ")?;
    with_user(&call.node, &name, |user| {
        if user.tokens.contains_key(&id) {
            return Err(Refusal::parameter("tokenid", "Token already exists."));
        }
        let token = Token {
            secret: new_secret(),
            privsep: call.params.flag("privsep").unwrap_or(true),
            expire: call.params.whole("expire").unwrap_or(0).unsigned_abs(),
            comment: call.params.text("comment").map(str::to_owned),
        };
        // The answer repeats what was asked, so `expire` shows only when it was given.
        let mut shown = info(&token);
        if !call.params.has("expire")
            && let Some(fields) = shown.as_object_mut()
        {
            fields.remove("expire");
        }
        let answer = json!({"full-tokenid": format!("{name}!{id}"), "value": token.secret, "info": shown});
        user.tokens.insert(id, token);
        Ok(answer.into())
    })
}

async fn update_token(call: Call) -> Answer {
    let (name, id) = (sent(&call, "userid"), sent(&call, "tokenid"));
    call.user_cfg("modifying token failed: ")?;
    with_user(&call.node, &name, |user| {
        let Some(token) = user.tokens.get_mut(&id) else {
            return Err(Refusal::parameter("tokenid", format!("no such token '{id}' for user '{name}'")));
        };
        if let Some(comment) = call.params.text("comment") {
            token.comment = Some(comment.to_owned());
        }
        if let Some(expire) = call.params.whole("expire") {
            token.expire = expire.unsigned_abs();
        }
        if let Some(privsep) = call.params.flag("privsep") {
            token.privsep = privsep;
        }
        let mut shown = info(token);
        if call.params.flag("regenerate") == Some(true) {
            token.secret = new_secret();
            shown["value"] = json!(token.secret);
            shown["full-tokenid"] = json!(format!("{name}!{id}"));
        }
        Ok(shown.into())
    })
}

async fn delete_token(call: Call) -> Answer {
    let (name, id) = (sent(&call, "userid"), sent(&call, "tokenid"));
    call.user_cfg("deleting token failed: ")?;
    with_user(&call.node, &name, |user| match user.tokens.remove(&id) {
        Some(_) => Ok(()),
        None => Err(Refusal::parameter("tokenid", format!("no such token '{id}' for user '{name}'"))),
    })?;
    // Its ACL entries go with it.
    call.node.write().cluster_mut().acl.retain(|entry| entry.ugid != format!("{name}!{id}"));
    Ok(Value::Null.into())
}

async fn acl(call: Call) -> Answer {
    let rows = call.node.access(&call.caller, |access, state| {
        let seen = state.cluster().acl.iter().filter(|entry| access.has(&entry.path, "Permissions.Modify"));
        seen.map(|entry| {
            json!({
                "path": entry.path, "ugid": entry.ugid, "roleid": entry.role, "propagate": u8::from(entry.propagate),
                "type": if entry.ugid.contains('!') { "token" } else { "user" },
            })
        })
        .collect::<Vec<Value>>()
    });
    Ok(Value::Array(rows).into())
}

async fn update_acl(call: Call) -> Answer {
    let sent_path = sent(&call, "path");
    let path = format!("/{}", sent_path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
    call.require(&path, "Permissions.Modify")?;
    if !privileges::is_acl_path(&path) {
        return Err(Refusal::parameter("path", format!("invalid ACL path '{sent_path}'")));
    }
    let (users, tokens) = (call.params.items("users"), call.params.items("tokens"));
    if users.is_empty() && tokens.is_empty() {
        let text = "property is missing and it is not optional";
        return Err(Refusal::parameters(
            ["users", "groups", "tokens"].iter().map(|name| ((*name).to_owned(), text.to_owned())).collect(),
        ));
    }
    call.user_cfg("ACL update failed: ")?;
    let fail = |text: String| Refusal::die(format!("ACL update failed: {text}"));
    let mut state = call.node.write();
    let built_in = privileges::built_in(call.node.major());
    let roles = call.params.items("roles");
    if let Some(role) =
        roles.iter().find(|role| !built_in.contains_key(*role) && !state.cluster().roles.contains_key(*role))
    {
        return Err(fail(format!("role '{role}' does not exist")));
    }
    for user in &users {
        if !state.cluster().users.contains_key(user) {
            return Err(fail(format!("user '{user}' does not exist")));
        }
    }
    for token in &tokens {
        let (user, name) = token.split_once('!').unwrap_or((token, ""));
        if !state.cluster().users.get(user).is_some_and(|user| user.tokens.contains_key(name)) {
            return Err(fail(format!("no such token '{name}' for user '{user}'")));
        }
    }
    let propagate = call.params.flag("propagate").unwrap_or(true);
    let entries = &mut state.cluster_mut().acl;
    for ugid in users.iter().chain(&tokens) {
        for role in &roles {
            entries.retain(|entry| !(entry.path == path && entry.ugid == *ugid && entry.role == *role));
            if call.params.flag("delete") != Some(true) {
                entries.push(AclEntry { path: path.clone(), ugid: ugid.clone(), role: role.clone(), propagate });
            }
        }
    }
    Ok(Value::Null.into())
}

/// Nobody has a password in the lab, so every login fails as a wrong one does.
async fn ticket(_call: Call) -> Answer {
    Err(Refusal::unauthorized("authentication failure"))
}
