//! Where databases of services are, and opening them: one SQLite file per service in a folder, or one
//! PostgreSQL schema per service; or running services that are reached through their operator endpoint. Nothing is made or brought up to date here: that is the services'
//! own.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use tidings::{Store, StoreError};
use tidings_operator::Remote;
use tidings_postgres::{PostgresOptions, PostgresStore};
use tidings_sqlite::SqliteOptions;

use crate::{code::Code, frame::Database};

/// What a verb does with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It only reads; the database refuses anything else.
    Look,
    /// It writes, too.
    Change,
}

/// A place with databases.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A SQLite file, or a folder with one per service.
    Sqlite(PathBuf),
    /// A PostgreSQL database with a schema per service.
    Postgres(String),
    /// The operator endpoint of running services.
    At(Remote),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        match url.strip_prefix("sqlite://") {
            Some("") => Err("`sqlite://` must be followed by a folder or a file".to_owned()),
            Some(path) => Ok(Self::Sqlite(path.into())),
            None => Err(format!(
                "`{}` is not the URL of a database; use `sqlite://folder`, `sqlite://file.db` or \
                 `postgres://user:password@host:port/name`",
                url.split("://").next().unwrap_or_default()
            )),
        }
    }
}

/// Where the database of a service is.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// The service's name: that of the file or of the schema.
    pub(crate) service: String,
    place: Place,
}

impl Place {
    /// The services that have a database here, by name.
    ///
    /// # Errors
    ///
    /// When the place cannot be read, or has none.
    pub(crate) async fn services(&self) -> anyhow::Result<Vec<Located>> {
        let located = match self {
            Self::Sqlite(path) if path.is_dir() => {
                let files = files(path).map_err(|error| {
                    let path = path.display();
                    Code::Database.of(format!("cannot read the folder `{path}`: {error}"))
                })?;
                files.into_iter().map(Located::file).collect()
            }
            Self::Sqlite(path) if path.is_file() => vec![Located::file(path.clone())],
            Self::Sqlite(path) => {
                let path = path.display();
                return Err(Code::Database.of(format!(
                    "there is no folder or file `{path}`; the shop keeps its databases in `db` in \
                     its data folder"
                )));
            }
            Self::Postgres(url) => {
                let schemas = PostgresStore::schemas(url).await;
                let schemas = schemas.map_err(|error| Code::Database.of(error))?;
                let located = schemas.into_iter().map(|service| Located {
                    service,
                    place: self.clone(),
                });
                located.collect::<Vec<_>>()
            }
            Self::At(remote) => {
                let services = remote.services().await?.into_iter();
                let located = services.map(|service| Located {
                    service,
                    place: self.clone(),
                });
                located.collect()
            }
        };
        match located.is_empty() {
            true => Err(Code::Database.of(format!("there is no service's database at `{self}`"))),
            false => Ok(located),
        }
    }
}

/// Without the password.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::At(remote) => f.write_str(remote.url()),
            Self::Postgres(url) => match (url.find("://"), url.rfind('@')) {
                (Some(start), Some(at)) if start < at => write!(f, "postgres://…{}", &url[at..]),
                _ => f.write_str(url),
            },
        }
    }
}

/// The databases in a folder, by name.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "db") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Located {
    fn file(path: PathBuf) -> Self {
        let name = path.file_stem().unwrap_or_default();
        Self {
            service: name.to_string_lossy().into_owned(),
            place: Place::Sqlite(path),
        }
    }

    /// Opens the database as it is.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or its tables are of another version.
    pub(crate) async fn open(self, access: Access) -> anyhow::Result<Database> {
        let opened = match &self.place {
            Place::Sqlite(path) => open_file(path, access).await,
            Place::Postgres(url) => open_schema(url, &self.service, access).await,
            Place::At(remote) => Ok(open_remote(remote, &self.service, access)),
        };
        let (store, engine) = opened.map_err(|error| Code::Database.of(error))?;
        Ok(Database {
            service: self.service,
            engine,
            store,
        })
    }
}

type Opened = Result<(Arc<dyn Store>, String), StoreError>;

async fn open_file(path: &Path, access: Access) -> Opened {
    let options = SqliteOptions::new(path);
    let options = match access {
        Access::Look => options.read_only(),
        Access::Change => options.existing(),
    };
    let store = options.open().await?;
    let engine = format!("SQLite {}", tidings_sqlite::rusqlite::version());
    Ok((store.into(), engine))
}

async fn open_schema(url: &str, schema: &str, access: Access) -> Opened {
    let options = PostgresOptions::new(url, schema).connections_max(5);
    let options = match access {
        Access::Look => options.read_only(),
        Access::Change => options.existing(),
    };
    let store = options.connect().await?;
    let client = store.client().await?;
    let version = client.query_one("show server_version", &[]).await?;
    let version = version.try_get::<_, String>(0).unwrap_or_default();
    drop(client);
    Ok((store.into(), format!("PostgreSQL {version}")))
}

fn open_remote(remote: &Remote, service: &str, access: Access) -> (Arc<dyn Store>, String) {
    let access = match access {
        Access::Look => tidings_operator::Access::Look,
        Access::Change => tidings_operator::Access::Change,
    };
    let store = Arc::new(remote.store(service, access));
    (store, format!("through {}", remote.url()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_a_url_and_shown_without_its_password() {
        let check = |url: &str, expected: &str| match url.parse::<Place>() {
            Ok(place) => assert_eq!(place.to_string(), expected),
            Err(error) => assert!(error.contains(expected), "{error}"),
        };
        check("sqlite://data/db", "sqlite://data/db");
        check(
            "postgres://me:s3cret@host:1/shop",
            "postgres://…@host:1/shop",
        );
        check("sqlite://", "followed by a folder");
        check(
            "mysql://me:s3cret@host",
            "`mysql` is not the URL of a database; use `sqlite://folder`",
        );
    }
}
