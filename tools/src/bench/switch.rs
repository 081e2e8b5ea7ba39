//! `tandem bench --switch`: what it takes to change what is added to a model.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tandem_engine::adapters::{MergeMethod, MergeOptions, merge_packed};
use tandem_engine::{Composition, Model, SharedPool};

use super::{Args, Print, mean_and_deviation, median};

use crate::adapters::{Parts, bundle_for, read_all};

/// One row of the table.
#[derive(Serialize)]
pub(super) struct Row {
    model: String,
    /// What was made anew: nothing (`ready-made`), the composition of adapters that lie ready
    /// (`cat`), that of adapters merged by a method, or that of a bundle by its name.
    switch: String,
    milliseconds: f64,
    deviation: f64,
    median: f64,
}

impl Print for Row {
    const CSV: &str = "model,switch,milliseconds,deviation,median";
    const MD: &str = "| model | switch | ms | median |\n|---|---|---:|---:|";

    fn csv(&self) -> String {
        format!(
            "\"{}\",{},{:.4},{:.4},{:.4}",
            self.model.replace('"', "\"\""),
            self.switch,
            self.milliseconds,
            self.deviation,
            self.median
        )
    }

    fn md(&self) -> String {
        format!(
            "| {} | {} | {:.3} +- {:.3} | {:.3} |",
            self.model.replace('|', "\\|"),
            self.switch,
            self.milliseconds,
            self.deviation,
            self.median
        )
    }
}

/// Changes from the model alone to a composition, in a session that has evaluated nothing.
pub(super) struct Switching<'a> {
    pub args: &'a Args,
    pub name: &'a str,
    pub model: &'a Model,
    pub parts: &'a Parts,
    pub pool: &'a SharedPool,
}

impl Switching<'_> {
    /// Times each way to change.
    pub(super) fn measure(&self, mut add: impl FnMut(Row)) -> Result<()> {
        let (args, base) = (self.args, self.model.linears());
        let ready = self.parts.composition(base)?;
        ensure!(
            ready.is_some(),
            "there is nothing to switch to: give --lora or --bundle"
        );
        add(self.time("ready-made", &|| Ok(ready.clone()))?);
        add(self.time("cat", &|| self.parts.composition(base))?);

        let adapter_type = args.session.adapter_type(self.model);
        let compute = args.session.compute(self.pool);
        if let Some(path) = &args.bundle.bundle {
            let bundle = bundle_for(path, self.model)?;
            for composition in &bundle.file().contents().compositions {
                let (name, merge) = (&*composition.name, composition.merge.method.name());
                let stored = composition.merged.as_ref().map_or("", |_| ", stored");
                let make = || Ok(Some(bundle.composition_as(name, adapter_type, compute)?));
                add(self.time(&format!("{name} ({merge}{stored})"), &make)?);
            }
        }

        let adapters = read_all(&args.adapters, base)?;
        if adapters.len() < 2 || args.adapters.calibration.is_some() {
            return Ok(());
        }
        let adapters: Vec<_> = adapters.iter().collect();
        let weights: Vec<f32> = args.adapters.lora.iter().map(|lora| lora.scale).collect();
        let methods = MergeMethod::ALL.into_iter();
        // The sum needs no merge.
        for method in methods.filter(|method| *method != MergeMethod::Cat) {
            if method == MergeMethod::Slerp && adapters.len() > 2 {
                continue;
            }
            let mut options = MergeOptions::new(method);
            options.density = 0.5;
            let make = || {
                let packed =
                    merge_packed(base, &adapters, &weights, &options, adapter_type, compute)?;
                Ok(Some(Composition::new(base, &[(&packed, 1.0)])?))
            };
            add(self.time(method.name(), &make)?);
        }
        Ok(())
    }

    /// Times making a composition and setting it.
    fn time(&self, switch: &str, make: &dyn Fn() -> Result<Option<Composition>>) -> Result<Row> {
        self.once(make)?;
        let n = self.args.repeat.get();
        let times = (0..n).map(|_| Ok(self.once(make)?.as_secs_f64() * 1e3));
        let mut times = times.collect::<Result<Vec<f64>>>()?;
        let (milliseconds, deviation) = mean_and_deviation(&times);
        Ok(Row {
            model: self.name.to_string(),
            switch: switch.to_string(),
            milliseconds,
            deviation,
            median: median(&mut times),
        })
    }

    fn once(&self, make: &dyn Fn() -> Result<Option<Composition>>) -> Result<Duration> {
        let session = &self.args.session;
        let n_ctx = Some(session.batch.get());
        let mut session = session.session(self.model, self.pool, None, n_ctx)?;
        let start = Instant::now();
        session.set_composition(make()?.as_ref())?;
        Ok(start.elapsed())
    }
}
