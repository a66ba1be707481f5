//! A server side and devices in one group, for tests that drive processes.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use client_cli::member::Member;
use e2e::{
    device::Device,
    programs::{Programs, number},
    server::Server,
};
use serde_json::Value;
use service_kit::local_postgres::{SUPERUSER, url};

pub const DOMAIN: &str = "interior.example";

pub struct Fixture {
    pub folder: tempfile::TempDir,
    pub programs: Programs,
    pub server: Server,
}

impl Fixture {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With options of the services, as environment variables.
    pub fn start_with(options: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::find().unwrap();
        let dir = folder.path().join("server");
        let server = Server::start_with(&programs, &dir, &[DOMAIN], options).unwrap();
        Self {
            folder,
            programs,
            server,
        }
    }

    pub fn device(&self, name: &str) -> Device {
        let folder = self.folder.path();
        Device::enroll(&self.programs, &self.server.node, folder, 0, name, name).unwrap()
    }

    /// Another device of a person.
    pub fn device_of(&self, person: &str, name: &str) -> Device {
        let folder = self.folder.path();
        Device::enroll(&self.programs, &self.server.node, folder, 0, person, name).unwrap()
    }

    /// Runs a statement on the Delivery Service's database, as an operator with bad luck could; how many rows it
    /// changed.
    pub fn delivery_sql(&self, sql: &str) -> u64 {
        self.delivery_client().execute(sql, &[]).unwrap()
    }

    fn delivery_client(&self) -> postgres::Client {
        // The path of a temporary folder is short enough for a socket.
        let socket = self.server.dir().join("postgres/run");
        let url = url(&socket, "delivery", SUPERUSER);
        postgres::Client::connect(&url, postgres::NoTls).unwrap()
    }

    /// A device has no KeyPackages any more, as after a long absence.
    pub fn drop_key_packages(&self, device: &Device) {
        let id = device.uri.rsplit('/').next().unwrap();
        let sql = format!("DELETE FROM key_packages WHERE device_id = '{id}'");
        assert!(self.delivery_sql(&sql) > 0, "it had none");
    }

    /// References of the KeyPackages that the server would give away of a device.
    pub fn key_packages(&self, device: &Device) -> Vec<Vec<u8>> {
        let id = device.uri.rsplit('/').next().unwrap();
        let sql =
            format!("SELECT ref FROM key_packages WHERE device_id = '{id}' AND claim_id IS NULL");
        let rows = self.delivery_client().query(&sql, &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What the server holds, kept for later; it is stopped meanwhile.
    pub fn back_up(&mut self) -> PathBuf {
        let backup = self.folder.path().join("backup");
        self.server.stop().unwrap();
        copy(&self.server.dir().join("postgres"), &backup);
        self.server.start_again().unwrap();
        backup
    }

    /// Puts a backup in the place of what the server holds.
    pub fn restore(&mut self, backup: &Path) {
        self.server.stop().unwrap();
        let data = self.server.dir().join("postgres");
        std::fs::remove_dir_all(&data).unwrap();
        copy(backup, &data);
        self.server.start_again().unwrap();
    }

    /// A device's profile, opened in this process.
    pub async fn member(&self, device: &Device) -> Member {
        device.member().await.unwrap()
    }

    /// Devices that are all in one group, and the group.
    pub fn group(&self, names: &[&str]) -> (Vec<Device>, String) {
        let devices: Vec<Device> = names.iter().map(|name| self.device(name)).collect();
        let (_, group) = devices[0].create_group(&devices[1..]).unwrap();
        for device in &devices {
            device.run(&["sync"]).unwrap();
        }
        (devices, group)
    }
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    assert!(command.status().unwrap().success());
}

/// The entries that this device has read, after asking the server.
pub fn read(device: &Device, group: &str) -> Vec<Value> {
    let answer = device.run(&["read", "--group", group]).unwrap();
    answer["entries"].as_array().unwrap().clone()
}

/// The texts among them, in order.
pub fn texts(device: &Device, group: &str) -> Vec<String> {
    read(device, group)
        .iter()
        .filter_map(|entry| entry["text"].as_str().map(str::to_owned))
        .collect()
}

pub fn show(device: &Device, group: &str) -> Value {
    device.run(&["group", "show", "--group", group]).unwrap()
}

/// All have read everything and are in the same state.
pub fn assert_agree(devices: &[&Device], group: &str) {
    let states: Vec<Value> = devices
        .iter()
        .map(|device| {
            device.run(&["sync"]).unwrap();
            show(device, group)
        })
        .collect();
    for state in &states {
        for field in ["epoch_authenticator", "head_seq", "chain", "members"] {
            assert_eq!(state[field], states[0][field], "{field}");
        }
        assert_eq!(state["state"], "active");
        assert_eq!(state["pending"], Value::Null);
    }
}

pub fn head(device: &Device, group: &str) -> u64 {
    number(&show(device, group), "head_seq").unwrap()
}
