//! **Invariant:** the imports of a crate have no circle, but between a module and its
//! own children.
//!
//! A module here is a file. An arrow goes from the file that names a path to the file
//! in which the named item is declared: a name that a face re-exports counts as its
//! declaration's. Tests may look at what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// Source folders of the crates.
const CRATES: [&str; 7] = [
    "plugin-api/src",
    "shaders/src",
    "daemon/formats/src",
    "daemon/data/src",
    "daemon/engine/src",
    "daemon/service/src",
    "plugins/standard/src",
];

type ModulePath = Vec<String>;

/// What one file says: the paths that it names, and the names that its `use`
/// declarations bring into it.
#[derive(Default)]
struct Module {
    named: BTreeSet<ModulePath>,
    brought: BTreeMap<String, ModulePath>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// The modules of a crate by path; the crate's face has the empty path.
fn modules(folder: &Path) -> BTreeMap<ModulePath, Module> {
    let mut found = BTreeMap::new();
    walk(folder, &Vec::new(), &mut found);
    found
}

fn walk(folder: &Path, at: &ModulePath, found: &mut BTreeMap<ModulePath, Module>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_string();
        if path.is_dir() {
            if stem != "bin" {
                walk(&path, &[at.clone(), vec![stem]].concat(), found);
            }
            continue;
        }
        let test = stem.starts_with("tests") || stem == "testing";
        if test || path.extension().is_none_or(|e| e != "rs") || at.last().is_some_and(|l| l == "tests") {
            continue;
        }
        let face = matches!(stem.as_str(), "lib" | "mod" | "main");
        let module = if face { at.clone() } else { [at.clone(), vec![stem]].concat() };
        let text = std::fs::read_to_string(&path).expect("text");
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut reader = Reader { at: module.clone(), inside: Vec::new(), module: Module::default() };
        reader.visit_file(&file);
        found.insert(module, reader.module);
    }
}

/// Collects the paths of a file, from the crate's root.
struct Reader {
    at: ModulePath,
    /// Inline modules around the place that is read.
    inside: Vec<String>,
    module: Module,
}

impl Reader {
    /// A path from the crate's root; `None` for what is of another crate or a name
    /// in scope.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let here = [self.at.clone(), self.inside.clone()].concat();
        match path.first().map(String::as_str)? {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([here, path[1..].to_vec()].concat()),
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                let base = here.len().checked_sub(up)?;
                Some([here[..base].to_vec(), path[up..].to_vec()].concat())
            }
            _ => None,
        }
    }

    fn use_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let mut path = before.to_vec();
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.use_tree(&path, &part.tree);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(&path, tree)),
            syn::UseTree::Name(name) => {
                if name.ident != "self" {
                    path.push(name.ident.to_string());
                }
                self.bring(path.last().cloned().unwrap_or_default(), &path);
            }
            syn::UseTree::Rename(rename) => {
                path.push(rename.ident.to_string());
                self.bring(rename.rename.to_string(), &path);
            }
            syn::UseTree::Glob(_) => self.bring(String::new(), &path),
        }
    }

    fn bring(&mut self, name: String, path: &[String]) {
        // `use child::Item` in a face names its own child.
        let absolute = self.absolute(path).unwrap_or_else(|| [self.at.clone(), path.to_vec()].concat());
        if self.inside.is_empty() && !name.is_empty() {
            self.module.brought.insert(name, absolute.clone());
        }
        self.module.named.insert(absolute);
    }
}

/// Whether an item is compiled for tests alone.
fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string().starts_with("test"),
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if for_tests(&item.attrs) || item.content.is_none() {
            return;
        }
        self.inside.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.inside.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !for_tests(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.use_tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let Some(absolute) = self.absolute(&parts) {
            self.module.named.insert(absolute);
        }
        syn::visit::visit_path(self, path);
    }
}

/// The module that declares what a path names.
fn declared_in(modules: &BTreeMap<ModulePath, Module>, path: &[String], depth: usize) -> Option<ModulePath> {
    let module = (0..=path.len()).rev().map(|length| path[..length].to_vec()).find(|m| modules.contains_key(m))?;
    let brought = path.get(module.len()).and_then(|name| modules[&module].brought.get(name));
    match brought {
        Some(target) if depth < 8 && target != path => declared_in(modules, target, depth + 1).or(Some(module)),
        _ => Some(module),
    }
}

fn arrows(modules: &BTreeMap<ModulePath, Module>) -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    let target = |from: &ModulePath, path: &ModulePath| {
        let to = declared_in(modules, path, 0)?;
        let related = to.starts_with(from) || from.starts_with(&to);
        (!related).then_some(to)
    };
    modules
        .iter()
        .map(|(from, module)| (from.clone(), module.named.iter().filter_map(|path| target(from, path)).collect()))
        .collect()
}

/// Some circle of arrows, if there is one.
fn circle(arrows: &BTreeMap<ModulePath, BTreeSet<ModulePath>>) -> Option<Vec<ModulePath>> {
    fn visit(
        at: &ModulePath,
        arrows: &BTreeMap<ModulePath, BTreeSet<ModulePath>>,
        way: &mut Vec<ModulePath>,
        done: &mut BTreeSet<ModulePath>,
    ) -> Option<Vec<ModulePath>> {
        if let Some(begin) = way.iter().position(|earlier| earlier == at) {
            return Some([way[begin..].to_vec(), vec![at.clone()]].concat());
        }
        if !done.contains(at) {
            way.push(at.clone());
            let found = arrows[at].iter().find_map(|next| visit(next, arrows, way, done));
            if found.is_some() {
                return found;
            }
            way.pop();
            done.insert(at.clone());
        }
        None
    }
    let (mut way, mut done) = (Vec::new(), BTreeSet::new());
    arrows.keys().find_map(|at| visit(at, arrows, &mut way, &mut done))
}

fn told(path: &ModulePath) -> String {
    if path.is_empty() { "the crate's face".into() } else { path.join("::") }
}

#[test]
fn imports_have_no_circle() {
    let mut circles = Vec::new();
    for folder in CRATES {
        let modules = modules(&root().join(folder));
        assert!(!modules.is_empty(), "{folder} has modules");
        // One circle after another, each opened where it closes.
        let mut arrows = arrows(&modules);
        while let Some(found) = circle(&arrows) {
            circles.push(format!("{folder}: {}", found.iter().map(told).collect::<Vec<_>>().join(" → ")));
            let last = &found[found.len() - 2];
            arrows.get_mut(last).into_iter().for_each(|targets| _ = targets.remove(&found[0]));
        }
    }
    assert!(circles.is_empty(), "imports in a circle:\n{}", circles.join("\n"));
}

/// The test above is worth something only if it sees a circle.
#[test]
fn a_circle_is_found_through_a_face_too() {
    let path = |text: &str| -> ModulePath { text.split("::").map(str::to_string).collect() };
    let module = |named: &[&str], brought: &[(&str, &str)]| Module {
        named: named.iter().map(|text| path(text)).collect(),
        brought: brought.iter().map(|(name, text)| (name.to_string(), path(text))).collect(),
    };
    let mut modules = BTreeMap::from([
        (Vec::new(), module(&["a::A"], &[("A", "a::A")])),
        (path("a"), module(&["b::B", "a::child::C"], &[])),
        (path("a::child"), module(&["a::A"], &[])),
        (path("b"), module(&[], &[])),
    ]);
    assert_eq!(circle(&arrows(&modules)), None, "a module and its own children may name each other");
    // `crate::A` is a re-export of the face, and so an arrow to `a`.
    modules.insert(path("b"), module(&["A"], &[]));
    let found = circle(&arrows(&modules)).expect("a circle");
    assert_eq!(found, [path("a"), path("b"), path("a")]);
}
