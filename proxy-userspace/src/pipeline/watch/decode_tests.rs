//! One kind of bad input each: the line, the field, and that the neighbours arrive.

use proptest::prelude::*;

use super::*;
use crate::rules;

const GOOD: &str = "\
apiVersion: v1
kind: Service
metadata: {name: before}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
";

const ALSO_GOOD: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: after, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
";

/// The document stands between two good ones, from line 6 on; of itself nothing arrives.
fn check_rejected(document: &str, line: usize, error: &str) {
    let content = decode(&format!("{GOOD}{document}{ALSO_GOOD}"));
    let names: Vec<_> = content
        .objects
        .iter()
        .map(|it| it.object.metadata().name.as_str())
        .collect();
    assert_eq!(names, ["before", "after"], "{content:#?}");
    check_complaint(&content, line, error);
}

/// The object arrives without the bad entry.
fn check_entry(document: &str, line: usize, error: &str) -> Object {
    let content = decode(&format!("{GOOD}{document}{ALSO_GOOD}"));
    assert_eq!(content.objects.len(), 3, "{content:#?}");
    check_complaint(&content, line, error);
    assert!(!content.has_unknown_rejected());
    content.objects[1].object.clone()
}

fn check_complaint(content: &Content, line: usize, error: &str) {
    assert_eq!(content.rejected.len(), 1, "{:#?}", content.rejected);
    let rejection = &content.rejected[0];
    assert_eq!(rejection.line, line, "{rejection:?}");
    assert!(
        rejection.error.contains(error),
        "{:?} lacks {error:?}",
        rejection.error
    );
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: bad\nspec:\n{spec}")
}

fn slice(body: &str) -> String {
    format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s}}\n{body}")
}

#[test]
fn syntax_error_rejects_its_document() {
    check_rejected("apiVersion: v1\nkind: [\n", 7, "syntax: ");
    check_rejected("apiVersion: v1\n  kind: Service\n", 7, "syntax: ");
}

#[test]
fn duplicate_key_rejects_the_document() {
    check_rejected(
        &service("  ports: [{port: 80}]\n  ports: []"),
        12,
        "duplicate",
    );
}

#[test]
fn unknown_field_is_named() {
    check_rejected(
        &service("  ports:\n  - port: 80\n    targetport: 8080"),
        13,
        "spec.ports[0].targetport: unknown field",
    );
    check_rejected(&service("  port: 80"), 11, "spec.port: unknown field");
}

#[test]
fn wrong_type_is_named() {
    check_rejected(
        &service("  ports:\n  - port: eighty"),
        12,
        "spec.ports[0].port: invalid type",
    );
    check_rejected(
        &service("  ports: {port: 80}"),
        11,
        "spec.ports: invalid type",
    );
    check_rejected(
        &service("  clusterIP: 10\n  ports: [{port: 80}]"),
        11,
        "spec.clusterIP: ",
    );
}

#[test]
fn rejected_object_is_told() {
    let content = decode(&service("  port: 80"));
    let (kind, name) = content.rejected[0]
        .object
        .clone()
        .expect("kind and name are readable");
    assert_eq!(
        (kind, name.namespace.as_str(), name.name.as_str()),
        (Kind::Service, "default", "bad")
    );
}

#[test]
fn port_numbers_out_of_range_are_named() {
    check_rejected(
        &service("  ports:\n  - port: 65536"),
        12,
        "spec.ports[0].port: ",
    );
    check_rejected(
        &service("  ports:\n  - port: 0"),
        12,
        "spec.ports[0].port: must be 1 to 65535",
    );
    check_rejected(
        &service("  ports:\n  - port: 80\n    nodePort: -1"),
        13,
        "spec.ports[0].nodePort: ",
    );
    check_rejected(
        &slice("addressType: IPv4\nports:\n- port: 70000"),
        11,
        "ports[0].port: ",
    );
}

#[test]
fn service_without_ports_is_rejected() {
    for type_ in ["ClusterIP", "NodePort", "LoadBalancer"] {
        check_rejected(&service(&format!("  type: {type_}")), 10, "spec.ports: ");
    }
    check_rejected(
        &service("  type: NodePort\n  ports: []"),
        12,
        "spec.ports: ",
    );
    for spec in [
        "  clusterIP: None",
        "  type: ExternalName\n  externalName: a.example",
    ] {
        assert_eq!(decode(&service(spec)).rejected, []);
    }
}

#[test]
fn two_ports_that_cannot_be_told_apart_are_rejected() {
    check_rejected(
        &service("  ports:\n  - {name: a, port: 80}\n  - {name: a, port: 81}"),
        13,
        "spec.ports[1].name: ",
    );
    check_rejected(
        &service("  ports:\n  - {name: a, port: 80}\n  - {name: b, port: 80}"),
        13,
        "spec.ports[1].port: ",
    );
    check_rejected(
        &service("  ports:\n  - port: 80\n  - port: 81"),
        12,
        "spec.ports[0].name: ",
    );
}

#[test]
fn words_outside_their_set_are_rejected() {
    check_rejected(
        &service("  type: Nodeport\n  ports: [{port: 80}]"),
        11,
        "spec.type: ",
    );
    check_rejected(
        &service("  internalTrafficPolicy: local\n  ports: [{port: 80}]"),
        11,
        "spec.internalTrafficPolicy: ",
    );
    check_rejected(
        &service("  ports:\n  - port: 80\n    protocol: tcp"),
        13,
        "spec.ports[0].protocol: ",
    );
}

#[test]
fn ipv4_address_in_ipv6_slice_is_left_out() {
    rules(&["S-012", "S-041"]);
    let object = check_entry(
        &slice(
            "addressType: IPv6\nendpoints:\n- addresses:\n  - 10.4.1.5\n\
             - addresses: [\"fd00::5\"]\nports: [{name: \"\", port: 80}]",
        ),
        12,
        "endpoints[0].addresses[0]: 10.4.1.5 is an IPv4 address in an IPv6 slice",
    );
    let Object::EndpointSlice(slice) = object else {
        panic!("{object:?}")
    };
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.endpoints[0].addresses, ["fd00::5"]);
}

#[test]
fn bad_external_ip_is_left_out() {
    rules(&["S-012"]);
    let object = check_entry(
        &service("  ports: [{port: 80}]\n  externalIPs:\n  - 198.51.100.7\n  - \"\"\n  - bogus"),
        15,
        "spec.externalIPs[2]: ",
    );
    let Object::Service(service) = object else {
        panic!("{object:?}")
    };
    assert_eq!(service.spec.external_ips, ["198.51.100.7", ""]);
}

#[test]
fn version_of_ours_that_is_not_read_is_rejected() {
    check_rejected(
        "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\nmetadata: {name: s}",
        7,
        "apiVersion: discovery.k8s.io/v1beta1 is not read",
    );
    check_rejected(
        "kind: Service\nmetadata: {name: s}",
        6,
        "apiVersion: missing",
    );
    check_rejected("- kind: Service", 6, "an object is expected");
    check_rejected(
        "kind: Service\napiVersion: v1\nspec: {ports: [{port: 1}]}",
        6,
        "metadata",
    );
}

#[test]
fn other_kinds_are_skipped() {
    rules(&["S-001"]);
    let content = decode(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n\
         apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n",
    );
    assert_eq!(
        content.skipped,
        [("Deployment".to_owned(), 1), ("Service".to_owned(), 5)]
    );
    assert!(content.objects.is_empty() && content.rejected.is_empty());
}

#[test]
fn lists_hold_their_items() {
    let item = "metadata: {name: a}, spec: {ports: [{port: 80}]}";
    for (list, inside) in [
        ("List", "apiVersion: v1, kind: Service, "),
        ("ServiceList", ""),
    ] {
        let content = decode(&format!(
            "apiVersion: v1\nkind: {list}\nmetadata: {{}}\nitems:\n- {{{inside}{item}}}\n\
             - {{{inside}metadata: {{name: b}}, spec: {{prots: []}}}}\n"
        ));
        assert_eq!(content.objects.len(), 1, "{list}: {content:#?}");
        assert_eq!(content.objects[0].line, 5);
        check_complaint(&content, 6, "spec.prots: unknown field");
    }
    let content = decode("apiVersion: v1\nkind: PodList\nitems: [{}]\n");
    assert_eq!(content.skipped, [("PodList".to_owned(), 1)]);
}

#[test]
fn json_is_read_with_and_without_markers() {
    let one = |name: &str| {
        format!(
            "{{\n\t\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\t\"metadata\": \
             {{\"name\": \"{name}\", \"creationTimestamp\": null}},\n\t\"spec\": \
             {{\"ports\": [{{\"port\": 80}}]}}, \"status\": {{\"loadBalancer\": {{}}}}\n}}"
        )
    };
    let content = decode(&format!("{}\n{}\n---\n{}", one("a"), one("b"), one("c")));
    assert_eq!(content.rejected, []);
    let lines: Vec<_> = content.objects.iter().map(|it| it.line).collect();
    assert_eq!(lines, [1, 6, 12]);
}

#[test]
fn cluster_ips_get_their_families() {
    rules(&["S-021", "S-022"]);
    let content = decode(&service(
        "  clusterIPs: [\"fd00:96::5\", 10.96.0.5]\n  ports: [{port: 80}]",
    ));
    let Object::Service(service) = &content.objects[0].object else {
        panic!("{content:?}")
    };
    assert_eq!(service.spec.ip_families, ["IPv6", "IPv4"]);
    assert_eq!(service.spec.cluster_ip.as_deref(), Some("fd00:96::5"));
}

#[test]
fn comments_directives_and_empty_documents_are_nothing() {
    let text = format!("# hello\n---\n%YAML 1.2\n---\n\n---\n{GOOD}...\n# end\n");
    let content = decode(&text);
    assert_eq!(
        (content.objects.len(), content.rejected.len()),
        (1, 0),
        "{content:?}"
    );
}

#[test]
fn nodes_and_service_cidrs_are_read() {
    let content = decode(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.4.0.0/24}\n\
         status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
         spec: {cidrs: [10.96.0.0/16, bogus]}\n",
    );
    assert_eq!(content.objects.len(), 2, "{content:?}");
    check_complaint(&content, 10, "spec.cidrs[1]: ");
}

proptest! {
    #[test]
    fn no_text_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_damage_makes_the_decoder_panic(
        at in 0_usize..400, cut in 0_usize..20, put in "[\\[{}\\]:,\"'&*!|>%@`?\n\t -]{0,6}",
    ) {
        let mut text = format!("{GOOD}{}{ALSO_GOOD}", service("  ports:\n  - port: 80\n"));
        let at = at.min(text.len());
        text.replace_range(at..(at + cut).min(text.len()), &put);
        decode(&text);
    }
}
