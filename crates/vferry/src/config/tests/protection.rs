//! What goes to other hosts, and how.

use super::{Endpoint, GOOD, Protection, parse};

const TLS: &str = "tls = \"/etc/vferry/tls\"\npeers = [\"b.example\", \"192.0.2.2\"]\n";
const PLAIN: &str = "plain-tcp-without-protection = true\n";

/// The good file with other places, and more in `[migration]`.
fn text(link: &str, incoming: &str, more: &str) -> String {
    GOOD.replace(
        "link = \"tcp:127.0.0.1:7800\"\nincoming = \"unix:/tmp/incoming.sock\"\n",
        &format!("link = \"{link}\"\nincoming = \"{incoming}\"\n{more}"),
    )
}

fn problem(link: &str, incoming: &str, more: &str) -> String {
    let parsed = parse(&text(link, incoming, more));
    parsed.expect_err("taken").to_string()
}

#[test]
fn tls_has_a_folder_and_names() {
    let config = parse(&text("tcp:192.0.2.1:7800", "tcp:192.0.2.1:7801", TLS)).unwrap();
    let Protection::Tls { folder, peers } = config.protection else {
        panic!("{:?}", config.protection)
    };
    assert_eq!(folder.to_str(), Some("/etc/vferry/tls"));
    assert_eq!(peers.to_string(), "b.example, 192.0.2.2");
}

#[test]
fn nothing_leaves_the_host_in_the_open_unless_it_is_said_in_so_many_words() {
    let (unix, lo, net) = ("unix:/tmp/x.sock", "tcp:127.0.0.1:1", "tcp:192.0.2.1:1");
    let other = "unix:/tmp/y.sock";
    for (link, incoming, more, taken) in [
        (unix, other, "", true),
        (lo, lo, "", true),
        ("tcp:[::1]:1", "tcp:[::ffff:127.0.0.1]:1", "", true),
        (net, other, "", false),
        (lo, net, "", false),
        ("tcp:0.0.0.0:1", other, "", false),
        ("tcp:[::]:1", other, "", false),
        (net, net, PLAIN, true),
        (net, net, "plain-tcp-without-protection = false\n", false),
        (net, net, TLS, true),
        (lo, net, TLS, true),
        (unix, lo, TLS, true),
        // QEMU's stream goes as the link does.
        (unix, net, TLS, false),
        (unix, net, PLAIN, true),
    ] {
        let parsed = parse(&text(link, incoming, more));
        assert_eq!(
            parsed.is_ok(),
            taken,
            "{link} {incoming} {more}: {parsed:?}"
        );
    }
}

#[test]
fn what_would_go_in_the_open_is_refused_with_line_and_remedy() {
    let (lo, net) = ("tcp:127.0.0.1:1", "tcp:192.0.2.1:1");
    let said = problem(net, net, "");
    assert!(said.contains("web.toml:16: the control link at"), "{said}");
    assert!(said.contains("web.toml:17: QEMU's stream to"), "{said}");
    assert!(said.contains("tls = \"/etc/vferry/tls\""), "{said}");
    assert!(said.contains("peers = ["), "{said}");
    // Nobody shall find it in a message and write it.
    assert!(!said.contains("plain"), "{said}");
    let said = problem(lo, net, "");
    assert!(!said.contains("web.toml:16"), "{said}");
    let said = problem("unix:/tmp/x.sock", net, TLS);
    assert!(said.contains("link = \"tcp:...\""), "{said}");
}

#[test]
fn halves_and_contradictions_are_refused() {
    let (folder, peers) = TLS.split_once('\n').unwrap();
    for (more, line, what) in [
        (format!("{folder}\n"), 18, "none is"),
        (peers.to_owned(), 18, "there is no `tls`"),
        ("stream-authz = \"a\"\n".into(), 18, "and there is no `tls`"),
        (
            format!("{TLS}stream-authz = \"\"\n"),
            20,
            "empty `stream-authz`",
        ),
        (format!("{TLS}{PLAIN}"), 20, "contradict"),
        ("tls = \"tls\"\npeers = [\"b\"]\n".into(), 18, "absolute"),
        (format!("{folder}\npeers = []\n"), 19, "no host is named"),
        (
            format!("{folder}\npeers = [\"b\", \"*.example\"]\n"),
            19,
            "`*.example` is neither",
        ),
    ] {
        let said = problem("tcp:127.0.0.1:1", "tcp:127.0.0.1:2", &more);
        assert!(said.contains(&format!("web.toml:{line}: ")), "{said}");
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn where_a_migration_may_go_follows_from_it() {
    let place = |text: &str| text.parse::<Endpoint>().unwrap();
    let net = place("tcp:192.0.2.1:1");
    assert!(!Protection::Loopback.allows(&net));
    assert!(Protection::Loopback.allows(&place("tcp:127.1.2.3:1")));
    assert!(Protection::Loopback.allows(&place("unix:/x")));
    assert!(Protection::None.allows(&net));
}
