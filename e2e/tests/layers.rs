//! What imports what, read from the sources: no modules beside each other import each other in a circle, and in the
//! Delivery Service nothing points up.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

/// The crates whose modules are looked at.
const CRATES: [&str; 8] = [
    "auth-service",
    "client-cli",
    "delivery-service",
    "interop",
    "proto",
    "service-kit",
    "sim",
    "single-node",
];

/// The Delivery Service from top to bottom: a module imports what stands below it, and its own parts.
const LAYERS: [&str; 14] = [
    "rpc", "upkeep", "commands", "reading", "request", "wire", "node", "log", "hub", "access",
    "config", "error", "store", "ordering",
];

/// A module's path in its crate; empty for the crate itself.
type Module = Vec<String>;

/// The modules of a crate, each with the paths that it names.
struct Sources(BTreeMap<Module, BTreeSet<Module>>);

impl Sources {
    fn of(crate_name: &str) -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(crate_name)
            .join("src");
        let mut files = Vec::new();
        find(&src, &mut files);
        let mut modules = BTreeMap::new();
        for file in files {
            let module = module_of(file.strip_prefix(&src).unwrap());
            let parsed = syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let mut paths = Paths {
                module: module.clone(),
                found: BTreeSet::new(),
            };
            paths.visit_file(&parsed);
            modules.insert(module, paths.found);
        }
        assert!(modules.len() > 1, "{crate_name}: no modules in {src:?}");
        Self(modules)
    }

    /// Who imports whom, as modules with files of their own.
    fn imports(&self) -> impl Iterator<Item = (&Module, &[String])> {
        self.0.iter().flat_map(move |(module, paths)| {
            let known = |path: &'_ Module| {
                (1..=path.len())
                    .rev()
                    .find(|length| self.0.contains_key(&path[..*length]))
            };
            let targets = paths.iter().filter_map(move |path| {
                let length = known(path)?;
                Some(&path[..length])
            });
            targets
                .filter(move |target| *target != module.as_slice())
                .map(move |target| (module, target))
        })
    }

    /// For each module the imports among its parts: the parts, and one example of an import.
    fn beside(&self) -> BTreeMap<Module, BTreeMap<(String, String), String>> {
        let mut beside: BTreeMap<Module, BTreeMap<_, _>> = BTreeMap::new();
        for (from, to) in self.imports() {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            // A module and its parts are one room.
            if let (Some(one), Some(other)) = (from.get(common), to.get(common)) {
                let example = format!("{} -> {}", from.join("::"), to.join("::"));
                let imports = beside.entry(from[..common].to_vec()).or_default();
                imports
                    .entry((one.clone(), other.clone()))
                    .or_insert(example);
            }
        }
        beside
    }
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Programs are crates of their own.
            if !path.ends_with("src/bin") {
                find(&path, files);
            }
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("src/main.rs") {
            files.push(path);
        }
    }
}

fn module_of(file: &Path) -> Module {
    let parts = file.with_extension("");
    let mut parts: Module = parts
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if parts
        .last()
        .is_some_and(|last| last == "mod" || last == "lib")
    {
        parts.pop();
    }
    parts
}

/// Collects the paths of a file that begin in its own crate. What is compiled for tests alone is left out.
struct Paths {
    module: Module,
    found: BTreeSet<Module>,
}

impl Paths {
    fn found(&mut self, segments: &[String]) {
        let mut path = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => {
                    path.pop();
                }
                name => path.push(name.to_owned()),
            }
        }
        self.found.insert(path);
    }

    fn used(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.used(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.found(&with(&name.ident)),
            syn::UseTree::Rename(name) => self.found(&with(&name.ident)),
            syn::UseTree::Glob(_) => self.found(before),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.used(tree, before);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.used(&item.tree, &[]);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.ident != "tests" && item.content.is_some() {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|s| s.ident.to_string());
        self.found(&segments.collect::<Vec<_>>());
        visit::visit_path(self, path);
    }
}

/// The parts of a circle, if there is one.
fn circle(imports: &BTreeMap<(String, String), String>) -> Option<Vec<String>> {
    let mut left: BTreeSet<&(String, String)> = imports.keys().collect();
    loop {
        // Whatever imports nothing that is left, or is imported by nothing that is left, is in no circle.
        let importing: BTreeSet<&String> = left.iter().map(|(from, _)| from).collect();
        let imported: BTreeSet<&String> = left.iter().map(|(_, to)| to).collect();
        let kept: BTreeSet<_> = left
            .iter()
            .copied()
            .filter(|(from, to)| importing.contains(to) && imported.contains(from))
            .collect();
        if kept.len() == left.len() {
            let examples = kept.iter().map(|import| imports[*import].clone());
            return (!kept.is_empty()).then(|| examples.collect());
        }
        left = kept;
    }
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for name in CRATES {
        for (module, imports) in Sources::of(name).beside() {
            if let Some(circle) = circle(&imports) {
                circles.push(format!("{name} {}: {circle:#?}", module.join("::")));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn in_the_delivery_service_nothing_points_up() {
    let sources = Sources::of("delivery-service");
    let place = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let top: BTreeSet<&str> = sources
        .0
        .keys()
        .filter_map(|module| module.first().map(String::as_str))
        .collect();
    assert_eq!(
        top,
        BTreeSet::from(LAYERS),
        "a module without a place, or a place without a module"
    );
    let imports = &sources.beside()[&Module::new()];
    let up: Vec<&String> = imports
        .iter()
        .filter(|((from, to), _)| place(from) > place(to))
        .map(|(_, example)| example)
        .collect();
    assert!(up.is_empty(), "{up:#?}");
}

#[test]
fn a_circle_is_found_and_a_tree_is_none() {
    let imports = |pairs: &[(&str, &str)]| {
        let import =
            |(a, b): &(&str, &str)| ((a.to_string(), b.to_string()), format!("{a} -> {b}"));
        pairs.iter().map(import).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(
        circle(&imports(&[("a", "b"), ("a", "c"), ("b", "c")])),
        None
    );
    let found = circle(&imports(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]));
    assert_eq!(found.unwrap(), ["b -> c", "c -> b"]);
}
