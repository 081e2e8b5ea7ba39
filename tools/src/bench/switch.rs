//! `tandem bench --switch`: what it takes to change what is added to a model.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tandem_engine::adapters::{MergeMethod, MergeOptions, merge_packed};
use tandem_engine::{Composition, Model, Pool};

use super::{Args, Print, mean_and_deviation, median};
use tandem_formats::Gguf;

use crate::adapters::{Chosen, Parts, read_all};

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

/// Times changes from the model alone to the composition, in a session that has evaluated nothing.
pub(super) fn measure(
    args: &Args,
    (name, model, gguf): (&str, &Model<'_>, &Gguf<'_>),
    (parts, chosen): (&Parts<'_>, Option<&Chosen<'_>>),
    pool: &dyn Pool,
    mut add: impl FnMut(Row),
) -> Result<()> {
    let session = || {
        let n_ctx = args.session.batch.get();
        args.session.session(model, pool, None, Some(n_ctx))
    };
    let mut time = |switch: &str, once: &dyn Fn() -> Result<Duration>| -> Result<()> {
        once()?;
        let times = (0..args.repeat.get()).map(|_| Ok(once()?.as_secs_f64() * 1e3));
        let mut times = times.collect::<Result<Vec<f64>>>()?;
        let (milliseconds, deviation) = mean_and_deviation(&times);
        add(Row {
            model: name.to_string(),
            switch: switch.to_string(),
            milliseconds,
            deviation,
            median: median(&mut times),
        });
        Ok(())
    };

    let ready = parts.composition(&model.config)?;
    ensure!(
        ready.is_some(),
        "there is nothing to switch to: give --lora or --bundle"
    );
    time("ready-made", &|| {
        let mut session = session()?;
        let start = Instant::now();
        session.set_composition(ready.as_ref())?;
        Ok(start.elapsed())
    })?;
    time("cat", &|| {
        // The session borrows what comes after it.
        let (start, composition);
        let mut session = session()?;
        start = Instant::now();
        composition = parts.composition(&model.config)?;
        session.set_composition(composition.as_ref())?;
        Ok(start.elapsed())
    })?;

    let adapter_type = args.session.adapter_type(model);
    let workers = args.session.workers(pool);

    if let Some(chosen) = chosen {
        let bundle = chosen.bundle(gguf)?;
        for composition in &bundle.contents().compositions {
            let (name, merge) = (&*composition.name, composition.merge.method.name());
            let stored = composition.merged.as_ref().map_or("", |_| ", stored");
            time(&format!("{name} ({merge}{stored})"), &|| {
                let (parts, composition);
                let mut session = session()?;
                let start = Instant::now();
                parts = Parts::of_bundle(&bundle, name, &model.config, adapter_type, workers)?;
                composition = parts.composition(&model.config)?;
                session.set_composition(composition.as_ref())?;
                Ok(start.elapsed())
            })?;
        }
    }

    let adapters = read_all(&args.adapters, &model.config)?;
    if adapters.len() < 2 || args.adapters.calibration.is_some() {
        return Ok(());
    }
    let adapters: Vec<_> = adapters.iter().collect();
    let weights: Vec<f32> = args.adapters.lora.iter().map(|lora| lora.scale).collect();
    let methods = MergeMethod::ALL.into_iter();
    // The sum needs no merge.
    for method in methods.filter(|method| *method != MergeMethod::Cat) {
        let options = MergeOptions {
            method,
            dense: false,
            density: 0.5,
            rank: None,
            seed: 0,
        };
        time(method.name(), &|| {
            let (packed, composition);
            let mut session = session()?;
            let start = Instant::now();
            let base = &model.config;
            packed = merge_packed(base, &adapters, &weights, &options, adapter_type, workers)?;
            composition = Composition::new(&model.config, &[(&packed, 1.0)])?;
            session.set_composition(Some(&composition))?;
            Ok(start.elapsed())
        })?;
    }
    Ok(())
}
