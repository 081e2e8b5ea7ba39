//! What the parser makes of a template.
//!
//! Operators of one precedence, and what follows an operand (attributes, calls, filters), are lists and
//! not nodes in nodes, so that a long line is not a deep one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::value::Value;

pub(crate) type Name = Arc<str>;

#[derive(Debug, Clone)]
pub(crate) struct Stmt {
    pub line: u32,
    pub kind: StmtKind,
}

#[derive(Debug, Clone)]
pub(crate) enum StmtKind {
    /// Text as it is.
    Data(Name),
    /// `{{ expr }}`
    Output(Expr),
    For(Box<For>),
    If {
        branches: Vec<Branch>,
        otherwise: Vec<Stmt>,
    },
    Set {
        target: Target,
        value: Expr,
    },
    /// `{% set x %}...{% endset %}`, with filters.
    SetBlock {
        target: Target,
        filters: Vec<Postfix>,
        body: Vec<Stmt>,
    },
    Macro(Arc<Macro>),
    /// `{% call f() %}...{% endcall %}`
    Call {
        callee: Expr,
        args: Args,
        caller: Arc<Macro>,
    },
    /// `{% filter f %}...{% endfilter %}`
    Filter {
        filters: Vec<Postfix>,
        body: Vec<Stmt>,
    },
    With {
        bindings: Vec<Binding>,
        body: Vec<Stmt>,
    },
    /// `{% generation %}...{% endgeneration %}`, which only training looks at.
    Generation(Vec<Stmt>),
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub(crate) struct Branch {
    pub test: Expr,
    pub body: Vec<Stmt>,
}

#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub target: Target,
    pub value: Expr,
}

#[derive(Debug, Clone)]
pub(crate) struct For {
    pub target: Target,
    pub iterated: Expr,
    pub condition: Option<Expr>,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

/// What is assigned to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Name(Name),
    /// `ns.attribute`
    Attribute(Name, Name),
    Many(Vec<Target>),
}

#[derive(Debug)]
pub(crate) struct Macro {
    pub name: Name,
    pub params: Vec<Param>,
    pub body: Vec<Stmt>,
    /// Whether it takes more arguments than it names, as `varargs` or `kwargs`.
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub name: Name,
    pub default: Option<Expr>,
}

#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Const(Value),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<Pair>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `a < b <= c`
    Compare(Box<Expr>, Vec<Comparison>),
    /// Operators of one precedence, from left to right.
    Arithmetic(Box<Expr>, Vec<Operation>),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>),
    /// `value if test else otherwise`
    If(Box<Conditional>),
    Postfix(Box<Expr>, Vec<Postfix>),
}

#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub key: Expr,
    pub value: Expr,
}

#[derive(Debug, Clone)]
pub(crate) struct Conditional {
    pub test: Expr,
    pub value: Expr,
    pub otherwise: Option<Expr>,
}

#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    pub op: CompareOp,
    pub with: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub op: BinaryOp,
    pub with: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// What follows an operand.
#[derive(Debug, Clone)]
pub(crate) enum Postfix {
    /// `.name`
    Attribute(Name),
    /// `[key]`
    Item(Expr),
    /// `[start:stop:step]`
    Slice(Box<Slice>),
    /// `(args)`
    Call(Args),
    /// `| name(args)`
    Filter(Name, Args),
    /// `is name args`, `is not name args`
    Test {
        name: Name,
        args: Args,
        negated: bool,
    },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Slice {
    pub start: Option<Expr>,
    pub stop: Option<Expr>,
    pub step: Option<Expr>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<Named>,
    /// `*args`
    pub spread: Option<Box<Expr>>,
    /// `**kwargs`
    pub named_spread: Option<Box<Expr>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub name: Name,
    pub value: Expr,
}
