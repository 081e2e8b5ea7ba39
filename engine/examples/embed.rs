//! The engine inside an application's own type:
//! `cargo run --release --example embed -- MODEL.gguf BUNDLE.tandem COMPOSITION TEXT`.
//!
//! A model, a composition and a session own what they need: they can be kept in a struct, copied, and
//! sent to other threads.

use std::thread;

use tandem_engine::{Composition, Error, Model, Sampling, Session};

/// Answers letters.
struct Clerk {
    session: Session,
    sampling: Sampling,
}

impl Clerk {
    fn new(model: &Model, manner: &Composition) -> Result<Clerk, Error> {
        Ok(Clerk {
            session: model.session().composition(manner).build()?,
            sampling: Sampling::greedy().max_tokens(32),
        })
    }

    fn answer(&mut self, letter: &str) -> Result<String, Error> {
        self.session.generate(letter, &self.sampling)?.collect()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, bundle, composition, letter] = &args[..] else {
        return Err("a model, a bundle, a composition and a text are wanted".into());
    };
    let model = Model::open(model)?;
    let manner = model.bundle(bundle)?.composition(composition)?;
    let mut clerk = Clerk::new(&model, &manner)?;
    // The model's weights are there until the last that uses them is gone.
    drop((model, manner));
    let letter = letter.clone();
    let answer = thread::spawn(move || clerk.answer(&letter));
    let answer = answer.join().map_err(|_| "the clerk's thread ended")??;
    println!("{answer}");
    Ok(())
}
