//! Asks the base, then the base with each adapter, then the base again: the same answer bit for bit, because attaching
//! writes nothing.
#![no_std]
#![no_main]

use cortex_m_semihosting::{hprint, hprintln};
use rankpatch_format::digest::Digest;
use rankpatch_runtime::math::argmax;
use rankpatch_runtime::{Adapter, Base, Engine};

use {{crate}}::{assets, board};

const PROMPT: &str = {{prompt}};
const MAX_TOKENS: usize = {{max_tokens}};

#[cortex_m_rt::entry]
fn main() -> ! {
    let base = Base::new(assets::base()).expect("a base image");
    let mut engine = Engine::new(base, board::arena(), usize::MAX).expect("an arena for the base");
    answer(&mut engine, "the base");
    for file in assets::adapters() {
        let adapter = Adapter::new(file, &base).expect("an adapter for the base");
        engine.attach(adapter).expect("room for its rank and its head");
        engine.self_test().expect("the digest that its trainer saw");
        answer(&mut engine, adapter.body().task);
        engine.detach();
    }
    answer(&mut engine, "the base");
    board::exit()
}

/// With a task head the answer is the label of the greatest output; without one it is how the text goes on, greedily.
fn answer(engine: &mut Engine<'_>, who: &str) {
    let tokenizer = engine.base().tokenizer().expect("a base that reads text");
    let mut tokens = [0; PROMPT.len() + 2];
    let len = tokenizer.encode(PROMPT.as_bytes(), &mut tokens).expect("room for each byte");
    engine.run_tokens(&tokens[..len]).expect("a prompt within the context");
    hprint!("{}: {}", who, PROMPT);
    let mut digest = Digest::default();
    if let Some(head) = engine.adapter().and_then(Adapter::head) {
        digest.update(engine.output());
        hprint!(" -> {}", head.labels().nth(argmax(engine.output())).unwrap_or("no label"));
    } else {
        let mut previous = tokens[len - 1];
        for _ in 0..MAX_TOKENS {
            digest.update(engine.output());
            let next = argmax(engine.output()) as u16;
            if [tokenizer.info().bos, tokenizer.info().eos].contains(&next) {
                break;
            }
            board::print_bytes(tokenizer.decode(previous, next));
            previous = next;
            if engine.run_tokens(&[next]).is_err() {
                break; // The context is full.
            }
        }
    }
    hprintln!(" ({:016x})", digest.value());
    engine.reset();
}
