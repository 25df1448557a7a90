//! Command-line arguments: what to measure, and how long.

use std::time::Duration;

/// Families of rows, in the order in which they run.
pub const FAMILIES: [&str; 15] = [
    "ring",
    "file",
    "establish",
    "footprint",
    "cold",
    "tcp",
    "held",
    "latency",
    "udp",
    "conntrack",
    "cpu",
    "fields",
    "readers",
    "underlay",
    "pods",
];

const USAGE: &str = "bench [--rows a,b,..] [--rounds N] [--seconds N] [--minutes N]";

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    rows: Vec<String>,
    /// How often each column is measured.
    pub rounds: usize,
    /// Length of a measurement.
    pub seconds: u32,
    /// No comparison starts after this time.
    pub budget: Duration,
}

impl Arguments {
    /// Parses the arguments after the program's name.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self { rows: Vec::new(), rounds: 5, seconds: 1, budget: Duration::from_secs(11 * 60) };
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option}: missing value; {USAGE}"))?;
            let number = |limit: u32| match value.parse() {
                Ok(number) if (1..=limit).contains(&number) => Ok(number),
                _ => Err(format!("{option} {value}: not a number between 1 and {limit}")),
            };
            match option.as_str() {
                "--rows" => arguments.rows = rows(&value)?,
                "--rounds" => arguments.rounds = number(100)? as usize,
                "--seconds" => arguments.seconds = number(60)?,
                "--minutes" => arguments.budget = Duration::from_secs(60 * u64::from(number(600)?)),
                _ => return Err(format!("{option}: unknown; {USAGE}")),
            }
        }
        Ok(arguments)
    }

    /// Whether to measure anything in the lab. The collector is measured without.
    pub fn need_lab(&self) -> bool {
        FAMILIES.iter().any(|family| !["ring", "file"].contains(family) && self.selects(family))
    }

    /// Whether to measure a family of rows. Without `--rows`, all are measured.
    pub fn selects(&self, family: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row == family)
    }
}

fn rows(value: &str) -> Result<Vec<String>, String> {
    let rows: Vec<String> = value.split(',').map(|row| row.trim().to_owned()).filter(|row| !row.is_empty()).collect();
    match rows.iter().find(|row| !FAMILIES.contains(&row.as_str())) {
        Some(unknown) => Err(format!("unknown rows {unknown:?}; known are {}", FAMILIES.join(","))),
        None => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments, String> {
        Arguments::parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn all_rows_are_measured_by_default() {
        let arguments = parse("").expect("no arguments are valid");
        assert!(FAMILIES.iter().all(|family| arguments.selects(family)));
        assert!(arguments.rounds >= 5);
    }

    #[test]
    fn rows_can_be_chosen() {
        let arguments = parse("--rows tcp,udp --rounds 7 --seconds 2").expect("the arguments are valid");
        let selected: Vec<_> = FAMILIES.iter().filter(|family| arguments.selects(family)).collect();
        assert_eq!(selected, [&"tcp", &"udp"]);
        assert_eq!((arguments.rounds, arguments.seconds), (7, 2));
        assert!(arguments.need_lab() && !parse("--rows file,ring").expect("they are valid").need_lab());
    }

    #[test]
    fn invalid_arguments_are_refused() {
        for words in ["--rows tpc", "--rounds 0", "--rounds many", "--seconds 61", "--rows", "tcp udp"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
