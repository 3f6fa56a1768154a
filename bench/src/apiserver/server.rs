//! A real API server in a namespace of its own, filled with real objects.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tests::lab::Lab;
use tests::net::{Netns, Sandbox};

use crate::objects::{self, NAMESPACE, Size};

/// The interface that packets of the probes enter by.
pub const IFINDEX: u32 = 7;
/// Where the API server listens.
pub const API: &str = "10.65.0.1";
/// Requests under way at once while the API server is filled.
const WRITERS: usize = 64;

/// A filled API server in a namespace of its own.
pub struct Server {
    pub lab: Lab,
    pub netns: Netns,
    pub sandbox: Sandbox,
}

impl Server {
    /// Starts and fills it.
    pub fn start(size: Size) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let netns = sandbox.netns("api")?;
        netns.ip(&format!(
            "addr add {API}/32 dev lo\n\
             link add name pod0 index {IFINDEX} type veth peer name pod1\n\
             link set pod0 up\nlink set pod1 up\naddr add 10.64.0.1/24 dev pod0\n\
             route add default via 10.64.0.2\n"
        ))?;
        let lab = Lab::start(&sandbox, &netns, API)?;
        let server = Self {
            lab,
            netns,
            sandbox,
        };
        server.end_controllers()?;
        server.lab.add_node("node-1", &["10.64.0.1"])?;
        server.lab.kubectl(&["create", "namespace", NAMESPACE])?;
        let started = Instant::now();
        server.run(|client| fill(client, size))??;
        println!(
            "API server filled in {:.1} s",
            started.elapsed().as_secs_f64()
        );
        Ok(server)
    }

    /// Nothing here needs controllers, which would take a share of the processors.
    fn end_controllers(&self) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        let path = self.sandbox.dir().join("lab/kube-controller-manager.pid");
        let pid = std::fs::read_to_string(path)?.trim().parse()?;
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).context("ending the controllers")
    }

    /// Runs something asynchronous with a client, in the server's namespace.
    pub fn run<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Client) -> F + Send,
    ) -> Result<T> {
        with_client(&self.netns, self.lab.kubeconfig(), work)
    }
}

/// Runs something asynchronous with a client of the server that `kubeconfig` names, in `netns`.
pub fn with_client<T: Send, F: Future<Output = T>>(
    netns: &Netns,
    kubeconfig: PathBuf,
    work: impl FnOnce(Client) -> F + Send,
) -> Result<T> {
    netns.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            anyhow::Ok(work(Client::try_from(config)?).await)
        })
    })?
}

async fn fill(client: Client, size: Size) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let (services, slices) = (&services, &slices);
    let writes = (0..size.services).map(|number| async move {
        let how = PostParams::default();
        let service = serde_json::from_value(objects::service(number))?;
        services.create(&how, &service).await?;
        for slice in size.slices(number) {
            slices.create(&how, &serde_json::from_value(slice)?).await?;
        }
        if number % 1000 == 999 {
            println!("{} Services written", number + 1);
        }
        anyhow::Ok(())
    });
    futures::stream::iter(writes)
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await
}
