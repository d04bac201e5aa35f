//! What commands print: lists as tables, templates or JSON; things as JSON or a template. Every list is rows of named
//! fields first, so that `--format`, `--quiet` and the table show the same.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::template::Template;

/// A list to be printed.
pub(crate) struct List {
    /// Every field that a row has, with its header.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// The fields of the table that is shown when nothing is asked for.
    pub(crate) table: &'static [&'static str],
    /// One object of texts a row.
    pub(crate) rows: Vec<Value>,
}

/// How a list is wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ListArgs {
    /// Filter output based on conditions provided, name=value
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Format output: 'table', 'table TEMPLATE', 'json', or a template
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Only display IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// Prints a text and a line feed.
pub(crate) fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_ref().as_bytes()).and_then(|()| out.write_all(b"\n")).context("standard output")
}

/// Prints bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("standard output")
}

/// Says something beside the result, on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    // If even that can't be written there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

impl List {
    /// Prints the list as it is wanted; `quiet` is the field that `--quiet` leaves.
    pub(crate) fn print(&self, args: &ListArgs, quiet: &str) -> Result<()> {
        if args.quiet && args.format.is_none() {
            for row in &self.rows {
                line(text(row, quiet))?;
            }
            return Ok(());
        }
        match args.format.as_deref() {
            None | Some("" | "table") => {
                let header = self.table.iter().map(|field| self.header(field)).collect();
                let rows = self.rows.iter().map(|row| self.table.iter().map(|field| text(row, field)).collect());
                raw(table(header, rows.collect()).as_bytes())
            }
            Some("json") => self.rows.iter().try_for_each(|row| line(row.to_string())),
            Some(format) => match format.strip_prefix("table ") {
                Some(columns) => self.columns(columns),
                None => {
                    let template = Template::parse(format)?;
                    self.rows.iter().try_for_each(|row| line(template.render(row)?))
                }
            },
        }
    }

    fn columns(&self, columns: &str) -> Result<()> {
        let template = Template::parse(columns)?;
        let header = template.fields().iter().map(|field| self.header(field)).collect();
        let cells = |row| Ok(template.render(row)?.split('\t').map(str::to_owned).collect());
        let rows = self.rows.iter().map(cells).collect::<Result<Vec<Vec<String>>>>()?;
        raw(table(header, rows).as_bytes())
    }

    fn header(&self, field: &str) -> String {
        let known = self.headers.iter().find(|(name, _)| *name == field);
        known.map_or_else(|| field.to_uppercase(), |(_, header)| (*header).to_owned())
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().map_or_else(|| row[field].to_string(), str::to_owned)
}

/// Columns as the known tools set them: three blanks apart, none narrower than ten.
pub(crate) fn table(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let longest = lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        (longest.unwrap_or(0) + 3).max(10)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < line.len() {
                let blanks = widths.get(column).copied().unwrap_or(0).saturating_sub(cell.chars().count());
                out.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        out.push('\n');
    }
    out
}

/// Prints things as `inspect` does: a JSON array, or a template for each.
pub(crate) fn inspect(values: &[Value], format: Option<&str>) -> Result<()> {
    match format {
        None | Some("") => line(pretty(&values)?),
        Some("json") => values.iter().try_for_each(|value| line(value.to_string())),
        Some(format) => {
            let template = Template::parse(format)?;
            values.iter().try_for_each(|value| line(template.render(value)?))
        }
    }
}

/// JSON with four blanks a level.
pub(crate) fn pretty(value: &impl Serialize) -> Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_set_as_known() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let out = table(row(&["ID", "NAME", "PORTS"]), vec![row(&["z24u6mnj4rjt", "web", "*:8080->80/tcp"])]);
        assert_eq!(out, "ID             NAME      PORTS\nz24u6mnj4rjt   web       *:8080->80/tcp\n");
    }
}
