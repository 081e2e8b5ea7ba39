//! Runs statements and gives expressions their values.

mod access;
mod calls;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::ast::{
    Args, BinaryOp, Comparison, Conditional, Expr, For, Macro, Name, Operation, Pair, Postfix,
    Stmt, StmtKind, Target,
};
use super::call::Arguments;
use super::operators::{binary, compare};
use super::repr::{concat, text};
use super::value::{Entry, Function, Value};
use super::{Budget, Error, MAX_DEPTH, Surroundings, filters, tests};

/// The most arguments of a call, by place and by name each.
const MAX_ARGUMENTS: usize = 255;

/// Names with their values, inside others.
struct Scope {
    names: Vec<Variable>,
    parent: Option<usize>,
}

/// A name and its value.
struct Variable {
    name: Name,
    value: Value,
}

impl Variable {
    /// The entry of a dictionary as a variable, if its key is a text.
    fn of(entry: Entry) -> Option<Variable> {
        match entry.key {
            Value::Str(name) => Some(Variable {
                name,
                value: entry.value,
            }),
            _ => None,
        }
    }
}

/// A macro, with the names it sees.
struct Defined {
    is: Arc<Macro>,
    scope: usize,
}

/// A loop that runs.
struct LoopState {
    items: Vec<Value>,
    /// Of the item that it is at.
    index: usize,
    /// Loops around it.
    depth: usize,
    /// What `loop.changed` was called with last.
    last: Option<Vec<Value>>,
}

/// How statements ended.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// A rendering.
pub(crate) struct Interpreter<'a> {
    pub budget: Budget,
    strftime_now: &'a dyn Fn(&str) -> Result<String, String>,
    max_output: usize,
    /// What has been written, or what a block that is captured has.
    out: String,
    /// Calls, expressions and statements in each other.
    depth: usize,
    scopes: Vec<Scope>,
    /// The scope that names are looked up in.
    scope: usize,
    namespaces: Vec<Vec<Variable>>,
    macros: Vec<Defined>,
    loops: Vec<LoopState>,
    loop_depth: usize,
}

impl<'a> Interpreter<'a> {
    pub(crate) fn new(variables: Vec<Entry>, surroundings: Surroundings<'a>) -> Interpreter<'a> {
        let global = Scope {
            names: variables.into_iter().filter_map(Variable::of).collect(),
            parent: None,
        };
        Interpreter {
            budget: surroundings.budget,
            strftime_now: surroundings.strftime_now,
            max_output: surroundings.max_output,
            out: String::new(),
            depth: 0,
            // What a template sets is beside what it is given, not in its place.
            scopes: Vec::from([global]),
            scope: 0,
            namespaces: Vec::new(),
            macros: Vec::new(),
            loops: Vec::new(),
            loop_depth: 0,
        }
    }

    pub(crate) fn run(mut self, body: &[Stmt]) -> Result<String, Error> {
        self.block(body)?;
        Ok(self.out)
    }

    /// Goes a level deeper.
    pub(crate) fn enter(&mut self) -> Result<(), Error> {
        self.budget.step()?;
        self.depth += 1;
        match self.depth > MAX_DEPTH {
            true => Err(Error::new("calls are nested too deeply")),
            false => Ok(()),
        }
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        self.budget.spend(text.len())?;
        if text.len() > self.max_output - self.out.len() {
            return Err(Error::OutputTooLong);
        }
        self.out.push_str(text);
        Ok(())
    }

    // Statements.

    fn block(&mut self, body: &[Stmt]) -> Result<Flow, Error> {
        self.enter()?;
        for stmt in body {
            self.budget.step()?;
            match self.statement(stmt).map_err(|error| error.at(stmt.line))? {
                Flow::On => {}
                flow => {
                    self.depth -= 1;
                    return Ok(flow);
                }
            }
        }
        self.depth -= 1;
        Ok(Flow::On)
    }

    fn statement(&mut self, stmt: &Stmt) -> Result<Flow, Error> {
        match &stmt.kind {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Output(expr) => self.output(expr)?,
            StmtKind::For(is) => return self.for_loop(is),
            StmtKind::If {
                branches,
                otherwise,
            } => {
                for branch in branches {
                    if self.eval(&branch.test)?.is_true() {
                        return self.block(&branch.body);
                    }
                }
                return self.block(otherwise);
            }
            StmtKind::Set { target, value } => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            StmtKind::SetBlock {
                target,
                filters,
                body,
            } => {
                let text = self.captured_block(body)?;
                let value = self.filtered(text, filters)?;
                self.assign(target, value)?;
            }
            StmtKind::Macro(is) => {
                let defined = self.define(is)?;
                self.set(&is.name, defined)?;
            }
            StmtKind::Call {
                callee,
                args,
                caller,
            } => self.call_block(callee, args, caller)?,
            StmtKind::Filter { filters, body } => {
                let captured = self.captured_block(body)?;
                let value = self.filtered(captured, filters)?;
                let text = text(&value, &mut self.budget)?;
                self.write(&text)?;
            }
            StmtKind::With { bindings, body } => {
                let mut values = Vec::new();
                for binding in bindings {
                    values.push(self.eval(&binding.value)?);
                }
                let outer = self.push_scope()?;
                for (binding, value) in bindings.iter().zip(values) {
                    self.assign(&binding.target, value)?;
                }
                let flow = self.block(body)?;
                self.pop_scope(outer);
                return Ok(flow);
            }
            StmtKind::Generation(body) => {
                let outer = self.push_scope()?;
                self.block(body)?;
                self.pop_scope(outer);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    #[inline(never)]
    fn output(&mut self, expr: &Expr) -> Result<(), Error> {
        let value = self.eval(expr)?;
        match &value {
            Value::Str(text) | Value::Safe(text) => self.write(text),
            _ => {
                let text = text(&value, &mut self.budget)?;
                self.write(&text)
            }
        }
    }

    /// What `body` writes, in a scope of its own.
    fn captured_block(&mut self, body: &[Stmt]) -> Result<Value, Error> {
        let outer = self.push_scope()?;
        let text = self.captured(body)?;
        self.pop_scope(outer);
        Ok(text)
    }

    fn captured(&mut self, body: &[Stmt]) -> Result<Value, Error> {
        let outer = mem::take(&mut self.out);
        self.block(body)?;
        let text = mem::replace(&mut self.out, outer);
        Value::str(text, &mut self.budget)
    }

    fn filtered(&mut self, mut value: Value, filters: &[Postfix]) -> Result<Value, Error> {
        for filter in filters {
            value = self.follow(value, filter)?;
        }
        Ok(value)
    }

    #[inline(never)]
    fn for_loop(&mut self, is: &For) -> Result<Flow, Error> {
        let mut items = self.eval(&is.iterated)?.plain().iterate(&mut self.budget)?;
        if let Some(condition) = &is.condition {
            let mut kept = Vec::new();
            for item in items {
                let outer = self.push_scope()?;
                self.assign(&is.target, item.clone())?;
                if self.eval(condition)?.is_true() {
                    kept.push(item);
                }
                self.pop_scope(outer);
            }
            items = kept;
        }
        self.budget.spend(size_of::<LoopState>())?;
        let this = self.loops.len();
        let n_items = items.len();
        self.loops.push(LoopState {
            items,
            index: 0,
            depth: self.loop_depth,
            last: None,
        });
        self.loop_depth += 1;
        let mut is_done = false;
        for index in 0..n_items {
            self.loops[this].index = index;
            let outer = self.push_scope()?;
            self.set(&"loop".into(), Value::Loop(this))?;
            let item = self.loops[this].items[index].clone();
            self.assign(&is.target, item)?;
            let flow = self.block(&is.body)?;
            self.pop_scope(outer);
            if flow == Flow::Break {
                break;
            }
            is_done |= flow == Flow::On;
        }
        self.loop_depth -= 1;
        // A `loop` that outlives its loop does not keep what it went through.
        self.loops[this].items = Vec::new();
        // As in jinja2, where no item's body was run to its end.
        if is_done {
            return Ok(Flow::On);
        }
        let outer = self.push_scope()?;
        let flow = self.block(&is.otherwise)?;
        self.pop_scope(outer);
        Ok(flow)
    }

    fn call_block(&mut self, callee: &Expr, args: &Args, caller: &Arc<Macro>) -> Result<(), Error> {
        let callee = self.eval(callee)?;
        let mut args = self.arguments(&"call".into(), args)?;
        let caller = self.define(caller)?;
        args.named.push(Entry {
            key: "caller".into(),
            value: caller,
        });
        let value = self.call(&callee, &args)?;
        let text = text(&value, &mut self.budget)?;
        self.write(&text)
    }

    fn define(&mut self, is: &Arc<Macro>) -> Result<Value, Error> {
        self.budget.spend(size_of::<Defined>())?;
        self.macros.push(Defined {
            is: is.clone(),
            scope: self.scope,
        });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    // Names.

    /// Begins a scope in the present one, which it gives.
    fn push_scope(&mut self) -> Result<usize, Error> {
        self.budget.spend(size_of::<Scope>())?;
        let outer = self.scope;
        self.scope = self.scopes.len();
        self.scopes.push(Scope {
            names: Vec::new(),
            parent: Some(outer),
        });
        Ok(outer)
    }

    /// Ends the present scope.
    fn pop_scope(&mut self, outer: usize) {
        // A macro that was defined in it may be called later on, and looks there.
        let is_seen = self
            .macros
            .last()
            .is_some_and(|defined| defined.scope >= self.scope);
        if !is_seen && self.scopes.len() == self.scope + 1 {
            self.scopes.pop();
        }
        self.scope = outer;
    }

    fn set(&mut self, name: &Name, value: Value) -> Result<(), Error> {
        let names = &mut self.scopes[self.scope].names;
        put(names, name, value, &mut self.budget)
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<(), Error> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(name, attribute) => match self.name(name)? {
                Value::Namespace(i) => {
                    put(&mut self.namespaces[i], attribute, value, &mut self.budget)
                }
                _ => Err(Error::new(format!(
                    "'{name}' is not a namespace, so it has no attributes to set"
                ))),
            },
            Target::Many(targets) => {
                value.defined()?;
                let items = value.iterate(&mut self.budget)?;
                if items.len() != targets.len() {
                    return Err(Error::new(format!(
                        "{} values do not go into {} names",
                        items.len(),
                        targets.len()
                    )));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item)?;
                }
                Ok(())
            }
        }
    }

    fn name(&mut self, name: &Name) -> Result<Value, Error> {
        let mut next = Some(self.scope);
        while let Some(i) = next {
            let scope = &self.scopes[i];
            self.budget.spend(scope.names.len() + 1)?;
            if let Some(found) = scope.names.iter().find(|v| v.name == *name) {
                return Ok(found.value.clone());
            }
            next = scope.parent;
        }
        Ok(match &**name {
            "dict" => Value::Function(Function::Dict),
            "namespace" => Value::Function(Function::Namespace),
            "raise_exception" => Value::Function(Function::RaiseException),
            "range" => Value::Function(Function::Range),
            "strftime_now" => Value::Function(Function::StrftimeNow),
            _ => self.undefined(format!("'{}' is undefined", clip(name)))?,
        })
    }

    // Expressions. Each kind is a function of its own, so that the frames in between stay small.

    fn eval(&mut self, expr: &Expr) -> Result<Value, Error> {
        self.enter()?;
        let value = match expr {
            Expr::Const(value) => value.clone(),
            Expr::Name(name) => self.name(name)?,
            Expr::List(items) => {
                let items = self.eval_plain(items)?;
                Value::list(items, &mut self.budget)?
            }
            Expr::Tuple(items) => {
                let items = self.eval_plain(items)?;
                Value::tuple(items, &mut self.budget)?
            }
            Expr::Dict(pairs) => self.dict(pairs)?,
            Expr::Not(inner) => Value::Bool(!self.eval(inner)?.is_true()),
            Expr::Negative(inner) => {
                let value = self.eval(inner)?;
                binary(BinaryOp::Sub, &Value::Int(0), &value, &mut self.budget)?
            }
            Expr::Positive(inner) => {
                let value = self.eval(inner)?;
                binary(BinaryOp::Add, &Value::Int(0), &value, &mut self.budget)?
            }
            Expr::And(all) => self.logic(all, false)?,
            Expr::Or(all) => self.logic(all, true)?,
            Expr::Compare(first, rest) => self.comparison(first, rest)?,
            Expr::Arithmetic(first, rest) => self.arithmetic(first, rest)?,
            Expr::Concat(all) => {
                let values = self.eval_all(all)?;
                concat(&values, &mut self.budget)?
            }
            Expr::If(is) => self.conditional(is)?,
            Expr::Postfix(base, postfix) => {
                let value = self.eval(base)?;
                self.filtered(value, postfix)?
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    #[inline(never)]
    fn eval_all(&mut self, exprs: &[Expr]) -> Result<Vec<Value>, Error> {
        let mut values = Vec::with_capacity(exprs.len());
        for expr in exprs {
            values.push(self.eval(expr)?);
        }
        Ok(values)
    }

    /// As [`eval_all`](Self::eval_all), where texts are texts.
    fn eval_plain(&mut self, exprs: &[Expr]) -> Result<Vec<Value>, Error> {
        let values = self.eval_all(exprs)?;
        Ok(values.into_iter().map(Value::plain).collect())
    }

    #[inline(never)]
    fn dict(&mut self, pairs: &[Pair]) -> Result<Value, Error> {
        let mut entries = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let key = self.eval(&pair.key)?.plain();
            let value = self.eval(&pair.value)?.plain();
            entries.push(Entry { key, value });
        }
        Value::dict(entries, &mut self.budget)
    }

    /// The first value that is true (`or`) or false (`and`), else the last.
    #[inline(never)]
    fn logic(&mut self, all: &[Expr], ends_at: bool) -> Result<Value, Error> {
        let mut value = Value::None;
        for expr in all {
            value = self.eval(expr)?;
            if value.is_true() == ends_at {
                break;
            }
        }
        Ok(value)
    }

    #[inline(never)]
    fn comparison(&mut self, first: &Expr, rest: &[Comparison]) -> Result<Value, Error> {
        let mut left = self.eval(first)?.plain();
        for Comparison { op, with } in rest {
            let right = self.eval(with)?.plain();
            if !compare(*op, &left, &right, &mut self.budget)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    #[inline(never)]
    fn arithmetic(&mut self, first: &Expr, rest: &[Operation]) -> Result<Value, Error> {
        let mut value = self.eval(first)?;
        for Operation { op, with } in rest {
            let with = self.eval(with)?;
            value = binary(*op, &value, &with, &mut self.budget)?;
        }
        Ok(value)
    }

    #[inline(never)]
    fn conditional(&mut self, is: &Conditional) -> Result<Value, Error> {
        if self.eval(&is.test)?.is_true() {
            return self.eval(&is.value);
        }
        match &is.otherwise {
            Some(otherwise) => self.eval(otherwise),
            None => Ok(Value::undefined(
                "the condition is false and there is no 'else'",
            )),
        }
    }

    /// What follows an operand, applied to its value.
    #[inline(never)]
    fn follow(&mut self, value: Value, postfix: &Postfix) -> Result<Value, Error> {
        self.budget.step()?;
        let value = match (value, postfix) {
            // HTML is not escaped again.
            (value @ Value::Safe(_), Postfix::Filter(name, _))
                if matches!(&**name, "safe" | "e" | "escape") =>
            {
                return Ok(value);
            }
            (value, _) => value.plain(),
        };
        match postfix {
            Postfix::Attribute(name) => self.attribute(&value, name),
            Postfix::Item(key) => {
                let key = self.eval(key)?.plain();
                self.item(&value, &key)
            }
            Postfix::Slice(slice) => self.slice(&value, slice),
            Postfix::Call(args) => {
                let args = self.arguments(&"the function".into(), args)?;
                self.call(&value, &args)
            }
            Postfix::Filter(name, args) => {
                let args = self.arguments(name, args)?;
                filters::apply(self, name, &value, &args)
            }
            Postfix::Test {
                name,
                args,
                negated,
            } => {
                let args = self.arguments(name, args)?;
                let found = tests::apply(name, &value, &args, &mut self.budget)?;
                Ok(Value::Bool(found != *negated))
            }
        }
    }

    fn arguments(&mut self, of: &Name, args: &Args) -> Result<Arguments, Error> {
        let mut positional = self.eval_plain(&args.positional)?;
        if let Some(spread) = &args.spread {
            positional.extend(self.eval(spread)?.iterate(&mut self.budget)?);
        }
        let mut named = Vec::new();
        for arg in &args.named {
            let value = self.eval(&arg.value)?.plain();
            let key = Value::Str(arg.name.clone());
            named.push(Entry { key, value });
        }
        if let Some(spread) = &args.named_spread {
            match self.eval(spread)? {
                Value::Dict(dict) => {
                    self.budget
                        .spend_times(dict.entries().len(), size_of::<Entry>())?;
                    named.extend_from_slice(dict.entries());
                }
                other => {
                    let found = other.type_name();
                    return Err(Error::new(format!(
                        "arguments after '**' are a dict, not {found}"
                    )));
                }
            }
        }
        if positional.len() > MAX_ARGUMENTS || named.len() > MAX_ARGUMENTS {
            return Err(Error::new(format!("more than {MAX_ARGUMENTS} arguments")));
        }
        Ok(Arguments {
            of: of.clone(),
            positional,
            named,
        })
    }

    /// Nothing, and why.
    fn undefined(&mut self, message: String) -> Result<Value, Error> {
        self.budget.spend(message.len())?;
        Ok(Value::undefined(message))
    }
}

/// The beginning of a name, for messages.
fn clip(name: &str) -> String {
    name.chars().take(60).collect()
}

/// Gives `name` this value.
fn put(
    names: &mut Vec<Variable>,
    name: &Name,
    value: Value,
    budget: &mut Budget,
) -> Result<(), Error> {
    budget.spend(names.len() + size_of::<Variable>())?;
    match names.iter_mut().find(|v| v.name == *name) {
        Some(old) => old.value = value,
        None => names.push(Variable {
            name: name.clone(),
            value,
        }),
    }
    Ok(())
}
