//! From the text of a manifest file to objects: strict, each object for itself, every complaint
//! with the line and the field.

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::check::{self, Complaint};
use super::located::{self, Node, Step, Value};
use crate::objects::{Kind, Object, ObjectName};

/// What one file says.
#[derive(Debug, Default)]
pub struct Content {
    /// Objects in the order of the text.
    pub objects: Vec<FileObject>,
    /// What was rejected: whole objects, and single entries of objects that are in `objects`.
    pub rejected: Vec<Rejection>,
    /// Kinds that shunt does not read, with their lines.
    pub skipped: Vec<(String, usize)>,
}

/// An object and where it begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileObject {
    /// The object.
    pub object: Object,
    /// Its first line.
    pub line: usize,
}

/// A complaint about a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// The object, where it could be told.
    pub object: Option<(Kind, ObjectName)>,
    /// Line of the field.
    pub line: usize,
    /// The field and what is wrong with it.
    pub error: String,
}

impl Content {
    /// True if something was rejected that does not say which object it is.
    pub fn has_unknown_rejected(&self) -> bool {
        self.rejected
            .iter()
            .any(|rejection| rejection.object.is_none())
    }
}

/// Decodes a file. Never fails as a whole: what cannot be decoded is in `rejected`.
pub fn decode(text: &str) -> Content {
    let mut content = Content::default();
    for document in located::documents(text) {
        match located::parse(document) {
            Ok(node) => decode_node(&node, None, &mut content),
            Err(error) => content.rejected.push(Rejection {
                object: None,
                line: error.line,
                error: format!("syntax: {error}"),
            }),
        }
    }
    content
}

/// `listed`: the apiVersion and kind of the items of the list that `node` stands in; items of a
/// typed list often do not repeat them.
fn decode_node(node: &Node, listed: Option<(&str, &str)>, content: &mut Content) {
    if node.is_null() {
        return;
    }
    let unknown = |field: &str, error: &str| Rejection {
        object: None,
        line: node.line_of(&[Step::Key(field.to_owned())]),
        error: if field.is_empty() {
            error.to_owned()
        } else {
            format!("{field}: {error}")
        },
    };
    if !matches!(node.value, Value::Map(_)) {
        content.rejected.push(unknown("", "an object is expected"));
        return;
    }
    let own = |key: &str| node.get(key).and_then(Node::as_str);
    let Some(kind) = own("kind").or(listed.map(|(_, kind)| kind)) else {
        content
            .rejected
            .push(unknown("kind", "missing or not a text"));
        return;
    };
    let Some(version) = own("apiVersion").or(listed.map(|(version, _)| version)) else {
        content
            .rejected
            .push(unknown("apiVersion", "missing or not a text"));
        return;
    };
    if let Some(item_kind) = kind.strip_suffix("List") {
        decode_list(node, version, item_kind, content);
    } else {
        decode_object(node, version, kind, content);
    }
}

fn decode_list(node: &Node, version: &str, item_kind: &str, content: &mut Content) {
    // Items of the plain `List` are of any kind and say which.
    let listed = (!item_kind.is_empty()).then_some((version, item_kind));
    if listed.is_some_and(|(version, kind)| known(version, kind).is_none()) {
        content
            .skipped
            .push((format!("{item_kind}List"), node.line));
        return;
    }
    match node.get("items").map(|items| &items.value) {
        Some(Value::List(items)) => {
            for item in items {
                decode_node(item, listed, content);
            }
        }
        Some(Value::Scalar(Json::Null)) => {}
        None | Some(_) => content.rejected.push(Rejection {
            object: None,
            line: node.line_of(&[Step::Key("items".to_owned())]),
            error: "items: a list is expected".to_owned(),
        }),
    }
}

/// Which watched kind an apiVersion and kind mean. `Err`: the kind is ours, its version is not.
fn known(version: &str, kind: &str) -> Option<Result<Kind, &'static str>> {
    let (ours, expected) = match kind {
        "Service" => (Kind::Service, "v1"),
        "EndpointSlice" => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
        "Node" => (Kind::Node, "v1"),
        "ServiceCIDR" => (Kind::ServiceCidr, "networking.k8s.io/v1"),
        _ => return None,
    };
    let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
    match (version == expected, group(version) == group(expected)) {
        (true, _) => Some(Ok(ours)),
        (false, true) => Some(Err(expected)),
        // Another project's kind of the same name.
        (false, false) => None,
    }
}

fn decode_object(node: &Node, version: &str, kind_name: &str, content: &mut Content) {
    let kind = match known(version, kind_name) {
        Some(Ok(kind)) => kind,
        Some(Err(expected)) => {
            content.rejected.push(Rejection {
                object: None,
                line: node.line_of(&[Step::Key("apiVersion".to_owned())]),
                error: format!("apiVersion: {version} is not read, {expected} is"),
            });
            return;
        }
        None => {
            content.skipped.push((kind_name.to_owned(), node.line));
            return;
        }
    };
    let name = object_name(node, kind);
    let mut json = node.to_json();
    if let Json::Object(fields) = &mut json {
        fields.insert("apiVersion".to_owned(), version.into());
        fields.insert("kind".to_owned(), kind_name.into());
    }
    let mut complaints = Vec::new();
    let object = strict(kind, &json)
        .and_then(|()| trimmed(kind, &json))
        .and_then(|object| check::object(object, &mut complaints));
    let object = match object {
        Ok(object) => Some(object),
        Err(complaint) => {
            complaints.push(complaint);
            None
        }
    };
    let named = name.map(|name| (kind, name));
    for Complaint { path, error } in complaints {
        let line = node.line_of(&path);
        let error = format!("{}: {error}", located::field(&path));
        content.rejected.push(Rejection {
            object: named.clone(),
            line,
            error,
        });
    }
    content.objects.extend(object.map(|object| FileObject {
        object,
        line: node.line,
    }));
}

/// Namespace and name as far as the tree has them.
fn object_name(node: &Node, kind: Kind) -> Option<ObjectName> {
    let metadata = node.get("metadata")?;
    let name = metadata.get("name")?.as_str()?.to_owned();
    let namespace = match kind {
        Kind::Service | Kind::EndpointSlice => {
            let given = metadata.get("namespace").and_then(Node::as_str);
            given
                .filter(|text| !text.is_empty())
                .unwrap_or("default")
                .to_owned()
        }
        Kind::Node | Kind::ServiceCidr => String::new(),
    };
    Some(ObjectName { namespace, name })
}

/// Holds an object against the whole API type: unknown fields and wrong types.
fn strict(kind: Kind, json: &Json) -> Result<(), Complaint> {
    use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as net};
    match kind {
        Kind::Service => strict_as::<core::Service>(json),
        Kind::EndpointSlice => strict_as::<discovery::EndpointSlice>(json),
        Kind::Node => strict_as::<core::Node>(json),
        Kind::ServiceCidr => strict_as::<net::ServiceCIDR>(json),
    }
}

fn strict_as<T: DeserializeOwned>(json: &Json) -> Result<(), Complaint> {
    let (value, unknown) = typed::<T>(json);
    match unknown.into_iter().next() {
        Some(path) => Err(Complaint {
            path,
            error: "unknown field".to_owned(),
        }),
        None => value.map(|_| ()),
    }
}

/// Decodes a value as `T`, and tells the fields that `T` does not have.
pub fn typed<T: DeserializeOwned>(json: &Json) -> (Result<T, Complaint>, Vec<Vec<Step>>) {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(json, &mut track);
    let result = serde_ignored::deserialize(tracked, |path| unknown.push(ignored_path(&path)));
    (
        result.map_err(|error| wrong_type(&track.path(), &error)),
        unknown,
    )
}

fn trimmed(kind: Kind, json: &Json) -> Result<Object, Complaint> {
    Ok(match kind {
        Kind::Service => Object::Service(trimmed_as(json)?),
        Kind::EndpointSlice => Object::EndpointSlice(trimmed_as(json)?),
        Kind::Node => Object::Node(trimmed_as(json)?),
        Kind::ServiceCidr => Object::ServiceCidr(trimmed_as(json)?),
    })
}

fn trimmed_as<T: DeserializeOwned>(json: &Json) -> Result<T, Complaint> {
    serde_path_to_error::deserialize(json)
        .map_err(|error| wrong_type(&error.path().clone(), error.inner()))
}

fn wrong_type(path: &serde_path_to_error::Path, error: &serde_json::Error) -> Complaint {
    use serde_path_to_error::Segment;
    let path = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    Complaint {
        path,
        error: error.to_string(),
    }
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Key(key.clone()))),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = ignored_path(parent);
    steps.extend(step);
    steps
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
