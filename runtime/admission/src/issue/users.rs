//! Users and their passwords, from a file.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use telemetry::{Causes, Secret};

/// Largest file of users, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Most memory that a hash may ask for, in KiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;

/// A password that is nobody's: what users who are not there are checked against.
const NOBODY: &str = "nobody";

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// What the user may do.
    pub role: String,
    hash: PasswordHash,
}

/// Why a file of users cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsersError {
    /// The file cannot be opened.
    #[error("{path}: cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("{path}: over {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line of it cannot be read.
    #[error("{path}, line {line}: {mistake}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// What is wrong with it.
        mistake: &'static str,
    },
}

/// Who may log in, as a file says; when it changes, it is read again.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug, Clone)]
struct Read {
    modified: Option<SystemTime>,
    users: Arc<HashMap<String, User>>,
    /// As dear to check as the dearest of the users'.
    nobody: Arc<PasswordHash>,
}

impl Users {
    /// Reads the lines of `path`, each `username:role:hash`; empty ones and those with `#` say nothing.
    ///
    /// # Errors
    ///
    /// [`UsersError`].
    pub fn open(path: &Path) -> Result<Self, UsersError> {
        let read = Mutex::new(read(path)?);
        Ok(Self { path: path.to_owned(), read })
    }

    /// The role of `username`, if that is the password. Takes as long for users that are not there.
    ///
    /// Takes some 20 ms of CPU and 19 MiB of memory, as whoever guesses passwords should have to.
    #[must_use]
    pub fn check(&self, username: &str, password: &Secret) -> Option<String> {
        let Read { users, nobody, .. } = self.current();
        let user = users.get(username);
        let hash = user.map_or(&*nobody, |user| &user.hash);
        let is_right =
            Argon2::default().verify_password(password.expose().as_bytes(), hash).is_ok();
        user.filter(|_| is_right).map(|user| user.role.clone())
    }

    /// What the file says now; what it said before, if it has become unreadable.
    fn current(&self) -> Read {
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = modified(&self.path);
        if modified != known.modified {
            match read(&self.path) {
                Ok(read) => {
                    tracing::info!(num_users = read.users.len(), "users read");
                    *known = read;
                }
                Err(error) => {
                    tracing::error!(exception = %Causes(&error), "users not read again");
                    known.modified = modified;
                }
            }
        }
        known.clone()
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

fn read(path: &Path) -> Result<Read, UsersError> {
    let unreadable = |source| UsersError::Unreadable { path: path.to_owned(), source };
    let modified = modified(path);
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(UsersError::TooLarge { path: path.to_owned() });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let users = parse(&text).map_err(|(line, mistake)| UsersError::Line {
        path: path.to_owned(),
        line,
        mistake,
    })?;
    let cost = |params: &Params| u64::from(params.m_cost()) * u64::from(params.t_cost());
    let params = users.values().filter_map(|user| Params::try_from(&user.hash).ok());
    let dearest = params.max_by_key(cost).unwrap_or_default();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::default(), dearest);
    let nobody = argon2
        .hash_password(NOBODY.as_bytes())
        .map_err(|error| unreadable(std::io::Error::other(error.to_string())))?;
    Ok(Read { modified, users: Arc::new(users), nobody: Arc::new(nobody) })
}

/// Users by their names; else the line that is wrong, and what is wrong with it.
fn parse(text: &str) -> Result<HashMap<String, User>, (usize, &'static str)> {
    let mut users = HashMap::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        let mistake = |what| (index + 1, what);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut parts = line.splitn(3, ':');
        let (Some(name), Some(role), Some(hash)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(mistake("not username:role:hash"));
        };
        let hash = PasswordHash::new(hash).map_err(|_| mistake("not a hash of Argon2"))?;
        let params = Params::try_from(&hash).map_err(|_| mistake("not a hash of Argon2"))?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err(mistake("not a hash of Argon2id"));
        }
        if params.m_cost() > MAX_MEMORY_KIB {
            return Err(mistake("its hash asks for more than 1 GiB"));
        }
        if name.is_empty() || role.is_empty() {
            return Err(mistake("the name or the role is empty"));
        }
        if users.insert(name.to_owned(), User { role: role.to_owned(), hash }).is_some() {
            return Err(mistake("the user is there already"));
        }
    }
    Ok(users)
}

/// The hash of a password for a file of users: Argon2id with 19 MiB, two passes and a salt of its own.
///
/// # Errors
///
/// If the password is too long, or there is no randomness.
pub fn hash_password(password: &Secret) -> Result<String, argon2::password_hash::Error> {
    let hash: PasswordHash = Argon2::default().hash_password(password.expose().as_bytes())?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_user_logs_in_with_the_password() {
        let folder = std::env::temp_dir().join(format!("sanderling-users-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("users");
        let hash = hash_password(&secret("right")).unwrap();
        fs::write(&path, format!("# who\n\nada:premium:{hash}\n")).unwrap();
        let users = Users::open(&path).unwrap();
        assert_eq!(users.check("ada", &secret("right")).as_deref(), Some("premium"));
        for (name, password) in
            [("ada", "wrong"), ("ada", ""), ("Ada", "right"), ("bob", "right"), ("bob", NOBODY)]
        {
            assert_eq!(users.check(name, &secret(password)), None, "{name} {password}");
        }
        // Again when it has changed; as before when it is broken.
        let set = |text: String, secs| {
            fs::write(&path, text).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        set(format!("bob:user:{hash}\n"), 1);
        assert_eq!(users.check("ada", &secret("right")), None);
        assert_eq!(users.check("bob", &secret("right")).as_deref(), Some("user"));
        set("broken".to_owned(), 2);
        assert_eq!(users.check("bob", &secret("right")).as_deref(), Some("user"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told() {
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$cJ0T0Bs5LdQ9rkIUZgRwBRKvUZ1oyvRtjs1jOzKUiiE";
        assert!(parse(&format!("a:user:{hash}")).is_ok());
        let cases = [
            ("ada".to_owned(), 1, "not username:role:hash"),
            (format!("a:user:{hash}\na:user:{hash}"), 2, "the user is there already"),
            (format!(":user:{hash}"), 1, "the name or the role is empty"),
            ("a:user:secret".to_owned(), 1, "not a hash of Argon2"),
            (
                format!("a:user:{}", hash.replace("argon2id", "argon2i")),
                1,
                "not a hash of Argon2id",
            ),
            (
                format!("a:user:{}", hash.replace("19456", "2000000")),
                1,
                "its hash asks for more than 1 GiB",
            ),
        ];
        for (text, line, mistake) in cases {
            assert_eq!(parse(&text).err(), Some((line, mistake)), "{text}");
        }
    }
}
