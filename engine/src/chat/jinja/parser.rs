//! Tokens to statements, by jinja2's grammar.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::Error;
use super::ast::{
    Args, BinaryOp, Binding, Branch, CompareOp, Comparison, Conditional, Expr, For, Macro, Name,
    Named, Operation, Pair, Param, Postfix, Slice, Stmt, StmtKind, Target,
};
use super::lexer::{Kind, Token};
use super::value::Value;

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
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple_of(Self::or)?;
            self.block_end()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push(Branch { test, body });
            if self.take_name("elif") {
                continue;
            }
            if self.take_name("else") {
                self.block_end()?;
                otherwise = self.body(&["endif"])?;
            }
            self.expect_name("endif")?;
            self.block_end()?;
            let branches = mem::take(&mut branches);
            return Ok(StmtKind::If {
                branches,
                otherwise,
            });
        }
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

    /// One expression, or several separated by commas, which are a tuple.
    fn tuple(&mut self) -> Result<Expr, Error> {
        self.tuple_of(Self::expr)
    }

    fn tuple_of(&mut self, element: fn(&mut Self) -> Result<Expr, Error>) -> Result<Expr, Error> {
        let first = element(self)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut all = Vec::from([first]);
        while self.take_op(",") {
            if self.ends_tuple() {
                break;
            }
            all.push(element(self)?);
        }
        Ok(Expr::Tuple(all))
    }

    fn ends_tuple(&self) -> bool {
        matches!(
            self.peek(),
            Kind::VariableEnd | Kind::BlockEnd | Kind::Op(")")
        )
    }

    /// An expression: `a if b else c`, or without the conditional.
    fn expr(&mut self) -> Result<Expr, Error> {
        let depth = self.depth;
        self.enter()?;
        let mut value = self.or()?;
        while self.take_name("if") {
            let test = self.or()?;
            let otherwise = match self.take_name("else") {
                true => Some(self.expr()?),
                false => None,
            };
            // Each is in the next.
            self.enter()?;
            value = Expr::If(Box::new(Conditional {
                test,
                value,
                otherwise,
            }));
        }
        self.depth = depth;
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr, Error> {
        let first = self.and()?;
        if !self.is_name("or") {
            return Ok(first);
        }
        let mut all = Vec::from([first]);
        while self.take_name("or") {
            all.push(self.and()?);
        }
        Ok(Expr::Or(all))
    }

    fn and(&mut self) -> Result<Expr, Error> {
        let first = self.not()?;
        if !self.is_name("and") {
            return Ok(first);
        }
        let mut all = Vec::from([first]);
        while self.take_name("and") {
            all.push(self.not()?);
        }
        Ok(Expr::And(all))
    }

    fn not(&mut self) -> Result<Expr, Error> {
        if !self.take_name("not") {
            return self.compare();
        }
        self.enter()?;
        let inner = self.not()?;
        self.depth -= 1;
        Ok(Expr::Not(Box::new(inner)))
    }

    fn compare(&mut self) -> Result<Expr, Error> {
        let first = self.sum()?;
        let mut comparisons = Vec::new();
        while let Some(op) = self.compare_op() {
            let with = self.sum()?;
            comparisons.push(Comparison { op, with });
        }
        Ok(match comparisons.is_empty() {
            true => first,
            false => Expr::Compare(Box::new(first), comparisons),
        })
    }

    fn compare_op(&mut self) -> Option<CompareOp> {
        let op = match self.peek() {
            Kind::Op("==") => CompareOp::Eq,
            Kind::Op("!=") => CompareOp::Ne,
            Kind::Op("<") => CompareOp::Lt,
            Kind::Op("<=") => CompareOp::Le,
            Kind::Op(">") => CompareOp::Gt,
            Kind::Op(">=") => CompareOp::Ge,
            Kind::Name(name) if name == "in" => CompareOp::In,
            Kind::Name(name) if name == "not" => {
                let next = self.tokens.get(self.pos + 1).map(|token| &token.kind);
                if !matches!(next, Some(Kind::Name(name)) if name == "in") {
                    return None;
                }
                self.next();
                CompareOp::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(op)
    }

    /// Operands with operators between them, where there are any.
    fn operations(
        &mut self,
        operand: fn(&mut Self) -> Result<Expr, Error>,
        op_of: fn(&str) -> Option<BinaryOp>,
    ) -> Result<Expr, Error> {
        let first = operand(self)?;
        let mut operations = Vec::new();
        while let Kind::Op(text) = self.peek()
            && let Some(op) = op_of(text)
        {
            self.next();
            let with = operand(self)?;
            operations.push(Operation { op, with });
        }
        Ok(match operations.is_empty() {
            true => first,
            false => Expr::Arithmetic(Box::new(first), operations),
        })
    }

    fn sum(&mut self) -> Result<Expr, Error> {
        self.operations(Self::concat, |text| match text {
            "+" => Some(BinaryOp::Add),
            "-" => Some(BinaryOp::Sub),
            _ => None,
        })
    }

    fn concat(&mut self) -> Result<Expr, Error> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut all = Vec::from([first]);
        while self.take_op("~") {
            all.push(self.product()?);
        }
        Ok(Expr::Concat(all))
    }

    fn product(&mut self) -> Result<Expr, Error> {
        self.operations(Self::power, |text| match text {
            "*" => Some(BinaryOp::Mul),
            "/" => Some(BinaryOp::Div),
            "//" => Some(BinaryOp::FloorDiv),
            "%" => Some(BinaryOp::Mod),
            _ => None,
        })
    }

    fn power(&mut self) -> Result<Expr, Error> {
        self.operations(
            |parser| parser.unary(true),
            |text| (text == "**").then_some(BinaryOp::Pow),
        )
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr, Error> {
        self.enter()?;
        let mut value = if self.take_op("-") {
            Expr::Negative(Box::new(self.unary(false)?))
        } else if self.take_op("+") {
            Expr::Positive(Box::new(self.unary(false)?))
        } else {
            self.primary()?
        };
        let mut postfix = Vec::new();
        while let Some(next) = self.access()? {
            postfix.push(next);
        }
        if with_filters {
            while let Some(next) = self.filter_or_test()? {
                postfix.push(next);
            }
        }
        if !postfix.is_empty() {
            value = Expr::Postfix(Box::new(value), postfix);
        }
        self.depth -= 1;
        Ok(value)
    }

    fn primary(&mut self) -> Result<Expr, Error> {
        let line = self.line();
        match self.peek() {
            Kind::Name(_) => {
                let name = self.name()?;
                self.uses_varargs |= &*name == "varargs";
                self.uses_kwargs |= &*name == "kwargs";
                Ok(match &*name {
                    "true" | "True" => Expr::Const(Value::Bool(true)),
                    "false" | "False" => Expr::Const(Value::Bool(false)),
                    "none" | "None" => Expr::Const(Value::None),
                    _ => Expr::Name(name),
                })
            }
            Kind::Str(_) => {
                let mut text = String::new();
                while let Kind::Str(_) = self.peek() {
                    if let Kind::Str(part) = self.next() {
                        text.push_str(&part);
                    }
                }
                Ok(Expr::Const(Value::Str(text.into())))
            }
            Kind::Int(n) => {
                let n = *n;
                self.next();
                Ok(Expr::Const(Value::Int(n)))
            }
            Kind::Float(x) => {
                let x = *x;
                self.next();
                Ok(Expr::Const(Value::Float(x)))
            }
            Kind::Op("(") => {
                self.next();
                if self.take_op(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let inner = self.tuple()?;
                self.expect_op(")")?;
                Ok(inner)
            }
            Kind::Op("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.take_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.take_op("]") {
                            break;
                        }
                    }
                    items.push(self.expr()?);
                }
                Ok(Expr::List(items))
            }
            Kind::Op("{") => self.dict(),
            _ => Err(self.unexpected().at(line)),
        }
    }

    fn dict(&mut self) -> Result<Expr, Error> {
        self.expect_op("{")?;
        let mut pairs = Vec::new();
        while !self.take_op("}") {
            if !pairs.is_empty() {
                self.expect_op(",")?;
                if self.take_op("}") {
                    break;
                }
            }
            let key = self.expr()?;
            self.expect_op(":")?;
            let value = self.expr()?;
            pairs.push(Pair { key, value });
        }
        Ok(Expr::Dict(pairs))
    }

    /// An attribute, an item or a call, if one follows.
    fn access(&mut self) -> Result<Option<Postfix>, Error> {
        if self.take_op(".") {
            if let Kind::Int(n) = self.peek() {
                let n = *n;
                self.next();
                return Ok(Some(Postfix::Item(Expr::Const(Value::Int(n)))));
            }
            return Ok(Some(Postfix::Attribute(self.name()?)));
        }
        if self.take_op("[") {
            let item = self.subscript()?;
            self.expect_op("]")?;
            return Ok(Some(item));
        }
        match self.is_op("(") {
            true => Ok(Some(Postfix::Call(self.args()?))),
            false => Ok(None),
        }
    }

    fn subscript(&mut self) -> Result<Postfix, Error> {
        let mut parts = [None, None, None];
        let mut n_colons = 0;
        while !self.is_op("]") {
            if self.take_op(":") {
                n_colons += 1;
                if n_colons == parts.len() {
                    return Err(self.unexpected());
                }
                continue;
            }
            if parts[n_colons].is_some() {
                return Err(self.unexpected());
            }
            parts[n_colons] = Some(self.expr()?);
        }
        let [start, stop, step] = parts;
        match (n_colons, start) {
            (0, Some(key)) => Ok(Postfix::Item(key)),
            (0, None) => Err(self.unexpected()),
            (_, start) => Ok(Postfix::Slice(Box::new(Slice { start, stop, step }))),
        }
    }

    fn args(&mut self) -> Result<Args, Error> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut is_first = true;
        while !self.take_op(")") {
            if !is_first {
                self.expect_op(",")?;
                if self.take_op(")") {
                    break;
                }
            }
            is_first = false;
            if self.take_op("*") {
                args.spread = Some(Box::new(self.expr()?));
            } else if self.take_op("**") {
                args.named_spread = Some(Box::new(self.expr()?));
            } else if matches!(self.peek(), Kind::Name(_))
                && matches!(self.tokens[self.pos + 1].kind, Kind::Op("="))
            {
                let name = self.name()?;
                self.next();
                let value = self.expr()?;
                args.named.push(Named { name, value });
            } else if args.named.is_empty() && args.named_spread.is_none() {
                args.positional.push(self.expr()?);
            } else {
                return Err(Error::new("a positional argument follows a named one").at(self.line()));
            }
        }
        Ok(args)
    }

    /// A filter, a test or a call of what they gave, if one follows.
    fn filter_or_test(&mut self) -> Result<Option<Postfix>, Error> {
        if self.take_op("|") {
            return Ok(Some(self.filter()?));
        }
        if self.take_name("is") {
            return Ok(Some(self.test()?));
        }
        match self.is_op("(") {
            true => Ok(Some(Postfix::Call(self.args()?))),
            false => Ok(None),
        }
    }

    /// A filter's name and arguments.
    fn filter(&mut self) -> Result<Postfix, Error> {
        let name = self.name()?;
        let args = match self.is_op("(") {
            true => self.args()?,
            false => Args::default(),
        };
        Ok(Postfix::Filter(name, args))
    }

    /// Filters, each after a bar.
    fn filters(&mut self) -> Result<Vec<Postfix>, Error> {
        let mut filters = Vec::new();
        while self.take_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    /// The filters of `{% filter a | b %}`.
    fn filters_of_block(&mut self) -> Result<Vec<Postfix>, Error> {
        let mut filters = Vec::from([self.filter()?]);
        filters.extend(self.filters()?);
        Ok(filters)
    }

    fn test(&mut self) -> Result<Postfix, Error> {
        let negated = self.take_name("not");
        let name = self.name()?;
        let mut args = Args::default();
        if self.is_op("(") {
            args = self.args()?;
        } else if self.starts_operand() {
            let mut value = self.primary()?;
            let mut postfix = Vec::new();
            while let Some(next) = self.access()? {
                postfix.push(next);
            }
            if !postfix.is_empty() {
                value = Expr::Postfix(Box::new(value), postfix);
            }
            args.positional.push(value);
        }
        Ok(Postfix::Test {
            name,
            args,
            negated,
        })
    }

    /// Whether what is next can be the argument of a test without brackets.
    fn starts_operand(&self) -> bool {
        match self.peek() {
            Kind::Name(name) => !matches!(&**name, "else" | "or" | "and" | "is"),
            Kind::Str(_) | Kind::Int(_) | Kind::Float(_) => true,
            Kind::Op(op) => matches!(*op, "(" | "[" | "{"),
            _ => false,
        }
    }
}
