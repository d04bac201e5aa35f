//! Images of one node: content, unpacked layers, names.
//!
//! Decides which bytes become an image: an archive is read into a private staging directory, every
//! digest and every layer is checked there, and only then does one locked, atomic step make the image
//! visible. A load that fails, or a machine that dies, leaves nothing that a later call can see.
//!
//! Must never: follow a path of an archive outside of the layer's own directory, trust a size or a
//! digest that an archive states, keep an unbounded amount in memory, or run anything from an image.
//!
//! The API blocks; an async caller uses `spawn_blocking`. The worker calls it for tasks, the daemon for
//! the image part of the Engine API.
//!
//! On disk, below the store's root:
//!
//! | path | what |
//! |---|---|
//! | `lock` | locked for the short steps that change what is visible |
//! | `blobs/sha256/HEX[.zst]` | configs, manifests and layer tars under their digest; `.zst` holds a tar that came uncompressed |
//! | `layers/HEX/diff` | one unpacked layer, ready as an overlayfs lower directory; `HEX` is half of the chain id, so that many lower directories fit in one mount option |
//! | `layers/HEX/layer.json` | chain id, diff id and size of that layer |
//! | `images/HEX.json` | one image: its manifest, layers and their blobs |
//! | `references.json` | name -> image id |
//! | `tmp/` | staging directories, each locked by its owner; the others are swept on open |
#![forbid(unsafe_code)]

pub mod archive;
mod blob;
mod change;
mod codec;
mod config;
mod digest;
mod error;
mod import;
mod limits;
mod load;
mod manifest;
pub mod reference;
mod remove;
mod save;
mod staging;
mod store;
mod tarstream;
mod unpack;

pub use config::{Healthcheck, History, ImageConfig};
pub use digest::Digest;
pub use error::{Error, Result};
pub use limits::{LimitExceeded, Limits};
pub use reference::Reference;
pub use remove::{Collected, Removed};
pub use store::{Image, Loaded, Store};
