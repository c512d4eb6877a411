//! A table of figures, for the terminal and for a page.

pub struct Table {
    pub title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Words are aligned to the left, numbers to the right.
    words: bool,
}

impl Table {
    pub fn new(title: impl Into<String>, header: &[&str]) -> Table {
        Table {
            title: title.into(),
            header: header.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
            words: false,
        }
    }

    pub fn in_words(mut self) -> Table {
        self.words = true;
        self
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A row for one that has no figures. It says why.
    pub fn not_run(&mut self, name: &str, reason: &str) {
        self.row(vec![name.to_owned(), format!("not run: {reason}")]);
    }

    /// A row for one that ran and did not get through.
    pub fn failed(&mut self, name: &str, error: &str) {
        self.row(vec![name.to_owned(), format!("failed: {}", error.lines().next().unwrap_or_default())]);
    }

    pub fn text(&self) -> String {
        let columns = self.header.len();
        let mut widths = vec![0; columns];
        // A row that ends early says something in words, which must not widen a column.
        let full = self.rows.iter().filter(|row| row.len() == columns);
        for row in full.chain([&self.header]) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &Vec<String>| {
            let mut line = String::from("  ");
            for (column, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
                match column {
                    0 => line.push_str(&format!("{cell:<width$}")),
                    _ if self.words => line.push_str(&format!("  {cell:<width$}")),
                    _ if cells.len() < widths.len() => line.push_str(&format!("  {cell}")),
                    _ => line.push_str(&format!("  {cell:>width$}")),
                }
            }
            line.trim_end().to_owned() + "\n"
        };
        let mut text = format!("{}\n{}", self.title, line(&self.header));
        text.push_str(&format!("  {}\n", "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1))));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }

    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let missing = " |".repeat(self.header.len().saturating_sub(cells.len()));
            format!("| {} |{missing}\n", cells.join(" | "))
        };
        let mut text = format!("**{}**\n\n{}", self.title, line(&self.header));
        let other = if self.words { "---|" } else { "---:|" };
        text.push_str(&format!("|---|{}\n", other.repeat(self.header.len() - 1)));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}
