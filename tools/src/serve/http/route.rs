//! Paths, and what is there.

use super::page::Part;

/// A path, and what is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Route {
    Page(Part),
    Health,
    Models,
    Model,
    Props,
    Metrics,
    Chat,
    Completions,
    Tokenize,
    Detokenize,
    ApplyTemplate,
    Embeddings,
    OllamaVersion,
    OllamaTags,
    OllamaPs,
    OllamaShow,
    OllamaPull,
    OllamaChat,
    OllamaGenerate,
    OllamaOther,
    Unknown,
}

/// What is offered besides what is always there.
#[derive(Clone, Copy, Debug)]
pub(in crate::serve) struct Offers {
    pub page: bool,
    pub ollama: bool,
}

impl Offers {
    /// What is at a path.
    pub(super) fn route(self, path: &str) -> Route {
        match Route::of(path) {
            Route::Page(_) if !self.page => Route::Unknown,
            route if route.is_ollama() && !self.ollama => Route::Unknown,
            route => route,
        }
    }
}

impl Route {
    fn of(path: &str) -> Route {
        match path {
            "/" => Route::Page(Part::Html),
            "/page.css" => Route::Page(Part::Css),
            "/page.js" => Route::Page(Part::Script),
            "/health" | "/v1/health" => Route::Health,
            "/models" | "/v1/models" => Route::Models,
            "/props" => Route::Props,
            "/metrics" => Route::Metrics,
            "/chat/completions" | "/v1/chat/completions" => Route::Chat,
            "/completions" | "/v1/completions" => Route::Completions,
            "/tokenize" => Route::Tokenize,
            "/detokenize" => Route::Detokenize,
            "/apply-template" => Route::ApplyTemplate,
            "/embeddings" | "/v1/embeddings" => Route::Embeddings,
            "/api/version" => Route::OllamaVersion,
            "/api/tags" => Route::OllamaTags,
            "/api/ps" => Route::OllamaPs,
            "/api/show" => Route::OllamaShow,
            "/api/pull" => Route::OllamaPull,
            "/api/chat" => Route::OllamaChat,
            "/api/generate" => Route::OllamaGenerate,
            "/api/create" | "/api/delete" | "/api/copy" | "/api/push" | "/api/embed"
            | "/api/embeddings" => Route::OllamaOther,
            path if path.starts_with("/v1/models/") => Route::Model,
            path if path.starts_with("/api/blobs/") => Route::OllamaOther,
            _ => Route::Unknown,
        }
    }

    /// The path as metrics and the log name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Route::Page(_) => "/",
            Route::Health => "/health",
            Route::Models => "/v1/models",
            Route::Model => "/v1/models/{id}",
            Route::Props => "/props",
            Route::Metrics => "/metrics",
            Route::Chat => "/v1/chat/completions",
            Route::Completions => "/v1/completions",
            Route::Tokenize => "/tokenize",
            Route::Detokenize => "/detokenize",
            Route::ApplyTemplate => "/apply-template",
            Route::Embeddings => "/v1/embeddings",
            Route::OllamaVersion => "/api/version",
            Route::OllamaTags => "/api/tags",
            Route::OllamaPs => "/api/ps",
            Route::OllamaShow => "/api/show",
            Route::OllamaPull => "/api/pull",
            Route::OllamaChat => "/api/chat",
            Route::OllamaGenerate => "/api/generate",
            Route::OllamaOther => "/api/{other}",
            Route::Unknown => "{unknown}",
        }
    }

    pub(super) fn is_get(self) -> bool {
        matches!(
            self,
            Route::Page(_)
                | Route::Health
                | Route::Models
                | Route::Model
                | Route::Props
                | Route::Metrics
                | Route::OllamaVersion
                | Route::OllamaTags
                | Route::OllamaPs
        )
    }

    pub(super) fn is_ollama(self) -> bool {
        self.name().starts_with("/api/")
    }

    /// Whether nobody needs a key for it.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Route::Health | Route::Page(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_one_method() {
        assert_eq!(Route::of("/v1/models/a/b"), Route::Model);
        assert_eq!(Route::of("/v1/nothing"), Route::Unknown);
        assert_eq!(Route::of("/../etc/passwd"), Route::Unknown);
        assert!(Route::Health.is_open() && !Route::Metrics.is_open());
        let few = Offers {
            page: false,
            ollama: false,
        };
        for path in ["/", "/page.js", "/api/chat", "/api/blobs/x"] {
            assert_ne!(Route::of(path), Route::Unknown);
            assert_eq!(few.route(path), Route::Unknown);
        }
        assert_eq!(few.route("/v1/models"), Route::Models);
    }
}
