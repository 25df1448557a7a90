//! The namespaces that a request is about.

use std::collections::BTreeSet;

/// Of which namespaces something is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them, and what is in none.
    All,
    /// These, and what they call or are called by, without its name if it is in another namespace.
    Only(BTreeSet<String>),
}

/// Namespaces of a request at most.
pub const MOST: usize = 32;

const PREFIX: &str = "/namespaces/";

impl Namespaces {
    /// Those of a path, `/namespaces/NAME[,NAME..]/REST`, and the rest of it, `/REST`. All, if it has no such prefix.
    ///
    /// What authorizes a request and what answers it both get the namespaces from here: they cannot understand it differently.
    ///
    /// # Errors
    /// A message that tells what is wrong with it.
    pub fn of_path(path: &str) -> Result<(Self, &str), String> {
        let Some(path) = path.strip_prefix(PREFIX) else { return Ok((Self::All, path)) };
        let (names, rest) = path.split_at(path.find('/').ok_or("after the namespaces, a path must follow: /map")?);
        let names: BTreeSet<String> = names.split(',').map(str::to_owned).collect();
        if names.len() > MOST {
            return Err(format!("a path has at most {MOST} namespaces"));
        }
        if !names.iter().all(|name| is_name(name)) {
            return Err(format!("a path of namespaces is {PREFIX}NAME[,NAME..]/map"));
        }
        Ok((Self::Only(names), rest))
    }

    /// Whether what is in this namespace is told.
    pub fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(namespace),
        }
    }
}

/// A DNS label (RFC 1123), as the API server demands.
fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(is_inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Namespaces {
        Namespaces::Only(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_path_begins_with_its_namespaces() {
        for path in ["/", "/map", "/namespaces", "/namespace/shop/map", "//namespaces/shop/map", "/Namespaces/shop/map"]
        {
            assert_eq!(Namespaces::of_path(path), Ok((Namespaces::All, path)));
        }
        assert_eq!(Namespaces::of_path("/namespaces/shop/map"), Ok((only(&["shop"]), "/map")));
        assert_eq!(Namespaces::of_path("/namespaces/shop,team-1,shop/"), Ok((only(&["shop", "team-1"]), "/")));
        assert_eq!(Namespaces::of_path("/namespaces/a/namespaces/b/map"), Ok((only(&["a"]), "/namespaces/b/map")));
        for path in
            ["", "shop", "/map", ",/map", "shop,/map", "Shop/map", "-a/map", "a-/map", "%61/map", "*/map", "../map"]
        {
            assert!(Namespaces::of_path(&format!("{PREFIX}{path}")).is_err(), "{path}");
        }
        let many: Vec<String> = (0..=MOST).map(|number| format!("n{number}")).collect();
        assert!(Namespaces::of_path(&format!("{PREFIX}{}/map", many[1..].join(","))).is_ok());
        assert!(Namespaces::of_path(&format!("{PREFIX}{}/map", many.join(","))).is_err());
        assert!(Namespaces::of_path(&format!("{PREFIX}{}/map", "a".repeat(64))).is_err());
    }

    #[test]
    fn only_what_was_asked_for_is_told() {
        assert!(Namespaces::All.has("shop") && only(&["shop"]).has("shop") && !only(&["shop"]).has("shop-2"));
    }
}
