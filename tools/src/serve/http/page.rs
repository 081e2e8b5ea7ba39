//! The page's files, which are in the program.

use super::reply::Reply;

/// What the page is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Html,
    Css,
    Script,
}

impl Part {
    pub(super) fn reply(self) -> Reply {
        let (content, kind) = match self {
            Part::Html => (
                include_str!("../page/index.html"),
                "text/html; charset=utf-8",
            ),
            Part::Css => (include_str!("../page/page.css"), "text/css; charset=utf-8"),
            Part::Script => (
                include_str!("../page/page.js"),
                "text/javascript; charset=utf-8",
            ),
        };
        Reply::Page { content, kind }
    }
}

/// What the page may do: talk with this server, and nothing else.
pub(super) const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' data:; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";
