//! The commands to type next, for somebody who just started a first node.

use std::{io::Write as _, path::Path};

use crate::NodeFile;

/// The three commands: invite, enroll, create a group.
pub(crate) fn text(program_dir: &Path, file: &NodeFile) -> String {
    let program = |name: &str| program_dir.join(name).display().to_string();
    let (auth_service, client) = (program("auth-service"), program("client-cli"));
    let delivery = &file.delivery_url;
    let mut text = String::from("\nThe node is ready. Type next, in another terminal:\n\n");
    if let Some(auth) = file.auth.first() {
        let (socket, url, root) = (
            auth.admin_socket.display(),
            &auth.url,
            auth.root_pem.display(),
        );
        text.push_str(&format!(
            "  {auth_service} invite create --admin unix:{socket} --handle alice --name Alice\n\
             \x20 {client} --profile alice enroll --auth-url {url} --delivery-url {delivery} --root {root} --invitation CODE\n\
             \x20 {client} --profile alice group create\n"
        ));
    }
    text
}

/// Prints them on stdout. A node whose stdout nobody reads serves all the same.
pub(crate) fn print(file: &NodeFile) {
    let program = std::env::current_exe().unwrap_or_default();
    let text = text(program.parent().unwrap_or(Path::new("")), file);
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        tracing::warn!(%error, "cannot print the commands to type next");
    }
}
