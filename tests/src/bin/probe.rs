//! The helper process of [`tests::traffic`]: servers and clients inside a namespace and a cgroup.

fn main() -> std::io::Result<()> {
    tests::traffic::serve()
}
