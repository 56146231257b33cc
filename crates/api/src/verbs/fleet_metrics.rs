use crate::verbs::verb;

verb! {
    /// Gauges for Prometheus.
    FleetMetrics = get "/metrics" (),
    operation: "metrics" in "metrics",
    access: Viewer,
    request: none,
    answer: text { 200 = "OpenMetrics text, as Prometheus reads it" },
}
