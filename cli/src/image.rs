//! `skep image`: what a node's store holds, and the archives that fill it.

mod layout;

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Subcommand;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::client::{Client, escape, filters, is_not_found};
use crate::network::confirmed;
use crate::output::{self, List, ListArgs, line};
use crate::value::At;
use crate::{human, node};

/// Bytes that are read from an archive at a time.
const PIECE: usize = 256 << 10;

/// Manage images
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List images
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Load an image from a tar archive, an OCI layout or STDIN
    Load(LoadArgs),
    /// Import the contents from a tarball to create a filesystem image
    Import {
        /// Apply Dockerfile instruction to the created image
        #[arg(short, long = "change")]
        changes: Vec<String>,
        /// Set commit message for imported image
        #[arg(short, long, default_value = "")]
        message: String,
        /// Archive of a root file system; - is STDIN
        file: String,
        /// Name of the image
        #[arg(default_value = "")]
        reference: String,
    },
    /// Display detailed information on one or more images
    Inspect {
        /// Format output: 'json' or a template
        #[arg(short, long)]
        format: Option<String>,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm {
        /// Force removal of the image
        #[arg(short, long)]
        force: bool,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove unused images
    Prune {
        /// Remove all unused images, not just those without a name
        #[arg(short, long)]
        all: bool,
        /// Show only what fits: until=24h, label=tier=front
        #[arg(long = "filter")]
        filters: Vec<String>,
        /// Do not prompt for confirmation
        #[arg(short, long)]
        force: bool,
    },
    /// Create a tag TARGET that refers to SOURCE
    Tag {
        /// Image
        source: String,
        /// Its new name
        target: String,
    },
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save {
        /// Write to a file, instead of STDOUT
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Images
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Flags of `ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Show all images: here there are no intermediate ones that would be hidden
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only images that this name fits
    #[arg(default_value = "")]
    reference: String,
}

/// Flags of `load`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, or from a directory with an OCI layout, instead of STDIN
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

/// Removes images that nothing uses.
async fn prune(client: &Client, all: bool, mut wanted: Vec<String>, force: bool) -> Result<()> {
    let which = if all { "images without at least one container" } else { "dangling images" };
    if !force && !confirmed(&format!("WARNING! This will remove all {which}."))? {
        return Ok(());
    }
    wanted.push(format!("dangling={}", !all));
    let answer = client.post("/images/prune", &[("filters", &filters(&wanted)?)], None).await?;
    let deleted = answer.list("ImagesDeleted");
    if !deleted.is_empty() {
        line("Deleted Images:")?;
    }
    for image in deleted {
        match image.text("Untagged") {
            "" => line(format!("deleted: {}", image.text("Deleted")))?,
            reference => line(format!("untagged: {reference}"))?,
        }
    }
    line(format!("\nTotal reclaimed space: {}", human::decimal_size(answer.number("SpaceReclaimed") as f64)))
}

/// Runs one of the verbs.
pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls(args) => ls(client, args).await,
        Command::Load(args) => load(client, args).await,
        Command::Import { changes, message, file, reference } => {
            let mut query = vec![("fromSrc", "-"), ("repo", reference.as_str()), ("message", message.as_str())];
            query.extend(changes.iter().map(|change| ("changes", change.as_str())));
            let path = (file != "-").then(|| PathBuf::from(&file));
            let answers = client.upload("/images/create", &query, source(path.as_deref()).await?).await?;
            answers.iter().try_for_each(|answer| line(answer.text("status")))
        }
        Command::Inspect { format, images } => {
            let (mut found, mut failed) = (Vec::new(), Vec::new());
            for image in images {
                match client.get(&format!("/images/{}/json", escape(&image)), &[]).await {
                    Ok(value) => found.push(value),
                    Err(error) if is_not_found(&error) => failed.push(format!("No such image: {image}")),
                    Err(error) => failed.push(format!("{error:#}")),
                }
            }
            output::inspect(&found, format.as_deref())?;
            node::all(failed)
        }
        Command::Rm { force, images } => rm(client, force, &images).await,
        Command::Prune { all, filters: wanted, force } => prune(client, all, wanted, force).await,
        Command::Tag { source, target } => {
            let (repository, tag) = split(&target);
            let query = [("repo", repository), ("tag", tag)];
            client.post(&format!("/images/{}/tag", escape(&source)), &query, None).await.map(drop)
        }
        Command::Save { output, images } => save(client, output, &images).await,
    }
}

/// Name and tag; a colon before a slash belongs to a port.
fn split(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, ""),
    }
}

/// Lists images.
pub(crate) async fn ls(client: &Client, args: LsArgs) -> Result<()> {
    let mut wanted = args.list.filters.clone();
    if !args.reference.is_empty() {
        wanted.push(format!("reference={}", args.reference));
    }
    let wanted = filters(&wanted)?;
    let images = client.get("/images/json", &[("filters", &wanted)]).await?;
    let rows = images.as_array().into_iter().flatten().flat_map(|image| rows(image, args.list.no_trunc)).collect();
    let list = List {
        headers: &[
            ("Repository", "REPOSITORY"),
            ("Tag", "TAG"),
            ("Digest", "DIGEST"),
            ("ID", "IMAGE ID"),
            ("CreatedSince", "CREATED"),
            ("CreatedAt", "CREATED AT"),
            ("Size", "SIZE"),
        ],
        table: if args.digests {
            &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"]
        } else {
            &["Repository", "Tag", "ID", "CreatedSince", "Size"]
        },
        rows,
    };
    list.print(&args.list, "ID")
}

/// One row a name; an image without one has a row all the same.
fn rows(image: &Value, full: bool) -> Vec<Value> {
    let id = image.text("Id");
    let mut names: Vec<&str> = image.list("RepoTags").iter().filter_map(Value::as_str).collect();
    if names.is_empty() {
        names.push("<none>:<none>");
    }
    let digest = image.list("RepoDigests").first().and_then(Value::as_str).and_then(|d| d.split_once('@'));
    let row = |name: &str| {
        let (repository, tag) = split(name);
        json!({
            "Repository": repository, "Tag": tag, "Digest": digest.map_or("<none>", |(_, digest)| digest),
            "ID": if full { id } else { human::short_id(id) }, "CreatedSince": created(image),
            "CreatedAt": image.number("Created").to_string(),
            "Size": human::decimal_size(image.number("Size") as f64),
        })
    };
    names.into_iter().map(row).collect()
}

/// How old an image is. One that is made the same at every build has no date of its own and bears the epoch.
fn created(image: &Value) -> String {
    if image.number("Created") <= 0 { "N/A".to_owned() } else { human::ago(image.at("Created")) }
}

/// Sends an archive to the node, or a directory as one.
pub(crate) async fn load(client: &Client, args: LoadArgs) -> Result<()> {
    if args.input.is_none() && std::io::stdin().is_terminal() {
        bail!("requested load from stdin, but stdin is empty: give --input or redirect a file");
    }
    let quiet = if args.quiet { "1" } else { "0" };
    let archive = match args.input.as_deref() {
        Some(dir) if dir.is_dir() => layout::archive(dir)?.left_stream(),
        file => source(file).await?.right_stream(),
    };
    let answers = client.upload("/images/load", &[("quiet", quiet)], archive).await?;
    answers.iter().try_for_each(|answer| line(answer.text("stream").trim_end()))
}

/// The bytes of a file or of standard input, piece by piece.
async fn source(path: Option<&Path>) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static> {
    let reader: Box<dyn AsyncRead + Send + Sync + Unpin> = match path {
        Some(path) => {
            let file = tokio::fs::File::open(path).await;
            Box::new(file.with_context(|| format!("{} can't be read", path.display()))?)
        }
        None => Box::new(tokio::fs::File::from_std(std::io::stdin().as_fd().try_clone_to_owned()?.into())),
    };
    Ok(futures::stream::try_unfold(reader, |mut reader| async move {
        let mut piece = vec![0; PIECE];
        let length = reader.read(&mut piece).await?;
        piece.truncate(length);
        Ok((length > 0).then(|| (Bytes::from(piece), reader)))
    }))
}

async fn rm(client: &Client, force: bool, images: &[String]) -> Result<()> {
    let query: &[(&str, &str)] = if force { &[("force", "1")] } else { &[] };
    let mut failed = Vec::new();
    for image in images {
        match client.delete(&format!("/images/{}", escape(image)), query).await {
            Ok(removed) => {
                for step in removed.as_array().into_iter().flatten() {
                    for word in ["Untagged", "Deleted"] {
                        if !step.text(word).is_empty() {
                            line(format!("{word}: {}", step.text(word)))?;
                        }
                    }
                }
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    node::all(failed)
}

async fn save(client: &Client, output: Option<PathBuf>, images: &[String]) -> Result<()> {
    if output.is_none() && std::io::stdout().is_terminal() {
        bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect");
    }
    let query: Vec<(&str, &str)> = images.iter().map(|image| ("names", image.as_str())).collect();
    let mut stream = client.stream("/images/get", &query).await?;
    let Some(path) = output else {
        while let Some(piece) = stream.next().await {
            output::raw(&piece?)?;
        }
        return Ok(());
    };
    // Beside its place until it is whole: an archive that broke off is none.
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = async {
        let mut file = tokio::fs::File::create(&partial).await?;
        while let Some(piece) = stream.next().await {
            file.write_all(&piece?).await?;
        }
        file.flush().await?;
        tokio::fs::rename(&partial, &path).await?;
        anyhow::Ok(())
    };
    let result = written.await.with_context(|| format!("{} can't be written", path.display()));
    if result.is_err() {
        // It may not even be there.
        let _ = tokio::fs::remove_file(&partial).await;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_no_date() {
        assert_eq!(created(&json!({ "Created": 0 })), "N/A");
        assert!(created(&json!({ "Created": 1 })).ends_with("years ago"));
    }

    #[test]
    fn references_are_split_at_the_tag() {
        for (reference, expected) in [
            ("busybox", ("busybox", "")),
            ("busybox:1", ("busybox", "1")),
            ("registry:5000/a", ("registry:5000/a", "")),
            ("registry:5000/a:1", ("registry:5000/a", "1")),
        ] {
            assert_eq!(split(reference), expected);
        }
    }
}
