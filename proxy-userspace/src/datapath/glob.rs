//! Patterns of interface names.

/// True if `name` matches `glob`, where `*` stands for any text and `?` for one character.
pub(super) fn matches(glob: &str, name: &str) -> bool {
    let mut rest = glob.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter()
                .any(|at| matches(rest.as_str(), &name[at..]))
        }
        Some(wanted) => {
            let mut name = name.chars();
            let found = name.next();
            found.is_some_and(|found| wanted == '?' || wanted == found)
                && matches(rest.as_str(), name.as_str())
        }
    }
}
