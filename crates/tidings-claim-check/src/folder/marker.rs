//! The file that says which store a folder is, so that two hosts with different folders at the
//! same path are told from two hosts with one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{UNFINISHED, sync_folder};
use crate::StoreId;

const NAME: &str = "tidings-bodies.json";

/// The layout that this code knows.
const FORMAT: u32 = 1;

/// A marker that is larger is none of ours.
const BYTES_MAX: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
}

/// Which store the folder is, if it is one.
pub(super) fn read(root: &Path) -> io::Result<Option<StoreId>> {
    let path = root.join(NAME);
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file.take(BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let marker: Marker = serde_json::from_str(&text).map_err(|error| {
        let says = format!(
            "`{}` does not say which store the folder is ({error}); restore it from a backup, or \
             write into it the id that messages name: `{{\"format\":{FORMAT},\"id\":\"...\"}}`",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, says)
    })?;
    if marker.format != FORMAT {
        let says = format!(
            "`{}` has the format {}, and this program knows {FORMAT}: use a later version",
            path.display(),
            marker.format
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, says));
    }
    StoreId::new(format!("folder:{}", marker.id))
        .map(Some)
        .map_err(io::Error::other)
}

/// Makes the folder a store, unless another program was faster; either way says which it is.
pub(super) fn create(root: &Path) -> io::Result<StoreId> {
    let marker = Marker {
        format: FORMAT,
        id: Uuid::new_v4().to_string(),
    };
    // Its own name only when it is whole: a link, unlike a renaming, never replaces another's.
    let whole = root.join(UNFINISHED).join(Uuid::now_v7().to_string());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&whole)?;
    file.write_all(serde_json::to_string(&marker)?.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&whole, root.join(NAME));
    fs::remove_file(&whole)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    sync_folder(root)?;
    read(root)?.ok_or_else(|| io::Error::other("the store was deleted while it was created"))
}
