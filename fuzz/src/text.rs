//! What people and other programs of the same host write.

use std::path::Path;

use vferry::config::{Config, ConfigError};
use vferry::control::{Reply, Request, parse};

/// A line of QMP.
pub fn qmp(data: &[u8]) {
    if let Err(error) = qemu::message::parse(data) {
        let _ = error.to_string();
    }
}

/// A line of the control socket, from either side.
///
/// # Panics
/// When a request does not read the same once it is written.
pub fn control(data: &[u8]) {
    let _ = parse::<Reply>(data);
    if let Ok(request) = parse::<Request>(data) {
        let line = serde_json::to_vec(&request).expect("a request has only text and numbers");
        assert_eq!(parse::<Request>(&line).expect("it was one"), request);
    }
}

/// A configuration file.
///
/// # Panics
/// When one is refused without a reason, or for a line that it does not have.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Err(error) = Config::parse(Path::new("vm.toml"), text) else {
        return;
    };
    assert!(error.to_string().starts_with("vm.toml:"), "{error}");
    let ConfigError::Wrong { problems, .. } = error else {
        panic!("a text was read as a file: {error}");
    };
    assert!(!problems.is_empty(), "refused without a reason");
    let last = text.split('\n').count();
    for problem in problems {
        assert!((1..=last).contains(&problem.line), "line {}", problem.line);
        assert!(!problem.what.is_empty() && !problem.instead.is_empty());
    }
}
