//! Events for tests.

use super::{Count, Line, Occurrence, ServiceChange};

/// A connection to `shop/web:http` begins.
pub fn flow() -> Line {
    Line::NewFlow(Occurrence {
        time: "2026-11-28T12:00:01.500000Z".to_owned(),
        reason: "NewFlow".to_owned(),
        text: String::new(),
        hook: "tc-ingress".to_owned(),
        interface: None,
        protocol: "TCP".to_owned(),
        source: None,
        destination: "10.96.0.10:80".parse().unwrap(),
        service: Some("shop/web:http".to_owned()),
        backend: Some("10.4.2.5:8080".parse().unwrap()),
        tcp_flags: Vec::new(),
    })
}

/// `shop/web:http` loses that backend.
pub fn changed() -> Line {
    Line::ServiceChanged(ServiceChange {
        time: String::new(),
        service: "shop/web:http".to_owned(),
        protocol: "TCP".to_owned(),
        family: "IPv4".to_owned(),
        frontends: Count::default(),
        backends: Count::default(),
        added: Vec::new(),
        removed: vec!["10.4.2.5:8080".parse().unwrap()],
    })
}
