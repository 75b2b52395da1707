//! What a plain (unquoted) scalar means: the core schema of YAML 1.2, section 10.3.2, without its traps.

/// Meaning of a plain scalar.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plain {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// Looks like a number, but readers of YAML disagree about it or JSON cannot hold it.
    Unclear(&'static str),
    /// Everything else.
    Text,
}

/// Resolves a plain scalar.
pub(super) fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Plain::Unclear("something that is not a number"),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Plain::Unclear("an infinite number");
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && !digits.is_empty()
            && digits.chars().all(|digit| digit.is_digit(radix))
        {
            return u64::from_str_radix(digits, radix)
                .map_or(Plain::Unclear("a number larger than 64 bits"), |number| Plain::Number(number.into()));
        }
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return integer(text, unsigned);
    }
    if is_float(unsigned) {
        return text
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map_or(Plain::Unclear("a number larger than 64 bits"), Plain::Number);
    }
    Plain::Text
}

/// A decimal number. A leading zero means octal in YAML 1.1 and nothing in YAML 1.2, so it is not guessed.
fn integer(text: &str, unsigned: &str) -> Plain {
    if unsigned.len() > 1 && unsigned.starts_with('0') {
        return Plain::Unclear("a number with a leading zero (octal to some)");
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    match (text.parse::<i64>(), text.parse::<u64>()) {
        (Ok(number), _) => Plain::Number(number.into()),
        (_, Ok(number)) => Plain::Number(number.into()),
        _ => Plain::Unclear("a number larger than 64 bits"),
    }
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| !exponent.is_empty() && digits(exponent))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_mean_what_yaml_1_2_says() {
        for text in ["", "~", "null"] {
            assert_eq!(resolve(text), Plain::Null, "{text}");
        }
        for (text, number) in [
            ("0", json!(0)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("18446744073709551615", json!(u64::MAX)),
            ("0x1a62", json!(6754)),
            ("0o17", json!(15)),
            ("2026.06", json!(2026.06)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("-1.", json!(-1.0)),
        ] {
            assert_eq!(resolve(text), Plain::Number(serde_json::from_value(number).unwrap_or(0.into())), "{text}");
        }
        for text in ["0600", "-007", ".inf", "-.INF", ".nan", "18446744073709551616", "0xfffffffffffffffff", "1e999"] {
            assert!(matches!(resolve(text), Plain::Unclear(_)), "{text}");
        }
        for text in [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "9.x",
            "1_000",
            "12:30",
            "2000-2099",
            "0x",
            "0b1",
            ".",
            "-",
            "+",
            "e5",
            "1e",
            "2026-06-01",
            "02:00:00:00:00:01",
            "192.168.20.10",
            "..",
            "1.2.3",
        ] {
            assert_eq!(resolve(text), Plain::Text, "{text}");
        }
    }
}
