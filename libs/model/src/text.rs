//! How much of a text a status shows: other clusters' records are quoted there, and must not swell it.

/// Returns `text`, or its first `most` bytes and a mark that there was more.
pub fn clipped(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{} [...]", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(clipped("short", 5), "short");
        assert_eq!(clipped("longer", 4), "long [...]");
        assert_eq!(clipped("aéé", 2), "a [...]");
        assert_eq!(clipped("é", 0), " [...]");
    }
}
