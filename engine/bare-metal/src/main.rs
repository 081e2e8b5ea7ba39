//! The Tandem engine on a machine without an operating system: the image holds a model and a bundle
//! of adapters, boots, reads a text with one of the bundle's compositions, writes the answer to the
//! serial port and stops.
//!
//! Start at [`main`]: the engine is used as anywhere else. [`boot`] is what comes before it,
//! [`board`] what differs between machines. `./run` builds the image, boots it in QEMU and compares
//! the answer with that of the command `tandem`.

#![no_std]
#![no_main]

extern crate alloc;

mod board;
mod boot;
mod cpu;
mod heap;
mod serial;

use tandem_engine::formats::bundle::INPUT_MARK;
use tandem_engine::{AdapterType, Compute, Error, Model, Sampling, Serial, chat};

use crate::serial::{print, println};

/// Bytes of a file, aligned as the file's tensors are.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../fixtures/pocket-q8_0.gguf"));
static BUNDLE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../fixtures/pocket.tandem"));

/// The composition, and what it is given; chosen when the image is built.
const COMPOSITION: &str = match option_env!("TANDEM_COMPOSE") {
    Some(name) => name,
    None => "summarize-fr",
};
const INPUT: &str = match option_env!("TANDEM_INPUT") {
    Some(text) => text,
    None => "This package provides the shared library.",
};

/// The most tokens of an answer.
const MAX_TOKENS: usize = 32;

/// Entered by [`boot`]: on one core, at EL1, with vectors, caches and a stack.
extern "C" fn main() -> ! {
    serial::start();
    let status = match answer() {
        Ok(()) => 0,
        Err(error) => {
            println!("error: {error}");
            1
        }
    };
    println!("peak heap: {} bytes", heap::peak());
    match boot::peak_stack() {
        Some(peak) => println!("peak stack: {peak} bytes"),
        None => {
            println!("error: the stack was full, what is below it may be spoiled");
            cpu::exit(103)
        }
    }
    cpu::exit(status)
}

fn answer() -> Result<(), Error> {
    let model = Model::from_static(&MODEL.0)?;
    let bundle = model.bundle_from_bytes(&BUNDLE.0)?;
    let level = cpu::level();
    let adapter_type = AdapterType::for_model(&model, false);
    let compute = Compute::new(level, &Serial);
    let composition = bundle.composition_as(COMPOSITION, adapter_type, compute)?;

    let form = composition.prompt().unwrap_or(INPUT_MARK);
    let ids = chat::fill(model.tokenizer()?, form, INPUT.as_bytes())?;
    println!("{}, {COMPOSITION}, level {}", board::NAME, level.name());
    let session = model.session().level(level).composition(&composition);
    let mut session = session.n_ctx(ids.len() + MAX_TOKENS).n_batch(16).build()?;
    let sampling = Sampling::greedy().max_tokens(MAX_TOKENS);
    let mut generation = session.generate(&ids[..], &sampling)?;
    print!("text:");
    for piece in &mut generation {
        print!("{}", piece?);
    }
    println!();
    println!("prompt ids: {ids:?}");
    println!("ids: {:?}", generation.tokens());
    Ok(())
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    cpu::exit(101)
}
