//! Topic matching: `*` is one word, `#` is any number of words, words are separated by dots.
//!
//! Patterns form a trie, and a key walks all paths that fit at once, as a set of nodes: each word of
//! the key moves the set one step. A node is in the set at most once, so the cost of a match is at
//! most (words of the key) x (nodes of the trie) whatever the patterns; the textbook recursion is
//! exponential in the number of `#`.

use std::collections::HashMap;

use bytes::Bytes;

use crate::exchange::Targets;

const ROOT: u32 = 0;

#[derive(Debug)]
pub(crate) struct TopicIndex {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Node {
    words: HashMap<Bytes, u32>,
    star: Option<u32>,
    hash: Option<u32>,
    /// Reached by `#`: stays in the set whatever word comes.
    is_hash: bool,
    targets: Targets,
}

impl Node {
    fn is_bare(&self) -> bool {
        let leaf = self.words.is_empty() && self.star.is_none() && self.hash.is_none();
        leaf && self.targets.is_empty()
    }

    fn child(&self, word: &[u8]) -> Option<u32> {
        match word {
            b"*" => self.star,
            b"#" => self.hash,
            _ => self.words.get(word).copied(),
        }
    }
}

impl Default for TopicIndex {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
        }
    }
}

impl TopicIndex {
    /// The targets bound with `pattern`, to add to.
    pub(crate) fn targets_mut(&mut self, pattern: &Bytes) -> &mut Targets {
        let mut at = ROOT;
        for word in pattern_words(pattern) {
            at = match self.nodes[at as usize].child(word) {
                Some(child) => child,
                None => self.grow(at, pattern.slice_ref(word)),
            };
        }
        &mut self.nodes[at as usize].targets
    }

    fn grow(&mut self, parent: u32, word: Bytes) -> u32 {
        let node = Node {
            is_hash: word == "#",
            ..Node::default()
        };
        let child = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 patterns")
            }
        };
        let parent = &mut self.nodes[parent as usize];
        match &word[..] {
            b"*" => parent.star = Some(child),
            b"#" => parent.hash = Some(child),
            _ => {
                parent.words.insert(Bytes::copy_from_slice(&word), child);
            }
        }
        child
    }

    /// Changes the targets bound with `pattern` and forgets the nodes that are no longer needed.
    pub(crate) fn shrink(&mut self, pattern: &Bytes, change: impl FnOnce(&mut Targets)) {
        let mut path = Vec::new();
        let mut at = ROOT;
        for word in pattern_words(pattern) {
            let Some(child) = self.nodes[at as usize].child(word) else {
                return;
            };
            path.push((at, word));
            at = child;
        }
        change(&mut self.nodes[at as usize].targets);
        while let Some((parent, word)) = path.pop() {
            if !self.nodes[at as usize].is_bare() {
                return;
            }
            self.free.push(at);
            let parent_node = &mut self.nodes[parent as usize];
            match word {
                b"*" => parent_node.star = None,
                b"#" => parent_node.hash = None,
                _ => {
                    parent_node.words.remove(word);
                }
            }
            at = parent;
        }
    }

    /// Calls `found` with the targets of every pattern that `key` matches.
    pub(crate) fn matches(&self, key: &[u8], mut found: impl FnMut(&Targets)) {
        let mut active = Vec::with_capacity(8);
        let mut next = Vec::with_capacity(8);
        self.enter(ROOT, &mut active);
        let words = (!key.is_empty()).then(|| key.split(|&byte| byte == b'.'));
        for word in words.into_iter().flatten() {
            for &at in &active {
                let node = &self.nodes[at as usize];
                if node.is_hash {
                    next.push(at);
                }
                let literal = node.words.get(word).copied();
                for child in literal.into_iter().chain(node.star) {
                    self.enter(child, &mut next);
                }
            }
            next.sort_unstable();
            next.dedup();
            std::mem::swap(&mut active, &mut next);
            next.clear();
        }
        for &at in &active {
            found(&self.nodes[at as usize].targets);
        }
    }

    /// Adds a node, and the one behind its `#`, which may match no word at all.
    fn enter(&self, at: u32, set: &mut Vec<u32>) {
        set.push(at);
        set.extend(self.nodes[at as usize].hash);
    }
}

/// The words of a pattern. `#.#` matches what `#` matches, so it is the same pattern.
fn pattern_words(pattern: &Bytes) -> impl Iterator<Item = &[u8]> {
    let words = (!pattern.is_empty()).then(|| pattern.split(|&byte| byte == b'.'));
    let mut after_hash = false;
    words.into_iter().flatten().filter(move |word| {
        let repeated = after_hash && *word == b"#";
        after_hash = *word == b"#";
        !repeated
    })
}
