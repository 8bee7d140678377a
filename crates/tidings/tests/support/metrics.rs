//! What a test program measured: every counter, gauge and histogram by its name and labels.

use std::{collections::BTreeMap, sync::Arc};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use parking_lot::Mutex;

/// Everything that is measured in this program.
#[derive(Clone, Default)]
pub(crate) struct Measured(Arc<Mutex<BTreeMap<String, f64>>>);

impl Measured {
    /// Begins to measure. There is one for all tests of a program, so labels tell them apart.
    pub(crate) fn install() -> Self {
        static MEASURED: std::sync::OnceLock<Measured> = std::sync::OnceLock::new();
        let install = || {
            let measured = Self::default();
            let installed = metrics::set_global_recorder(measured.clone());
            installed.expect("nobody else measures");
            measured
        };
        MEASURED.get_or_init(install).clone()
    }

    /// The sum of a counter, the last value of a gauge, or how many values a histogram has, with all
    /// labels that are named: `name{label=value,label=value}`; 0 if nothing was measured.
    pub(crate) fn get(&self, name: &str) -> f64 {
        self.0.lock().get(name).copied().unwrap_or_default()
    }

    fn cell(&self, key: &Key) -> Arc<Cell> {
        let mut labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort_unstable();
        Arc::new(Cell {
            all: self.clone(),
            name: format!("{}{{{}}}", key.name(), labels.join(",")),
        })
    }
}

struct Cell {
    all: Measured,
    name: String,
}

impl Cell {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(self.all.0.lock().entry(self.name.clone()).or_default());
    }
}

impl CounterFn for Cell {
    fn increment(&self, by: u64) {
        self.change(|value| *value += by as f64);
    }

    fn absolute(&self, to: u64) {
        self.change(|value| *value = to as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, by: f64) {
        self.change(|value| *value += by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| *value -= by);
    }

    fn set(&self, to: f64) {
        self.change(|value| *value = to);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.change(|count| *count += 1.0);
    }
}

impl Recorder for Measured {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.cell(key).into()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.cell(key).into()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.cell(key).into()
    }
}
