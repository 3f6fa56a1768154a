//! Flags of kube-proxy that have no meaning here: accepted with a warning, so that its command line
//! can be used as it is (section 16 of the rules).

use clap::Args;

macro_rules! ignored {
    ($($field:ident)*) => {
        /// Flags that change nothing.
        #[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
        pub struct KubeProxyFlags {
            $(
                #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
                $field: Option<String>,
            )*
        }

        impl KubeProxyFlags {
            /// The flags that were given.
            pub fn given(&self) -> Vec<String> {
                let all = [$((stringify!($field), &self.$field)),*];
                let given = all.into_iter().filter(|(_, value)| value.is_some());
                given.map(|(name, _)| format!("--{}", name.replace('_', "-"))).collect()
            }
        }
    };
}

ignored! {
    cleanup_ipvs config_sync_period feature_gates healthz_port iptables_localhost_nodeports
    iptables_masquerade_bit ipvs_exclude_cidrs ipvs_min_sync_period ipvs_scheduler ipvs_strict_arp
    ipvs_sync_period ipvs_tcp_timeout ipvs_tcpfin_timeout ipvs_udp_timeout kube_api_burst
    kube_api_content_type kube_api_qps log_flush_frequency log_json_info_buffer_size
    log_json_split_stream log_text_info_buffer_size log_text_split_stream metrics_port
    nftables_masquerade_bit proxy_mode proxy_port_range
    show_hidden_metrics_for_version vmodule windows_service
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use clap::Parser as _;

    use crate::cli::args::{Cli, Command};

    #[test]
    fn command_line_of_kube_proxy_is_accepted() {
        rules(&["S-190"]);
        let line = "--hostname-override=n1 --proxy-mode=nftables --cluster-cidr=10.4.0.0/16 \
                    --bind-address 0.0.0.0 --healthz-bind-address=0.0.0.0:10256 --profiling \
                    --metrics-bind-address=127.0.0.1:10249 --masquerade-all --kube-api-qps 5 \
                    --conntrack-max-per-core=32768 --conntrack-min=131072 --v=4 \
                    --conntrack-tcp-timeout-established=24h0m0s --conntrack-udp-timeout=30s \
                    --conntrack-tcp-timeout-close-wait=1h0m0s --conntrack-udp-timeout-stream=60s \
                    --conntrack-tcp-be-liberal --oom-score-adj=-999 --ipvs-scheduler rr \
                    --iptables-sync-period=30s --iptables-min-sync-period=1s \
                    --nodeport-addresses=primary --detect-local-mode=ClusterCIDR \
                    --pod-bridge-interface=cni0 --pod-interface-name-prefix=veth \
                    --logging-format=json --bind-address-hard-fail --master=https://192.0.2.5:6443 \
                    --feature-gates=A=true --config-sync-period=15m";
        let words = line.split_whitespace();
        let cli = Cli::try_parse_from(["shunt", "agent"].into_iter().chain(words)).unwrap();
        let Command::Agent(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.given.verbosity, Some(4));
        assert_eq!(args.given.node_name.as_deref(), Some("n1"));
        let given = args.kube_proxy.given();
        assert_eq!(
            given,
            [
                "--config-sync-period",
                "--feature-gates",
                "--ipvs-scheduler",
                "--kube-api-qps",
                "--proxy-mode",
            ]
        );
    }
}
