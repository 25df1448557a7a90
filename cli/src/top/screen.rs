//! `top` at a terminal.

use std::{io, thread};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Line,
    widgets::Paragraph,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{
    console::plain,
    exit::{Exit, Failure, Outcome},
    top::{
        INTERVAL, Reader,
        rows::{Order, View},
    },
};

/// Lines for what is missing: the rows are more important.
const MOST_FAILURES: u16 = 3;

/// What is on the screen.
#[derive(Debug)]
struct Shown {
    view: View,
    order: Order,
    /// What is missing, or why there is nothing new.
    failures: Vec<String>,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    End,
    Sort,
    /// Nothing, or the size has changed.
    Draw,
}

/// The terminal, which gets back its mode and its content when this is dropped. A panic does the same before it ends the program.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows counters until a key ends it. At a signal, it is dropped, which restores the terminal.
pub async fn run(reader: Reader, order: Order) -> Outcome {
    let shown = Shown { view: reader.view(order), order, failures: reader.failures() };
    let (sender, news) = watch::channel((shown.view.clone(), shown.failures.clone()));
    let failed = |error: io::Error| Failure::error(format!("the terminal cannot be used: {error}; try --once"));
    let mut screen = Screen(ratatui::try_init().map_err(failed)?);
    tokio::select! {
        failure = read(reader, &sender) => Err(failure),
        ended = show(&mut screen.0, shown, news) => ended.map(|()| Exit::Done).map_err(failed),
    }
}

type News = (View, Vec<String>);

/// Reads until that makes no sense any more. An API server that does not answer may do so again.
async fn read(mut reader: Reader, sender: &watch::Sender<News>) -> Failure {
    loop {
        match reader.read().await {
            Ok(()) => sender.send_modify(|news| *news = (reader.view(Order::Rate), reader.failures())),
            Err(failure) if failure.exit == Exit::Error => sender.send_modify(|(_, failures)| {
                *failures = vec![failure.message];
            }),
            Err(failure) => return failure,
        }
        sleep(reader.nodes.interval(INTERVAL)).await;
    }
}

async fn show(terminal: &mut DefaultTerminal, mut shown: Shown, mut news: watch::Receiver<News>) -> io::Result<()> {
    let mut events = events();
    loop {
        shown.view.sort(shown.order);
        terminal.draw(|frame| draw(frame, &shown))?;
        tokio::select! {
            Ok(()) = news.changed() => (shown.view, shown.failures) = news.borrow_and_update().clone(),
            Some(event) = events.recv() => match action(&event?) {
                Action::End => return Ok(()),
                Action::Sort => shown.order = shown.order.next(),
                Action::Draw => {}
            },
        }
    }
}

/// What the terminal sends. Reading blocks, so it has a thread of its own, which ends with the program.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, events) = mpsc::channel(1);
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    });
    events
}

fn action(event: &Event) -> Action {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return Action::Draw };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => Action::End,
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Action::End,
        KeyCode::Char('s') => Action::Sort,
        _ => Action::Draw,
    }
}

/// The tables, what is missing, and the keys. Rows that find no room are counted.
fn draw(frame: &mut Frame<'_>, shown: &Shown) {
    let failures: Vec<Line<'_>> = shown.failures.iter().map(|failure| Line::from(plain(failure))).collect();
    let rows = u16::try_from(failures.len()).unwrap_or(u16::MAX).min(MOST_FAILURES);
    let parts = Layout::vertical([Constraint::Min(0), Constraint::Length(rows), Constraint::Length(1)]);
    let [body, missing, keys] = parts.areas(frame.area());
    let text = shown.view.text();
    let mut lines: Vec<Line<'_>> = Vec::new();
    for line in text.lines() {
        // The first one of each table.
        let is_heading = lines.last().is_none_or(|before| before.width() == 0);
        lines.push(if is_heading { Line::styled(line, Modifier::BOLD) } else { Line::from(line) });
    }
    let room = usize::from(body.height);
    if lines.len() > room && room > 0 {
        let hidden = lines.len() - (room - 1);
        lines.truncate(room - 1);
        lines.push(Line::styled(format!("{hidden} more"), Modifier::DIM));
    }
    frame.render_widget(Paragraph::new(lines), body);
    frame.render_widget(Paragraph::new(failures), missing);
    let (now, next) = (shown.order.name(), shown.order.next().name());
    let help = format!("sorted by {now}; s: by {next}, q: end");
    frame.render_widget(Paragraph::new(help).style(Style::from(Modifier::DIM)), keys);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use tokio::time::Instant;

    use super::*;

    fn lines(shown: &Shown, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal of memory");
        terminal.draw(|frame| draw(frame, shown)).expect("it can be drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    fn shown(taps: usize, failures: &[&str]) -> Shown {
        let taps: Vec<_> = (0..taps).map(|number| crate::top::tests::tap(&format!("web-{number}"))).collect();
        let mut view = View::of_taps(&taps, false, &[("n1", &crate::top::tests::history(Instant::now()))]);
        view.sort(Order::Rate);
        Shown { view, order: Order::Rate, failures: failures.iter().map(|text| (*text).to_owned()).collect() }
    }

    #[test]
    fn the_screen_has_the_table_the_failures_and_the_keys() {
        let lines = lines(&shown(2, &["node n2 is missing: \u{1b}[2J"]), 90, 6);
        assert!(lines[0].starts_with("NAME    PODS   IN"), "{lines:#?}");
        assert!(lines[1].starts_with("web-0   1/2    8.0k   16k"), "{lines:#?}");
        assert!(lines[2].starts_with("web-1"), "{lines:#?}");
        assert_eq!(lines[3..], ["", "node n2 is missing: \u{fffd}[2J", "sorted by rate; s: by loss, q: end"]);
    }

    #[test]
    fn rows_without_room_are_counted() {
        let tall = lines(&shown(30, &[]), 90, 10);
        assert_eq!((tall[7].split(' ').next(), &*tall[8]), (Some("web-14"), "23 more"), "{tall:#?}");
        // A terminal without any room is no reason to panic.
        for (width, height) in [(1, 1), (3, 2), (90, 1)] {
            assert_eq!(lines(&shown(3, &["a", "b", "c", "d", "e"]), width, height).len(), usize::from(height));
        }
    }

    #[test]
    fn keys() {
        let key = |code, modifiers| action(&Event::Key(KeyEvent::new(code, modifiers)));
        for (code, modifiers, expected) in [
            (KeyCode::Char('q'), KeyModifiers::NONE, Action::End),
            (KeyCode::Esc, KeyModifiers::NONE, Action::End),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Action::End),
            (KeyCode::Char('c'), KeyModifiers::NONE, Action::Draw),
            (KeyCode::Char('s'), KeyModifiers::NONE, Action::Sort),
        ] {
            assert_eq!(key(code, modifiers), expected, "{code:?}");
        }
        assert_eq!(action(&Event::Resize(80, 24)), Action::Draw);
        assert_eq!(Order::Rate.next().next(), Order::Rate);
    }
}
