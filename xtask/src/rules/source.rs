//! Citations in Rust sources: string literals that are nothing but numbers of rules, in a function
//! with `#[test]` or in what such a function uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, Ident, LexError, Literal, TokenStream, TokenTree};

use super::Citation;
use super::book::{self, RuleId};

/// The functions and constants of one package.
#[derive(Default)]
pub struct Package {
    items: Vec<Item>,
    /// Names of modules that are declared.
    modules: BTreeSet<String>,
}

/// A function or a constant.
struct Item {
    path: PathBuf,
    name: String,
    is_test: bool,
    /// Every identifier in it.
    uses: BTreeSet<String>,
    cites: Vec<Cite>,
}

/// A literal in an item.
struct Cite {
    line: usize,
    rules: BTreeSet<RuleId>,
    /// The text before it in the same call or struct: the name of a Case or of a row.
    name: Option<String>,
}

impl Package {
    /// Takes in a file.
    pub fn read(&mut self, path: &Path, text: &str) -> Result<(), LexError> {
        let tokens: TokenStream = text.parse()?;
        self.items_of(path, tokens);
        Ok(())
    }

    /// The tests of one file.
    pub fn tests_in(&self, path: &Path) -> Vec<String> {
        let items = self.items.iter();
        let tests = items.filter(|item| item.is_test && item.path == path);
        tests.map(|item| item.name.clone()).collect()
    }

    /// Every citation, with the tests that reach it.
    pub fn citations(&self) -> Vec<Citation> {
        let citing = self.items.iter().filter(|item| !item.cites.is_empty());
        let mut citations = Vec::new();
        for item in citing {
            let tests = if self.is_compiled(&item.path) {
                self.tests_of(item)
            } else {
                BTreeSet::new()
            };
            for cite in &item.cites {
                let label = match &cite.name {
                    Some(name) if item.is_test => format!("{}: {name}", item.name),
                    Some(name) => name.clone(),
                    None => item.name.clone(),
                };
                citations.push(Citation {
                    path: item.path.clone(),
                    line: cite.line,
                    rules: cite.rules.clone(),
                    label,
                    tests: tests.clone(),
                });
            }
        }
        citations
    }

    /// True for a file that is a program of its own or a module that somebody declares.
    fn is_compiled(&self, path: &Path) -> bool {
        let stem = |path: &Path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        };
        let name = match stem(path).as_deref() {
            Some("main" | "lib") => return true,
            Some("mod") => path.parent().and_then(stem),
            name => name.map(str::to_owned),
        };
        let components: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
        let is_program = components.len() == 3 && components[1] == "tests";
        is_program || name.is_some_and(|name| self.modules.contains(&name))
    }

    /// The tests that use an item, by way of others. Names decide, so two items with one name are
    /// both used.
    fn tests_of(&self, item: &Item) -> BTreeSet<String> {
        if item.is_test {
            return BTreeSet::from([item.name.clone()]);
        }
        let mut users: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
        for user in &self.items {
            for used in &user.uses {
                users.entry(used).or_default().push(user);
            }
        }
        let (mut tests, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut names = vec![item.name.as_str()];
        while let Some(name) = names.pop() {
            if !seen.insert(name) {
                continue;
            }
            for user in users.get(name).into_iter().flatten() {
                if user.is_test {
                    tests.insert(user.name.clone());
                } else {
                    names.push(&user.name);
                }
            }
        }
        tests
    }

    /// Finds the items in `tokens`, also inside of modules, impls and macros.
    fn items_of(&mut self, path: &Path, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let (mut index, mut is_test) = (0, false);
        let is_generic = |index: usize| {
            let before = index.checked_sub(1).and_then(|before| tokens.get(before));
            matches!(before, Some(TokenTree::Punct(sign)) if "<,".contains(sign.as_char()))
        };
        while let Some(token) = tokens.get(index) {
            let next = tokens.get(index + 1);
            index += 1;
            match (token, next) {
                (TokenTree::Punct(sign), Some(TokenTree::Group(group)))
                    if sign.as_char() == '#' =>
                {
                    is_test |= is_test_attribute(group);
                    self.modules.extend(path_attribute(group));
                    index += 1;
                }
                (TokenTree::Ident(word), Some(TokenTree::Ident(name)))
                    if is_item(word, name) && !is_generic(index - 1) =>
                {
                    if word == "mod" {
                        self.modules.insert(name.to_string());
                        continue;
                    }
                    let end = end_of_item(&tokens, index, word);
                    let item = Item::new(path, name, is_test, &tokens[index + 1..end]);
                    self.items.push(item);
                    (index, is_test) = (end, false);
                }
                (TokenTree::Group(group), _) => {
                    self.items_of(path, group.stream());
                    is_test = false;
                }
                _ => {}
            }
        }
    }
}

impl Item {
    fn new(path: &Path, name: &Ident, is_test: bool, tokens: &[TokenTree]) -> Self {
        let mut item = Self {
            path: path.to_owned(),
            name: name.to_string(),
            is_test,
            uses: BTreeSet::new(),
            cites: Vec::new(),
        };
        item.take(tokens.iter().cloned(), &mut None);
        item
    }

    /// Collects identifiers and citations; `text` is the last other literal of the call or struct.
    fn take(&mut self, tokens: impl Iterator<Item = TokenTree>, text: &mut Option<String>) {
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    self.uses.insert(ident.to_string());
                }
                TokenTree::Literal(literal) => self.literal(&literal, text),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                    if let Some(list) = list_of_literals(&group) {
                        self.cite(group.span_open().start().line, list, text);
                    } else {
                        self.take(group.stream().into_iter(), text);
                    }
                }
                TokenTree::Group(group) => {
                    let mut inner = None;
                    self.take(group.stream().into_iter(), &mut inner);
                    // `case(format!("{what}"), &["S-001"])`: text of a call that is an argument.
                    if group.delimiter() == Delimiter::Parenthesis && text.is_none() {
                        *text = inner;
                    }
                }
                TokenTree::Punct(sign) if sign.as_char() == ';' => *text = None,
                TokenTree::Punct(_) => {}
            }
        }
    }

    fn literal(&mut self, literal: &Literal, text: &mut Option<String>) {
        let Some(content) = content(literal) else {
            return;
        };
        match book::list(&content) {
            Some(rules) => self.cite(literal.span().start().line, rules, text),
            None => *text = text.take().or(Some(content)),
        }
    }

    fn cite(&mut self, line: usize, rules: BTreeSet<RuleId>, text: &Option<String>) {
        self.cites.push(Cite {
            line,
            rules,
            name: text.clone(),
        });
    }
}

/// The rules of `["S-001", "S-002"]`; `None` where anything else is in it.
fn list_of_literals(group: &Group) -> Option<BTreeSet<RuleId>> {
    let mut rules = BTreeSet::new();
    for token in group.stream() {
        match token {
            TokenTree::Literal(literal) => rules.append(&mut book::list(&content(&literal)?)?),
            TokenTree::Punct(_) => {}
            TokenTree::Ident(_) | TokenTree::Group(_) => return None,
        }
    }
    (!rules.is_empty()).then_some(rules)
}

/// What stands between plain quotes.
fn content(literal: &Literal) -> Option<String> {
    let source = literal.to_string();
    let content = source.strip_prefix('"')?.strip_suffix('"')?;
    Some(content.to_owned())
}

/// `fn name`, `const NAME`, `static NAME` or `mod name`.
fn is_item(word: &Ident, name: &Ident) -> bool {
    let is_qualifier = ["fn", "unsafe", "extern", "async", "mut"]
        .iter()
        .any(|q| name == q);
    (word == "fn" || word == "mod") || ((word == "const" || word == "static") && !is_qualifier)
}

/// The index after an item: after its body, or after its semicolon.
fn end_of_item(tokens: &[TokenTree], from: usize, word: &Ident) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => word == "fn" && group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(sign) => sign.as_char() == ';',
        _ => false,
    };
    let length = tokens[from..].iter().position(is_end);
    length.map_or(tokens.len(), |length| from + length + 1)
}

/// `[test]`, or a path that ends so.
fn is_test_attribute(group: &Group) -> bool {
    let mut last = None;
    for token in group.stream() {
        match token {
            TokenTree::Ident(ident) => last = Some(ident),
            TokenTree::Group(_) => break,
            _ => {}
        }
    }
    last.is_some_and(|ident| ident == "test")
}

/// The module that `[path = "folder/name.rs"]` names.
fn path_attribute(group: &Group) -> Option<String> {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    let [TokenTree::Ident(word), _, TokenTree::Literal(literal)] = &tokens[..] else {
        return None;
    };
    let file = content(literal).filter(|_| word == "path")?;
    let stem = Path::new(&file).file_stem()?;
    Some(stem.to_string_lossy().into_owned())
}
