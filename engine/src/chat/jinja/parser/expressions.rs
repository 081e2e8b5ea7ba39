//! The grammar of expressions.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::Parser;
use crate::chat::jinja::Error;
use crate::chat::jinja::ast::{
    Args, BinaryOp, CompareOp, Comparison, Conditional, Expr, Named, Operation, Pair, Postfix,
    Slice,
};
use crate::chat::jinja::lexer::Kind;
use crate::chat::jinja::value::Value;

impl Parser {
    /// One expression, or several separated by commas, which are a tuple.
    pub(super) fn tuple(&mut self) -> Result<Expr, Error> {
        self.tuple_of(Self::expr)
    }

    pub(super) fn tuple_of(
        &mut self,
        element: fn(&mut Self) -> Result<Expr, Error>,
    ) -> Result<Expr, Error> {
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
    pub(super) fn expr(&mut self) -> Result<Expr, Error> {
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

    pub(super) fn or(&mut self) -> Result<Expr, Error> {
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

    pub(super) fn unary(&mut self, with_filters: bool) -> Result<Expr, Error> {
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

    pub(super) fn args(&mut self) -> Result<Args, Error> {
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
    pub(super) fn filter(&mut self) -> Result<Postfix, Error> {
        let name = self.name()?;
        let args = match self.is_op("(") {
            true => self.args()?,
            false => Args::default(),
        };
        Ok(Postfix::Filter(name, args))
    }

    /// Filters, each after a bar.
    pub(super) fn filters(&mut self) -> Result<Vec<Postfix>, Error> {
        let mut filters = Vec::new();
        while self.take_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    /// The filters of `{% filter a | b %}`.
    pub(super) fn filters_of_block(&mut self) -> Result<Vec<Postfix>, Error> {
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
