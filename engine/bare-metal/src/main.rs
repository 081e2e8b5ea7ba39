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

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;
use core::ops::ControlFlow;

use tandem_engine::adapters::{Workers, from_bundle};
use tandem_engine::tokenizer::{ControlTokens, Tokenizer};
use tandem_engine::{
    AdapterType, Composition, Model, Sampler, SamplerOptions, Serial, Session, SessionOptions,
    generate, prompt,
};
use tandem_formats::Gguf;
use tandem_formats::bundle::{Bundle, INPUT_MARK};

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

fn answer() -> Result<(), Box<dyn Error>> {
    let gguf = Gguf::parse(&MODEL.0)?;
    let model = Model::load(&gguf)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let vocab = tokenizer.vocab();

    let bundle = Bundle::parse(&BUNDLE.0)?;
    bundle.contents().check_base(&gguf)?;
    let parts = bundle.parts(COMPOSITION)?;
    let adapter_type = AdapterType::for_model(&model, false);
    let level = cpu::level();
    let workers = Workers {
        level,
        pool: &Serial,
    };
    let packed = from_bundle(&model.config, &parts, adapter_type, workers)?;
    let packed: Vec<_> = packed
        .iter()
        .map(|(part, weight)| (part, *weight))
        .collect();
    let composition = Composition::new(&model.config, &packed)?;
    let form = parts.composition.prompt.as_deref().unwrap_or(INPUT_MARK);
    let ids = prompt::fill(&tokenizer, form, INPUT.as_bytes())?;

    let options = SessionOptions {
        n_ctx: ids.len() + MAX_TOKENS,
        n_batch: 16,
        level,
        ..SessionOptions::for_model(&model.config)
    };
    println!("{}, {COMPOSITION}, level {}", board::NAME, level.name());
    let mut session = Session::new(&model, &Serial, options)?;
    session.set_composition(Some(&composition))?;
    let greedy = SamplerOptions {
        temperature: 0.0,
        ..SamplerOptions::default()
    };
    let mut sampler = Sampler::new(greedy, model.config.n_vocab);
    let mut decoder = vocab.stream_continuation(ControlTokens::Hide);
    let (mut answer, mut failure) = (Vec::new(), None);
    print!("text:");
    generate(
        &mut session,
        &mut sampler,
        &ids,
        MAX_TOKENS,
        |id| vocab.is_end_of_generation(id),
        |id| {
            answer.push(id);
            match decoder.push(id) {
                Ok(text) => {
                    print!("{text}");
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        },
    )?;
    println!("{}", decoder.finish());
    println!("prompt ids: {ids:?}");
    println!("ids: {answer:?}");
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    cpu::exit(101)
}
