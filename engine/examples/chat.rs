//! A conversation on the terminal: `cargo run --release --example chat -- MODEL.gguf [SYSTEM PROMPT]`.
//!
//! The session keeps what it has evaluated: of each turn only the new message costs time.

use std::io::{BufRead as _, Write as _};

use tandem_engine::{Message, Model, Sampling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("a model is wanted")?;
    let system = args.next();
    let model = Model::open(path)?;
    let mut session = model.session().build()?;
    let mut history: Vec<(&str, String)> = Vec::new();
    history.extend(system.map(|text| ("system", text)));
    print!("> ");
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        history.push(("user", line?));
        let messages: Vec<Message> = history
            .iter()
            .map(|(role, content)| Message { role, content })
            .collect();
        let mut answer = String::new();
        for piece in session.generate(&messages[..], &Sampling::default())? {
            let piece = piece?;
            print!("{piece}");
            std::io::stdout().flush()?;
            answer.push_str(&piece);
        }
        history.push(("assistant", answer));
        print!("\n> ");
        std::io::stdout().flush()?;
    }
    Ok(())
}
