//! The clsact qdisc that our filters hang on, where it is ours alone.

use std::io;
use std::thread;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::{Error, Handle};

/// Parent of a clsact qdisc (`TC_H_CLSACT` of linux/pkt_sched.h).
const PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};
/// Its handle.
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// In.
    Ingress,
    /// Out.
    Egress,
}

/// Removes the clsact qdisc of an interface of this network namespace, unless it holds a filter:
/// somebody else uses it then, and it stays.
pub fn remove_unused(ifindex: u32) -> io::Result<()> {
    ask(move |handle| async move { remove(&handle, ifindex).await })
}

/// A filter at one side of an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// The lowest comes first.
    pub priority: u16,
    /// Its number among those of the same priority.
    pub handle: u32,
    /// `bpf` and others.
    pub kind: String,
    /// What it calls itself.
    pub name: String,
    /// Id of its BPF program.
    pub program: Option<u32>,
}

/// The filters of an interface of this network namespace, in the order in which they run; none
/// where there is no qdisc for them.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    ask(move |handle| async move {
        let Ok(index) = i32::try_from(ifindex) else {
            return Ok(Vec::new());
        };
        let request = handle.traffic_filter(index).get();
        let request = match direction {
            Direction::Ingress => request.ingress(),
            Direction::Egress => request.egress(),
        };
        let found: Vec<_> = request.execute().try_collect().await?;
        // A list begins each priority with an entry that names its kind alone.
        let filters = found.iter().map(filter).filter(|filter| filter.handle != 0);
        let mut filters: Vec<Filter> = filters.collect();
        filters.sort_by_key(|filter| filter.priority);
        Ok(filters)
    })
}

fn filter(message: &TcMessage) -> Filter {
    let header = &message.header;
    let mut filter = Filter {
        priority: (header.info >> 16) as u16,
        handle: u32::from(header.handle.major) << 16 | u32::from(header.handle.minor),
        ..Filter::default()
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            filter.name.clone_from(name);
                        }
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}

/// Asks the kernel, on a thread with a runtime of its own: the caller may be inside one.
fn ask<T, F>(question: impl FnOnce(Handle) -> F + Send) -> io::Result<T>
where
    T: Send,
    F: Future<Output = Result<T, Error>>,
{
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                question(handle).await.map_err(io::Error::other)
            })
        });
        done.join()
            .unwrap_or_else(|_| Err(io::Error::other("a panic")))
    })
}

async fn remove(handle: &Handle, ifindex: u32) -> Result<(), Error> {
    let Ok(index) = i32::try_from(ifindex) else {
        return Ok(());
    };
    let filters = || handle.traffic_filter(index).get();
    for request in [filters().ingress(), filters().egress()] {
        let found: Vec<_> = request.execute().try_collect().await?;
        if !found.is_empty() {
            return Ok(());
        }
    }
    let mut request = handle.qdisc().del(index);
    let header = &mut request.message_mut().header;
    (header.parent, header.handle) = (PARENT, HANDLE);
    request.execute().await
}
