//! Precedence, the table of section 16, and what is refused.

use std::path::Path;

use clap::Parser;

use super::*;
use crate::cli::args::{Cli, Command};
use crate::rules;
use crate::settings::{Masquerade, SocketLb};

fn machine() -> Machine {
    Machine {
        hostname: "N1.corp".to_owned(),
        cpus: 4,
        ipv6: Ipv6::Served,
    }
}

fn flags(line: &str) -> Given {
    let cli = Cli::parse_from(
        ["shunt", "agent"]
            .into_iter()
            .chain(line.split_whitespace()),
    );
    let Command::Agent(args) = cli.command else {
        panic!("{cli:?}")
    };
    args.given
}

fn options(line: &str, file: &str) -> Result<AgentOptions, ConfigError> {
    let file = file::decode(Path::new("c.yaml"), file, machine().cpus)?;
    let mut options = resolve(flags(line).or(file.given), &machine())?;
    options.warnings.extend(file.warnings);
    Ok(options)
}

fn kube_proxy(body: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{body}\n")
}

fn shunt(body: &str) -> String {
    format!("---\napiVersion: shunt/v1alpha1\nkind: ShuntConfiguration\n{body}\n")
}

#[track_caller]
fn check_error(line: &str, file: &str, error: &str) {
    let found = options(line, file)
        .expect_err("must be refused")
        .to_string();
    assert!(found.contains(error), "{found:?} lacks {error:?}");
}

/// As kubeadm writes it.
const KUBEADM: &str = "\
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: \"\"
  strictARP: false
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: \"\"
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: \"\"
  rootHnsEndpointName: \"\"
  sourceVip: \"\"
";

#[test]
fn nothing_given_is_every_default() {
    rules(&["S-118", "S-170", "S-190", "S-191"]);
    let options = options("", "").unwrap();
    assert_eq!(options.selection.node_name, "n1.corp");
    assert_eq!(options.source, Source::Api(ApiSource::default()));
    assert_eq!(options.bpffs, Path::new("/sys/fs/bpf"));
    let settings = Settings {
        node_name: "n1.corp".to_owned(),
        ..Settings::default()
    };
    assert_eq!(options.settings, settings);
    assert_eq!(options.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(options.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(options.bpf_log, BpfLog::Off);
    assert_eq!(options.warnings.len(), 1, "S-191: {:?}", options.warnings);
}

#[test]
fn what_programs_log_is_a_flag_and_a_key() {
    for (level, expected) in [
        ("off", BpfLog::Off),
        ("error", BpfLog::Error),
        ("warn", BpfLog::Warn),
        ("info", BpfLog::Info),
        ("debug", BpfLog::Debug),
    ] {
        let by_flag = options(&format!("--bpf-log {level}"), "").unwrap();
        let by_key = options("", &shunt(&format!("bpfLog: {level}"))).unwrap();
        assert_eq!((by_flag.bpf_log, by_key.bpf_log), (expected, expected));
    }
    let other = options("", &shunt("socketLb: off")).unwrap();
    assert_eq!(other.settings.socket_lb, SocketLb::Off);
    let flag_wins = options("--bpf-log off", &shunt("bpfLog: debug")).unwrap();
    assert_eq!(flag_wins.bpf_log, BpfLog::Off);
    check_error("", &shunt("bpfLog: loud"), "bpfLog");
}

#[test]
fn generated_kube_proxy_file_is_taken_as_it_is() {
    rules(&["S-190"]);
    let options = options("", &kube_proxy(KUBEADM)).unwrap();
    let defaults = resolve(Given::default(), &machine()).unwrap();
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    let cidrs = vec![
        "10.244.0.0/16".parse().unwrap(),
        "fd00:10:244::/56".parse().unwrap(),
    ];
    let expected = AgentOptions {
        source: Source::Api(ApiSource {
            kubeconfig,
            servers: Vec::new(),
            ..ApiSource::default()
        }),
        settings: Settings {
            cluster_cidrs: cidrs,
            ..defaults.settings
        },
        configz: options.configz.clone(),
        ..defaults
    };
    assert_eq!(options, expected);
    let configz: serde_json::Value = serde_json::from_str(&options.configz).unwrap();
    let document = &configz["shunt/v1alpha1"];
    assert_eq!(document["clusterCIDR"][1], "fd00:10:244::/56");
    assert_eq!(document["syncPeriod"], "30s");
}

#[test]
fn flag_wins_over_shunt_document_wins_over_kube_proxy_document() {
    rules(&["S-190"]);
    let file = kube_proxy("hostnameOverride: a\nclusterCIDR: 10.4.0.0/16")
        + &shunt("nodeName: b\nmaxFlows: 5000\nsocketLb: host");
    let from_file = options("", &file).unwrap();
    assert_eq!(from_file.selection.node_name, "b");
    assert_eq!(
        (from_file.sizes.flows, from_file.settings.socket_lb),
        (5000, SocketLb::Host)
    );
    let both = options("--node-name c --max-flows=6000", &file).unwrap();
    assert_eq!(both.selection.node_name, "c");
    assert_eq!(
        (both.sizes.flows, both.settings.socket_lb),
        (6000, SocketLb::Host)
    );
    assert_eq!(
        both.settings.cluster_cidrs,
        from_file.settings.cluster_cidrs
    );
}

#[test]
fn flag_equal_to_the_default_wins_too() {
    rules(&["S-190"]);
    let file = kube_proxy("iptables: {masqueradeAll: true}\nlogging: {verbosity: 5}")
        + &shunt("masquerade: always\nlogLevel: trace");
    let given = options("", &file).unwrap();
    assert!(given.settings.masquerade_all && given.settings.masquerade == Masquerade::Always);
    assert_eq!(given.log_level, "trace");
    let flags = "--masquerade-all=false --masquerade needed -v 0";
    let given = options(flags, &file).unwrap();
    assert!(!given.settings.masquerade_all && given.settings.masquerade == Masquerade::Needed);
    assert_eq!(given.log_level, "info");
}

#[test]
fn mode_names_the_block_that_holds() {
    let of = |mode: &str, iptables: &str, nftables: &str| {
        let file = kube_proxy(&format!(
            "mode: {mode}\niptables: {{{iptables}}}\nnftables: {{{nftables}}}"
        ));
        let options = options("--nodeport-addresses all", &file).unwrap();
        (options.settings.masquerade_all, options.warnings.len())
    };
    let yes = "masqueradeAll: true";
    assert_eq!(of("nftables", "", yes), (true, 0));
    assert_eq!(of("nftables", yes, ""), (false, 0));
    assert_eq!(of("iptables", yes, ""), (true, 0));
    assert_eq!(of("iptables", "", yes), (false, 0));
    assert_eq!(of("ipvs", yes, ""), (true, 1));
    assert_eq!(of("'' ", yes, ""), (true, 0));
    let only = options("", &kube_proxy("nftables: {masqueradeAll: true}")).unwrap();
    assert!(only.settings.masquerade_all);
}

#[test]
fn node_name_and_hostname_override_are_one_flag() {
    rules(&["S-170", "S-190"]);
    for line in ["--node-name N2", "--hostname-override=N2"] {
        assert_eq!(options(line, "").unwrap().selection.node_name, "n2");
    }
}

#[test]
fn source_of_the_command_line_replaces_that_of_the_file() {
    rules(&["S-183"]);
    let file = kube_proxy("clientConnection: {kubeconfig: /k}");
    let manifests = options("--manifests /a /b", &file).unwrap();
    assert_eq!(
        manifests.source,
        Source::Manifests(vec!["/a".into(), "/b".into()])
    );
    let servers = options("--apiserver https://192.0.2.5:6443", &file).unwrap();
    let expected = ApiSource {
        kubeconfig: Some("/k".into()),
        servers: vec!["https://192.0.2.5:6443".to_owned()],
        ..ApiSource::default()
    };
    assert_eq!(servers.source, Source::Api(expected));
    let file = shunt("manifests: [/m]");
    assert_eq!(
        options("", &file).unwrap().source,
        Source::Manifests(vec!["/m".into()])
    );
    let api = options("--kubeconfig /k", &file).unwrap();
    assert!(matches!(api.source, Source::Api(_)), "{:?}", api.source);
}

#[test]
fn unknown_and_repeated_fields_of_the_file_are_warnings() {
    rules(&["S-190"]);
    let file = kube_proxy("hostnameOverride: a\nfutureField: 1\nhostnameOverride: b")
        + &shunt("conntrak: 1");
    let options = options("--nodeport-addresses all", &file).unwrap();
    assert_eq!(options.selection.node_name, "b");
    let expected = [
        "c.yaml:5: duplicate",
        "c.yaml:4: futureField: unknown",
        "c.yaml:9: conntrak:",
    ];
    assert_eq!(
        options.warnings.len(),
        expected.len(),
        "{:?}",
        options.warnings
    );
    for (warning, expected) in options.warnings.iter().zip(expected) {
        assert!(warning.starts_with(expected), "{warning:?}");
    }
}

#[test]
fn verbosity_of_the_flag_wins_over_the_file() {
    rules(&["S-190"]);
    let options = options("-v=5", &kube_proxy("logging: {verbosity: 1}")).unwrap();
    assert_eq!(options.log_level, "debug");
}

#[test]
fn no_feature_gate_changes_what_is_served() {
    rules(&["S-220"]);
    let gates = "featureGates: {ProxyTerminatingEndpoints: false, LoadBalancerIPMode: false, \
                 ServiceTrafficDistribution: false, PreferSameTrafficDistribution: false, \
                 MultiCIDRServiceAllocator: false, TopologyAwareHints: false}";
    let with = options("", &kube_proxy(gates)).unwrap();
    assert_eq!(with.settings, options("", "").unwrap().settings);
    let told = with
        .warnings
        .iter()
        .filter(|it| it.contains("featureGates has no meaning"));
    assert_eq!(told.count(), 1, "{:?}", with.warnings);
}

#[test]
fn node_name_is_trimmed_and_lower_cased() {
    rules(&["S-170"]);
    let given = Given {
        node_name: Some(" N1.corp ".to_owned()),
        ..Given::default()
    };
    assert_eq!(
        resolve(given, &machine()).unwrap().selection.node_name,
        "n1.corp"
    );
}

#[test]
fn what_has_no_meaning_is_a_warning() {
    let file = kube_proxy("mode: ipvs\nipvs: {strictARP: true}");
    let options = options("--nodeport-addresses all", &file).unwrap();
    assert_eq!(options.warnings.len(), 2, "{:?}", options.warnings);
}

#[test]
fn errors_of_the_file_have_line_and_field() {
    check_error(
        "",
        &kube_proxy("conntrack:\n  min: many"),
        "c.yaml:4: conntrack.min: ",
    );
    check_error("", &kube_proxy("a: ["), "c.yaml:3: syntax");
    check_error(
        "",
        &kube_proxy("detectLocalMode: Magic"),
        "c.yaml:3: detectLocalMode: ",
    );
    check_error("", "kind: Pod\napiVersion: v1", "c.yaml:1: one kubeproxy");
    check_error("", &(shunt("") + &shunt("")), "c.yaml:6: one kubeproxy");
    check_error("", &shunt("socketLb: maybe"), "c.yaml:4: socketLb: ");
}

#[test]
fn repeated_keyword_is_refused() {
    rules(&["S-118"]);
    check_error(
        "--nodeport-addresses primary,primary",
        "",
        "primary is given twice",
    );
    check_error(
        "",
        &kube_proxy("nodePortAddresses: [all, all]"),
        "all is given twice",
    );
    check_error("--nodeport-addresses everything", "", "is no CIDR");
}

#[test]
fn nodeport_cidrs_of_one_family_are_a_warning() {
    rules(&["S-119a", "S-191"]);
    let options = options("--nodeport-addresses 192.0.2.0/24", "").unwrap();
    assert_eq!(options.warnings.len(), 1);
    assert!(
        options.warnings[0].contains("every IPv6 address"),
        "{:?}",
        options.warnings
    );
}

#[test]
fn senseless_values_are_refused() {
    check_error(
        "--cluster-cidr 10.0.0.0/8,10.1.0.0/16",
        "",
        "cluster-cidr: ",
    );
    check_error(
        "--detect-local-mode BridgeInterface",
        "",
        "pod-bridge-interface: needed",
    );
    check_error("--snat-ports 10000-20000,15000-25000", "", "snat-ports: ");
    check_error("--snat-ports 80-90", "", "snat-ports: ");
    check_error("--max-flows 1", "", "max-flows: ");
    check_error("--sync-period 0s", "", "sync-period: ");
    check_error("--min-sync-period 1m", "", "min-sync-period: ");
    check_error("--udp-timeout soon", "", "udp-timeout: ");
    check_error(
        "--healthz-bind-address nowhere",
        "",
        "healthz-bind-address: ",
    );
    check_error(
        "",
        &shunt("manifests: [/a]\nkubeconfig: /k"),
        "manifests: either",
    );
}

#[test]
fn values_are_read_in_all_their_forms() {
    let line = "--bind-address :: --metrics-bind-address 127.0.0.1:0 --snat-ports 30000-30003 \
                --detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali \
                --tcp-established-timeout 1h30m --masquerade-all";
    let options = options(line, "").unwrap();
    assert_eq!(options.healthz, Some("[::]:10256".parse().unwrap()));
    assert_eq!(
        (options.metrics, options.settings.bind_address),
        (None, None)
    );
    assert_eq!(
        options.settings.snat_ports,
        [[30_000, 30_001], [30_002, 30_003]]
    );
    assert_eq!(
        options.settings.detect_local,
        DetectLocalMode::InterfaceNamePrefix("cali".to_owned())
    );
    assert_eq!(options.settings.timeouts.tcp_established_secs, 5400);
    assert!(options.settings.masquerade_all);
}

#[test]
fn conntrack_limits_size_the_flow_tables() {
    let file = kube_proxy("conntrack: {maxPerCore: 32768, min: 131072}");
    assert_eq!(options("", &file).unwrap().sizes.flows, 131_072);
    assert_eq!(
        options("--max-flows 4096", &file).unwrap().sizes.flows,
        4096
    );
}

#[test]
fn documented_file_is_accepted() {
    let docs = include_str!("../../../docs/configuration.md");
    let example = docs
        .split("```yaml")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let options = options("", example).unwrap();
    assert_eq!(options.warnings, [""; 0]);
    assert_eq!(
        (options.sizes.flows, options.interfaces.len()),
        (524_288, 2)
    );
}

#[test]
fn file_of_the_daemon_set_is_accepted() {
    let manifests = include_str!("../../../deploy/shunt.yaml");
    let (_, config) = manifests.split_once("config.yaml: |\n").unwrap();
    let (config, _) = config.split_once("---").unwrap();
    let options = options("--nodeport-addresses all", config).unwrap();
    assert_eq!(options.warnings, [""; 0]);
    assert_eq!(options.source, Source::Api(ApiSource::default()));
}

#[test]
fn written_configuration_says_the_same_as_what_it_was_written_from() {
    rules(&["S-182"]);
    let given = flags("--max-flows=5000 --cluster-cidr 10.4.0.0/16 --socket-lb host -v=5");
    let text = effective::document_text(&given, &machine()).unwrap();
    let again = options("", &text).unwrap();
    let first = resolve(given, &machine()).unwrap();
    assert_eq!(
        again,
        AgentOptions {
            configz: again.configz.clone(),
            ..first
        }
    );
}

#[test]
fn conntrack_options_reach_the_kernel_and_size_our_flows() {
    rules(&["S-184"]);
    let file = kube_proxy("conntrack: {maxPerCore: 100000, min: 5000, tcpCloseWaitTimeout: 30m}");
    let found = options("--conntrack-tcp-be-liberal", &file).unwrap();
    let conntrack = found.conntrack;
    assert_eq!(
        (conntrack.max_per_core.value, conntrack.min.value),
        (100_000, 5_000)
    );
    assert_eq!(conntrack.tcp_close_wait.value, 1_800);
    assert!(conntrack.tcp_close_wait.is_explicit && !conntrack.tcp_established.is_explicit);
    assert_eq!(conntrack.tcp_be_liberal.value, 1);
    assert_eq!(found.sizes.flows, 400_000);
    let flags = options("--conntrack-min=300000 --conntrack-max-per-core=0", "").unwrap();
    assert_eq!(flags.sizes.flows, 300_000);
    assert_eq!(flags.conntrack.max_per_core.value, 0);
    assert_eq!(options("", "").unwrap().oom_score_adj, -999);
    assert_eq!(options("--oom-score-adj -5", "").unwrap().oom_score_adj, -5);
}
