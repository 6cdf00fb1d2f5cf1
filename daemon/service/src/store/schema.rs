//! The tables, and the migrations that lead to them. `user_version` counts the
//! migrations that were applied.

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use crate::error::{Error, Result};

/// Each entry brings the database from version `index` to `index + 1`. Entries
/// are never changed, only appended.
const STEPS: &[M<'static>] = &[
    M::up(include_str!("schema/1_jobs.sql")),
    M::up(include_str!("schema/2_plugins.sql")),
    M::up(include_str!("schema/3_kinds_and_counts.sql")),
];

/// The version that brought plugins.
pub const PLUGINS: i64 = 2;

/// How many migrations a database has had.
///
/// # Errors
/// The database cannot be read.
pub fn version(connection: &Connection) -> Result<i64> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Applies what is missing.
///
/// # Errors
/// The database is of a later version than this program knows, or cannot be written.
pub fn migrate(connection: &mut Connection) -> Result<()> {
    let found = version(connection)?;
    let known = STEPS.len() as i64;
    if found > known {
        let message = format!("the database is of version {found}, this program knows versions up to {known}");
        return Err(Error::storage(message).remedy("install a newer finetuned"));
    }
    Ok(Migrations::from_slice(STEPS).to_latest(connection)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_are_sound() {
        Migrations::from_slice(STEPS).validate().unwrap();
    }

    /// The tables that version 2 made before there was a crate for it.
    const VERSION_2: &str = include_str!("schema/fixture_version_2.sql");

    #[test]
    fn a_database_of_version_2_has_the_tables_that_were_released() {
        let mut ours = Connection::open_in_memory().unwrap();
        Migrations::from_slice(&STEPS[..2]).to_latest(&mut ours).unwrap();
        let released = Connection::open_in_memory().unwrap();
        released.execute_batch(VERSION_2).unwrap();
        assert_eq!(tables(&ours), tables(&released));
        assert_eq!(version(&ours).unwrap(), version(&released).unwrap());
    }

    /// Table, column, type, not null, default, primary key; and the indexes.
    fn tables(connection: &Connection) -> Vec<String> {
        let sql = "SELECT m.name || ' ' || coalesce(c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' '
                       || coalesce(c.dflt_value, '') || ' ' || c.pk, '')
                   FROM sqlite_schema m LEFT JOIN pragma_table_info(m.name) c ON m.type = 'table'
                   WHERE m.name NOT LIKE 'sqlite_%' ORDER BY 1";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<std::result::Result<_, _>>().unwrap()
    }
}
