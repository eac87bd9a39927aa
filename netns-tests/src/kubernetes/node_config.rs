//! The configurations of what runs on a node, as text.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::image::PAUSE;
use super::plan::ProxyMode;

/// What the configurations of a node depend on.
pub(crate) struct NodeConfig<'a> {
    pub(crate) name: &'a str,
    pub(crate) pod_network: Ipv4Net,
    pub(crate) pod_cidr: Ipv4Net,
    pub(crate) dns: Ipv4Addr,
    /// The control group below which kubelet makes those of pods.
    pub(crate) cgroup: &'a str,
    pub(crate) proxy_mode: ProxyMode,
}

/// containerd's configuration: overlayfs, runc, and no plugin that a lab has no use for.
///
/// A process without `CAP_SYS_RESOURCE` may not lower the score by which the kernel picks whom to kill, hence
/// `restrict_oom_score_adj`.
pub(crate) fn containerd() -> String {
    format!(
        r#"version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
]

[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{PAUSE}"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
    )
}

impl NodeConfig<'_> {
    /// The CNI's configuration: pods on a bridge, as many container networks have them; routes are the lab's business.
    pub(crate) fn cni(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "hairpinMode": true,
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.pod_network}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    /// kubelet's configuration. The machine's disk and memory are not the node's, so it evicts late and collects nothing.
    pub(crate) fn kubelet(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": "/run/node/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup),
            "clusterDNS": [self.dns],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "enforceNodeAllocatable": [],
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
            "failCgroupV1": false,
            "failSwapOn": false,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": false,
            "volumePluginDir": "/run/node/volume-plugins",
        })
    }

    /// kube-proxy's configuration, or none. The machine's limits of connection tracking stay as they are.
    pub(crate) fn proxy(&self) -> Option<Value> {
        let mode = match self.proxy_mode {
            ProxyMode::None => return None,
            mode @ (ProxyMode::Iptables | ProxyMode::Nftables) => mode,
        };
        Some(json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": "0.0.0.0",
            "clientConnection": {"kubeconfig": "/run/node/proxy.kubeconfig"},
            "clusterCIDR": self.pod_cidr,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "hostnameOverride": self.name,
            "mode": mode,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(proxy_mode: ProxyMode) -> Option<Value> {
        let pod_cidr = "10.1.0.0/16".parse().unwrap();
        let pod_network = "10.1.1.0/24".parse().unwrap();
        let dns = Ipv4Addr::new(100, 1, 0, 10);
        NodeConfig { name: "east-node1", pod_network, pod_cidr, dns, cgroup: "kube", proxy_mode }.proxy()
    }

    #[test]
    fn kube_proxy_has_the_planned_mode_or_does_not_run() {
        assert_eq!(proxy(ProxyMode::Nftables).unwrap()["mode"], "nftables");
        assert_eq!(proxy(ProxyMode::Iptables).unwrap()["mode"], "iptables");
        assert_eq!(proxy(ProxyMode::None), None);
    }
}
