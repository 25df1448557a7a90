//! What is done without while the collector does not keep up.
//!
//! One state for all inputs: one thread analyses their frames. Pure: it is told the time.

use std::time::{Duration, Instant};

/// An input is nearly full with more than this, in percent of its room.
const NEARLY_FULL: usize = 75;
/// For how long it has to be, and how long a step needs to have an effect.
const LASTING: Duration = Duration::from_secs(1);
/// A step is taken back after this time without pressure.
const CALM: Duration = Duration::from_secs(30);
/// Nothing tells whether there still is too much to capture or to write, so the way back is a trial. Each one that fails soon doubles the
/// time until the next one, up to this: then, no more than about a second in four minutes is lost by trying.
const LONGEST: Duration = Duration::from_secs(240);

/// What is captured and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Everything.
    #[default]
    Whole,
    /// Frames are not written to files.
    NotWritten,
    /// Nor is captured what [`super::filter`] leaves out.
    Filtered,
}

impl Step {
    /// In `GET /status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::NotWritten => "notWritten",
            Self::Filtered => "filtered",
        }
    }

    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Whole => "all frames are captured",
            Self::NotWritten => "frames are not written to files",
            Self::Filtered => "only what begins and ends connections, and DNS, is captured",
        }
    }
}

/// How full the inputs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of the fullest one, in percent of its room.
    pub full: usize,
    /// Whether frames found no room.
    pub has_dropped: bool,
}

impl Load {
    /// That of two inputs.
    pub fn max(self, other: Self) -> Self {
        Self { full: self.full.max(other.full), has_dropped: self.has_dropped || other.has_dropped }
    }
}

/// See [`Step`].
#[derive(Debug)]
pub struct Degradation {
    /// Whether frames are written to files, if there is time for that.
    writes: bool,
    step: Step,
    full_since: Option<Instant>,
    /// When the last step was taken.
    stepped: Option<Instant>,
    /// When there was pressure, or a step was taken back.
    last: Instant,
    /// How long a step stays without pressure.
    patience: Duration,
    /// When the last step was taken back, unless that failed.
    tried: Option<Instant>,
}

impl Degradation {
    pub const fn new(writes: bool, now: Instant) -> Self {
        Self { writes, step: Step::Whole, full_since: None, stepped: None, last: now, patience: CALM, tried: None }
    }

    /// What to capture and to write from now on.
    pub fn update(&mut self, now: Instant, load: Load) -> Step {
        let lasts = |since: Instant, time: Duration| now.duration_since(since) >= time;
        self.full_since = (load.full > NEARLY_FULL).then(|| self.full_since.unwrap_or(now));
        if load.has_dropped || self.full_since.is_some_and(|since| lasts(since, LASTING)) {
            self.last = now;
            if self.stepped.is_none_or(|stepped| lasts(stepped, LASTING)) {
                self.step_down(now);
            }
        } else if self.step != Step::Whole && self.full_since.is_none() && lasts(self.last, self.patience) {
            self.last = now;
            self.step_back(now);
        }
        self.step
    }

    fn step_down(&mut self, now: Instant) {
        let next = if self.step == Step::Whole && self.writes { Step::NotWritten } else { Step::Filtered };
        if next > self.step {
            self.stepped = Some(now);
            self.step = next;
            match self.tried.take() {
                Some(tried) if now.duration_since(tried) < LONGEST => self.patience = LONGEST.min(2 * self.patience),
                Some(_) => self.patience = CALM,
                None => {}
            }
        }
    }

    fn step_back(&mut self, now: Instant) {
        self.tried = Some(now);
        self.step = if self.step == Step::Filtered && self.writes { Step::NotWritten } else { Step::Whole };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Load = Load { full: 10, has_dropped: false };
    const FULL: Load = Load { full: 80, has_dropped: false };
    const DROPS: Load = Load { full: 100, has_dropped: true };

    /// It is updated ten times a second.
    struct Clock {
        state: Degradation,
        now: Instant,
    }

    impl Clock {
        fn new(writes: bool) -> Self {
            let now = Instant::now();
            Self { state: Degradation::new(writes, now), now }
        }

        /// The step after so many tenths of a second of a load.
        fn after(&mut self, tenths: u32, load: Load) -> Step {
            (0..tenths).fold(self.state.step, |_, _| {
                self.now += Duration::from_millis(100);
                self.state.update(self.now, load)
            })
        }

        /// Tenths of a second without pressure until the filter is removed.
        fn until_removed(&mut self) -> u32 {
            (1..10_000).find(|_| self.after(1, IDLE) != Step::Filtered).expect("it is removed")
        }
    }

    #[test]
    fn each_step_is_taken_and_taken_back_alone() {
        let mut clock = Clock::new(true);
        assert_eq!(clock.after(1, DROPS), Step::NotWritten);
        assert_eq!(clock.after(9, DROPS), Step::NotWritten, "it needs a moment to have an effect");
        assert_eq!(clock.after(1, DROPS), Step::Filtered);
        assert_eq!(clock.after(100, DROPS), Step::Filtered, "there is no other step");
        assert_eq!(clock.after(299, IDLE), Step::Filtered);
        assert_eq!(clock.after(1, IDLE), Step::NotWritten);
        assert_eq!(clock.after(299, IDLE), Step::NotWritten);
        assert_eq!(clock.after(1, IDLE), Step::Whole);
    }

    #[test]
    fn what_is_nearly_full_for_a_moment_is_no_pressure() {
        let mut clock = Clock::new(true);
        for _ in 0..20 {
            assert_eq!(clock.after(9, FULL), Step::Whole);
            assert_eq!(clock.after(1, IDLE), Step::Whole);
        }
        assert_eq!(clock.after(11, FULL), Step::NotWritten);
    }

    #[test]
    fn what_the_filter_passes_may_be_too_much_as_well() {
        let mut clock = Clock::new(false);
        for _ in 0..10 {
            assert_eq!(clock.after(1, DROPS), Step::Filtered);
            assert_eq!(clock.after(299, IDLE), Step::Filtered);
        }
        assert_eq!(clock.after(1, IDLE), Step::Whole);
    }

    #[test]
    fn without_files_there_is_only_the_filter() {
        let mut clock = Clock::new(false);
        assert_eq!(clock.after(1, DROPS), Step::Filtered);
        assert_eq!(clock.after(299, IDLE), Step::Filtered);
        assert_eq!(clock.after(1, IDLE), Step::Whole);
    }

    #[test]
    fn what_can_be_captured_but_not_written_is_tried_more_and_more_rarely() {
        let mut clock = Clock::new(true);
        let mut times = Vec::new();
        for _ in 0..4 {
            assert_eq!(clock.after(1, DROPS), Step::NotWritten);
            times.push((1..10_000).find(|_| clock.after(1, IDLE) == Step::Whole).expect("it is tried"));
        }
        assert_eq!(times, [300, 600, 1200, 2400]);
    }

    #[test]
    fn nothing_is_taken_back_while_an_input_is_nearly_full() {
        let mut clock = Clock::new(false);
        clock.after(1, DROPS);
        for _ in 0..100 {
            assert_eq!(clock.after(9, FULL), Step::Filtered);
        }
        clock.after(299, IDLE);
        assert_eq!(clock.after(1, IDLE), Step::Whole);
    }

    #[test]
    fn trials_become_rarer_while_they_fail() {
        let mut clock = Clock::new(false);
        let mut times = Vec::new();
        for _ in 0..6 {
            clock.after(1, DROPS);
            times.push(clock.until_removed());
        }
        assert_eq!(times, [300, 600, 1200, 2400, 2400, 2400]);
        // The load was bearable for some minutes.
        assert_eq!(clock.after(2400, IDLE), Step::Whole);
        clock.after(1, DROPS);
        assert_eq!(clock.until_removed(), 300);
    }
}
