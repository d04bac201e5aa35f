//! Who a container's program runs as, from the image's own account files.
//!
//! Decides user, groups and home directory; pure, bounded, and never asks the host or a name service: the files belong
//! to the image, so they may be hostile. Called by the supervisor with what it read inside the root file system.

/// The largest account file that is read, in bytes; a larger one is an error, not a long wait.
pub(crate) const MAX_FILE: usize = 4 << 20;
/// The most supplementary groups that the kernel takes.
const MAX_GROUPS: usize = 65_536;
/// Ids above this are refused, as everywhere else: some are special to the kernel.
const MAX_ID: u32 = i32::MAX as u32;

/// A resolved account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them, sorted. Without the primary one a program that changes its
    /// primary group would lose access that "no group" rules (negative permissions) rely on.
    pub(crate) groups: Vec<u32>,
    /// Home directory; `/` when the image doesn't say.
    pub(crate) home: String,
}

/// Why there is no such account.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    /// No line for the name.
    #[error("user {0:?} is not in the image's /etc/passwd; use a number, or add the user to the image")]
    NoUser(String),
    /// No line for the group.
    #[error("group {0:?} is not in the image's /etc/group; use a number, or add the group to the image")]
    NoGroup(String),
    /// Not a possible id.
    #[error("id {0:?} is out of range; use 0 to 2147483647")]
    Range(String),
    /// More groups than the kernel takes.
    #[error("the image's /etc/group puts the user into more than 65536 groups")]
    TooManyGroups,
    /// Nothing before or after the colon.
    #[error("user {0:?}: write name|uid[:group|gid]")]
    Syntax(String),
}

/// One line of passwd(5), as far as it is needed.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves `user` (`name|uid[:group|gid]`, empty is root) and the further `groups` in the files' contents.
///
/// A number is a number: it is looked up by number only, never by name, even if the file has a user whose *name* is
/// that number.
pub(crate) fn resolve(user: &str, groups: &[String], passwd: &[u8], group: &[u8]) -> Result<Identity, Error> {
    let (user, primary) = match user.split_once(':') {
        Some((_, "")) => return Err(Error::Syntax(user.into())),
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let numeric = number(user)?;
    let account = match numeric {
        Some(uid) => accounts(passwd).find(|account| account.uid == uid),
        None => Some(accounts(passwd).find(|account| account.name == user).ok_or_else(|| Error::NoUser(user.into()))?),
    };
    let uid = account.as_ref().map_or(numeric.unwrap_or(0), |account| account.uid);
    let mut identity = Identity {
        uid,
        gid: account.as_ref().map_or(0, |account| account.gid),
        groups: Vec::new(),
        home: account
            .as_ref()
            .map(|account| account.home)
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/")
            .to_owned(),
    };
    match primary {
        Some(name) => identity.gid = group_id(name, group)?,
        None => {
            if let Some(account) = &account {
                identity.groups.extend(memberships(account.name, group).take(MAX_GROUPS));
            }
        }
    }
    for name in groups {
        identity.groups.push(group_id(name, group)?);
    }
    identity.groups.push(identity.gid);
    identity.groups.sort_unstable();
    identity.groups.dedup();
    if identity.groups.len() > MAX_GROUPS {
        return Err(Error::TooManyGroups);
    }
    Ok(identity)
}

/// `Some` for a number in range, `None` for a name.
fn number(text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(Error::Range(text.into())),
    }
}

fn group_id(name: &str, group: &[u8]) -> Result<u32, Error> {
    if let Some(gid) = number(name)? {
        return Ok(gid);
    }
    let found = lines(group).find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        id(fields.nth(1)?)
    });
    found.ok_or_else(|| Error::NoGroup(name.into()))
}

/// Groups of group(5) that list `user` as a member.
fn memberships<'a>(user: &'a str, group: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
    lines(group).filter_map(move |line| {
        let mut fields = line.split(':');
        let gid = id(fields.nth(2)?)?;
        fields.next()?.split(',').any(|member| member.trim() == user).then_some(gid)
    })
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or("/");
        Some(Account { name, uid, gid, home })
    })
}

/// A number from a file: what isn't one makes the line count for nothing.
fn id(text: &str) -> Option<u32> {
    number(text).ok().flatten()
}

/// Lines that are text and not comments; anything else in the file is skipped.
fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        \xff\xfe:x:7:7::/:/bin/sh\n\
        1000:x:0:0:trap:/root:/bin/sh\n\
        huge:x:4294967296:0::/:/bin/sh\n\
        app:x:1001:1002:App:/home/app:/bin/sh\n\
        nohome:x:1003:1003\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:app,root\naudio:x:29:app\n1005:x:0:\napp:x:1002:\nbad:x:-1:app\n";

    fn ok(user: &str, groups: &[&str]) -> (u32, u32, Vec<u32>, String) {
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let it = resolve(user, &groups, PASSWD, GROUP).unwrap();
        (it.uid, it.gid, it.groups, it.home)
    }

    #[test]
    fn table() {
        assert_eq!(ok("", &[]), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(ok("root", &[]), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(ok("app", &[]), (1001, 1002, vec![10, 29, 1002], "/home/app".into()));
        assert_eq!(ok("1001", &[]), (1001, 1002, vec![10, 29, 1002], "/home/app".into()));
        // The user *named* 1000 is root; the number is not.
        assert_eq!(ok("1000", &[]), (1000, 0, vec![0], "/".into()));
        assert_eq!(ok("1000:1000", &[]), (1000, 1000, vec![1000], "/".into()));
        assert_eq!(ok("app:wheel", &[]), (1001, 10, vec![10], "/home/app".into()));
        assert_eq!(ok("app:1005", &[]), (1001, 1005, vec![1005], "/home/app".into()));
        assert_eq!(ok("5:6", &["audio", "77"]), (5, 6, vec![6, 29, 77], "/".into()));
        assert_eq!(ok("nohome", &[]), (1003, 1003, vec![1003], "/".into()));
        assert_eq!(ok(":29", &[]), (0, 29, vec![29], "/root".into()));
        for (user, error) in [
            ("ghost", Error::NoUser("ghost".into())),
            ("app:ghost", Error::NoGroup("ghost".into())),
            ("4294967295", Error::Range("4294967295".into())),
            ("app:", Error::Syntax("app:".into())),
            ("huge", Error::NoUser("huge".into())),
            ("-1", Error::NoUser("-1".into())),
        ] {
            assert_eq!(resolve(user, &[], PASSWD, GROUP), Err(error), "{user}");
        }
    }

    #[test]
    fn an_image_without_accounts() {
        let it = resolve("", &[], b"", b"").unwrap();
        assert_eq!((it.uid, it.gid, it.groups, it.home.as_str()), (0, 0, vec![0], "/"));
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut seed = 1u64;
        for _ in 0..200 {
            let junk: Vec<u8> = (0..300)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    b":\n,0a#\xff9"[(seed >> 60) as usize % 8]
                })
                .collect();
            let _ = resolve("a", &["0".into(), "a".into()], &junk, &junk);
        }
    }
}
