//! Label selectors as text, in kubectl's grammar.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector};

/// Parses `app=web,tier!=cache,env in (a,b),env notin (c),canary,!debug`.
pub fn parse(text: &str) -> Result<LabelSelector, String> {
    let requirements = split(text).into_iter().map(|part| requirement(part.trim()));
    let expressions = requirements.collect::<Option<Vec<Expression>>>();
    let expressions = expressions
        .ok_or_else(|| format!("{text:?} is not a label selector such as app=web or 'app in (web,api),!canary'"))?;
    let required = expressions.iter().filter(|expression| matches!(expression, Expression::Equal(..))).count();
    let selector = LabelSelector::from(expressions.into_iter().collect::<Selector>());
    // A map has one value per label: the other one would be lost.
    if selector.match_labels.as_ref().map_or(0, BTreeMap::len) < required {
        return Err(format!("{text:?} requires two values of one label, and matches nothing: use 'LABEL in (A,B)'"));
    }
    Ok(selector)
}

/// Text of a selector, as kubectl shows it.
pub fn text(selector: &LabelSelector) -> String {
    match Selector::try_from(selector.clone()) {
        Ok(selector) if selector.selects_all() => "every pod".to_owned(),
        Ok(selector) => selector.to_string(),
        Err(error) => error.to_string(),
    }
}

/// At the commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(text: &str) -> Option<Expression> {
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Expression::NotEqual(key_of(key)?, value_of(value)?));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Expression::Equal(key_of(key)?, value_of(value)?));
    }
    if let Some((key, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(value_of).collect::<Option<_>>()?;
        let (key, operator) = key.trim_end().rsplit_once(' ')?;
        return match operator {
            "in" => Some(Expression::In(key_of(key)?, values)),
            "notin" => Some(Expression::NotIn(key_of(key)?, values)),
            _ => None,
        };
    }
    match text.strip_prefix('!') {
        Some(key) => Some(Expression::DoesNotExist(key_of(key)?)),
        None => Some(Expression::Exists(key_of(text)?)),
    }
}

/// A key of a label: a name of up to 63 characters, after a DNS name and a slash or not.
fn key_of(text: &str) -> Option<String> {
    let text = text.trim();
    let (prefix, name) = text.rsplit_once('/').unwrap_or(("-", text));
    let is_prefix = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    (is_prefix && !name.is_empty() && is_label(name)).then(|| text.to_owned())
}

fn value_of(text: &str) -> Option<String> {
    let text = text.trim();
    is_label(text).then(|| text.to_owned())
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selectors_of_kubectl() {
        for (written, shown) in [
            ("app=web", "app=web"),
            ("app==web", "app=web"),
            ("app=", "app="),
            ("app=web, tier!=cache", "app=web,tier notin (cache)"),
            ("env in (a, b),!debug", "env in (a,b),!debug"),
            ("env notin (c),canary", "env notin (c),canary"),
            ("app.kubernetes.io/name=web", "app.kubernetes.io/name=web"),
        ] {
            assert_eq!(parse(written).map(|selector| text(&selector)), Ok(shown.to_owned()), "{written}");
        }
        for wrong in [
            "",
            ",",
            "app=web,",
            "a b",
            "app of (a)",
            "app in a",
            "=web",
            "app=we b",
            "/app=web",
            "app in (a",
            "a=b=c",
            "a=b,a=c",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_means_the_same(text_ in "[a-c!=(), ]{0,20}|[a-c]{1,3}( in | notin )\\([a-c](,[a-c]){0,2}\\)") {
            if let Ok(selector) = parse(&text_) {
                prop_assert_eq!(parse(&text(&selector)), Ok(selector));
            }
        }
    }
}
