//! stub
pub fn run_demo(_: &str) -> anyhow::Result<()> {
    Ok(())
}
