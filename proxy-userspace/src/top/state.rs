//! What is on the screen: rates from two samples, and what the keys have chosen.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use super::columns::{COUNTERS, Column, Counter, Counts, HISTORY, OF_BACKENDS, OF_SERVICES};
use super::sample::Sample;
use crate::agent::view::Dialed;

/// A line of a list.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Service, or backend.
    pub name: Arc<str>,
    /// What else is known of it, as text.
    pub tags: Vec<String>,
    /// Counts.
    counts: Counts,
    /// Counts a second, between the last two samples.
    rates: [f64; COUNTERS],
    /// Connections a second, the newest last.
    pub history: Vec<f64>,
}

impl Row {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            tags: Vec::new(),
            counts: [0; COUNTERS],
            rates: [0.0; COUNTERS],
            history: Vec::new(),
        }
    }

    /// A count.
    pub fn count(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// A count a second.
    pub fn rate(&self, counter: Counter) -> f64 {
        self.rates[counter as usize]
    }

    /// A text, or nothing.
    pub fn tag(&self, index: usize) -> String {
        self.tags.get(index).cloned().unwrap_or_default()
    }

    fn note_history(&mut self) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(self.rate(Counter::Connections));
    }
}

/// What was counted of one thing: it began at 0 when it was made.
type Last<K> = HashMap<K, Counts>;

/// Rows of one kind, with the counts that their rates are taken from.
#[derive(Debug)]
pub struct List<K> {
    columns: &'static [Column],
    rows: HashMap<Arc<str>, Row>,
    last: Last<K>,
    /// Names of the rows that the filter lets through, in their order.
    order: Vec<Arc<str>>,
    sort: usize,
    is_reversed: bool,
    filter: String,
    /// Name of the chosen row, which keeps being chosen wherever it moves; `None`: whichever is the
    /// first.
    chosen: Option<Arc<str>>,
    /// Index of the first row that is shown.
    first: usize,
    has_sample: bool,
}

impl<K: Eq + Hash> List<K> {
    fn new(columns: &'static [Column], sort: usize) -> Self {
        Self {
            columns,
            rows: HashMap::new(),
            last: HashMap::new(),
            order: Vec::new(),
            sort,
            is_reversed: false,
            filter: String::new(),
            chosen: None,
            first: 0,
            has_sample: false,
        }
    }

    /// Takes a reading, so many seconds after the one before.
    fn take(&mut self, found: impl Iterator<Item = (K, Arc<str>, Vec<String>, Counts)>, secs: f64) {
        let mut last = Last::new();
        let mut seen = HashSet::new();
        for row in self.rows.values_mut() {
            (row.counts, row.rates) = ([0; COUNTERS], [0.0; COUNTERS]);
        }
        for (key, name, tags, counts) in found {
            let before = self.last.get(&key).copied().unwrap_or_default();
            let row = self.rows.entry(name.clone());
            let row = row.or_insert_with(|| Row::new(name.clone()));
            row.tags = tags;
            for index in 0..COUNTERS {
                // One that was made anew has begun at 0 again.
                let more = counts[index].checked_sub(before[index]);
                let more = more.unwrap_or(counts[index]);
                row.counts[index] += counts[index];
                // Of what was there before the first reading nobody knows when it was counted.
                if self.has_sample && secs > 0.0 {
                    row.rates[index] += more as f64 / secs;
                }
            }
            seen.insert(name);
            last.insert(key, counts);
        }
        self.rows.retain(|name, _| seen.contains(name));
        self.rows.values_mut().for_each(Row::note_history);
        self.last = last;
        self.has_sample = true;
        self.arrange();
    }

    /// Filters and sorts.
    fn arrange(&mut self) {
        let wanted = self.filter.to_lowercase();
        let names = self.rows.keys();
        let names = names.filter(|name| name.to_lowercase().contains(&wanted));
        self.order = names.cloned().collect();
        let (rows, column) = (&self.rows, &self.columns[self.sort]);
        self.order.sort_by(|a, b| {
            let order = column.compare(&rows[a], &rows[b]);
            match self.is_reversed {
                true => order.reverse(),
                false => order,
            }
        });
        let is_there = |chosen: &Arc<str>| self.order.contains(chosen);
        if !self.chosen.as_ref().is_some_and(is_there) {
            self.chosen = None;
        }
    }

    fn sort_by(&mut self, key: char) {
        let Some(index) = self.columns.iter().position(|column| column.key == key) else {
            return;
        };
        self.is_reversed = index == self.sort && !self.is_reversed;
        self.sort = index;
        self.arrange();
    }

    fn filter_by(&mut self, filter: String) {
        self.filter = filter;
        self.arrange();
    }

    /// Index of the chosen row.
    pub fn chosen_index(&self) -> usize {
        let chosen = self.chosen.as_ref();
        let index = chosen.and_then(|chosen| self.order.iter().position(|name| name == chosen));
        index.unwrap_or_default()
    }

    fn chosen_name(&self) -> Option<&Arc<str>> {
        self.chosen.as_ref().or(self.order.first())
    }

    fn move_by(&mut self, rows: isize) {
        let last = self.order.len().saturating_sub(1);
        let index = self.chosen_index().saturating_add_signed(rows).min(last);
        self.chosen = self.order.get(index).filter(|_| index > 0).cloned();
    }

    /// The rows of a window of this height, which is moved so that it holds the chosen one, and the
    /// index of the first.
    pub fn window(&mut self, height: usize) -> (Vec<&Row>, usize) {
        let chosen = self.chosen_index();
        let last = self.order.len().saturating_sub(height);
        let lowest = (chosen + 1).saturating_sub(height);
        self.first = self.first.clamp(lowest, chosen.max(lowest)).min(last);
        let names = self.order.iter().skip(self.first).take(height);
        (names.map(|name| &self.rows[name]).collect(), self.first)
    }

    /// How many rows the filter lets through, and how many there are.
    pub fn sizes(&self) -> (usize, usize) {
        (self.order.len(), self.rows.len())
    }

    /// The sum of a rate over all rows.
    pub fn total_rate(&self, counter: Counter) -> f64 {
        self.rows.values().map(|row| row.rate(counter)).sum()
    }

    /// Its columns, the index of the one that sorts, and whether that is reversed.
    pub fn columns(&self) -> (&'static [Column], usize, bool) {
        (self.columns, self.sort, self.is_reversed)
    }

    /// What names must contain.
    pub fn filter(&self) -> &str {
        &self.filter
    }
}

/// A key, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// A character.
    Char(char),
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Backspace,
    /// So many rows down, or up.
    Move(isize),
    /// So many screens down, or up.
    Page(isize),
    /// Ctrl-C.
    Interrupt,
}

/// What is to be done after a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Draw.
    Draw,
    /// Read at once, for another list is shown.
    Read,
    /// End.
    Quit,
}

/// Everything that the screen shows.
#[derive(Debug)]
pub struct State {
    /// All Services.
    pub services: List<Dialed>,
    /// The backends of one of them.
    pub backends: List<(String, SocketAddr)>,
    /// The Service whose backends are shown.
    pub focus: Option<Arc<str>>,
    /// True while a filter is typed.
    pub is_typing: bool,
    /// What went wrong with the last reading.
    pub trouble: Option<String>,
    /// Whether an agent gave the names.
    pub has_names: bool,
    /// Rows that fit on the screen, since it was drawn last.
    pub page: usize,
}

impl Default for State {
    fn default() -> Self {
        // The rates first: what happens at this moment.
        Self {
            services: List::new(&OF_SERVICES, 1),
            backends: List::new(&OF_BACKENDS, 3),
            focus: None,
            is_typing: false,
            trouble: None,
            has_names: true,
            page: 1,
        }
    }
}

impl State {
    /// Takes a reading, so many seconds after the one before.
    pub fn take(&mut self, sample: Sample, secs: f64) {
        self.trouble = None;
        self.has_names = sample.has_names;
        let frontends = sample.frontends.into_iter();
        let frontends = frontends.map(|it| (it.dialed, it.service, Vec::new(), it.counts));
        self.services.take(frontends, secs);
        if self.focus.is_some() {
            let backends = sample.backends.into_iter().map(|it| {
                let (port, address) = &it.key;
                let name = match port.is_empty() {
                    true => address.to_string(),
                    false => format!("{address} ({port})"),
                };
                let node = if it.is_local { "this" } else { "other" }.to_owned();
                (it.key, name.into(), vec![it.state, node], it.counts)
            });
            self.backends.take(backends, secs);
        }
    }

    /// Does what a key asks for.
    pub fn press(&mut self, key: Key) -> Next {
        match key {
            Key::Interrupt => return Next::Quit,
            Key::Move(rows) => self.move_by(rows),
            Key::Page(pages) => self.move_by(pages.saturating_mul(self.page as isize)),
            key if self.is_typing => self.type_filter(key),
            Key::Char('q') => return Next::Quit,
            Key::Char('/') => self.is_typing = true,
            Key::Char('j') => self.move_by(1),
            Key::Char('k') => self.move_by(-1),
            Key::Char('g') => self.move_by(isize::MIN),
            Key::Char('G') => self.move_by(isize::MAX),
            Key::Char(key) => match self.focus {
                None => self.services.sort_by(key),
                Some(_) => self.backends.sort_by(key),
            },
            Key::Enter => return self.enter(),
            Key::Escape | Key::Backspace => self.leave(),
        }
        Next::Draw
    }

    fn move_by(&mut self, rows: isize) {
        match self.focus {
            None => self.services.move_by(rows),
            Some(_) => self.backends.move_by(rows),
        }
    }

    fn type_filter(&mut self, key: Key) {
        let mut filter = self.filter().to_owned();
        match key {
            Key::Char(character) => filter.push(character),
            Key::Backspace => drop(filter.pop()),
            Key::Escape => {
                filter.clear();
                self.is_typing = false;
            }
            _ => self.is_typing = false,
        }
        match self.focus {
            None => self.services.filter_by(filter),
            Some(_) => self.backends.filter_by(filter),
        }
    }

    /// The filter of the list that is shown.
    pub fn filter(&self) -> &str {
        match self.focus {
            None => self.services.filter(),
            Some(_) => self.backends.filter(),
        }
    }

    fn enter(&mut self) -> Next {
        let chosen = self.services.chosen_name();
        let (None, Some(chosen)) = (&self.focus, chosen) else {
            return Next::Draw;
        };
        self.focus = Some(chosen.clone());
        self.backends = List::new(&OF_BACKENDS, 3);
        Next::Read
    }

    /// First the filter goes, then the list of backends.
    fn leave(&mut self) {
        match self.focus {
            None => self.services.filter_by(String::new()),
            Some(_) if !self.backends.filter().is_empty() => self.backends.filter_by(String::new()),
            Some(_) => self.focus = None,
        }
    }
}
