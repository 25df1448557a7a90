//! As text: `otterize network-mapper list`.

use std::io::{self, Write};

use super::Client;

/// Writes the calls of each client.
pub fn write(out: &mut impl Write, clients: &[Client]) -> io::Result<()> {
    for Client { client, servers } in clients {
        writeln!(out, "{} in namespace {} calls:", client.name, client.namespace)?;
        for server in servers {
            writeln!(out, "  - {} in namespace {}", server.name, server.namespace)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::otterize::fixtures::{client, peer};

    #[test]
    fn the_list_of_otterize_s_tutorial() {
        let server = || peer("server", "otterize-tutorial-mapper", "Deployment");
        let clients =
            ["client", "client2"].map(|name| client(peer(name, "otterize-tutorial-mapper", "Deployment"), [server()]));
        let mut text = Vec::new();
        write(&mut text, &clients).expect("memory");
        assert_eq!(
            String::from_utf8(text).expect("text"),
            "client in namespace otterize-tutorial-mapper calls:\n  - server in namespace otterize-tutorial-mapper\n\
             client2 in namespace otterize-tutorial-mapper calls:\n  - server in namespace otterize-tutorial-mapper\n"
        );
    }
}
