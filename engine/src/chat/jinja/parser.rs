//! Tokens to statements, by jinja2's grammar.

mod expressions;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::Error;
use super::ast::{Binding, Branch, Expr, For, Macro, Name, Param, Postfix, Stmt, StmtKind, Target};
use super::lexer::{Kind, Token};

/// How deep statements and brackets may be in each other.
const MAX_NESTING: usize = 80;

/// Reads a whole template.
pub(crate) fn parse(tokens: Vec<Token>) -> Result<Vec<Stmt>, Error> {
    let mut parser = Parser {
        tokens,
        pos: 0,
        depth: 0,
        uses_varargs: false,
        uses_kwargs: false,
    };
    let body = parser.body(&[]).map_err(|error| error.at(parser.line()))?;
    match parser.peek() {
        Kind::End => Ok(body),
        _ => Err(parser.unexpected()),
    }
}

struct Parser {
    /// The last one is [`Kind::End`].
    tokens: Vec<Token>,
    pos: usize,
    depth: usize,
    /// Whether the macro that is being read names these.
    uses_varargs: bool,
    uses_kwargs: bool,
}

impl Parser {
    fn peek(&self) -> &Kind {
        &self.tokens[self.pos].kind
    }

    fn line(&self) -> u32 {
        self.tokens[self.pos].line
    }

    fn next(&mut self) -> Kind {
        let last = self.tokens.len() - 1;
        let at = self.pos;
        self.pos = last.min(at + 1);
        match at == last {
            true => Kind::End,
            false => mem::replace(&mut self.tokens[at].kind, Kind::End),
        }
    }

    fn unexpected(&self) -> Error {
        let found = match self.peek() {
            Kind::Data(_) => "text".into(),
            Kind::BlockStart => "'{%'".into(),
            Kind::BlockEnd => "'%}'".into(),
            Kind::VariableStart => "'{{'".into(),
            Kind::VariableEnd => "'}}'".into(),
            Kind::Name(name) => format!("'{name}'"),
            Kind::Str(_) => "a string".into(),
            Kind::Int(_) | Kind::Float(_) => "a number".into(),
            Kind::Op(op) => format!("'{op}'"),
            Kind::End => String::from("the end"),
        };
        Error::new(format!("unexpected {found}")).at(self.line())
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Kind::Op(found) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Kind::Name(found) if found == name)
    }

    /// Goes past `op`, if it is next.
    fn take_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    /// Goes past the word `name`, if it is next.
    fn take_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expect_op(&mut self, op: &str) -> Result<(), Error> {
        match self.take_op(op) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    fn expect_name(&mut self, name: &str) -> Result<(), Error> {
        match self.take_name(name) {
            true => Ok(()),
            false => Err(self.unexpected()),
        }
    }

    /// Any word.
    fn name(&mut self) -> Result<Name, Error> {
        match self.peek() {
            Kind::Name(_) => match self.next() {
                Kind::Name(name) => Ok(name.into()),
                _ => Err(self.unexpected()),
            },
            _ => Err(self.unexpected()),
        }
    }

    fn block_end(&mut self) -> Result<(), Error> {
        match self.peek() {
            Kind::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => Err(self.unexpected()),
        }
    }

    fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        match self.depth > MAX_NESTING {
            true => Err(Error::new("the template is nested too deeply").at(self.line())),
            false => Ok(()),
        }
    }

    /// Statements up to a block that begins with one of `ends`, whose word is next then, or to the end of the
    /// template where there are none.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Stmt>, Error> {
        self.enter()?;
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.peek() {
                Kind::Data(_) => match self.next() {
                    Kind::Data(text) => StmtKind::Data(text.into()),
                    _ => return Err(self.unexpected()),
                },
                Kind::VariableStart => {
                    self.next();
                    let value = self.tuple()?;
                    match self.peek() {
                        Kind::VariableEnd => self.next(),
                        _ => return Err(self.unexpected()),
                    };
                    StmtKind::Output(value)
                }
                Kind::BlockStart => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        break;
                    }
                    self.statement()?
                }
                Kind::End if ends.is_empty() => break,
                Kind::End => {
                    let message = format!("'{}' is missing", ends[ends.len() - 1]);
                    return Err(Error::new(message).at(line));
                }
                _ => return Err(self.unexpected()),
            };
            body.push(Stmt { line, kind });
        }
        self.depth -= 1;
        Ok(body)
    }

    /// A body and its end, `{% end %}`.
    fn body_to(&mut self, end: &str) -> Result<Vec<Stmt>, Error> {
        self.block_end()?;
        let body = self.body(&[end])?;
        self.expect_name(end)?;
        self.block_end()?;
        Ok(body)
    }

    fn statement(&mut self) -> Result<StmtKind, Error> {
        let name = self.name()?;
        match &*name {
            "for" => self.for_loop(),
            "if" => self.if_statement(),
            "set" => self.set(),
            "macro" => self.macro_statement(),
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filters_of_block()?;
                let body = self.body_to("endfilter")?;
                Ok(StmtKind::Filter { filters, body })
            }
            "with" => self.with(),
            "generation" => Ok(StmtKind::Generation(self.body_to("endgeneration")?)),
            "break" => self.block_end().map(|()| StmtKind::Break),
            "continue" => self.block_end().map(|()| StmtKind::Continue),
            _ => Err(Error::new(format!("there is no statement '{name}' here")).at(self.line())),
        }
    }

    fn for_loop(&mut self) -> Result<StmtKind, Error> {
        let target = self.targets()?;
        self.expect_name("in")?;
        let iterated = self.tuple_of(Self::or)?;
        let condition = match self.take_name("if") {
            true => Some(self.expr()?),
            false => None,
        };
        if self.is_name("recursive") {
            return Err(Error::new("recursive loops are not supported").at(self.line()));
        }
        self.block_end()?;
        let body = self.body(&["else", "endfor"])?;
        let mut otherwise = Vec::new();
        if self.take_name("else") {
            self.block_end()?;
            otherwise = self.body(&["endfor"])?;
        }
        self.expect_name("endfor")?;
        self.block_end()?;
        Ok(StmtKind::For(Box::new(For {
            target,
            iterated,
            condition,
            body,
            otherwise,
        })))
    }

    fn if_statement(&mut self) -> Result<StmtKind, Error> {
        let mut branches = Vec::new();
        let mut is_over = false;
        while !is_over {
            let test = self.tuple_of(Self::or)?;
            self.block_end()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push(Branch { test, body });
            is_over = !self.take_name("elif");
        }
        let mut otherwise = Vec::new();
        if self.take_name("else") {
            self.block_end()?;
            otherwise = self.body(&["endif"])?;
        }
        self.expect_name("endif")?;
        self.block_end()?;
        Ok(StmtKind::If {
            branches,
            otherwise,
        })
    }

    fn set(&mut self) -> Result<StmtKind, Error> {
        let target = self.targets()?;
        if self.take_op("=") {
            let value = self.tuple()?;
            self.block_end()?;
            return Ok(StmtKind::Set { target, value });
        }
        let filters = match self.is_op("|") {
            true => self.filters()?,
            false => Vec::new(),
        };
        let body = self.body_to("endset")?;
        Ok(StmtKind::SetBlock {
            target,
            filters,
            body,
        })
    }

    fn macro_statement(&mut self) -> Result<StmtKind, Error> {
        let name = self.name()?;
        let params = self.params()?;
        Ok(StmtKind::Macro(self.macro_of(name, params, "endmacro")?))
    }

    /// A macro's body, from the end of its tag on.
    fn macro_of(&mut self, name: Name, params: Vec<Param>, end: &str) -> Result<Arc<Macro>, Error> {
        let outer_varargs = mem::take(&mut self.uses_varargs);
        let outer_kwargs = mem::take(&mut self.uses_kwargs);
        let body = self.body_to(end)?;
        Ok(Arc::new(Macro {
            name,
            params,
            body,
            takes_varargs: mem::replace(&mut self.uses_varargs, outer_varargs),
            takes_kwargs: mem::replace(&mut self.uses_kwargs, outer_kwargs),
        }))
    }

    fn params(&mut self) -> Result<Vec<Param>, Error> {
        self.expect_op("(")?;
        let mut params = Vec::new();
        while !self.take_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            let default = match self.take_op("=") {
                true => Some(self.expr()?),
                false => None,
            };
            params.push(Param { name, default });
        }
        Ok(params)
    }

    fn call_block(&mut self) -> Result<StmtKind, Error> {
        let params = match self.is_op("(") {
            true => self.params()?,
            false => Vec::new(),
        };
        let line = self.line();
        let Expr::Postfix(callee, mut postfix) = self.unary(true)? else {
            return Err(Error::new("'call' needs a call").at(line));
        };
        let Some(Postfix::Call(args)) = postfix.pop() else {
            return Err(Error::new("'call' needs a call").at(line));
        };
        let caller = self.macro_of("caller".into(), params, "endcall")?;
        Ok(StmtKind::Call {
            callee: Expr::Postfix(callee, postfix),
            args,
            caller,
        })
    }

    fn with(&mut self) -> Result<StmtKind, Error> {
        let mut bindings = Vec::new();
        while !matches!(self.peek(), Kind::BlockEnd) {
            if !bindings.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target()?;
            self.expect_op("=")?;
            let value = self.expr()?;
            bindings.push(Binding { target, value });
        }
        let body = self.body_to("endwith")?;
        Ok(StmtKind::With { bindings, body })
    }

    /// One or several targets, separated by commas.
    fn targets(&mut self) -> Result<Target, Error> {
        let first = self.target()?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut all = Vec::from([first]);
        while self.take_op(",") {
            if !matches!(self.peek(), Kind::Name(_)) && !self.is_op("(") || self.is_name("in") {
                break;
            }
            all.push(self.target()?);
        }
        Ok(Target::Many(all))
    }

    fn target(&mut self) -> Result<Target, Error> {
        if self.take_op("(") {
            self.enter()?;
            let targets = self.targets()?;
            self.depth -= 1;
            self.expect_op(")")?;
            return Ok(targets);
        }
        let name = self.name()?;
        if matches!(
            &*name,
            "true" | "false" | "none" | "True" | "False" | "None"
        ) {
            return Err(Error::new(format!("cannot assign to '{name}'")).at(self.line()));
        }
        match self.take_op(".") {
            true => Ok(Target::Attribute(name, self.name()?)),
            false => Ok(Target::Name(name)),
        }
    }
}
