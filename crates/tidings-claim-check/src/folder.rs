//! A folder of bodies, for one host or, on a shared file system, for many.
//!
//! ```text
//! bodies/
//!   tidings-bodies.json     which store this is: found by every host that really shares it
//!   2026-11-24/<id>         bodies, by the day on which they were put (UTC)
//!   unfinished/<id>         bodies that are being put, or whose program was killed meanwhile
//! ```
//!
//! A body is written under `unfinished/`, made durable, and only then given its name; so what has
//! the name of a body is whole, whenever the power goes. Every id is new, so no two programs ever
//! write the same file and none is changed after it has its name. What has another name or form
//! than these is somebody else's, and is left alone.

mod marker;
mod prune;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tidings_core::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{BodyId, BodyStore, Error, StoreId, blocking, store};

/// Where bodies are before they are whole.
const UNFINISHED: &str = "unfinished";

/// How much of a body is in memory while it is put.
const CHUNK_BYTES: usize = 256 * 1024;

/// A [`BodyStore`] in a folder.
#[derive(Debug, Clone)]
pub struct FolderBodies {
    id: StoreId,
    root: Arc<Path>,
    /// The last day whose folder this program made durable.
    synced: Arc<Mutex<String>>,
}

impl FolderBodies {
    /// Opens a folder, and makes it a store of its own, with a new identity, if it is not yet one.
    ///
    /// A program that shares the folder with others on several hosts should know the store's
    /// identity and use [`open_expecting`](Self::open_expecting): to this function a share that is
    /// not mounted is an empty folder.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let said = format!("open the folder of bodies `{}`", path.display());
        let opened = blocking(move || {
            create_folder(&path)?;
            create_folder(&path.join(UNFINISHED))?;
            let id = match marker::read(&path)? {
                Some(id) => id,
                None => marker::create(&path)?,
            };
            Ok(Self::at(&path, id))
        });
        let opened = opened
            .await
            .map_err(|error| Error::unavailable(said, error))?;
        tracing::info!(
            folder = %opened.root.display(),
            store = %opened.id,
            "large bodies are in this folder; other hosts must name the same store"
        );
        Ok(opened)
    }

    /// Opens the folder of the store `expected`, and creates nothing: where the folder is missing,
    /// empty or another store, the program does not start.
    pub async fn open_expecting(
        path: impl Into<PathBuf>,
        expected: &StoreId,
    ) -> Result<Self, Error> {
        let path = path.into();
        let said = format!("open the folder of bodies `{}`", path.display());
        let folder = path.clone();
        let found = blocking(move || marker::read(&folder))
            .await
            .map_err(|error| Error::unavailable(said, error))?;
        match found {
            Some(id) if id == *expected => Ok(Self::at(&path, id)),
            Some(id) => Err(Error::not_the_store(
                &path,
                expected,
                &format!("it is `{id}`"),
            )),
            None => Err(Error::not_the_store(&path, expected, "it is no store")),
        }
    }

    fn at(path: &Path, id: StoreId) -> Self {
        Self {
            id,
            root: path.into(),
            synced: Arc::default(),
        }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn place(&self, id: BodyId) -> PathBuf {
        self.root.join(id.day()).join(id.to_string())
    }

    /// Fails unless the folder still is this store: a share may have been unmounted, or another
    /// mounted, since it was opened.
    fn still_there(&self) -> io::Result<()> {
        let found = match marker::read(&self.root)? {
            Some(id) if id == self.id => return Ok(()),
            Some(id) => format!("it is `{id}` now"),
            None => "it is no store now".to_owned(),
        };
        Err(io::Error::other(format!(
            "the folder `{}` was the store `{}`, and {found}: was a share unmounted?",
            self.root.display(),
            self.id,
        )))
    }

    /// Gives a whole body its name, durably.
    fn finish(&self, mut unfinished: Unfinished, id: BodyId) -> io::Result<()> {
        unfinished.file.sync_all()?;
        let day = id.day();
        let folder = self.root.join(&day);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Also where another program created the folder: it may not have come to this line yet.
        let synced = || self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced() != day {
            sync_folder(&self.root)?;
            synced().clone_from(&day);
        }
        fs::rename(&unfinished.path, folder.join(id.to_string()))?;
        unfinished.named = true;
        sync_folder(&folder)
    }
}

impl BodyStore for FolderBodies {
    fn id(&self) -> &StoreId {
        &self.id
    }

    fn put<'a>(
        &'a self,
        id: BodyId,
        body: &'a mut (dyn AsyncRead + Send + Unpin),
    ) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let this = self.clone();
            let mut unfinished = blocking(move || {
                this.still_there()?;
                Unfinished::create(&this.root, id)
            })
            .await?;
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            loop {
                chunk.clear();
                let mut rest = body.take(CHUNK_BYTES as u64);
                if rest.read_to_end(&mut chunk).await? == 0 {
                    break;
                }
                (unfinished, chunk) = blocking(move || {
                    unfinished.file.write_all(&chunk)?;
                    Ok((unfinished, chunk))
                })
                .await?;
            }
            let this = self.clone();
            blocking(move || this.finish(unfinished, id)).await
        })
    }

    fn open(&self, id: BodyId) -> BoxFuture<'_, io::Result<Option<store::BoxRead>>> {
        Box::pin(async move {
            let this = self.clone();
            let file = blocking(move || match File::open(this.place(id)) {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    this.still_there().map(|()| None)
                }
                Err(error) => Err(error),
            });
            let file = file.await?.map(tokio::fs::File::from_std);
            Ok(file.map(|file| Box::new(file) as store::BoxRead))
        })
    }

    fn prune(
        &self,
        before: store::Before,
        count_max: usize,
    ) -> BoxFuture<'_, io::Result<store::Pruned>> {
        let this = self.clone();
        Box::pin(blocking(move || {
            this.still_there()?;
            prune::prune(&this.root, before, count_max)
        }))
    }
}

/// A file that has no name yet, and is deleted if it never gets one.
struct Unfinished {
    file: File,
    path: PathBuf,
    named: bool,
}

impl Unfinished {
    fn create(root: &Path, id: BodyId) -> io::Result<Self> {
        let path = root.join(UNFINISHED).join(id.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            named: false,
        })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.named {
            // What cannot be deleted now is deleted with what killed programs leave.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Creates a folder and those above it, durably.
fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    create_folder(above)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
