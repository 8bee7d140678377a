//! What serde calls things in JSON, by its attributes: a field may be written under one name and read under
//! several.

use syn::{
    Attribute, Error, Expr, Ident, LitStr, Result, Token, Type, meta::ParseNestedMeta,
    parse::ParseStream, token::Paren,
};

/// What `#[serde(...)]` says about a type, a variant or a field.
#[derive(Default)]
pub(crate) struct Serde {
    serialized: Option<String>,
    deserialized: Option<String>,
    aliases: Vec<String>,
    /// For the fields of a struct or variant, or for the variants of an enum.
    pub(crate) rename_all: Rules,
    /// For the fields of all variants.
    pub(crate) rename_all_fields: Rules,
    pub(crate) is_flattened: bool,
    skips: [bool; 2],
    pub(crate) is_transparent: bool,
    pub(crate) is_untagged: bool,
    pub(crate) tag: Option<String>,
    pub(crate) content: Option<String>,
    /// The types that are written and read in its place.
    pub(crate) in_its_place: Vec<Type>,
}

/// How names are made, when they are written and when they are read.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rules([Option<Rule>; 2]);

#[derive(Clone, Copy)]
enum Rule {
    Lower,
    Upper,
    Pascal,
    Camel,
    Snake,
    ScreamingSnake,
    Kebab,
    ScreamingKebab,
}

impl Serde {
    pub(crate) fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut serde = Self::default();
        for attribute in attributes {
            if attribute.path().is_ident("serde") {
                attribute.parse_nested_meta(|meta| serde.take(&meta))?;
            }
        }
        Ok(serde)
    }

    /// Takes what matters here. What serde does not know, it says itself.
    fn take(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        match meta.path.get_ident().map(Ident::to_string).as_deref() {
            Some("rename") => {
                let [serialized, deserialized] = both(meta)?;
                self.serialized = serialized.or(self.serialized.take());
                self.deserialized = deserialized.or(self.deserialized.take());
            }
            Some("alias") => self.aliases.push(text(meta)?),
            Some("rename_all") => self.rename_all = Rules::read(meta)?,
            Some("rename_all_fields") => self.rename_all_fields = Rules::read(meta)?,
            Some("flatten") => self.is_flattened = true,
            Some("skip") => self.skips = [true; 2],
            Some("skip_serializing") => self.skips[0] = true,
            Some("skip_deserializing") => self.skips[1] = true,
            Some("transparent") => self.is_transparent = true,
            Some("untagged") => self.is_untagged = true,
            Some("tag") => self.tag = Some(text(meta)?),
            Some("content") => self.content = Some(text(meta)?),
            Some("into" | "from" | "try_from") => {
                let name: LitStr = meta.value()?.parse()?;
                self.in_its_place.push(name.parse()?);
            }
            _ => pass_over(meta.input)?,
        }
        Ok(())
    }

    /// It is neither written nor read.
    pub(crate) fn is_skipped(&self) -> bool {
        self.skips == [true; 2]
    }

    /// The names of a field.
    pub(crate) fn of_field(self, field: &Ident, rules: Rules) -> Vec<String> {
        self.names(field, rules, Rule::of_field)
    }

    /// The names of a variant.
    pub(crate) fn of_variant(self, variant: &Ident, rules: Rules) -> Vec<String> {
        self.names(variant, rules, Rule::of_variant)
    }

    fn names(self, of: &Ident, rules: Rules, apply: fn(Rule, &str) -> String) -> Vec<String> {
        let own = of.to_string();
        let own = own.trim_start_matches("r#");
        let made = |rule: Option<Rule>| rule.map_or_else(|| own.to_owned(), |it| apply(it, own));
        let mut names = vec![self.serialized.unwrap_or_else(|| made(rules.0[0]))];
        let others = [self.deserialized.unwrap_or_else(|| made(rules.0[1]))];
        for other in others.into_iter().chain(self.aliases) {
            if !names.contains(&other) {
                names.push(other);
            }
        }
        names
    }
}

/// `= "both"`, or `(serialize = "one", deserialize = "other")`.
fn both(meta: &ParseNestedMeta<'_>) -> Result<[Option<String>; 2]> {
    if meta.input.peek(Token![=]) {
        let both = text(meta)?;
        return Ok([Some(both.clone()), Some(both)]);
    }
    let mut found = [None, None];
    meta.parse_nested_meta(|meta| {
        match meta.path.get_ident().map(Ident::to_string).as_deref() {
            Some("serialize") => found[0] = Some(text(&meta)?),
            Some("deserialize") => found[1] = Some(text(&meta)?),
            _ => pass_over(meta.input)?,
        }
        Ok(())
    })?;
    Ok(found)
}

fn text(meta: &ParseNestedMeta<'_>) -> Result<String> {
    let literal: LitStr = meta.value()?.parse()?;
    Ok(literal.value())
}

fn pass_over(input: ParseStream<'_>) -> Result<()> {
    if input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        input.parse::<Expr>()?;
    } else if input.peek(Paren) {
        let inside;
        syn::parenthesized!(inside in input);
        inside.parse::<proc_macro2::TokenStream>()?;
    }
    Ok::<(), Error>(())
}

impl Rules {
    fn read(meta: &ParseNestedMeta<'_>) -> Result<Self> {
        let named = both(meta)?;
        Ok(Self(named.map(|name| Rule::named(&name?))))
    }

    /// These, or if there are none, those.
    pub(crate) fn or(self, others: Self) -> Self {
        let [serialized, deserialized] = self.0;
        Self([serialized.or(others.0[0]), deserialized.or(others.0[1])])
    }
}

impl Rule {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lowercase" => Self::Lower,
            "UPPERCASE" => Self::Upper,
            "PascalCase" => Self::Pascal,
            "camelCase" => Self::Camel,
            "snake_case" => Self::Snake,
            "SCREAMING_SNAKE_CASE" => Self::ScreamingSnake,
            "kebab-case" => Self::Kebab,
            "SCREAMING-KEBAB-CASE" => Self::ScreamingKebab,
            _ => return None,
        })
    }

    /// What it makes of `order_id`.
    fn of_field(self, name: &str) -> String {
        let pascal = || -> String { name.split('_').map(with_a_capital).collect() };
        match self {
            Self::Lower | Self::Snake => name.to_owned(),
            Self::Upper | Self::ScreamingSnake => name.to_ascii_uppercase(),
            Self::Pascal => pascal(),
            Self::Camel => without_a_capital(&pascal()),
            Self::Kebab => name.replace('_', "-"),
            Self::ScreamingKebab => name.to_ascii_uppercase().replace('_', "-"),
        }
    }

    /// What it makes of `OrderPlaced`.
    fn of_variant(self, name: &str) -> String {
        let snake = || {
            let mut snake = String::new();
            for (at, character) in name.char_indices() {
                if at > 0 && character.is_uppercase() {
                    snake.push('_');
                }
                snake.push(character.to_ascii_lowercase());
            }
            snake
        };
        match self {
            Self::Lower => name.to_ascii_lowercase(),
            Self::Upper => name.to_ascii_uppercase(),
            Self::Pascal => name.to_owned(),
            Self::Camel => without_a_capital(name),
            Self::Snake => snake(),
            Self::ScreamingSnake => snake().to_ascii_uppercase(),
            Self::Kebab => snake().replace('_', "-"),
            Self::ScreamingKebab => snake().to_ascii_uppercase().replace('_', "-"),
        }
    }
}

fn with_a_capital(word: &str) -> String {
    let mut characters = word.chars();
    let first = characters.next().map(|it| it.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

fn without_a_capital(word: &str) -> String {
    let mut characters = word.chars();
    let first = characters.next().map(|it| it.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}
