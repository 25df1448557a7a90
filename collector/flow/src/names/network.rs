//! Networks outside of the cluster: names in the configuration, and countries.

use std::{borrow::Cow, fmt, net::IpAddr};

use ipnet::IpNet;
use maxminddb::{MaxMindDbError, Reader, path};

/// What is known of the network of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network<'a> {
    /// Its name in the configuration.
    Named(&'a str),
    /// Where it is.
    Country(Country),
}

impl<'a> Network<'a> {
    /// What the map calls it: its name, or for example `country DE`.
    #[must_use]
    pub fn name(self) -> Cow<'a, str> {
        match self {
            Self::Named(name) => name.into(),
            Self::Country(country) => format!("country {country}").into(),
        }
    }
}

/// The code of a country: two letters (ISO 3166-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Country([u8; 2]);

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter)))
    }
}

/// A database of the countries of networks, in the format of `MaxMind` (version 2) with the fields of `GeoIP2` Country or City.
#[derive(Debug)]
pub struct Countries(Reader<Vec<u8>>);

impl Countries {
    /// From the bytes of a file.
    ///
    /// # Errors
    /// If it is no such database.
    pub fn new(bytes: Vec<u8>) -> Result<Self, MaxMindDbError> {
        Reader::from_source(bytes).map(Self)
    }

    fn country(&self, address: IpAddr) -> Option<Country> {
        let found = self.0.lookup(address).ok()?;
        let code: &str = found.decode_path(&path!["country", "iso_code"]).ok()??;
        let code: [u8; 2] = code.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Country(code))
    }
}

/// All that is known of networks outside of the cluster.
#[derive(Debug, Default)]
pub(super) struct Networks {
    /// The longest prefix first.
    named: Vec<(IpNet, String)>,
    countries: Option<Countries>,
}

impl Networks {
    pub fn new(mut named: Vec<(IpNet, String)>) -> Self {
        named.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        Self { named, countries: None }
    }

    pub fn set_countries(&mut self, countries: Countries) {
        self.countries = Some(countries);
    }

    pub fn named(&self) -> impl Iterator<Item = (&IpNet, &str)> {
        self.named.iter().map(|(network, name)| (network, name.as_str()))
    }

    pub fn of(&self, address: IpAddr) -> Option<Network<'_>> {
        let named = self.named().find(|(network, _)| network.contains(&address));
        let country = || self.countries.as_ref()?.country(address).map(Network::Country);
        named.map(|(_, name)| Network::Named(name)).or_else(country)
    }
}
