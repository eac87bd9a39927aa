//! Decides how rows look on a terminal: columns aligned, three spaces apart, nothing after the last one.

/// A colour of a terminal; the numbers are those of ECMA-48 (SGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
}

impl Colour {
    fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
        }
    }
}

/// One field of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub(crate) fn coloured(text: &str, colour: Colour) -> Self {
        Self { text: printable(text), colour: Some(colour) }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: printable(text), colour: None }
    }
}

/// Returns `text` with control characters spelt out: what another cluster wrote must not steer this terminal.
pub(crate) fn printable(text: &str) -> String {
    let spelt = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(spelt).collect()
}

/// Returns lines with all control characters but their ends spelt out.
pub(crate) fn lines(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

/// Returns the lines of a table; colours only if `colours`.
pub(crate) fn render<const N: usize>(headers: [&str; N], rows: &[[Cell; N]], colours: bool) -> String {
    let mut widths = headers.map(width);
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(&cell.text));
        }
    }
    let mut text = line(&headers.map(Cell::from), &widths, false);
    for row in rows {
        text += &line(row, &widths, colours);
    }
    text
}

fn line<const N: usize>(row: &[Cell; N], widths: &[usize; N], colours: bool) -> String {
    let mut text = String::new();
    for (position, (cell, widest)) in row.iter().zip(widths).enumerate() {
        match cell.colour.filter(|_| colours) {
            Some(colour) => text += &format!("\x1b[{}m{}\x1b[0m", colour.code(), cell.text),
            None => text += &cell.text,
        }
        if position + 1 < N {
            text += &" ".repeat(widest - width(&cell.text) + 3);
        }
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".into(), "bb".into(), "c".into()], ["äöüäöü".into(), "".into(), "".into()]];
        assert_eq!(
            render(["ONE", "2", "THREE"], &rows, false),
            "ONE      2    THREE\n\
             a        bb   c\n\
             äöüäöü\n"
        );
    }

    #[test]
    fn colours_appear_only_when_asked_for_and_take_no_room() {
        let rows = [[Cell::coloured("up", Colour::Green), "x".into()]];
        assert_eq!(render(["S", "T"], &rows, false), "S    T\nup   x\n");
        assert_eq!(render(["S", "T"], &rows, true), "S    T\n\x1b[32mup\x1b[0m   x\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let rows = [["\x1b[2Jgone\n".into()]];
        assert_eq!(render(["HOST"], &rows, true), "HOST\n\\u{1b}[2Jgone\\n\n");
    }
}
