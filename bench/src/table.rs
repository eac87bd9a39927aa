//! Tables that can be read in a terminal and pasted into a Markdown page, and numbers as they stand in them.

use std::fmt::Write;

/// Renders rows below a header; the first column is aligned to the left, all others to the right.
///
/// # Panics
///
/// If a row has more cells than the header.
pub(crate) fn render(header: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(cell.chars().count());
        }
    }
    let mut text = String::new();
    line(&mut text, header, &widths);
    for (column, &width) in widths.iter().enumerate() {
        let rule = "-".repeat(width);
        let _ = if column == 0 { write!(text, "|-{rule}-") } else { write!(text, "|-{rule}:") };
    }
    text.push_str("|\n");
    for row in rows {
        line(&mut text, row, &widths);
    }
    text
}

fn line(text: &mut String, cells: &[String], widths: &[usize]) {
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        let _ = if column == 0 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
    }
    text.push_str("|\n");
}

/// Writes a number with about three digits that count.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.0995 || size == 0.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = render(&cells(&["who", "µs"]), &[cells(&["raw", "-"]), cells(&["wireguard-go", "300"])]);
        let wanted = "\
| who          |  µs |
|--------------|----:|
| raw          |   - |
| wireguard-go | 300 |
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let numbers = [25_123.4, 99.96, 14.52, 9.996, 2.345, 0.061, 0.0, 0.0996];
        assert_eq!(numbers.map(number), ["25123", "100", "14.5", "10.0", "2.35", "0.061", "0.00", "0.10"]);
    }
}
