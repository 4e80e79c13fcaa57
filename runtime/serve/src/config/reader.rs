//! How a setting becomes a value: every kind of value once, with the mistakes that it can have.

use std::{fmt, fs, io, ops::RangeInclusive, path::Path, time::Duration};

use telemetry::Secret;

use super::settings::Setting;

/// Largest file of a secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

pub(super) struct Reader<F> {
    pub(super) var: F,
    /// What the function has; others keep their defaults, whatever the environment says.
    pub(super) known: Vec<Setting>,
    pub(super) mistakes: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// The value, or the default if it is unset or empty.
    pub(super) fn text(&self, setting: &Setting) -> String {
        let value = self.value(setting).map(|value| value.trim().to_owned());
        value.filter(|value| !value.is_empty()).unwrap_or_else(|| setting.default.to_owned())
    }

    /// As the environment has it, if the function has it.
    pub(super) fn value(&self, setting: &Setting) -> Option<String> {
        let is_known = self.known.iter().any(|known| known.name == setting.name);
        is_known.then(|| (self.var)(setting.name)).flatten()
    }

    pub(super) fn mistake(&mut self, setting: &Setting, mistake: impl fmt::Display) {
        self.mistakes.push(format!("{}: {mistake}", setting.name));
    }

    pub(super) fn number(&mut self, setting: &Setting, bounds: RangeInclusive<usize>) -> usize {
        let text = self.text(setting);
        let Ok(number) = text.parse::<usize>() else {
            self.mistakes.push(format!("{}: \"{text}\" is not a whole number", setting.name));
            return *bounds.start();
        };
        if number < *bounds.start() {
            self.mistakes.push(format!("{}: {number} is below {}", setting.name, bounds.start()));
        } else if number > *bounds.end() {
            self.mistakes.push(format!("{}: {number} is above {}", setting.name, bounds.end()));
        }
        number
    }

    pub(super) fn millis(&mut self, setting: &Setting) -> Duration {
        Duration::from_millis(self.number(setting, 1..=3_600_000) as u64)
    }

    pub(super) fn number_or(
        &mut self,
        setting: &Setting,
        bounds: RangeInclusive<usize>,
        unset: impl Fn() -> usize,
    ) -> usize {
        self.optional_number(setting, bounds).unwrap_or_else(unset)
    }

    pub(super) fn optional_number(
        &mut self,
        setting: &Setting,
        bounds: RangeInclusive<usize>,
    ) -> Option<usize> {
        (!self.text(setting).is_empty()).then(|| self.number(setting, bounds))
    }

    /// One of `choices`; the first stands for a mistake.
    pub(super) fn choice<T: Copy>(&mut self, setting: &Setting, choices: &[(&str, T)]) -> T {
        let text = self.text(setting);
        if let Some(&(_, value)) = choices.iter().find(|&&(name, _)| name == text) {
            return value;
        }
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        let (name, known) = (setting.name, names.join(", "));
        self.mistakes.push(format!("{name}: \"{text}\" is not one of {known}"));
        choices[0].1
    }

    /// One of `choices`, if one is set.
    pub(super) fn optional<T: Copy>(
        &mut self,
        setting: &Setting,
        choices: &[(&str, T)],
    ) -> Option<T> {
        (!self.text(setting).is_empty()).then(|| self.choice(setting, choices))
    }

    /// A value that nobody may see, as it is, or what a file holds, without the line break at its end.
    pub(super) fn secret(&mut self, setting: &Setting, file: &Setting) -> Option<Secret> {
        let value = self.value(setting).filter(|value| !value.is_empty());
        let path = self.optional_text(file);
        match (value, path) {
            (Some(_), Some(_)) => {
                self.mistake(setting, format_args!("set, and {} too", file.name));
                None
            }
            (Some(value), None) => Some(Secret::new(value)),
            (None, Some(path)) => {
                let secret = read_secret(Path::new(&path));
                secret.map_err(|error| self.mistake(file, error)).ok()
            }
            (None, None) => None,
        }
    }

    pub(super) fn url(&mut self, setting: &Setting) -> Option<String> {
        let url = self.optional_text(setting)?;
        if !url.starts_with("https://") && !url.starts_with("http://") {
            self.mistake(setting, format_args!("\"{url}\" is not http:// or https://"));
        }
        Some(url)
    }

    pub(super) fn optional_text(&self, setting: &Setting) -> Option<String> {
        Some(self.text(setting)).filter(|text| !text.is_empty())
    }
}

fn read_secret(path: &Path) -> io::Result<Secret> {
    if fs::metadata(path)?.len() > MAX_SECRET_BYTES {
        let message = format!("the file is over {MAX_SECRET_BYTES} bytes");
        return Err(io::Error::other(message));
    }
    let mut text = fs::read_to_string(path)?;
    for end in ['\n', '\r'] {
        if text.ends_with(end) {
            text.pop();
        }
    }
    if text.is_empty() { Err(io::Error::other("the file is empty")) } else { Ok(Secret::new(text)) }
}
