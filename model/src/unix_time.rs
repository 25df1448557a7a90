//! Moments as Kubernetes writes them, without a calendar library: the tap-helper has none.

use std::{
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

const DAY: u64 = 86_400;
/// Days before each month of a year that is not a leap year.
const DAYS_BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// A moment in whole seconds since the Unix epoch. In JSON it is RFC 3339 in UTC without fractions of a second, like `metav1.Time`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnixTime(u64);

/// Not a moment as Kubernetes writes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time such as 2030-01-31T12:00:00Z")]
pub struct UnixTimeError(String);

impl UnixTime {
    /// The last moment of the year 9999, the last that RFC 3339 has.
    pub const MAX: Self = Self(253_402_300_799);

    /// The moment that many seconds after the Unix epoch. A moment that RFC 3339 or this type cannot express becomes the nearest that
    /// both can.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(u64::try_from(seconds).unwrap_or(0)).min(Self::MAX)
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0
    }

    /// Year, month, day, hour, minute and second.
    fn fields(self) -> [u64; 6] {
        let (days, time) = (self.0 / DAY, self.0 % DAY);
        let mut year = 1970 + days / 366;
        while days_before_year(year + 1) <= days {
            year += 1;
        }
        let day_of_year = days - days_before_year(year);
        let month = (1..=12).rev().find(|month| days_before_month(year, *month) <= day_of_year).unwrap_or(1);
        let day = day_of_year - days_before_month(year, month) + 1;
        [year, month, day, time / 3600, time / 60 % 60, time % 60]
    }
}

/// Days from the Unix epoch to the first of January.
fn days_before_year(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

/// Days from the first of January to the first of a month, 1 to 12.
fn days_before_month(year: u64, month: u64) -> u64 {
    let is_leap_year = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let before = usize::try_from(month - 1).ok().and_then(|index| DAYS_BEFORE_MONTH.get(index));
    before.copied().unwrap_or_default() + u64::from(is_leap_year && month > 2)
}

impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since_epoch.as_secs()).min(Self::MAX)
    }
}

impl FromStr for UnixTime {
    type Err = UnixTimeError;

    fn from_str(text: &str) -> Result<Self, UnixTimeError> {
        let parse = || {
            let field = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
            let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
            let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
            if year < 1970 || !(1..=12).contains(&month) || day == 0 {
                return None;
            }
            let days = days_before_year(year) + days_before_month(year, month) + day - 1;
            let moment = Self(days * DAY + hour * 3600 + minute * 60 + second);
            // Whatever is out of range or malformed is written differently.
            (moment.to_string() == text).then_some(moment)
        };
        parse().ok_or_else(|| UnixTimeError(text.to_owned()))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day, hour, minute, second] = self.fields();
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl TryFrom<String> for UnixTime {
    type Error = UnixTimeError;

    fn try_from(text: String) -> Result<Self, UnixTimeError> {
        text.parse()
    }
}

impl From<UnixTime> for String {
    fn from(moment: UnixTime) -> Self {
        moment.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of `date --utc --date=TEXT +%s`.
    const MOMENTS: [(u64, &str); 9] = [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (978_307_199, "2000-12-31T23:59:59Z"),
        (1_709_251_200, "2024-03-01T00:00:00Z"),
        (1_798_761_599, "2026-12-31T23:59:59Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ];

    #[test]
    fn moments_of_the_calendar() {
        for (seconds, text) in MOMENTS {
            assert_eq!(UnixTime(seconds).to_string(), text);
            assert_eq!(text.parse(), Ok(UnixTime(seconds)));
        }
        assert_eq!(UnixTime::from_seconds(i64::MAX), UnixTime::MAX);
        assert_eq!(UnixTime::from_seconds(-1), UnixTime(0));
    }

    #[test]
    fn every_day_of_four_centuries() {
        for day in 0..400 * 366 {
            let moment = UnixTime(day * DAY + day % DAY);
            assert_eq!(moment.to_string().parse(), Ok(moment));
        }
    }

    #[test]
    fn other_texts_are_no_moments() {
        for text in [
            "",
            "2026-01-01",
            "1969-12-31T23:59:59Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.5Z",
            "2026-01-01T00:00:00+01:00",
            "2026-01-01 00:00:00Z",
            "2026-+1-01T00:00:00Z",
            "2026-é1-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<UnixTime>(), Err(UnixTimeError(text.to_owned())));
        }
    }
}
