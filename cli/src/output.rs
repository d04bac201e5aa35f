//! What commands print: lists as tables, templates or JSON; things as JSON or a template. Every list is rows of named
//! fields first, so that `--format`, `--quiet` and the table show the same.

use std::io::Write;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::template::Template;

/// Fields that the API's objects may have and leave out when there is nothing to say.
const OPTIONAL: &str = "\
    AppArmorProfile Architecture AssignedGenericResources Author BuildTime CDISpecDirs CPUSet CPUShares Comment \
    Components Config ConfigFrom ConfigOnly Containerd ContainerdCommit Containers CpuCfsPeriod CpuCfsQuota \
    CreatedAt Debug DefaultAddressPools DefaultRuntime Description Descriptor DiscoveredDevices DriverStatus \
    EnableIPv4 Endpoint ExecIDs Experimental ExperimentalBuild FirewallBackend GenericResources GoVersion \
    GraphDriver HostConfig HostnamePath HostsPath HttpProxy HttpsProxy Identity IndexServerAddress InitBinary \
    InitCommit Isolation JobIteration JobStatus Labels LogPath ManagerStatus Manifests Metadata MountLabel \
    Mounts NRI Name NetworksAttachments NoProxy NodeID OSVersion OsVersion Parent Peers Platform Plugins \
    PreviousSpec ProcessLabel ProductLicense RegistryConfig RepoDigests RepoTags ResolvConfPath RuncCommit \
    Runtimes SecurityOptions ServiceStatus Services SizeRootFs SizeRw Slot Status Storage UpdateStatus Variant Warnings";

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
    /// Show only what fits, name=value, repeatable: name=web, id=abc, label=tier or label=tier=front
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Format output: table, json, 'table {{.ID}}\\t{{.Name}}', or a template: '{{.Name}}'
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
                    let template = self.template(format)?;
                    self.rows.iter().try_for_each(|row| line(template.render(row)?))
                }
            },
        }
    }

    /// A template that reads only fields that rows have, also when there is no row to notice it.
    fn template(&self, text: &str) -> Result<Template> {
        let template = Template::parse(text)?;
        let unknown = template.reads().into_iter().find(|field| {
            let known = |(name, _): &(&str, &str)| name.eq_ignore_ascii_case(field);
            !self.headers.iter().any(known)
        });
        match unknown {
            None => Ok(template),
            Some(field) => {
                let known: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
                bail!("template: there is no field {field:?} in this list; it has {}", known.join(", "))
            }
        }
    }

    fn columns(&self, columns: &str) -> Result<()> {
        let template = self.template(columns)?;
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
            for value in values {
                known(&template, value)?;
                line(template.render(value)?)?;
            }
            Ok(())
        }
    }
}

/// Whether what is inspected has the fields, at its first level, that a template reads. Below it, and where a field may
/// be left out because it is empty, nobody can tell a wrong name from an absent value.
pub(crate) fn known(template: &Template, value: &Value) -> Result<()> {
    let Some(members) = value.as_object() else { return Ok(()) };
    let has = |field: &String| members.keys().any(|key| key.eq_ignore_ascii_case(field));
    let may_have = |field: &String| OPTIONAL.split_whitespace().any(|known| known.eq_ignore_ascii_case(field));
    match template.reads().into_iter().find(|field| !has(field) && !may_have(field)) {
        None => Ok(()),
        Some(field) => {
            let known: Vec<&str> = members.keys().map(String::as_str).collect();
            bail!("template: there is no field {field:?} here; there are {}", known.join(", "))
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
    fn a_template_that_reads_what_is_not_there_is_an_error_that_names_what_is() {
        let list = List { headers: &[("ID", "ID"), ("Name", "NAME")], table: &["ID"], rows: Vec::new() };
        assert!(list.template("{{.ID}} {{.name | upper}}").is_ok());
        let error = list.template("{{.Bogus}}").map(drop).map_err(|e| e.to_string());
        assert_eq!(error, Err("template: there is no field \"Bogus\" in this list; it has ID, Name".to_owned()));
        let value = serde_json::json!({ "ID": "x", "Spec": {} });
        for (template, fits) in
            [("{{.ID}}", true), ("{{.spec.Name}}", true), ("{{.UpdateStatus}}", true), ("{{.Bogus}}", false)]
        {
            let parsed = Template::parse(template).map(|t| known(&t, &value).is_ok());
            assert_eq!(parsed.ok(), Some(fits), "{template}");
        }
    }

    #[test]
    fn columns_are_set_as_known() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let out = table(row(&["ID", "NAME", "PORTS"]), vec![row(&["z24u6mnj4rjt", "web", "*:8080->80/tcp"])]);
        assert_eq!(out, "ID             NAME      PORTS\nz24u6mnj4rjt   web       *:8080->80/tcp\n");
    }
}
