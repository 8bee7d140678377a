//! Which fields of a message's body are not to be shown: passwords, tokens of cards, addresses.
//!
//! The body itself is not changed. Whoever shows bodies to people (the `tidings` command, say) leaves these
//! values out. A field is named by its path in the JSON: the names on the way to it with a `.` between them.
//! A list has no name of its own: the path `items.card` is the card of each item. `*` is every name of an
//! object that has the same kind of value under each, as a map has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    marker::PhantomData,
    rc::Rc,
    sync::Arc,
};

/// A type that marks some of its fields as sensitive: a message, or a part of one.
///
/// `#[derive(Event)]` and `#[derive(Command)]` write it for messages; derive it for their parts. A field is
/// marked with `#[tidings(sensitive)]`. Fields whose type is a part (or an `Option`, list or map of one) are
/// looked into without being marked.
pub trait Sensitive {
    /// Tells the paths of its sensitive fields.
    fn sensitive(into: &mut SensitivePaths);
}

/// The paths of sensitive fields, as they are collected from types.
#[derive(Debug, Default)]
pub struct SensitivePaths {
    found: BTreeSet<String>,
    prefix: Vec<String>,
    /// The types that are being looked into.
    within: Vec<Within>,
}

/// A type that is being looked into.
#[derive(Debug)]
struct Within {
    name: &'static str,
    /// Where it is again within itself.
    again: Vec<String>,
    /// How many paths were found before it.
    found_before: usize,
}

impl SensitivePaths {
    /// The paths that a type marks, sorted.
    pub fn of<T: Sensitive + ?Sized>() -> Vec<String> {
        let mut paths = Self::default();
        paths.within::<T>();
        paths.found.into_iter().collect()
    }

    /// Everything where it is now.
    pub fn mark(&mut self) {
        self.found.insert(self.prefix.join("."));
    }

    /// What `look` tells is under this name; under each of them, if it is read under several.
    pub fn under(&mut self, names: &[&str], look: impl Fn(&mut Self)) {
        for name in names {
            self.prefix.push(escaped(name));
            look(self);
            self.prefix.pop();
        }
    }

    /// What `look` tells is under every name.
    fn under_all(&mut self, look: impl Fn(&mut Self)) {
        self.prefix.push("*".into());
        look(self);
        self.prefix.pop();
    }

    /// What `T` tells is here. Where a type is within itself, as in a tree, the paths have no end: from there
    /// on everything is sensitive, if anything of the type is.
    fn within<T: Sensitive + ?Sized>(&mut self) {
        let name = std::any::type_name::<T>();
        let here = self.prefix.join(".");
        if let Some(within) = self.within.iter_mut().find(|it| it.name == name) {
            return within.again.push(here);
        }
        self.within.push(Within {
            name,
            again: Vec::new(),
            found_before: self.found.len(),
        });
        T::sensitive(self);
        if let Some(within) = self.within.pop()
            && self.found.len() > within.found_before
        {
            self.found.extend(within.again);
        }
    }
}

/// A name as a part of a path: what has a meaning there is preceded by a `\`.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    if name == "*" {
        escaped.push('\\');
    }
    for character in name.chars() {
        if matches!(character, '.' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// The value of a field, which may be of a type that marks fields. For the derives.
#[doc(hidden)]
#[derive(Debug)]
pub struct FieldOf<T: ?Sized>(PhantomData<T>);

impl<T: ?Sized> FieldOf<T> {
    #[doc(hidden)]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: ?Sized> Default for FieldOf<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Sensitive + ?Sized> FieldOf<T> {
    /// Looks into it. It is found before [`NotMarked::look`], if the type marks fields.
    #[doc(hidden)]
    pub fn look(&self, into: &mut SensitivePaths) {
        into.within::<T>();
    }
}

/// The value of a field of any other type. For the derives.
#[doc(hidden)]
pub trait NotMarked {
    #[doc(hidden)]
    fn look(&self, _: &mut SensitivePaths) {}
}

impl<T: ?Sized> NotMarked for FieldOf<T> {}

macro_rules! as_what_they_hold {
    ($($container:ty;)+) => {$(
        impl<T: Sensitive> Sensitive for $container {
            fn sensitive(into: &mut SensitivePaths) {
                into.within::<T>();
            }
        }
    )+};
}

as_what_they_hold! {
    Box<T>;
    Rc<T>;
    Arc<T>;
    Option<T>;
    Vec<T>;
    VecDeque<T>;
    BTreeSet<T>;
    [T];
}

impl<T: Sensitive, const N: usize> Sensitive for [T; N] {
    fn sensitive(into: &mut SensitivePaths) {
        into.within::<T>();
    }
}

impl<T: Sensitive, S> Sensitive for std::collections::HashSet<T, S> {
    fn sensitive(into: &mut SensitivePaths) {
        into.within::<T>();
    }
}

impl<K, T: Sensitive> Sensitive for BTreeMap<K, T> {
    fn sensitive(into: &mut SensitivePaths) {
        into.under_all(SensitivePaths::within::<T>);
    }
}

impl<K, T: Sensitive, S> Sensitive for HashMap<K, T, S> {
    fn sensitive(into: &mut SensitivePaths) {
        into.under_all(SensitivePaths::within::<T>);
    }
}
