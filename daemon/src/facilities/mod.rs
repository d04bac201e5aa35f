//! The API's facility traits over the rooms of this node. Each file translates; none decides.

mod cluster;
mod containers;
mod events;
mod images;
mod info;
mod logs;

pub(crate) use cluster::ClusterFacility;
pub(crate) use containers::ContainersFacility;
pub(crate) use events::EventsFacility;
pub(crate) use images::ImagesFacility;
pub(crate) use info::InfoFacility;
pub(crate) use logs::LogsFacility;
