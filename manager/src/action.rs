//! Short spellings of the actions that the rooms propose.

use skep_proto::v1::{Action, Object, ObjectKind, ObjectRef, action, object};

/// Creates an object (version 0) or replaces the version that it names.
pub(crate) fn put(kind: object::Kind) -> Action {
    Action { kind: Some(action::Kind::Put(Object { kind: Some(kind) })) }
}

/// Removes an object if it is still at the given version; 0 means whatever it is.
pub(crate) fn remove(kind: ObjectKind, id: &str, version: u64) -> Action {
    Action { kind: Some(action::Kind::Remove(ObjectRef { kind: kind.into(), id: id.to_owned(), version })) }
}
