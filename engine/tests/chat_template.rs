//! Chat templates in the style of real ones, and ones that mean harm.

use std::time::{Duration, Instant};

use tandem_engine::chat::{
    ChatTemplate, ChatTemplateError, MAX_SOURCE_BYTES, Message, TemplateArgs,
};

const SYSTEM: Message<'static> = Message {
    role: "system",
    content: " Be brief. ",
};
const USER: Message<'static> = Message {
    role: "user",
    content: "Hi <there> & \"you\"\n",
};
const ASSISTANT: Message<'static> = Message {
    role: "assistant",
    content: "Hello",
};

fn args(add_generation_prompt: &str) -> TemplateArgs {
    let mut args = TemplateArgs::new();
    args.set_text("bos_token", "<s>");
    args.set_text("eos_token", "</s>");
    args.set_json("add_generation_prompt", add_generation_prompt)
        .unwrap();
    args
}

fn render(source: &str, messages: &[Message<'_>]) -> Result<String, ChatTemplateError> {
    let start = Instant::now();
    let template = ChatTemplate::from_source(source);
    let result = template.and_then(|t| t.render(messages, &args("true")));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}: {source:.80}");
    result
}

#[test]
fn llama3() {
    let source = "{% set loop_messages = messages %}\
        {% for message in loop_messages %}\
        {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'\
        + message['content'] | trim + '<|eot_id|>' %}\
        {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}\
        {{ content }}{% endfor %}\
        {% if add_generation_prompt %}\
        {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    assert_eq!(
        render(source, &[SYSTEM, USER]).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi <there> & \"you\"<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let template = ChatTemplate::from_source(source).unwrap();
    let closed = template.render(&[USER, ASSISTANT], &args("false")).unwrap();
    assert!(closed.ends_with("assistant<|end_header_id|>\n\nHello<|eot_id|>"));
}

#[test]
fn chatml_with_a_default_system_message() {
    let source = "{% for message in messages %}\
        {% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
        {% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(
        render(source, &[USER]).unwrap(),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi <there> & \"you\"\n<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn gemma_which_refuses_what_it_does_not_know() {
    let source = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
        {{ raise_exception('System role not supported') }}{% endif %}\
        {% for message in messages %}\
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('Roles must alternate') }}{% endif %}\
        {% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
        {% else %}{% set role = message['role'] %}{% endif %}\
        {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";
    assert_eq!(
        render(source, &[USER, ASSISTANT]).unwrap(),
        "<s><start_of_turn>user\nHi <there> & \"you\"<end_of_turn>\n\
         <start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>model\n"
    );
    let refused = |message: &str| {
        Err(ChatTemplateError::Refused {
            message: message.into(),
        })
    };
    let system = render(source, &[SYSTEM, USER]);
    assert_eq!(system, refused("System role not supported"));
    assert_eq!(
        render(source, &[USER, USER]),
        refused("Roles must alternate")
    );
    let in_macro = "{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}";
    assert_eq!(render(in_macro, &[]), refused("no"));
}

#[test]
fn phi3_and_zephyr_with_their_white_space() {
    let phi3 = "{% for message in messages %}\
        {% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + '<|end|>' + \
        '\n' + '<|assistant|>' + '\n'}}\
        {% elif message.role == 'assistant' %}{{message.content + '<|end|>' + '\n'}}{% endif %}\
        {% endfor %}";
    assert_eq!(
        render(phi3, &[USER, ASSISTANT]).unwrap(),
        "<|user|>\nHi <there> & \"you\"\n<|end|>\n<|assistant|>\nHello<|end|>\n"
    );
    let zephyr = "{% for message in messages %}\n\
        {% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n\
        {% elif message['role'] == 'system' %}\n\
        {{ '<|system|>\n' + message['content'] + eos_token }}\n\
        \x20   {% else %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n\
        \x20 {% endif %}\n\
        {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n\
        {% endfor %}";
    assert_eq!(
        render(zephyr, &[SYSTEM, ASSISTANT, USER]).unwrap(),
        "<|system|>\n Be brief. </s>\n<|assistant|>\nHello</s>\n\
         <|user|>\nHi <there> & \"you\"\n</s>\n<|assistant|>\n"
    );
}

#[test]
fn what_templates_use_of_python() {
    let source = "{%- set ns = namespace(n=0) -%}\
        {%- for m in messages[::-1] -%}{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}\
        {%- set ns.n = ns.n + 1 -%}{%- if ns.n > 2 -%}{%- break -%}{%- endif -%}\
        {{ m.content.strip().upper().split(' ')[0] }},\
        {%- for k, v in m.items() %}{{ k }};{% endfor %}\
        {{- m.get('name', '-') }}{{ m.content.startswith('H') }},\
        {%- endfor -%}\
        {%- if tools is not none and tools %}tools{% endif -%}\
        {%- if not documents %}{{ messages[1:] | length }}{% endif -%}";
    let text = render(source, &[SYSTEM, USER, ASSISTANT]).unwrap();
    assert_eq!(text, "HELLO,role;content;-True,HI,role;content;-True,2");
    assert_eq!(
        render(
            "{{ messages | tojson }}{{ {} | tojson }}{{ [1.5, true, none] | tojson }}",
            &[USER]
        ),
        Ok(
            r#"[{"role": "user", "content": "Hi <there> & \"you\"\n"}]{}[1.5, true, null]"#
                .to_string()
        )
    );
    let indented = render(
        "{{ [1, {'\u{E9}': [], 'b': '\x01'}] | tojson(indent=2) }}",
        &[],
    );
    assert_eq!(
        indented.unwrap(),
        "[\n  1,\n  {\n    \"\u{E9}\": [],\n    \"b\": \"\\u0001\"\n  }\n]"
    );
    let year = render("{{ strftime_now('%Y') }}", &[]).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2026);
    assert!(render("{{ strftime_now('%Q') }}", &[]).is_err());
}

#[test]
fn errors_name_what_is_wrong() {
    let syntax = ChatTemplate::from_source("a\n{% if %}").unwrap_err();
    assert!(matches!(syntax, ChatTemplateError::Syntax { .. }));
    assert!(syntax.to_string().contains('2'), "{syntax}");
    for unsupported in [
        "{% for x in [1] recursive %}{% endfor %}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% block x %}{% endblock %}",
    ] {
        let error = ChatTemplate::from_source(unsupported).unwrap_err();
        assert!(matches!(error, ChatTemplateError::Syntax { .. }), "{error}");
    }
    let long = ChatTemplate::from_source(&"x".repeat(MAX_SOURCE_BYTES + 1)).unwrap_err();
    assert!(matches!(long, ChatTemplateError::SourceTooLong { .. }));
    for source in [
        "\n{{ nothing.more }}",
        "{{ nothing + 1 }}",
        "{{ messages[0].nothing.more }}",
        "{% for x in none %}{% endfor %}",
        "{{ namespace }}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ nothing() }}",
        "{{ messages | nothing }}",
        "{{ messages[0].content.nothing() }}",
        "{{ 1 // 0 }}",
        "{{ messages[0] + 1 }}",
    ] {
        let error = render(source, &[USER]).unwrap_err();
        assert!(
            matches!(error, ChatTemplateError::Render { .. }),
            "{source}: {error}"
        );
    }
    assert!(
        matches!(render("\n\n{{ nothing.more }}", &[]).unwrap_err().to_string(),
        e if e.contains("line 3: 'nothing' is undefined"))
    );
}

/// The most memory this process has held so far, in bytes; 0 where the system does not say.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

#[test]
fn hostile_templates_end_with_an_error_in_bounded_time_and_memory() {
    let doubling = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}\
             {{% set ns.x = {step} %}}{{% endfor %}}{end}"
        )
    };
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}";
    let ends = "{% endfor %}{% endfor %}{% endfor %}";
    let sources = vec![
        format!("{loops}{ends}"),
        format!("{loops}x{ends}"),
        format!("{loops}{{% set y = 'x' * 1000 %}}{ends}"),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_string(),
        "{% macro m(n) %}{{ m(n + 1) + m(n + 1) }}{% endmacro %}{{ m(0) }}".to_string(),
        "{% include 'chat_template' %}".to_string(),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_string(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}".to_string(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | tojson }}".to_string(),
        doubling("[1]", "ns.x + ns.x", "{{ ns.x | length }}"),
        doubling("[1]", "ns.x * 2", "{{ ns.x | length }}"),
        doubling("(1,)", "ns.x + ns.x", ""),
        doubling("[[1]]", "ns.x + ns.x[:]", ""),
        doubling("['x']", "[ns.x, ns.x]", "{{ ns.x == ns.x }}"),
        doubling("'xy'", "ns.x | replace('x', 'xxxx')", "{{ ns.x | length }}"),
        doubling("'xy'", "'{0}{0}'.format(ns.x)", "{{ ns.x | length }}"),
        doubling("'xy'", "'%s%s' % (ns.x, ns.x)", "{{ ns.x | length }}"),
        doubling("'xy'", "ns.x | tojson | tojson", "{{ ns.x | length }}"),
        doubling("'xy'", "ns.x.join([ns.x, ns.x])", "{{ ns.x | length }}"),
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{% call m(1) %}{% endcall %}".to_string(),
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}\
         {% endcall %}{% endmacro %}{{ n() }}"
            .to_string(),
        "{{ 'a'.ljust(1000000000000) }}{{ 'a'.zfill(1000000000000) }}".to_string(),
        "{{ '%*d' % (1000000000, 1) }}".to_string(),
        "{{ '{:{}}'.format(1, 1000000000) }}".to_string(),
        "{{ ('\t' * 100000).expandtabs(100000) | length }}".to_string(),
        "{{ [1] | batch(1000000000, 0) }}".to_string(),
        "{{ [1] | slice(1000000000) }}".to_string(),
        "{{ 'x' | indent('y' * 100000000) }}".to_string(),
        "{{ 'a' | map(*(['map'] * 5000)) }}".to_string(),
        "{{ 'a' | map(*(['map'] * 254)) }}".to_string(),
        "{{ range(100000) | map(attribute='x' * 10000000) | list | length }}".to_string(),
        "{{ ([{1:1}] * 10000) | tojson(separators=('', 'x' * 8000000)) | length }}".to_string(),
        doubling("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
        "{% set k = 'x' * 12000000 %}{% for i in range(50000) %}{% set y = 'a'.find(k) %}{% endfor %}"
            .to_string(),
        "{% set k = 'x' * 8000000 %}{% for i in range(50000) %}{% set y = 'a'.split(k) %}{% endfor %}"
            .to_string(),
        "{% set x = range(100000) %}{{ x | select('defined', *x) | list | length }}".to_string(),
        "{% set k = 'x' * 8000000 %}{{ k.startswith((k,) * 200000) }}".to_string(),
        "{% set k = 'x' * 8000000 %}{{ ([k] * 100000) | select('in', {k: 1}) | list | length }}".to_string(),
        "{{ ('\n' * 16000000).splitlines() | length }}".to_string(),
        "{{ ('a ' * 16000000).split() | length }}".to_string(),
        "{{ (['a'] * 9) | map(attribute='0.' * 5000000 ~ '0') | list }}".to_string(),
        format!("{{{{ {}2 }}}}", "1if 1 if ".repeat(7000)),
        format!(
            "{{{{ ('{{z}}' * 4000000).format({}z='') }}}}",
            (0..250).map(|i| format!("a{i}=0, ")).collect::<String>()
        ),
        "{{ 'x' * 10**9 }}".to_string(),
        "{{ ('x' * 10**9) | length }}".to_string(),
        "{% set n = 1000000000 %}{{ ('x' * n) | length }}".to_string(),
        "{% set n = 1000000000 %}{{ ([1] * n) | length }}".to_string(),
        "{% set n = 1000000000 %}{{ range(n) | list | length }}".to_string(),
        "{{ 'x'.replace('', 'y' * 100000) * 10000 }}".to_string(),
        "{{ '%1000000000d' | format(1) }}".to_string(),
        "{{ '{:1000000000}'.format(1) }}".to_string(),
        "{{ 'a' | center(1000000000) }}".to_string(),
        "{{ 'a\n' | indent(1000000000) }}".to_string(),
        "{{ 10 ** 1000000000 }}".to_string(),
        "{{ [1] | tojson(indent=1000000000000000000000) }}".to_string(),
        doubling("'xxxxxxxxxxxxxxxx'", "ns.x + ns.x", "{{ ns.x }}"),
        doubling("'xxxxxxxxxxxxxxxx'", "ns.x ~ ns.x", "{{ ns.x | length }}"),
        doubling("['x']", "[ns.x, ns.x]", "{{ ns.x }}"),
        doubling("['x']", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
        doubling("['x']", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
        doubling("'x'", "ns.x.replace('x', 'xxxx')", "{{ ns.x | length }}"),
        nested("[ns.x]", 99999, "{{ ns.x }}"),
        nested("[ns.x]", 1000, "{{ ns.x | tojson }}"),
        nested("[ns.x]", 1000, "{{ ns.x | pprint }}"),
        format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(10_000), "]".repeat(10_000)),
        "{% if true %}".repeat(10_000),
    ];
    for source in sources {
        let shown: String = source.chars().take(100).collect();
        let result = render(&source, &[USER]).map(|text| text.len());
        eprintln!("{shown:?}: {result:?}");
        assert!(result.is_err(), "{shown}: {result:?}");
    }
    let peak = peak_memory();
    eprintln!("peak memory: {} MB", peak >> 20);
    assert!(peak < 400 << 20, "{peak} bytes");
}

/// A template that nests a value `depth` times.
fn nested(step: &str, depth: usize, end: &str) -> String {
    format!(
        "{{% set ns = namespace(x=['a'], y=['a']) %}}{{% for i in range({depth}) %}}\
         {{% set ns.x = {step} %}}{{% endfor %}}{end}"
    )
}

/// Enough for any template: what a thread has where there is little, in a build that is not optimized.
const STACK_BYTES: usize = 1 << 20;

#[test]
fn deep_values_and_expressions_do_not_overflow_the_stack() {
    let small = std::thread::Builder::new().stack_size(STACK_BYTES);
    small
        .spawn(deep_values_and_expressions)
        .unwrap()
        .join()
        .unwrap();
}

fn deep_values_and_expressions() {
    // Errors or not: the process must survive, on a small stack, too.
    let long = "long text ".repeat(100_000);
    let user = Message {
        role: "user",
        content: &long,
    };
    let steps = [
        "[ns.x]",
        "{'a': ns.x}",
        "ns.x | list",
        "ns.x + [1]",
        "ns.x ~ 'a'",
        "namespace(a=ns.x)",
    ];
    let ends = [
        "",
        "{{ ns.x }}",
        "{{ ns.x == ns.y }}{{ ns.x < ns.y }}{{ [ns.x, ns.x] | sort | length }}",
        "{{ ns.x | string | length }}{{ ns.x | list }}{{ ns.x | tojson }}",
        "{{ {ns.x: 1} }}{{ [ns.x, ns.x] | unique }}{{ ns.x in [ns.x] }}",
        "{{ ns.x.a.b.c }}",
        "{% for a in ns.x %}{{ a }}{% endfor %}{{ ns.x | length }}{{ ns.x | last }}",
    ];
    for step in steps {
        for end in ends {
            let source = nested(step, 1000, end);
            let shallow = render(&source, &[USER]).map(|text| text.len());
            eprintln!("{step} {end}: {shallow:?}");
            // As deep as it goes, with a conversation that lets it.
            for depth in [5_000, 99_999] {
                let _ = render(&nested(step, depth, end), &[user]);
            }
        }
    }
    let n = MAX_SOURCE_BYTES - 1000;
    let repeated = |begin: &str, unit: &str, end: &str| {
        let source = format!("{begin}{}{end}", unit.repeat(n / unit.len()));
        let _ = render(&source, &[user]);
    };
    repeated("{{ 1", "+1", " }}");
    repeated("{% set x = 1 %}{{ x", "+x", " }}");
    repeated("{{ x", "~x", " }}");
    repeated("{{ 1", "**1", " }}");
    repeated("{{ x", ".x", " }}");
    repeated("{{ x", "[0]", " }}");
    repeated("{{ x", "()", " }}");
    repeated("{{ x", "|a", " }}");
    repeated("{{ 1", " is a", " }}");
    repeated("{{ 1", "<1", " }}");
    repeated("{{ 1", " and 1", " }}");
    repeated("{{ 1", " if 1", " }}");
    repeated("{{ 1", "if 1", " }}");
    let _ = render(
        "{{ [] * 9000000000000000000 }}{{ () * 9000000000000000000 }}",
        &[],
    );
    let name = "A".repeat(50_000);
    let loop_of_names = format!(
        "{{% for i in range(50000) %}}{{% set u = {name} %}}{{% macro m() %}}{{% endmacro %}}{{% endfor %}}"
    );
    let _ = render(&loop_of_names, &[]);
    repeated("{{ 1", " if 1 else 1", " }}");
    repeated("{{ ", "not ", "1 }}");
    repeated("{{ ", "-", "1 }}");
    repeated("{{ ", "[", "");
    repeated("{{ ", "{1:", "");
    repeated("{% if 1 %}", "{% elif 1 %}", "{% endif %}");
    repeated("{% set x = [] %}", "{% set x=[x] %}", "{{ x }}");
    repeated("", "{% if 1 %}", "");
    repeated("", "{% for x in y %}", "");
    repeated("", "{#", "");
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let content = "All work and no play makes a dull day. ".repeat(100);
    let message = Message {
        role: "user",
        content: &content,
    };
    let messages = vec![message; 400];
    let source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim + eos_token }}{% endfor %}";
    let text = render(source, &messages).unwrap();
    assert!(text.len() > 400 * 3900);
    // The limit on output, which is by the size of the conversation.
    let source =
        "{% for i in range(12) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}";
    let error = render(source, &messages).unwrap_err();
    assert!(
        matches!(error, ChatTemplateError::OutputTooLong { .. }),
        "{error}"
    );
}

/// What jinja2 makes of some 180 templates: `compare.py --write` made the file.
#[test]
fn expressions_are_what_jinja2_makes_of_them() {
    let file = include_str!("templates/expressions.json");
    let cases: serde_json::Value = serde_json::from_str(file).unwrap();
    let mut args = TemplateArgs::new();
    for (name, value) in cases["args"].as_object().unwrap() {
        args.set_json(name, &value.to_string()).unwrap();
    }
    for case in cases["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let template = ChatTemplate::from_source(source);
        let found = template.and_then(|t| t.render(&[], &args));
        assert_eq!(
            found.as_deref().ok(),
            case["text"].as_str(),
            "{source}: {found:?}"
        );
    }
}
