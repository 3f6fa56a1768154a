use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::columns::{HISTORY, sparkline};
use super::sample::{BackendSample, FrontendSample, Sample};
use super::screen;
use super::state::{Key, Next, State};

fn frontend(number: u32, connections: u64) -> FrontendSample {
    FrontendSample {
        dialed: (IpAddr::from((0x0a60_0000 + number).to_be_bytes()), 80, 6),
        service: format!("shop/web-{number:05}").into(),
        counts: [connections, 0, 0, 0, 0],
    }
}

fn sample(frontends: Vec<FrontendSample>) -> Sample {
    Sample {
        frontends,
        backends: Vec::new(),
        has_names: true,
    }
}

fn backend(last: u8, connections: u64) -> BackendSample {
    let address = SocketAddr::from(([10, 1, 0, last], 8080));
    BackendSample {
        key: ("http".to_owned(), address),
        state: "Active".to_owned(),
        is_local: last == 1,
        counts: [connections, 0, 0, 0, 0],
    }
}

/// The screen as lines of text.
fn shown(state: &mut State) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(120, 12)).unwrap();
    terminal.draw(|frame| screen::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(buffer.area.width));
    let texts = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    texts.map(|text| text.trim_end().to_owned()).collect()
}

fn type_text(state: &mut State, text: &str) {
    for character in text.chars() {
        assert_eq!(state.press(Key::Char(character)), Next::Draw);
    }
}

#[test]
fn the_fastest_comes_first_and_keys_sort_otherwise() {
    let mut state = State::default();
    state.take(sample(vec![frontend(1, 100), frontend(2, 7)]), 0.0);
    // What was counted before anybody looked is no rate.
    assert!(shown(&mut state)[0].contains("2 Services: 0.0 conn/s"));
    state.take(sample(vec![frontend(1, 101), frontend(2, 27)]), 2.0);
    let lines = shown(&mut state);
    assert!(lines[0].contains("2 Services: 10.5 conn/s"), "{lines:#?}");
    assert!(lines[1].contains("CONN/S▼"), "{lines:#?}");
    assert!(
        lines[2].contains("web-00002") && lines[2].contains("10.0"),
        "{lines:#?}"
    );
    assert!(
        lines[3].contains("web-00001") && lines[3].contains("0.5"),
        "{lines:#?}"
    );
    type_text(&mut state, "t");
    let lines = shown(&mut state);
    assert!(
        lines[1].contains("TOTAL▼") && lines[2].contains("web-00001"),
        "{lines:#?}"
    );
    type_text(&mut state, "t");
    let lines = shown(&mut state);
    assert!(
        lines[1].contains("TOTAL▲") && lines[2].contains("web-00002"),
        "{lines:#?}"
    );
    type_text(&mut state, "n");
    assert!(shown(&mut state)[2].contains("web-00001"));
}

#[test]
fn rates_are_of_each_frontend() {
    let mut state = State::default();
    let both = |first, second| {
        let other = FrontendSample {
            service: "shop/web-00001".into(),
            ..frontend(2, second)
        };
        sample(vec![frontend(1, first), other])
    };
    state.take(both(50, 10), 0.0);
    // One goes on, the other was made anew and has counted 3 since.
    state.take(both(55, 3), 1.0);
    let lines = shown(&mut state);
    assert!(lines[0].contains("1 Services: 8.0 conn/s"), "{lines:#?}");
    // A Service that is gone is gone, and one that comes has counted since it came.
    state.take(sample(vec![frontend(3, 4)]), 1.0);
    let lines = shown(&mut state);
    assert!(
        lines[2].contains("web-00003") && lines[2].contains("4.0"),
        "{lines:#?}"
    );
    assert_eq!(lines[3], "");
}

#[test]
fn a_filter_is_typed_and_dropped() {
    let mut state = State::default();
    state.take(
        sample((0..5).map(|number| frontend(number, 0)).collect()),
        0.0,
    );
    type_text(&mut state, "/WEB-00003");
    let lines = shown(&mut state);
    assert!(lines[0].starts_with("1 of 5 Services"), "{lines:#?}");
    assert!(
        lines[2].contains("web-00003") && lines[3].is_empty(),
        "{lines:#?}"
    );
    assert!(lines[11].starts_with("/WEB-00003"), "{lines:#?}");
    state.press(Key::Backspace);
    state.press(Key::Backspace);
    assert!(shown(&mut state)[0].starts_with("5 Services"));
    // Letters are text while they are typed, `q` too.
    type_text(&mut state, "q");
    assert!(shown(&mut state)[0].starts_with("0 of 5 Services"));
    state.press(Key::Enter);
    assert!(shown(&mut state)[11].contains("/WEB-000q"));
    state.press(Key::Escape);
    assert!(shown(&mut state)[0].starts_with("5 Services"));
    assert_eq!(state.press(Key::Char('q')), Next::Quit);
}

#[test]
fn enter_goes_into_the_backends_and_escape_back() {
    let mut state = State::default();
    state.take(sample(vec![frontend(1, 0), frontend(2, 0)]), 0.0);
    state.press(Key::Move(1));
    assert_eq!(state.press(Key::Enter), Next::Read);
    assert_eq!(state.focus.as_deref(), Some("shop/web-00002"));
    let with = |counts: [u64; 2]| Sample {
        backends: vec![backend(1, counts[0]), backend(2, counts[1])],
        ..sample(vec![frontend(1, 0), frontend(2, 0)])
    };
    state.take(with([5, 5]), 0.1);
    state.take(with([6, 9]), 1.0);
    let lines = shown(&mut state);
    assert!(
        lines[0].starts_with("shop/web-00002: 2 backends: 5.0 conn/s"),
        "{lines:#?}"
    );
    assert!(lines[2].contains("10.1.0.2:8080 (http)"), "{lines:#?}");
    assert!(
        lines[2].contains("Active") && lines[2].contains("other"),
        "{lines:#?}"
    );
    assert!(
        lines[3].contains("10.1.0.1:8080") && lines[3].contains("this"),
        "{lines:#?}"
    );
    state.press(Key::Escape);
    assert!(shown(&mut state)[0].starts_with("2 Services"));
}

#[test]
fn ten_thousand_services_are_scrolled_and_only_what_fits_is_drawn() {
    const COUNT: u32 = 10_000;
    let all = |tick: u32| {
        let frontends = (0..COUNT).map(|number| frontend(number, u64::from(number * tick)));
        sample(frontends.collect())
    };
    let mut state = State::default();
    let began = Instant::now();
    for tick in 0..3 {
        state.take(all(tick), 1.0);
        let lines = shown(&mut state);
        assert!(lines[0].starts_with("10000 Services"), "{lines:#?}");
    }
    let lines = shown(&mut state);
    assert!(
        lines[2].contains("web-09999") && lines[2].contains("9999.0"),
        "{lines:#?}"
    );
    // Nine rows fit: two pages on, the chosen row is the last of the window.
    state.press(Key::Page(1));
    state.press(Key::Page(1));
    let lines = shown(&mut state);
    assert!(
        lines[2].contains("web-09989") && lines[10].contains("web-09981"),
        "{lines:#?}"
    );
    type_text(&mut state, "G");
    let lines = shown(&mut state);
    assert!(
        lines[10].contains("web-00000") && lines[11].starts_with("q quit"),
        "{lines:#?}"
    );
    // The chosen row stays chosen while others move around it.
    type_text(&mut state, "n");
    let lines = shown(&mut state);
    assert!(lines[2].contains("web-00000"), "{lines:#?}");
    // Unoptimized, and on a busy machine.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn sparklines_are_as_wide_as_their_column() {
    let line = sparkline(&[0.0, 1.0, 8.0]);
    assert_eq!(line.chars().count(), HISTORY);
    assert!(line.ends_with(" ▁█"), "{line:?}");
    assert_eq!(sparkline(&[0.001, 100.0]).trim_start(), "▁█");
    assert_eq!(sparkline(&[]).trim(), "");
}

#[test]
fn trouble_is_told_until_the_next_reading() {
    let mut state = State {
        trouble: Some("opening the pin x".to_owned()),
        ..State::default()
    };
    assert!(shown(&mut state)[0].contains("opening the pin x"));
    state.take(
        Sample {
            has_names: false,
            ..sample(Vec::new())
        },
        1.0,
    );
    assert!(shown(&mut state)[0].contains("no agent answers"));
    assert_eq!(state.press(Key::Enter), Next::Draw);
}
