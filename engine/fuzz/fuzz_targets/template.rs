//! Writes chat templates that are Jinja as a rule, out of what can grow, nest and refer to itself, and
//! renders them: an error or a text, in bounded time.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tandem_engine::chat::{ChatTemplate, Message, TemplateArgs};

/// Names that statements set and expressions read.
const NAMES: [&str; 6] = ["a", "b", "ns", "ns.x", "m", "messages"];
const CONSTANTS: [&str; 10] = [
    "1", "-3", "1.5", "99999", "'xy'", "'{0}{a:>9}'", "none", "true", "[]", "{}",
];
const BINARY: [&str; 14] = [
    "+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is",
];
const FILTERS: [&str; 28] = [
    "list", "tojson", "tojson(indent=4)", "string", "length", "join(',')", "sort", "unique", "reverse",
    "map('upper')", "map(attribute='x')", "select", "batch(3, 0)", "slice(3)", "indent(4)", "first", "sum",
    "replace('x', 'yyyy')", "center(99)", "items", "dictsort", "e", "safe", "format(a, b)",
    "map('map', 'map')", "map(*ns.x)", "select('in', b)", "tojson(separators=(a, b))",
];
const METHODS: [&str; 14] = [
    ".split('x')", ".join(['a', 'b'])", ".replace('', 'xx')", ".format(a, b)", ".items()", ".get('x')",
    ".upper()", ".x", "[0]", "[::-1]", "[1:]", "()", "(a, x=b)", ".zfill(999)",
];
const TESTS: [&str; 6] = ["defined", "string", "mapping", "sameas(a)", "in b", "divisibleby 3"];

/// Writes a template by the fuzzer's bytes; where they are over, all choices are the first.
struct Writer<'d> {
    bytes: std::slice::Iter<'d, u8>,
    out: String,
    depth: usize,
}

impl Writer<'_> {
    fn choice(&mut self, n: usize) -> usize {
        self.bytes.next().map_or(0, |b| usize::from(*b)) % n
    }

    fn pick(&mut self, list: &[&str]) {
        let i = self.choice(list.len());
        self.out.push_str(list[i]);
    }

    fn expr(&mut self) {
        self.depth += 1;
        let kinds = if self.depth > 12 { 2 } else { 11 };
        match self.choice(kinds) {
            0 => self.pick(&CONSTANTS),
            1 => self.pick(&NAMES),
            2 => self.between("[", ", ", "]"),
            3 => self.between("{'x': ", ", 2: ", "}"),
            4 => self.between("(", ", ", ")"),
            5 | 6 => {
                self.out.push('(');
                self.expr();
                self.out.push(' ');
                self.pick(&BINARY);
                self.out.push(' ');
                self.expr();
                self.out.push(')');
            }
            7 => {
                self.expr();
                self.out.push_str(" | ");
                self.pick(&FILTERS);
            }
            8 => {
                self.expr();
                self.pick(&METHODS);
            }
            9 => {
                self.expr();
                self.out.push_str(" is ");
                self.pick(&TESTS);
            }
            _ => self.between("namespace(x=", ", a=", ")"),
        }
        self.depth -= 1;
    }

    fn between(&mut self, start: &str, middle: &str, end: &str) {
        self.out.push_str(start);
        self.expr();
        self.out.push_str(middle);
        self.expr();
        self.out.push_str(end);
    }

    fn block(&mut self) {
        self.depth += 1;
        for _ in 0..1 + self.choice(4) {
            self.statement();
        }
        self.depth -= 1;
    }

    fn statement(&mut self) {
        let kinds = if self.depth > 6 { 3 } else { 9 };
        match self.choice(kinds) {
            0 | 1 => {
                self.out.push_str("{% set ");
                self.pick(&NAMES[..4]);
                self.out.push_str(" = ");
                self.expr();
                self.out.push_str(" %}");
            }
            2 => {
                self.out.push_str("{{ ");
                self.expr();
                self.out.push_str(" }}");
            }
            3 | 4 => {
                self.out.push_str("{% for b in range(");
                self.pick(&["3", "60", "99999"]);
                self.out.push_str(") %}");
                self.block();
                self.out.push_str("{% endfor %}");
            }
            5 => {
                self.out.push_str("{% for a in ");
                self.expr();
                self.out.push_str(" %}");
                self.block();
                self.pick(&["", "{% break %}", "{% continue %}", "{% else %}x"]);
                self.out.push_str("{% endfor %}");
            }
            6 => {
                self.out.push_str("{% if ");
                self.expr();
                self.out.push_str(" %}");
                self.block();
                self.out.push_str("{% endif %}");
            }
            7 => {
                self.out.push_str("{% macro m(a, x=b) %}");
                self.block();
                self.out.push_str("{% endmacro %}{{ m(");
                self.expr();
                self.out.push_str(") }}");
            }
            _ => {
                self.out.push_str("{% call m(1) %}");
                self.block();
                self.out.push_str("{% endcall %}");
            }
        }
    }
}

/// What this process has computed so far: other work on the machine does not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the place that it is given.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fuzz_target!(|data: &[u8]| {
    let mut writer = Writer {
        bytes: data.iter(),
        out: "{% set ns = namespace(x=[1]) %}{% set a = 'x' %}".into(),
        depth: 0,
    };
    while writer.bytes.len() > 0 && writer.out.len() < 32 << 10 {
        writer.statement();
    }
    let Ok(template) = ChatTemplate::from_source(&writer.out) else {
        return;
    };
    let start = cpu_time();
    let _ = template.render(&[Message::user("Hi")], &TemplateArgs::new());
    let took = cpu_time() - start;
    assert!(took < Duration::from_secs(5), "{took:?}: {}", writer.out);
});
